//! Which ports of Services are left to the node's stack, kept up one Service at a time: a cluster of thousands is not
//! looked through because one of them has changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::state;
use crate::desired::Desired;
use crate::object::Name;
use crate::plan::Installation;

/// A port that is left to the node's stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftState {
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
    /// Why.
    pub reason: String,
}

/// Those that are left now, and the Services to be looked at again.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftPorts {
    by_service: BTreeMap<Name, Vec<LeftState>>,
    stale: BTreeSet<Name>,
    revision: u64,
}

impl LeftPorts {
    /// A Service has been computed anew.
    pub fn touch(&mut self, service: &Name) {
        self.stale.insert(service.clone());
    }

    /// Notes whose tables and frontends are about to be resolved, and who claims those frontends beside them.
    pub fn mark(&mut self, desired: &Desired, installation: &Installation) {
        let tables = desired.dirty.tables.iter().chain(installation.unplaced.tables.keys());
        self.stale.extend(tables.map(|(port, _)| port.service.clone()));
        let claims = desired.dirty.frontends.iter().flat_map(|frontend| desired.claims(frontend));
        self.stale.extend(claims.map(|claim| claim.table.0.service.clone()));
    }

    /// Looks again at what was touched and marked.
    pub fn refresh(&mut self, desired: &Desired, installation: &Installation) {
        for service in std::mem::take(&mut self.stale) {
            let left = ports(desired, installation, &service);
            let old = if left.is_empty() {
                self.by_service.remove(&service)
            } else {
                self.by_service.insert(service, left.clone())
            };
            if old.unwrap_or_default() != left {
                self.revision += 1;
            }
        }
    }

    /// All of them, sorted by Service.
    pub fn list(&self) -> Vec<LeftState> {
        self.by_service.values().flatten().cloned().collect()
    }

    /// Raised with every change.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

fn ports(desired: &Desired, installation: &Installation, service: &Name) -> Vec<LeftState> {
    let ports = desired.service(service).into_iter().flat_map(|view| &view.ports);
    let left = ports.filter_map(|port| {
        let is_bare = state::is_bare(Some(installation), port);
        let reason = state::reason(desired, Some(installation), port, is_bare)?;
        Some(LeftState {
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            port_name: port.name.to_string(),
            port: port.key.port,
            protocol: port.key.protocol.name().to_owned(),
            reason,
        })
    });
    left.collect()
}
