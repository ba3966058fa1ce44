//! A VM migrates while clients talk to it through vmlb: every connection goes on. The VM is a stand-in, so that this takes
//! seconds and runs anywhere; `vm_migration` does the same with a real one.

#[path = "migration/disturbed.rs"]
mod disturbed;
#[path = "migration/ends.rs"]
mod ends;
#[path = "migration/many.rs"]
mod many;
#[path = "migration/nodes.rs"]
mod nodes;
#[path = "migration/signals.rs"]
mod signals;
#[path = "migration/trial.rs"]
mod trial;
