//! The Service contract as clients meet it: real nodes, real packets. `docs/contract.md` says which promise each test shows.

#[path = "contract/admission.rs"]
mod admission;
#[path = "contract/affinity.rs"]
mod affinity;
#[path = "contract/backends.rs"]
mod backends;
#[path = "contract/datagrams.rs"]
mod datagrams;
#[path = "contract/frontends.rs"]
mod frontends;
#[path = "contract/objects.rs"]
mod objects;
