//! Metrics that are read from the maps. What costs a pass over the flow tables is looked at again only after a while
//! that is long against what it cost; the other maps are small.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Registry};
use vmlb_common::abi::{BackendName, ServiceName, Traffic, names};

use super::{counter_vec, gauge_vec};
use crate::bpf::PinnedMap;
use crate::counts::traffic::{TrafficMap, add};
use crate::counts::{Fill, FlowCounts, Outcome, fills, reasons, tries};
use crate::pins::PinRoot;
use crate::settings::text;

/// Flows are counted again after this time at the earliest,
const YOUNG: Duration = Duration::from_secs(5);
/// and after this many times what the last count cost: at most one part in fifty of a CPU.
const SHARE: u32 = 50;
/// The name in labels of those beyond the limit, together.
const OTHERS: &str = "(others)";

/// The maps as metrics.
#[derive(Debug)]
pub(super) struct Maps {
    root: PinRoot,
    detail: usize,
    last: Option<Look>,
}

/// A pass over the flow tables.
#[derive(Debug)]
struct Look {
    ended: Instant,
    cost: Duration,
    flows: FlowCounts,
    fills: Vec<Fill>,
}

impl Look {
    fn take(root: &PinRoot) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let flows = FlowCounts::read(root)?;
        let fills = fills(root, &flows)?;
        Ok(Self { ended: Instant::now(), cost: begun.elapsed(), flows, fills })
    }

    fn is_young(&self) -> bool {
        self.ended.elapsed() < YOUNG.max(self.cost * SHARE)
    }
}

/// Whose a series is.
type Owner = (String, String, &'static str);

impl Maps {
    pub fn new(root: &PinRoot, detail: usize) -> Self {
        Self { root: root.clone(), detail, last: None }
    }

    /// Everything that the maps tell.
    pub fn gather(&mut self) -> anyhow::Result<Vec<MetricFamily>> {
        let look = match self.last.take().filter(Look::is_young) {
            Some(look) => look,
            None => Look::take(&self.root)?,
        };
        let registry = Registry::new();
        of_tables(&registry, &look)?;
        self.of_reasons(&registry)?;
        self.of_searches(&registry)?;
        self.of_services(&registry, &look)?;
        self.of_backends(&registry, &look)?;
        self.last = Some(look);
        Ok(registry.gather())
    }

    fn of_reasons(&self, registry: &Registry) -> anyhow::Result<()> {
        let packets = counter_vec(
            registry,
            "vmlb_reason_packets_total",
            "Packets that were dropped, punted to the node's stack, deferred to TC, or served and worth counting, by reason.",
            &["reason", "outcome"],
        )?;
        for count in reasons::read(&self.root)? {
            let labels = [count.reason.name(), Outcome::of(count.reason).name()];
            packets.with_label_values(&labels).inc_by(count.packets);
        }
        Ok(())
    }

    fn of_searches(&self, registry: &Registry) -> anyhow::Result<()> {
        let searches = counter_vec(
            registry,
            "vmlb_snat_port_searches_total",
            "Searches for a SNAT port, by the most ports that they tried; `exhausted`: none of them was free.",
            &["tries"],
        )?;
        for count in tries::read(&self.root)? {
            searches.with_label_values(&[count.word()]).inc_by(count.searches);
        }
        Ok(())
    }

    fn of_services(&self, registry: &Registry, look: &Look) -> anyhow::Result<()> {
        let map: PinnedMap<u32, ServiceName> = PinnedMap::open(&self.root, names::SERVICE_NAMES)?;
        let mut owners = BTreeMap::new();
        map.each(|id, name| {
            owners.insert(id, (text(&name.namespace), text(&name.name), ""));
            ControlFlow::Continue(())
        })?;
        let flows = gauge_vec(
            registry,
            "vmlb_service_flows",
            "Flows of a Service, those that are opening included.",
            &["namespace", "service"],
        )?;
        let owners = limited(owners, self.detail);
        for ((namespace, name, _), count) in by_owner(&owners, &look.flows.by_service) {
            set(&flows, &[&namespace, &name], count);
        }
        Ok(())
    }

    fn of_backends(&self, registry: &Registry, look: &Look) -> anyhow::Result<()> {
        let map: PinnedMap<u32, BackendName> = PinnedMap::open(&self.root, names::BACKEND_NAMES)?;
        let mut owners = BTreeMap::new();
        map.each(|id, name| {
            let kind = if name.vm == 1 { "vm" } else { "pod" };
            owners.insert(id, (text(&name.namespace), text(&name.name), kind));
            ControlFlow::Continue(())
        })?;
        let end = owners.last_key_value().map_or(0, |(id, _)| id.saturating_add(1));
        let owners = limited(owners, self.detail);
        let labels = ["namespace", "backend", "kind"];
        let flows = gauge_vec(
            registry,
            "vmlb_backend_flows",
            "Flows of a VM or pod, those that are opening included.",
            &labels,
        )?;
        for ((namespace, name, kind), count) in by_owner(&owners, &look.flows.by_backend) {
            set(&flows, &[&namespace, &name, kind], count);
        }
        let mut sums: BTreeMap<&Owner, Traffic> = BTreeMap::new();
        for (id, traffic) in TrafficMap::open(&self.root)?.read(end)? {
            let Some(owner) = owners.get(&id) else { continue };
            let sum = sums.entry(owner).or_default();
            *sum = add(*sum, traffic);
        }
        let directed = ["namespace", "backend", "kind", "direction"];
        let packets = counter_vec(
            registry,
            "vmlb_backend_packets_total",
            "Packets of a VM or pod, by direction.",
            &directed,
        )?;
        let octets = counter_vec(
            registry,
            "vmlb_backend_bytes_total",
            "Octets of a VM or pod by direction, IP headers included.",
            &directed,
        )?;
        let opened =
            counter_vec(registry, "vmlb_backend_new_flows_total", "Flows opened to a VM or pod.", &labels)?;
        for ((namespace, name, kind), traffic) in sums {
            let to = [namespace.as_str(), name, kind, "request"];
            let from = [namespace.as_str(), name, kind, "reply"];
            count(&packets, &to, traffic.requests);
            count(&packets, &from, traffic.replies);
            count(&octets, &to, traffic.request_octets);
            count(&octets, &from, traffic.reply_octets);
            count(&opened, &to[..3], traffic.opened);
        }
        Ok(())
    }
}

fn of_tables(registry: &Registry, look: &Look) -> anyhow::Result<()> {
    let entries = gauge_vec(registry, "vmlb_map_entries", "Entries of a map that are in use.", &["map"])?;
    let capacity =
        gauge_vec(registry, "vmlb_map_capacity_entries", "Entries that a map was made for.", &["map"])?;
    for fill in &look.fills {
        set(&entries, &[fill.map], fill.entries);
        set(&capacity, &[fill.map], u64::from(fill.capacity));
    }
    let flows = gauge_vec(
        registry,
        "vmlb_flows",
        "Flows by family, protocol and state: established ones are proved by packets of both directions.",
        &["family", "protocol", "state"],
    )?;
    for (total, number) in &look.flows.totals {
        let family = total.family.to_lowercase();
        let protocol = total.protocol.to_lowercase();
        set(&flows, &[&family, &protocol, total.stage.name()], *number);
    }
    Ok(())
}

/// The owners of ids; beyond the first so many names, which are those with the lowest ids and so mostly the oldest, all
/// others are one.
fn limited(owners: BTreeMap<u32, Owner>, detail: usize) -> BTreeMap<u32, Owner> {
    let mut known = std::collections::BTreeSet::new();
    let owner = |(id, owner): (u32, Owner)| {
        if known.len() < detail || known.contains(&owner) {
            known.insert(owner.clone());
            return (id, owner);
        }
        (id, (String::new(), OTHERS.to_owned(), owner.2))
    };
    owners.into_iter().map(owner).collect()
}

/// Counts by id as counts by owner; owners without any have 0, ids without an owner are left out.
fn by_owner(owners: &BTreeMap<u32, Owner>, counts: &HashMap<u32, u64>) -> BTreeMap<Owner, u64> {
    let mut sums: BTreeMap<Owner, u64> = BTreeMap::new();
    for (id, owner) in owners {
        *sums.entry(owner.clone()).or_insert(0) += counts.get(id).copied().unwrap_or(0);
    }
    sums
}

fn set(gauges: &IntGaugeVec, labels: &[&str], value: u64) {
    gauges.with_label_values(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn count(counters: &IntCounterVec, labels: &[&str], value: u64) {
    counters.with_label_values(labels).inc_by(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        ("a".to_owned(), name.to_owned(), "vm")
    }

    #[test]
    fn beyond_the_limit_all_are_one_and_nothing_is_lost() {
        let owners: BTreeMap<u32, Owner> =
            [(1, owner("x")), (2, owner("y")), (3, owner("x")), (4, owner("z")), (5, owner("w"))].into();
        let counts: HashMap<u32, u64> = (1..=5).map(|id| (id, u64::from(id))).collect();
        let sums = by_owner(&limited(owners, 2), &counts);
        let others = (String::new(), OTHERS.to_owned(), "vm");
        assert_eq!(sums, BTreeMap::from([(owner("x"), 4), (owner("y"), 2), (others, 9)]));
    }
}
