//! An EndpointSlice as the control plane sees it.

use std::net::IpAddr;
use std::sync::Arc;

use vmlb_common::wire::Protocol;

use crate::object::Name;

/// Some of a Service's endpoints, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its name.
    pub name: Name,
    /// The Service it belongs to, in the same namespace.
    pub service: Name,
    /// Whether its addresses are IPv6.
    pub family: Family,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// `addressType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A port that every endpoint of the slice listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: Arc<str>,
    /// The port on the endpoint.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// One endpoint. Of several addresses the first counts, as for kube-proxy: they are meant to be the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Takes new flows.
    pub ready: bool,
    /// Answers, even if it is on its way out.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Whom it is meant for. `None`: for everybody.
    pub hints: Option<Box<Hints>>,
    /// The pod behind it.
    pub pod: Option<PodTarget>,
}

/// Whom an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hints {
    /// Nodes.
    pub nodes: Vec<Arc<str>>,
    /// Zones.
    pub zones: Vec<Arc<str>>,
}

/// A `targetRef` that is a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodTarget {
    /// The pod's name.
    pub name: Name,
    /// Its UID, empty where the reference does not say.
    pub uid: Arc<str>,
}
