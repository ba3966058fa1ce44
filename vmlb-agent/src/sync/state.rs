//! What the control plane tells people and the network side about services and backends.

use std::net::IpAddr;

use serde::Serialize;

use crate::desired::backend::BackendView;
use crate::desired::service::{PortView, ServiceView, Way};
use crate::desired::{Desired, Frontend, Side};
use crate::identity::Identity;
use crate::index::service::Left;
use crate::plan::Installation;

/// A frontend of a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FrontendState {
    /// Address a client uses.
    pub address: IpAddr,
    /// Port a client uses.
    pub port: u16,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceState {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port, empty for the only one.
    pub port_name: String,
    /// Port of the Service.
    pub port: u16,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Ids in map `services`: one, two where IPv4 and IPv6 have different backends, none where it is not served.
    pub ids: Vec<u32>,
    /// Frontends that are served.
    pub frontends: Vec<FrontendState>,
    /// Backends that new flows are given to.
    pub usable: usize,
    /// Backends that its EndpointSlices list, in any condition.
    pub listed: usize,
    /// Why the port is left to the node's stack; absent: it is served.
    pub reason: Option<String>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendState {
    /// Id in maps `backends_v4` and `backends_v6`.
    pub id: u32,
    /// UID of the VirtualMachineInstance or of the pod, or an address where neither is known.
    pub identity: String,
    /// Namespace of the VM or pod.
    pub namespace: String,
    /// Name of the VM or pod.
    pub name: String,
    /// Whether it is a VM.
    pub vm: bool,
    /// Node it runs on, empty if that is not known.
    pub node: String,
    /// Whether that is this node.
    pub local: bool,
    /// Where it is now: at most one address a family.
    pub addresses: Vec<IpAddr>,
    /// All addresses of its pods, during a migration those of both sides.
    pub pod_addresses: Vec<IpAddr>,
}

pub(super) fn service(
    desired: &Desired,
    installation: Option<&Installation>,
    view: &ServiceView,
    port: &PortView,
) -> ServiceState {
    let tables = [Side::First, Side::Second].map(|side| (port.key.clone(), side));
    let ids = tables.iter().filter_map(|table| installation?.service_id(table)).collect();
    let frontends: Vec<FrontendState> = served(installation, port)
        .map(|frontend| FrontendState { address: frontend.address, port: frontend.port })
        .collect();
    let chosen = port.tables().flat_map(|(_, table)| &table.choice);
    let usable: std::collections::BTreeSet<&Identity> = chosen.map(|chosen| &chosen.identity).collect();
    ServiceState {
        namespace: port.key.service.namespace.to_string(),
        name: port.key.service.name.to_string(),
        port_name: port.name.to_string(),
        port: port.key.port,
        protocol: port.key.protocol.name().to_owned(),
        ids,
        reason: reason(desired, installation, port, frontends.is_empty()),
        frontends,
        usable: usable.len(),
        listed: view.listings.len(),
    }
}

/// Whether nothing is served at any of the port's frontends.
pub(super) fn is_bare(installation: Option<&Installation>, port: &PortView) -> bool {
    served(installation, port).next().is_none()
}

fn served<'a>(
    installation: Option<&'a Installation>,
    port: &'a PortView,
) -> impl Iterator<Item = Frontend> + 'a {
    let is_served = move |way: &&Way| {
        let table = (port.key.clone(), way.side);
        let id = installation.and_then(|installation| installation.service_id(&table));
        id.is_some() && installation.and_then(|installation| installation.frontend(&way.frontend)) == id
    };
    port.frontends.iter().filter(is_served).map(|way| way.frontend).filter(|frontend| !frontend.is_foreign())
}

/// Why a port is left to the node's stack; `is_bare`: nothing is served at any of its frontends.
pub(super) fn reason(
    desired: &Desired,
    installation: Option<&Installation>,
    port: &PortView,
    is_bare: bool,
) -> Option<String> {
    if let Some(left) = &port.left {
        return Some(left.to_string());
    }
    for side in [Side::First, Side::Second] {
        let table = (port.key.clone(), side);
        if let Some(flag) = installation.and_then(|installation| installation.unplaced.tables.get(&table)) {
            return Some(Left::Full(flag).to_string());
        }
    }
    if !is_bare {
        return None;
    }
    let winners = port.frontends.iter().filter_map(|way| desired.claims(&way.frontend).next());
    let other = winners.map(|claim| &claim.table.0).find(|key| **key != port.key);
    match other {
        Some(other) => Some(Left::Claimed(other.service.clone()).to_string()),
        None if port.frontends.is_empty() => {
            Some("it has no node port and no address that is served here".to_owned())
        }
        None => None,
    }
}

pub(super) fn backend(id: u32, identity: &Identity, view: &BackendView) -> BackendState {
    BackendState {
        id,
        identity: identity.to_string(),
        namespace: view.namespace.to_string(),
        name: view.name.to_string(),
        vm: view.is_vm,
        node: view.present.node.as_deref().unwrap_or_default().to_owned(),
        local: view.present.is_local,
        addresses: view.present.addresses.keys().copied().collect(),
        pod_addresses: view.claims.keys().copied().collect(),
    }
}
