//! A Pod, and a Node, as the control plane sees them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
    /// UID of the migration of which it is, or once was, the target.
    pub job: Option<Arc<str>>,
    /// Whether its containers are ready, whatever the readiness gates say; `None`: it does not say.
    pub contained: Option<bool>,
    /// The addresses of its node, as the pod says them.
    pub hosts: Hosts,
    /// When KubeVirt saw the VM run here after a migration, as the annotation says it (RFC 3339, which sorts).
    pub arrived: Option<Arc<str>>,
    /// How much of the new flows it gets beside others, see [`WEIGHT`].
    pub weight: u32,
}

/// Where a node is reached: its main address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Hosts {
    /// The first of each family.
    #[must_use]
    pub fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut hosts = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => hosts.v4 = hosts.v4.or(Some(address)),
                IpAddr::V6(address) => hosts.v6 = hosts.v6.or(Some(address)),
            }
        }
        hosts
    }

    /// These, and where there is none of a family, the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { v4: self.v4.or(other.v4), v6: self.v6.or(other.v6) }
    }

    /// The one of the family of `address`.
    #[must_use]
    pub fn beside(self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
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
