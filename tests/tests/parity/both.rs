//! Both datapaths side by side: the same world, the same tables, the same frame, and everything compared.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmlb_common::abi::{Delivery, Flow, FlowKey, Hop, Traffic, Turn};
use vmlb_common::family::{V4, V6};
use vmlb_common::host::{Hook, Node, Outcome, Socket};
use vmlb_common::kernel::{Kernel as _, Stage};
use vmlb_common::verdict::{Reason, Verdict};
use vmlb_common::wire::Protocol;
use vmlb_tests::address::Family;
use vmlb_tests::packets::bench::{Bench, Flows, Host, State, Tally};
use vmlb_tests::packets::frame::tcp;
use vmlb_tests::packets::world::{ETH0, Net, TARGET_PORT, World};

use super::kernel::{CAPACITIES, Done, Kernel, KernelFamily};
use super::network::Network;

/// Jiffies a second as the settings say. Only differences of times count, so it need not be the kernel's, but no less:
/// then less time passes than the clocks say.
const HZ: u32 = 1000;

/// Two seconds: how far the host's clock may lag behind.
const SLACK: u32 = 2 * HZ;

/// What XDP writes in front of a packet that TC is to send.
const MARK: [u8; 4] = 0x766d_6c62_u32.to_ne_bytes();

/// The host's node and the kernel's.
pub(crate) struct Both<'a> {
    pub(crate) host: Host,
    kernel: Kernel,
    network: &'a Network,
    sockets: BTreeMap<Socket, Bound>,
    traffic: Vec<Traffic>,
    /// The kernel's jiffies at a moment.
    started: (u32, Instant),
    packets: usize,
}

/// A socket of the node's own, kept open.
#[expect(dead_code, reason = "held, not used")]
enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// What one frame met on both sides.
pub(crate) struct Compared {
    pub(crate) outcome: Outcome,
    pub(crate) counted: Vec<Reason>,
    pub(crate) promoted: bool,
    pub(crate) turned: bool,
}

impl<'a> Both<'a> {
    /// Both in the world as stories begin.
    pub(crate) fn new(network: &'a Network, kernel: Kernel) -> Result<Self> {
        let host = Host::new(World::new(HZ), CAPACITIES, 0);
        let mut both = Self {
            host,
            kernel,
            network,
            sockets: BTreeMap::new(),
            traffic: Vec::new(),
            started: (0, Instant::now()),
            packets: 0,
        };
        both.start()?;
        Ok(both)
    }

    /// Both in the world as stories begin, again.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.compare_traffic()?;
        self.network.follow(&self.host.world, &World::new(HZ))?;
        self.host = Host::new(World::new(HZ), CAPACITIES, 0);
        self.sockets.clear();
        self.start()
    }

    fn start(&mut self) -> Result<()> {
        self.kernel.install(&self.host.world.records)?;
        self.started = (self.ask_the_clock()?, Instant::now());
        if self.kernel.rate.is_none() {
            std::thread::sleep(Duration::from_millis(400));
            let passed = self.ask_the_clock()?.wrapping_sub(self.started.0);
            let rate = u128::from(passed) * 1000 / self.started.1.elapsed().as_millis();
            self.kernel.rate = Some(u32::try_from(rate)?);
        }
        self.set_clock();
        self.set_flows::<V4>(&Flows::default())?;
        self.set_flows::<V6>(&Flows::default())?;
        // The questions for the clock were packets that the host has not seen.
        self.traffic = self.kernel.traffic()?;
        Ok(())
    }

    /// Gives the kernel back, and how many packets were compared.
    pub(crate) fn finish(self) -> (Kernel, usize) {
        self.compare_traffic().expect("traffic counted alike");
        self.network.follow(&self.host.world, &World::new(HZ)).expect("neighbours as they were");
        (self.kernel, self.packets)
    }

    /// Jiffies, as both know them.
    pub(crate) fn now(&self) -> u32 {
        self.host.node.now()
    }

    /// Sets the host's clock by the kernel's, which was asked at the start.
    pub(crate) fn set_clock(&mut self) {
        let passed = self.started.1.elapsed().as_millis() * u128::from(self.kernel.rate.unwrap_or(HZ)) / 1000;
        let passed = u32::try_from(passed).expect("tests take less than 49 days");
        self.host.node.set_clock(self.started.0.wrapping_add(passed));
    }

    /// Asks the datapath in the kernel for its clock: a packet of an established flow leaves it in the flow. The world is
    /// the stories' and has no flows; tables must be written afterwards.
    fn ask_the_clock(&mut self) -> Result<u32> {
        let net = Net(Family::V4);
        let packet = tcp(net.client(200, 9), net.node(30001)).ack(1);
        let key = FlowKey {
            client: address(packet.source.ip()),
            frontend: address(packet.destination.ip()),
            client_port: 9,
            frontend_port: 30001,
            protocol: Protocol::TCP.number(),
            pad: 0,
            pad2: 0,
        };
        let flow = Flow {
            backend: 1,
            peer: key.client,
            peer_port: 9,
            target_port: TARGET_PORT,
            delivery: Delivery::KEPT,
            ..Flow::default()
        };
        let mut probe = Flows::default();
        probe.established.flows.insert(key, flow);
        <V4 as KernelFamily>::maps_mut(&mut self.kernel).write(&probe)?;
        let done = self.kernel.run(Hook::Xdp, ETH0, &packet.octets())?;
        ensure!(
            done.action == action(Hook::Xdp, Verdict::DELIVER),
            "the probe of the clock: {}",
            done.action
        );
        let read = <V4 as KernelFamily>::maps(&self.kernel).read(self.kernel.cpu())?;
        let seen = read.established.flows.get(&key).map(|flow| flow.seen);
        seen.context("the probe's flow is there")
    }

    /// Writes the same flows on both sides.
    pub(crate) fn set_flows<F: KernelFamily>(&mut self, to: &Flows<F::Address>) -> Result<()> {
        self.host.set_flows::<F>(to);
        F::maps_mut(&mut self.kernel).write(to)
    }

    /// Writes on both sides where backends are.
    pub(crate) fn set_turns(&mut self, to: &BTreeMap<u32, Turn>) -> Result<()> {
        to.iter().for_each(|(id, turn)| self.host.node.set_turn(*id, *turn));
        self.kernel.set_turns(to)
    }

    /// Gives a frame to both, and compares everything.
    pub(crate) fn compare<F: KernelFamily>(
        &mut self,
        hook: Hook,
        device: u32,
        frame: &[u8],
    ) -> Result<Compared> {
        let before = (Tally::of(&self.host.node), self.kernel.reasons()?);
        let established = self.host.node.count_pairs::<F>(Stage::Established).0;
        let turns = self.kernel.turns()?;
        self.set_clock();
        let outcome = self.host.receive(hook, device, frame);
        let done = self.kernel.run(hook, device, frame)?;
        let verdict = outcome.verdict;
        let words = format!(
            "{hook:?} says {} ({}) of {} octets {:02x?}",
            verdict.name(),
            verdict.reason().name(),
            frame.len(),
            &frame[..frame.len().min(96)]
        );
        let expected = Done { action: action(hook, verdict), octets: octets(hook, &outcome) };
        ensure!(done.action == expected.action, "the kernel says {}, the host {words}", done.action);
        ensure!(
            done.octets == expected.octets,
            "octets differ, the host {words}\nkernel {:02x?}\nhost   {:02x?}",
            done.octets,
            expected.octets
        );
        let counted = Tally::of(&self.host.node).counted_since(&before.0);
        let pairs = self.kernel.reasons()?.into_iter().zip(before.1).zip(Reason::ALL);
        let in_kernel: Vec<Reason> =
            pairs.filter(|((after, before), _)| after > before).map(|(_, reason)| *reason).collect();
        ensure!(in_kernel == counted, "reasons: kernel {in_kernel:?}, host {counted:?}; {words}");
        self.compare_flows::<F>().context(words.clone())?;
        self.compare_turns().context(words)?;
        self.packets += 1;
        let promoted = self.host.node.count_pairs::<F>(Stage::Established).0 > established;
        let turned = self.kernel.turns()? != turns;
        Ok(Compared { outcome, counted, promoted, turned })
    }

    /// One ageing pass on both sides; how many entries went.
    pub(crate) fn compare_sweep<F: KernelFamily>(&mut self) -> Result<usize> {
        let count = |flows: &Flows<F::Address>| {
            [&flows.half, &flows.established]
                .map(|pairs| pairs.flows.len() + pairs.replies.len())
                .iter()
                .sum()
        };
        self.set_clock();
        let before: usize = count(&self.host.flows::<F>());
        self.host.node.sweep();
        self.kernel.sweep()?;
        self.compare_flows::<F>().context("after an ageing pass")?;
        Ok(before - count(&self.host.flows::<F>()))
    }

    fn compare_flows<F: KernelFamily>(&self) -> Result<()> {
        let (host, kernel) = (self.host.flows::<F>(), F::maps(&self.kernel).read(self.kernel.cpu())?);
        for (stage, host, kernel) in
            [("half open", &host.half, &kernel.half), ("established", &host.established, &kernel.established)]
        {
            alike(&format!("flows, {stage}"), &host.flows, &kernel.flows, |flow, like| {
                let mut flow = *flow;
                settle(&mut flow.seen, like.seen);
                flow
            })?;
            alike(&format!("replies, {stage}"), &host.replies, &kernel.replies, |reply, like| {
                let mut reply = *reply;
                settle(&mut reply.seen, like.seen);
                settle(&mut reply.hop.filled, like.hop.filled);
                reply
            })?;
        }
        for (what, host, kernel) in [
            ("next hops", &host.hops, &kernel.hops),
            ("next hops of the tunnel", &host.tunnel_hops, &kernel.tunnel_hops),
        ] {
            alike(what, host, kernel, |hop, like| {
                let mut hop: Hop = *hop;
                settle(&mut hop.filled, like.filled);
                hop
            })?;
        }
        for (what, host, kernel) in [
            ("new affinity", &host.new_affinity, &kernel.new_affinity),
            ("affinity", &host.affinity, &kernel.affinity),
        ] {
            alike(what, host, kernel, |known, like| {
                let mut known = *known;
                settle(&mut known.seen, like.seen);
                known
            })?;
        }
        alike("fragments", &host.fragments, &kernel.fragments, |datagram, like| {
            let mut datagram = *datagram;
            settle(&mut datagram.seen, like.seen);
            settle(&mut datagram.hop.filled, like.hop.filled);
            datagram
        })?;
        alike("inherited", &host.inherited, &kernel.inherited, |entry, like| {
            let mut entry = *entry;
            settle(&mut entry.seen, like.seen);
            entry
        })
    }

    /// Where backends are: what the kernel has turned the host has, and nothing else.
    fn compare_turns(&self) -> Result<()> {
        for (id, kernel) in self.kernel.turns()?.into_iter().enumerate() {
            let host = self.host.node.turn_now(u32::try_from(id)?).word;
            ensure!(kernel == host, "turn of backend {id}: kernel {kernel:#x}, host {host:#x}");
        }
        Ok(())
    }

    fn compare_traffic(&self) -> Result<()> {
        for (id, (now, then)) in self.kernel.traffic()?.iter().zip(&self.traffic).enumerate() {
            let host = self.host.node.traffic(u32::try_from(id)?);
            let kernel = Traffic {
                requests: now.requests - then.requests,
                request_octets: now.request_octets - then.request_octets,
                replies: now.replies - then.replies,
                reply_octets: now.reply_octets - then.reply_octets,
                opened: now.opened - then.opened,
            };
            ensure!(kernel == host, "traffic of backend {id}: kernel {kernel:?}, host {host:?}");
        }
        Ok(())
    }

    fn bind(&mut self) -> Result<()> {
        for socket in &self.host.world.sockets {
            if !self.sockets.contains_key(socket) {
                let to = (socket.address, socket.port);
                let bound = if socket.protocol == Protocol::TCP {
                    Bound::Tcp(TcpListener::bind(to).context("listening")?)
                } else {
                    Bound::Udp(UdpSocket::bind(to).context("binding")?)
                };
                self.sockets.insert(*socket, bound);
            }
        }
        Ok(())
    }
}

fn address(ip: std::net::IpAddr) -> vmlb_common::family::Address4 {
    use vmlb_common::host::HostFamily;
    V4::from_ip(ip).unwrap_or_default()
}

/// Takes the host's time for the kernel's where they are next to each other.
fn settle(kernel: &mut u32, host: u32) {
    let apart = kernel.wrapping_sub(host);
    if apart <= SLACK || apart.wrapping_neg() <= SLACK {
        *kernel = host;
    }
}

/// Compares two tables, the kernel's values after `settled` has made times comparable.
fn alike<K: Ord + Debug, V: PartialEq + Debug>(
    what: &str,
    host: &BTreeMap<K, V>,
    kernel: &BTreeMap<K, V>,
    settled: impl Fn(&V, &V) -> V,
) -> Result<()> {
    for (key, value) in host {
        let other = kernel.get(key).with_context(|| format!("{what}: the kernel lacks {key:?} {value:?}"))?;
        let other = settled(other, value);
        ensure!(other == *value, "{what}: {key:?}\nkernel {other:?}\nhost   {value:?}");
    }
    for (key, value) in kernel {
        ensure!(host.contains_key(key), "{what}: the host lacks {key:?} {value:?}");
    }
    Ok(())
}

/// What the kernel's program returns for a verdict.
fn action(hook: Hook, verdict: Verdict) -> u32 {
    const XDP: [u32; 4] = [1, 2, 3, 4];
    let [xdp_drop, xdp_pass, xdp_tx, xdp_redirect] = XDP;
    match (hook, verdict) {
        (Hook::Xdp, _) if verdict.is_drop() => xdp_drop,
        (Hook::Xdp, Verdict::TRANSMIT) => xdp_tx,
        (Hook::Xdp, _) if verdict.is_answer() => xdp_tx,
        (Hook::Xdp, Verdict::REDIRECT) => xdp_redirect,
        (Hook::Xdp, _) => xdp_pass,
        // TC_ACT_SHOT, TC_ACT_REDIRECT, and TC_ACT_UNSPEC for the next program.
        _ if verdict.is_drop() => 2,
        (_, Verdict::REDIRECT) => 7,
        _ => u32::MAX,
    }
}

/// What a program run shows of the frame: XDP's metadata stand in front.
fn octets(hook: Hook, outcome: &Outcome) -> Vec<u8> {
    if hook == Hook::Xdp && outcome.verdict.is_defer() {
        return [&MARK, outcome.octets.as_slice()].concat();
    }
    outcome.octets.clone()
}

impl Bench for Both<'_> {
    fn receive(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Outcome {
        let is_v6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
        let compared = if is_v6 {
            self.compare::<V6>(hook, device, frame)
        } else {
            self.compare::<V4>(hook, device, frame)
        };
        compared.unwrap_or_else(|error| panic!("{error:?}")).outcome
    }

    fn change(&mut self, change: &dyn Fn(&mut World)) {
        let old = self.host.world.clone();
        self.host.change(change);
        self.network.follow(&old, &self.host.world).expect("the network follows");
        self.kernel.install(&self.host.world.records).expect("the maps follow");
        self.bind().expect("the sockets follow");
    }

    fn sweep(&mut self) {
        self.compare_sweep::<V4>().expect("an ageing pass");
    }

    fn state(&self) -> State {
        self.host.state()
    }

    fn set_state(&mut self, to: &State) {
        self.set_flows::<V4>(&to.v4).expect("the maps take it");
        self.set_flows::<V6>(&to.v6).expect("the maps take it");
    }

    fn has_host_sizes(&self) -> bool {
        false
    }

    fn node(&self) -> &Node {
        &self.host.node
    }
}
