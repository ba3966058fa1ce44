//! `vmlb backends`.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::IpAddr;
use std::ops::ControlFlow;

use clap::Args;
use serde::Serialize;
use vmlb_common::abi::{BackendName, ServiceName, TargetKey, Traffic, names};
use vmlb_common::wire::Protocol;

use super::print::{Listing, Row, Wide, answer};
use super::reach::{Reach, Reaches};
use super::shares::{Selections, percent};
use super::ways::{Place, places};
use super::{Output, Reading, backend_addresses, backend_names, few, help};
use crate::bpf::PinnedMap;
use crate::counts::FlowCounts;
use crate::counts::traffic::TrafficMap;
use crate::pins::PinRoot;
use crate::settings::text;
use crate::state::State;

/// Options of `vmlb backends`.
#[derive(Args, Clone, Debug)]
#[command(after_help = help("Examples:
  vmlb backends
  vmlb backends --watch 5
  vmlb backends --output json | jq '.[] | select(.flows > 0) | .name'

WEIGHT is what the VM asks for by annotation, 100 without it; SHARE is a backend's part of the selection tables it is in, so
of new flows to their Services (percent); one that finishes what it has, has none. FLOWS are those open now, NEW those since the backend came, PACKETS and BYTES in both directions (IP
headers included). WAYS (wide and JSON) says of each address by which way it is reached from here, and why."))]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub reading: Reading,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendRow {
    id: u32,
    /// `VM` or `pod`.
    kind: &'static str,
    namespace: String,
    name: String,
    /// UID of the VirtualMachineInstance or pod, or an address.
    uid: String,
    node: String,
    /// Where it is now; none: it is gone, flows may still name it.
    addresses: Vec<IpAddr>,
    targets: Vec<TargetRow>,
    /// 0 to 100; 0: no new flows.
    weight: u8,
    slots: usize,
    /// Percent of the tables it is in.
    share: f64,
    flows: u64,
    traffic: TrafficRow,
    /// How each of its addresses is reached.
    ways: Vec<Reach>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TargetRow {
    port: u16,
    protocol: &'static str,
    /// Ports of Services that name it.
    services: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TrafficRow {
    request_packets: u64,
    request_octets: u64,
    reply_packets: u64,
    reply_octets: u64,
    new_flows: u64,
}

/// Runs the command.
///
/// # Errors
/// When the maps cannot be read.
pub fn run(options: &Options) -> anyhow::Result<()> {
    answer(&options.reading, |root, out| list(root, out, &options.reading))
}

fn list(root: &PinRoot, out: &mut dyn Write, reading: &Reading) -> anyhow::Result<()> {
    let names = backend_names(root)?;
    let end = names.last_key_value().map_or(0, |(id, _)| id.saturating_add(1));
    let mut reader = Reader {
        addresses: backend_addresses(root)?,
        places: places(root)?,
        // A listing for a glance does without asking for a route per backend.
        reaches: if reading.output == Output::Table {
            None
        } else {
            Some(Reaches::open(root, State::read(root).as_ref())?)
        },
        targets: targets(root)?,
        slots: slots(root)?,
        flows: FlowCounts::read(root)?.by_backend,
        traffic: TrafficMap::open(root)?.read(end)?,
    };
    let mut listing = Listing::begin::<BackendRow>(out, reading);
    for (id, name) in &names {
        listing.row(&reader.row(*id, name)?)?;
    }
    listing.end()
}

struct Reader {
    addresses: HashMap<u32, Vec<IpAddr>>,
    places: HashMap<u32, Vec<Place>>,
    reaches: Option<Reaches>,
    targets: HashMap<u32, Vec<TargetRow>>,
    slots: HashMap<u32, Slots>,
    flows: HashMap<u32, u64>,
    traffic: BTreeMap<u32, Traffic>,
}

impl Reader {
    fn row(&mut self, id: u32, name: &BackendName) -> anyhow::Result<BackendRow> {
        let places = self.places.get(&id).into_iter().flatten();
        let ways = self.reaches.iter().flat_map(|reaches| places.clone().map(|place| reaches.of(place)));
        let ways = ways.collect::<anyhow::Result<_>>()?;
        let slots = self.slots.get(&id).copied().unwrap_or_default();
        let traffic = self.traffic.get(&id).copied().unwrap_or_default();
        let mut targets = self.targets.remove(&id).unwrap_or_default();
        targets.sort_unstable_by_key(|target| (target.port, target.protocol));
        Ok(BackendRow {
            id,
            kind: if name.vm == 1 { "VM" } else { "pod" },
            namespace: text(&name.namespace),
            name: text(&name.name),
            uid: text(&name.uid),
            node: text(&name.node),
            addresses: self.addresses.remove(&id).unwrap_or_default(),
            targets,
            weight: name.weight,
            slots: slots.own,
            share: percent(slots.own, slots.all),
            flows: self.flows.get(&id).copied().unwrap_or(0),
            traffic: TrafficRow {
                request_packets: traffic.requests,
                request_octets: traffic.request_octets,
                reply_packets: traffic.replies,
                reply_octets: traffic.reply_octets,
                new_flows: traffic.opened,
            },
            ways,
        })
    }
}

fn targets(root: &PinRoot) -> anyhow::Result<HashMap<u32, Vec<TargetRow>>> {
    let map: PinnedMap<TargetKey, u32> = PinnedMap::open(root, names::TARGETS)?;
    let mut targets: HashMap<u32, Vec<TargetRow>> = HashMap::new();
    map.each(|key, services| {
        let protocol = Protocol::new(key.protocol).name();
        let row = TargetRow { port: key.port, protocol, services: *services };
        targets.entry(key.backend).or_default().push(row);
        ControlFlow::Continue(())
    })?;
    Ok(targets)
}

/// A backend's slots, and all of the tables it is in.
#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    own: usize,
    all: usize,
}

fn slots(root: &PinRoot) -> anyhow::Result<HashMap<u32, Slots>> {
    let map: PinnedMap<u32, ServiceName> = PinnedMap::open(root, names::SERVICE_NAMES)?;
    let selections = Selections::open(root)?;
    let mut sums: HashMap<u32, Slots> = HashMap::new();
    for (id, _) in map.all()? {
        let selection = selections.read(id)?;
        let mut last = None;
        // Sorted by backend: one with several ports in a table is in it once.
        for (target, slots) in &selection.targets {
            let sum = sums.entry(target.backend).or_default();
            sum.own += slots;
            if last.replace(target.backend) != Some(target.backend) {
                sum.all += selection.size;
            }
        }
    }
    Ok(sums)
}

impl Row for BackendRow {
    fn heads(wide: Wide) -> Vec<&'static str> {
        let mut heads = vec![
            "ID",
            "KIND",
            "NAME",
            "NODE",
            "ADDRESSES",
            "TARGETS",
            "WEIGHT",
            "SHARE",
            "FLOWS",
            "NEW",
            "PACKETS",
            "BYTES",
        ];
        if wide == Wide::Yes {
            heads.extend([
                "SLOTS",
                "REQUEST-PACKETS",
                "REPLY-PACKETS",
                "REQUEST-BYTES",
                "REPLY-BYTES",
                "UID",
                "WAYS",
            ]);
        }
        heads
    }

    fn cells(&self, wide: Wide) -> Vec<String> {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let targets: Vec<String> =
            self.targets.iter().map(|target| format!("{}/{}", target.port, target.protocol)).collect();
        let most = if wide == Wide::Yes { usize::MAX } else { 3 };
        let traffic = &self.traffic;
        let mut cells = vec![
            self.id.to_string(),
            self.kind.to_owned(),
            format!("{}/{}", self.namespace, self.name),
            self.node.clone(),
            addresses.join(","),
            few(&targets, most),
            self.weight.to_string(),
            format!("{:.1}", self.share),
            self.flows.to_string(),
            traffic.new_flows.to_string(),
            traffic.request_packets.wrapping_add(traffic.reply_packets).to_string(),
            traffic.request_octets.wrapping_add(traffic.reply_octets).to_string(),
        ];
        if wide == Wide::Yes {
            cells.extend([
                self.slots.to_string(),
                traffic.request_packets.to_string(),
                traffic.reply_packets.to_string(),
                traffic.request_octets.to_string(),
                traffic.reply_octets.to_string(),
                self.uid.clone(),
                self.ways.iter().map(Reach::to_string).collect::<Vec<_>>().join("; "),
            ]);
        }
        cells
    }
}
