//! `vmlb flows`.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::SocketAddr;
use std::ops::ControlFlow;

use clap::Args;
use serde::Serialize;
use vmlb_common::abi::{Flow, FlowKey, Reply, ReplyKey, ServiceName, names};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::wire::Protocol;

use super::print::{Listing, Row, Wide, answer};
use super::ways::{self, Hops, Place};
use super::{Reading, backend_label, backend_names, help, settings};
use crate::bpf::PinnedMap;
use crate::counts::{Family, Stage, flow_tables};
use crate::pins::PinRoot;
use crate::settings::{jiffies, text};

mod filter;

pub use filter::{Filter, FlowProtocol, FlowState};

use filter::Wanted;

/// Options of `vmlb flows`.
#[derive(Args, Clone, Debug)]
#[command(after_help = help("Examples:
  vmlb flows --service default/web --state established
  vmlb flows --client 192.0.2.0/24 --limit 20
  vmlb flows --output json | jq -r '.[].backend' | sort | uniq -c

A flow is opening until the backend has answered and the client has shown that it got the answer; closing after one FIN,
closed after both or a RST. PEER is whom the backend answers: the client, or this node with a SNAT port. IDLE is in seconds.
WAY is how packets reach the backend now: by this node's stack, into the pod's device, by an uplink or an
overlay (DEVICE says which), or by the tunnel to its node.
Flows come in no order: pipe them through sort."))]
pub struct Options {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub reading: Reading,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would print it as help")]
    pub filter: Filter,
    /// Stop after so many flows
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FlowRow<'a> {
    protocol: &'static str,
    client: SocketAddr,
    frontend: SocketAddr,
    service: &'a str,
    backend: &'a str,
    backend_id: u32,
    /// The target now: the backend's present address; absent: it has none.
    target: Option<SocketAddr>,
    target_port: u16,
    peer: SocketAddr,
    delivery: &'static str,
    /// How its packets reach the backend now: stack, device, uplink, overlay, tunnel, or none.
    way: &'static str,
    /// The device by which they leave; absent: the stack's affair, or none has gone yet.
    device: Option<String>,
    /// The next hop's MAC address; absent: as above, or the kernel's affair.
    next_hop: Option<String>,
    /// Octets that a packet may have there.
    mtu: Option<u32>,
    state: &'static str,
    /// Seconds since a packet of either direction.
    idle: u32,
}

/// Runs the command.
///
/// # Errors
/// When the maps cannot be read.
pub fn run(options: &Options) -> anyhow::Result<()> {
    answer(&options.reading, |root, out| list(root, out, options))
}

/// Flows are written as they are found; nothing is kept of them.
fn list(root: &PinRoot, out: &mut dyn Write, options: &Options) -> anyhow::Result<()> {
    let settings = settings(root)?;
    let backends = backend_names(root)?;
    let services = service_names(root)?;
    let mut reader = Reader {
        clock: Clock { now: jiffies(settings.hz)?, hz: settings.hz.max(1) },
        wanted: Wanted::new(&options.filter, &services, &backends),
        services: Labels::new(services.iter().map(|(id, name)| (*id, service_label(name)))),
        backends: Labels::new(backends.keys().map(|id| (*id, backend_label(&backends, *id)))),
        places: ways::places(root)?,
        left: options.limit.unwrap_or(usize::MAX),
        was_cut: false,
    };
    let mut listing = Listing::begin::<FlowRow<'_>>(out, &options.reading);
    for stage in Stage::ALL {
        reader.read::<Address4>(root, stage, &mut listing)?;
        reader.read::<Address6>(root, stage, &mut listing)?;
    }
    listing.end()?;
    if reader.was_cut {
        tracing::info!("there are more flows than --limit");
    }
    Ok(())
}

/// Names of ids, made once; ids without a name are made one when they turn up.
struct Labels(HashMap<u32, String>);

impl Labels {
    fn new(labels: impl Iterator<Item = (u32, String)>) -> Self {
        Self(labels.collect())
    }

    fn of(&mut self, id: u32) -> &str {
        self.0.entry(id).or_insert_with(|| format!("#{id}"))
    }
}

#[derive(Clone, Copy)]
struct Clock {
    now: u32,
    hz: u32,
}

impl Clock {
    /// Seconds since `seen`; a time that seems to lie ahead (read a moment later) is now.
    fn idle(self, seen: u32) -> u32 {
        let passed = self.now.wrapping_sub(seen);
        if passed > u32::MAX / 2 { 0 } else { passed / self.hz }
    }
}

fn service_names(root: &PinRoot) -> anyhow::Result<BTreeMap<u32, ServiceName>> {
    let map: PinnedMap<u32, ServiceName> = PinnedMap::open(root, names::SERVICE_NAMES)?;
    Ok(map.all()?.into_iter().collect())
}

fn service_label(name: &ServiceName) -> String {
    format!("{}/{}", text(&name.namespace), text(&name.name))
}

struct Reader<'a> {
    clock: Clock,
    wanted: Wanted<'a>,
    services: Labels,
    backends: Labels,
    places: HashMap<u32, Vec<Place>>,
    /// Rows that may still be written.
    left: usize,
    was_cut: bool,
}

impl Reader<'_> {
    fn read<F: Family>(
        &mut self,
        root: &PinRoot,
        stage: Stage,
        listing: &mut Listing<'_>,
    ) -> anyhow::Result<()> {
        let (flows, replies) = flow_tables::<F>(stage);
        let flows: PinnedMap<FlowKey<F>, Flow<F>> = PinnedMap::open(root, flows)?;
        let replies: PinnedMap<ReplyKey<F>, Reply<F>> = PinnedMap::open(root, replies)?;
        let hops = Hops::read::<F>(root)?;
        let mut result = Ok(());
        flows.each(|key, flow| {
            if !self.wanted.admits(&key, flow) {
                return ControlFlow::Continue(());
            }
            match self.write(&key, flow, (&replies, &hops), stage, listing) {
                Ok(go_on) => go_on,
                Err(error) => {
                    result = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        result
    }

    /// Writes a flow that is asked for, unless its state is not or there are enough.
    fn write<F: Family>(
        &mut self,
        key: &FlowKey<F>,
        flow: &Flow<F>,
        (replies, hops): (&PinnedMap<ReplyKey<F>, Reply<F>>, &Hops),
        stage: Stage,
        listing: &mut Listing<'_>,
    ) -> anyhow::Result<ControlFlow<()>> {
        let reply = replies.get(&flow.reply_key(key.protocol))?;
        let state = FlowState::of(stage, flow.flags | reply.map_or(0, |reply| reply.flags));
        if !self.wanted.admits_state(state) {
            return Ok(ControlFlow::Continue(()));
        }
        if self.left == 0 {
            self.was_cut = true;
            return Ok(ControlFlow::Break(()));
        }
        self.left -= 1;
        let idle = self.clock.idle(flow.seen);
        let places = self.places.get(&flow.backend).into_iter().flatten();
        let place = places.copied().find(|place| usize::from(place.address.is_ipv6()) == F::PLACE);
        let (way, hop) = hops.of(flow.delivery, place.as_ref(), flow.backend);
        listing.row(&FlowRow {
            protocol: Protocol::new(key.protocol).name(),
            client: SocketAddr::new(key.client.ip(), key.client_port),
            frontend: SocketAddr::new(key.frontend.ip(), key.frontend_port),
            service: self.services.of(flow.service),
            backend: self.backends.of(flow.backend),
            backend_id: flow.backend,
            target: place.map(|place| SocketAddr::new(place.address, flow.target_port)),
            target_port: flow.target_port,
            peer: SocketAddr::new(flow.peer.ip(), flow.peer_port),
            delivery: flow.delivery.name(),
            way,
            device: hop.map(|hop| ways::device(hop.ifindex)),
            next_hop: hop.map(|hop| ways::mac(hop.destination)).filter(|mac| !mac.is_empty()),
            mtu: hop.map(|hop| hop.mtu).filter(|mtu| *mtu != u32::MAX),
            state: state.name(),
            idle: reply.map_or(idle, |reply| idle.min(self.clock.idle(reply.seen))),
        })?;
        Ok(ControlFlow::Continue(()))
    }
}

impl Row for FlowRow<'_> {
    fn heads(wide: Wide) -> Vec<&'static str> {
        let mut heads = vec!["PROTOCOL", "CLIENT", "FRONTEND", "SERVICE", "BACKEND", "STATE", "IDLE"];
        if wide == Wide::Yes {
            heads.extend(["TARGET", "PEER", "WAY", "DEVICE", "NEXT-HOP", "MTU", "BACKEND-ID"]);
        }
        heads
    }

    fn cells(&self, wide: Wide) -> Vec<String> {
        let mut cells = vec![
            self.protocol.to_owned(),
            self.client.to_string(),
            self.frontend.to_string(),
            self.service.to_owned(),
            self.backend.to_owned(),
            self.state.to_owned(),
            self.idle.to_string(),
        ];
        if wide == Wide::Yes {
            let gone = || format!("gone:{}", self.target_port);
            cells.extend([
                self.target.map_or_else(gone, |target| target.to_string()),
                if self.peer == self.client { "client".to_owned() } else { self.peer.to_string() },
                self.way.to_owned(),
                self.device.clone().unwrap_or_default(),
                self.next_hop.clone().unwrap_or_default(),
                self.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
                self.backend_id.to_string(),
            ]);
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_times_survive_the_wrap_of_jiffies() {
        let clock = Clock { now: 100, hz: 250 };
        assert_eq!(clock.idle(u32::MAX - 149), 1);
        assert_eq!(clock.idle(101), 0);
    }
}
