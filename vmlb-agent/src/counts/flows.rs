//! How many flows there are, and whose.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use vmlb_common::abi::{Flow, FlowKey};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::wire::Protocol;

use super::{Family, flow_tables};
use crate::bpf::PinnedMap;
use crate::pins::PinRoot;

/// Which table a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Packets of both directions have proved it.
    Established,
    /// Not yet; others may take its place.
    Opening,
}

impl Stage {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Established, Self::Opening];

    /// The word for people and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Opening => "opening",
        }
    }
}

/// What flows are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowTotal {
    /// `IPv4`, `IPv6`.
    pub family: &'static str,
    /// Which table they are in.
    pub stage: Stage,
    /// `TCP`, `UDP`.
    pub protocol: &'static str,
}

/// Flows of a node at one moment.
#[derive(Clone, Debug, Default)]
pub struct FlowCounts {
    /// By family, stage and protocol; TCP and UDP are always there.
    pub totals: BTreeMap<FlowTotal, u64>,
    /// By service id; those in the tables of opening flows included.
    pub by_service: HashMap<u32, u64>,
    /// By backend id; those in the tables of opening flows included.
    pub by_backend: HashMap<u32, u64>,
    /// Entries of the tables of flows, and of those for opening flows, for each family.
    pub capacities: [[u32; 2]; 2],
}

impl FlowCounts {
    /// Counts. Costs a pass over the flow tables, about 0.1 µs a flow.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn read(root: &PinRoot) -> anyhow::Result<Self> {
        let mut counts = Self::default();
        for (place, stage) in Stage::ALL.into_iter().enumerate() {
            counts.capacities[0][place] = counts.add::<Address4>(root, stage)?;
            counts.capacities[1][place] = counts.add::<Address6>(root, stage)?;
        }
        Ok(counts)
    }

    fn add<F: Family>(&mut self, root: &PinRoot, stage: Stage) -> anyhow::Result<u32> {
        let map: PinnedMap<FlowKey<F>, Flow<F>> = PinnedMap::open(root, flow_tables::<F>(stage).0)?;
        let mut by_protocol: BTreeMap<u8, u64> =
            [Protocol::TCP, Protocol::UDP].map(|protocol| (protocol.number(), 0)).into();
        map.each(|key, flow| {
            *by_protocol.entry(key.protocol).or_insert(0) += 1;
            *self.by_service.entry(flow.service).or_insert(0) += 1;
            *self.by_backend.entry(flow.backend).or_insert(0) += 1;
            ControlFlow::Continue(())
        })?;
        for (number, count) in by_protocol {
            let total = FlowTotal { family: F::NAME, stage, protocol: Protocol::new(number).name() };
            *self.totals.entry(total).or_insert(0) += count;
        }
        Ok(map.entries())
    }

    /// Flows of a family and stage.
    #[must_use]
    pub fn total(&self, family: &str, stage: Stage) -> u64 {
        let totals = self.totals.iter();
        totals
            .filter(|(total, _)| total.family == family && total.stage == stage)
            .map(|(_, count)| count)
            .sum()
    }
}
