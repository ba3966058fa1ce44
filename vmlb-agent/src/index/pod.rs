//! A Pod, and a Node, as the control plane sees them.

use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::object::Name;

/// A pod; a virt-launcher's carries a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: Name,
    /// Its UID.
    pub uid: Arc<str>,
    /// What it is as a backend. `None`: it shares its node's addresses (`hostNetwork`) and is known by them.
    pub identity: Option<Identity>,
    /// The VM it carries.
    pub vm: Option<Arc<str>>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When it was made, seconds since 1970; `i64::MIN` where that is not known.
    pub created: i64,
    /// It has ended: its addresses may already belong to another.
    pub finished: bool,
    /// When KubeVirt saw the VM run here after a migration, as the annotation says it (RFC 3339, which sorts).
    pub arrived: Option<Arc<str>>,
    /// How much of the new flows it gets beside others, see [`WEIGHT`].
    pub weight: u32,
}

/// The weight of a backend that has none of its own, and the largest there is: one VM may be given less than the others
/// without a word about them. 0: no new flows.
pub const WEIGHT: u32 = 100;

impl Pod {
    /// Sorts the pods of one VM: the last is where it runs. A migration's target is the younger pod and becomes the
    /// right one only when KubeVirt says that the VM has arrived there (KUBEVIRT §2: readiness comes too late or too
    /// early), so without that word the oldest pod counts.
    #[must_use]
    pub fn precedence(&self) -> (Option<Arc<str>>, std::cmp::Reverse<i64>, std::cmp::Reverse<Name>) {
        (self.arrived.clone(), std::cmp::Reverse(self.created), std::cmp::Reverse(self.name.clone()))
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Its addresses of type InternalIP: the main ones.
    pub addresses: Vec<IpAddr>,
    /// It is being deleted, or the cluster autoscaler is about to: it should get no new clients.
    pub leaving: bool,
}
