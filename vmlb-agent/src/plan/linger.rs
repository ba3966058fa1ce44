//! What is gone from the objects and still named by flows: ids of backends are not given to others, and gate bits of
//! frontends and targets stay set, so that established flows go on as conntrack's would.

use std::collections::BTreeSet;

use vmlb_common::abi::{Gate, TargetKey};

use super::Installation;
use super::gate::Gates;
use crate::desired::Frontend;
use crate::identity::Identity;
use crate::tables::InFlows;

/// What may still be named by flows. Frontends and targets that are here hold their bits of the gate.
#[derive(Clone, Debug, Default)]
pub(super) struct Lingering {
    pub backends: BTreeSet<Identity>,
    /// Backend ids without a name.
    pub blocked: BTreeSet<u32>,
    frontends: BTreeSet<Frontend>,
    targets: BTreeSet<TargetKey>,
}

impl Lingering {
    /// Takes over what flows name: nothing else may be left to tell of it.
    pub fn adopt(in_flows: &InFlows, gates: &mut Gates) -> Self {
        for frontend in &in_flows.frontends {
            gates.want_port(Gate::FRONTEND_PORTS, frontend.port);
            gates.want_address(Gate::FRONTEND_ADDRESSES, frontend.address);
        }
        for target in &in_flows.targets {
            gates.want_port(Gate::TARGET_PORTS, target.port);
        }
        Self { frontends: in_flows.frontends.clone(), targets: in_flows.targets.clone(), ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        self.backends.is_empty()
            && self.blocked.is_empty()
            && self.frontends.is_empty()
            && self.targets.is_empty()
    }

    /// A frontend comes; one that lingers has its bits already.
    pub fn open_frontend(&mut self, frontend: Frontend, gates: &mut Gates) {
        if !self.frontends.remove(&frontend) {
            gates.want_port(Gate::FRONTEND_PORTS, frontend.port);
            gates.want_address(Gate::FRONTEND_ADDRESSES, frontend.address);
        }
    }

    /// A frontend goes; its bits stay until no flow names it.
    pub fn close_frontend(&mut self, frontend: Frontend) {
        self.frontends.insert(frontend);
    }

    /// A target comes.
    pub fn open_target(&mut self, target: TargetKey, gates: &mut Gates) {
        if !self.targets.remove(&target) {
            gates.want_port(Gate::TARGET_PORTS, target.port);
        }
    }

    /// A target goes; its bit lets replies of its flows through until there are none.
    pub fn close_target(&mut self, target: TargetKey) {
        self.targets.insert(target);
    }

    fn lower(&mut self, in_flows: &InFlows, gates: &mut Gates) {
        for frontend in self.frontends.difference(&in_flows.frontends) {
            gates.drop_port(Gate::FRONTEND_PORTS, frontend.port);
            gates.drop_address(Gate::FRONTEND_ADDRESSES, frontend.address);
        }
        self.frontends.retain(|frontend| in_flows.frontends.contains(frontend));
        for target in self.targets.difference(&in_flows.targets) {
            gates.drop_port(Gate::TARGET_PORTS, target.port);
        }
        self.targets.retain(|target| in_flows.targets.contains(target));
    }
}

impl Installation {
    /// Whether anything waits for its flows to end.
    #[must_use]
    pub fn is_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Gives back what no flow names any more: the ids of backends that are gone, and the gate's bits.
    pub fn recycle(&mut self, in_flows: &InFlows) {
        let ids = &self.backend_ids;
        let done = |identity: &&Identity| ids.get(identity).is_none_or(|id| !in_flows.backends.contains(&id));
        let done: Vec<Identity> = self.lingering.backends.iter().filter(done).cloned().collect();
        for identity in done {
            self.lingering.backends.remove(&identity);
            if let Some(id) = self.backend_ids.release(&identity) {
                self.backend_names.want(id, None);
            }
        }
        for id in self.lingering.blocked.difference(&in_flows.backends) {
            self.backend_ids.unblock(*id);
        }
        self.lingering.blocked.retain(|id| in_flows.backends.contains(id));
        self.lingering.lower(in_flows, &mut self.gates);
    }
}
