//! `vmlb services`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use clap::Args;
use serde::Serialize;
use vmlb_common::abi::{
    BackendName, Frontend, FrontendFlags, FrontendKey, RangeKey, ServiceFlags, ServiceName, names,
};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::wire::Protocol;

use super::print::{Listing, Row, Wide, answer};
use super::shares::{Selection, Selections, percent};
use super::{Reading, backend_addresses, backend_label, backend_names, few, help};
use crate::bpf::{PinnedMap, Plain};
use crate::counts::{Family, own};
use crate::facts::Cidr;
use crate::pins::PinRoot;
use crate::settings::text;
use crate::state::State;
use crate::sync::LeftState;

/// Options of `vmlb services`.
#[derive(Args, Clone, Debug)]
#[command(after_help = help("Examples:
  vmlb services
  vmlb services --output wide
  vmlb services --output json | jq '.[] | select(.reason)'

A row is a port of a Service; there are two of a port whose backends differ between IPv4 and IPv6. Backends are shown with
their share of the selection table, so of new flows. The last column tells why a port is left to the node's stack, as the
agent last said."))]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub reading: Reading,
}

/// One port of a Service.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceRow {
    /// Index into map `services`; absent: left to the stack.
    id: Option<u32>,
    namespace: String,
    name: String,
    port_name: String,
    port: u16,
    protocol: String,
    flags: Vec<&'static str>,
    /// Seconds for which a client stays with a backend after its last new flow; 0: it does not.
    affinity: u32,
    /// Blocks of clients that restricted frontends admit.
    source_ranges: Vec<Cidr>,
    frontends: Vec<FrontendRow>,
    backends: Vec<BackendRow>,
    slots: usize,
    /// Why it is left to the stack, as the agent said `reasonAge` seconds ago.
    reason: Option<String>,
    reason_age: Option<u64>,
}

#[derive(Clone, Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct FrontendRow {
    address: IpAddr,
    port: u16,
    /// Only clients in the source ranges are admitted.
    restricted: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendRow {
    id: u32,
    name: String,
    node: String,
    vm: bool,
    addresses: Vec<IpAddr>,
    port: u16,
    slots: usize,
    /// Percent of the slots.
    share: f64,
}

/// Runs the command.
///
/// # Errors
/// When the maps cannot be read.
pub fn run(options: &Options) -> anyhow::Result<()> {
    answer(&options.reading, |root, out| list(root, out, &options.reading))
}

/// Names are read and sorted first; tables one at a time, as their rows are written.
fn list(root: &PinRoot, out: &mut dyn Write, reading: &Reading) -> anyhow::Result<()> {
    let map: PinnedMap<u32, ServiceName> = PinnedMap::open(root, names::SERVICE_NAMES)?;
    let mut ports: Vec<Port> = map.all()?.into_iter().map(Port::served).collect();
    let served: HashSet<Key> = ports.iter().map(|port| port.key.clone()).collect();
    if let Some(state) = State::read(root) {
        let age = state.age().as_secs();
        // The maps are newer than the file.
        let left = state.left.into_iter().map(|left| Port::left(left, age));
        ports.extend(left.filter(|port| !served.contains(&port.key)));
    }
    ports.sort_by(|one, other| (&one.key, one.id).cmp(&(&other.key, other.id)));
    let mut reader = Reader::open(root)?;
    let mut listing = Listing::begin::<ServiceRow>(out, reading);
    for port in ports {
        listing.row(&reader.row(port)?)?;
    }
    listing.end()
}

/// Namespace, name, port, protocol.
type Key = (String, String, u16, &'static str);

struct Port {
    key: Key,
    port_name: String,
    id: Option<u32>,
    reason: Option<(String, u64)>,
}

impl Port {
    fn served((id, name): (u32, ServiceName)) -> Self {
        let protocol = Protocol::new(name.protocol).name();
        Self {
            key: (text(&name.namespace), text(&name.name), name.port, protocol),
            port_name: text(&name.port_name),
            id: Some(id),
            reason: None,
        }
    }

    fn left(left: LeftState, age: u64) -> Self {
        let known = [Protocol::TCP, Protocol::UDP, Protocol::SCTP].map(Protocol::name);
        let protocol = known.into_iter().find(|name| *name == left.protocol).unwrap_or("?");
        Self {
            key: (left.namespace, left.name, left.port, protocol),
            port_name: left.port_name,
            id: None,
            reason: Some((left.reason, age)),
        }
    }
}

struct Reader {
    selections: Selections,
    names: BTreeMap<u32, BackendName>,
    addresses: HashMap<u32, Vec<IpAddr>>,
    frontends: HashMap<u32, Vec<FrontendRow>>,
    ranges: HashMap<u32, Vec<Cidr>>,
}

impl Reader {
    fn open(root: &PinRoot) -> anyhow::Result<Self> {
        let mut frontends = HashMap::new();
        add_frontends::<Address4>(root, &mut frontends)?;
        add_frontends::<Address6>(root, &mut frontends)?;
        let mut ranges = HashMap::new();
        add_ranges::<Address4>(root, &mut ranges)?;
        add_ranges::<Address6>(root, &mut ranges)?;
        Ok(Self {
            selections: Selections::open(root)?,
            names: backend_names(root)?,
            addresses: backend_addresses(root)?,
            frontends,
            ranges,
        })
    }

    fn row(&mut self, port: Port) -> anyhow::Result<ServiceRow> {
        let selection = port.id.map(|id| self.selections.read(id)).transpose()?;
        let mut frontends = port.id.and_then(|id| self.frontends.remove(&id)).unwrap_or_default();
        frontends.sort_unstable();
        let mut source_ranges = port.id.and_then(|id| self.ranges.remove(&id)).unwrap_or_default();
        source_ranges.sort_unstable();
        let (namespace, name, number, protocol) = port.key;
        let (reason, reason_age) = port.reason.unzip();
        Ok(ServiceRow {
            id: port.id,
            namespace,
            name,
            port_name: port.port_name,
            port: number,
            protocol: protocol.to_owned(),
            flags: selection.as_ref().map(|selection| flags(selection.flags)).unwrap_or_default(),
            affinity: selection.as_ref().map_or(0, |selection| selection.affinity),
            source_ranges,
            frontends,
            backends: selection.as_ref().map(|selection| self.backends(selection)).unwrap_or_default(),
            slots: selection.map_or(0, |selection| selection.size),
            reason,
            reason_age,
        })
    }

    fn backends(&self, selection: &Selection) -> Vec<BackendRow> {
        let row = |(target, slots): (&vmlb_common::abi::Target, &usize)| {
            let name = self.names.get(&target.backend);
            BackendRow {
                id: target.backend,
                name: backend_label(&self.names, target.backend),
                node: name.map(|name| text(&name.node)).unwrap_or_default(),
                vm: name.is_some_and(|name| name.vm == 1),
                addresses: self.addresses.get(&target.backend).cloned().unwrap_or_default(),
                port: target.port,
                slots: *slots,
                share: percent(*slots, selection.size),
            }
        };
        selection.targets.iter().map(row).collect()
    }
}

fn add_frontends<F: Family>(
    root: &PinRoot,
    by_service: &mut HashMap<u32, Vec<FrontendRow>>,
) -> anyhow::Result<()>
where
    FrontendKey<F>: Plain,
{
    let map: PinnedMap<FrontendKey<F>, Frontend> = PinnedMap::open(root, own::<F>(names::FRONTENDS))?;
    map.each(|key, value| {
        // What comes by the tunnel to other nodes' node ports is no address that a client could use here.
        if key.address.ip().is_unspecified() {
            return ControlFlow::Continue(());
        }
        let restricted = value.flags & FrontendFlags::RANGES != 0;
        let row = FrontendRow { address: key.address.ip(), port: key.port, restricted };
        by_service.entry(value.service).or_default().push(row);
        ControlFlow::Continue(())
    })
}

fn add_ranges<F: Family>(root: &PinRoot, by_service: &mut HashMap<u32, Vec<Cidr>>) -> anyhow::Result<()>
where
    RangeKey<F>: Plain,
{
    let map: PinnedMap<RangeKey<F>, u32> = PinnedMap::open(root, own::<F>(names::RANGES))?;
    map.each(|key, _| {
        let bits = u8::try_from(key.length.saturating_sub(32)).unwrap_or(u8::MAX);
        let block = Cidr::new(key.block.client.ip(), bits);
        by_service.entry(key.block.service).or_default().extend(block);
        ControlFlow::Continue(())
    })
}

fn flags(bits: u32) -> Vec<&'static str> {
    let words = [
        (ServiceFlags::LOCAL, "local"),
        (ServiceFlags::DROP_IF_EMPTY, "drop-if-empty"),
        (ServiceFlags::RANDOM, "random"),
    ];
    words.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| word).collect()
}

impl Row for ServiceRow {
    fn heads(wide: Wide) -> Vec<&'static str> {
        let mut heads = vec!["SERVICE", "PORT", "FRONTENDS", "BACKENDS"];
        if wide == Wide::Yes {
            heads.extend(["NAME", "ID", "SLOTS", "FLAGS", "AFFINITY", "ADMITS"]);
        }
        heads.push("LEFT-TO-STACK");
        heads
    }

    fn cells(&self, wide: Wide) -> Vec<String> {
        let most = if wide == Wide::Yes { usize::MAX } else { 2 };
        let frontends: Vec<String> = self
            .frontends
            .iter()
            .map(|frontend| SocketAddr::new(frontend.address, frontend.port).to_string())
            .collect();
        let backends: Vec<String> = self.backends.iter().map(|backend| backend.cell(wide)).collect();
        let backends = if backends.is_empty() && self.reason.is_none() {
            "none-usable".to_owned()
        } else {
            few(&backends, most)
        };
        let age = self.reason_age.unwrap_or_default();
        let reason = self.reason.as_ref().map(|reason| format!("{reason} (as of {age} s ago)"));
        let mut cells = vec![
            format!("{}/{}", self.namespace, self.name),
            format!("{}/{}", self.port, self.protocol),
            few(&frontends, most),
            backends,
        ];
        if wide == Wide::Yes {
            let id = self.id.map(|id| id.to_string()).unwrap_or_default();
            cells.extend([self.port_name.clone(), id, self.slots.to_string(), self.flags.join(",")]);
            let affinity = if self.affinity == 0 { String::new() } else { format!("{}s", self.affinity) };
            let ranges: Vec<String> = self.source_ranges.iter().map(Cidr::to_string).collect();
            cells.extend([affinity, few(&ranges, most)]);
        }
        cells.push(reason.unwrap_or_default());
        cells
    }
}

impl BackendRow {
    fn cell(&self, wide: Wide) -> String {
        let share = format!("{}={:.1}%", self.name, self.share);
        if wide == Wide::No {
            return share;
        }
        let addresses = self.addresses.iter();
        let addresses: Vec<String> =
            addresses.map(|address| SocketAddr::new(*address, self.port).to_string()).collect();
        format!("{share}@{}", if addresses.is_empty() { "gone".to_owned() } else { addresses.join("|") })
    }
}
