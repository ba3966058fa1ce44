//! The watch of an API server, against one that does what the script says. Whatever happens to the stream, what is
//! installed stays, and afterwards the tables hold what the server's objects call for, without an idle write.

#[path = "../control_plane/walk.rs"]
#[allow(dead_code, reason = "only what maps mean is used here")]
mod walk;

#[path = "kube_source/stage.rs"]
mod stage;

#[path = "kube_source/faults.rs"]
mod faults;

#[path = "kube_source/replaced.rs"]
mod replaced;

#[path = "kube_source/wander.rs"]
mod wander;

#[path = "kube_source/questions.rs"]
mod questions;
