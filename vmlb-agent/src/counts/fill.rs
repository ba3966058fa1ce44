//! How full the tables are.

use std::ops::ControlFlow;

use vmlb_common::abi::{BackendName, Frontend, FrontendKey, Pod, Service, ServiceName, TargetKey, names};
use vmlb_common::family::{Address4, Address6};

use super::{Family, FlowCounts, Stage, own};
use crate::bpf::{PinnedMap, Plain};
use crate::pins::PinRoot;
use crate::tables::selection_of;

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The map.
    pub map: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// Entries it was made for.
    pub capacity: u32,
}

/// The tables that can fill up. Costs a pass over the tables of the control plane (not over the slots: what Services
/// point at is added up); `flows` are counted already.
///
/// # Errors
/// When a table cannot be read.
pub fn fills(root: &PinRoot, flows: &FlowCounts) -> anyhow::Result<Vec<Fill>> {
    let mut fills = vec![
        fill::<u32, ServiceName>(root, names::SERVICE_NAMES)?,
        slots(root)?,
        fill::<u32, BackendName>(root, names::BACKEND_NAMES)?,
        fill::<TargetKey, u32>(root, names::TARGETS)?,
    ];
    family::<Address4>(root, flows, &mut fills)?;
    family::<Address6>(root, flows, &mut fills)?;
    Ok(fills)
}

fn family<F: Family + Plain>(root: &PinRoot, flows: &FlowCounts, fills: &mut Vec<Fill>) -> anyhow::Result<()>
where
    FrontendKey<F>: Plain,
{
    fills.push(fill::<FrontendKey<F>, Frontend>(root, own::<F>(names::FRONTENDS))?);
    fills.push(fill::<F, Pod>(root, own::<F>(names::PODS))?);
    for (place, stage) in Stage::ALL.into_iter().enumerate() {
        let map = super::flow_tables::<F>(stage).0;
        let capacity = flows.capacities[F::PLACE][place];
        fills.push(Fill { map, entries: flows.total(F::NAME, stage), capacity });
    }
    Ok(())
}

fn fill<K: Plain + std::fmt::Debug, V: Plain>(root: &PinRoot, name: &'static str) -> anyhow::Result<Fill> {
    let map: PinnedMap<K, V> = PinnedMap::open(root, name)?;
    let mut entries = 0;
    map.each(|_, _| {
        entries += 1;
        ControlFlow::Continue(())
    })?;
    Ok(Fill { map: name, entries, capacity: map.entries() })
}

fn slots(root: &PinRoot) -> anyhow::Result<Fill> {
    let services: PinnedMap<u32, Service> = PinnedMap::open(root, names::SERVICES)?;
    let slots: PinnedMap<u32, vmlb_common::abi::Target> = PinnedMap::open(root, names::SLOTS)?;
    let mut entries = 0;
    services.each(|_, service| {
        entries += selection_of(service).map_or(0, |selection| u64::from(selection.size));
        ControlFlow::Continue(())
    })?;
    Ok(Fill { map: names::SLOTS, entries, capacity: slots.entries() })
}
