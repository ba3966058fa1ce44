//! Where stories run: [`Host`] is the datapath over collections; the parity tests have one that asks the kernel too.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use vmlb_common::abi::{Affinity, ClientKey, Fragment, FragmentKey, Hop, Inherited, Turn, WireKey};
use vmlb_common::family::{Address4, Address6, V4, V6};
use vmlb_common::host::{Capacities, Hook, HostFamily, Lookups, Node, Outcome, Pairs};
use vmlb_common::kernel::{Kernel, Stage};
use vmlb_common::verdict::Reason;
use vmlb_common::wire::Protocol;

use super::world::{PRESENT, World};
use crate::address::Family;

/// Everything that flows of one family leave in tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flows<A: Ord> {
    /// Half-open pairs.
    pub half: Pairs<A>,
    /// Established pairs.
    pub established: Pairs<A>,
    /// What clients that have not shown themselves stay with.
    pub new_affinity: BTreeMap<ClientKey<A>, Affinity>,
    /// What clients that have stay with.
    pub affinity: BTreeMap<ClientKey<A>, Affinity>,
    /// Connections that are the stack's.
    pub inherited: BTreeMap<WireKey<A>, Inherited>,
    /// Datagrams in fragments.
    pub fragments: BTreeMap<FragmentKey<A>, Fragment<A>>,
    /// Cached next hops to backends.
    pub hops: BTreeMap<u32, Hop>,
    /// Cached next hops of the tunnel to backends' nodes.
    pub tunnel_hops: BTreeMap<u32, Hop>,
}

impl<A: Ord> Default for Flows<A> {
    fn default() -> Self {
        Self {
            half: Pairs::default(),
            established: Pairs::default(),
            new_affinity: BTreeMap::new(),
            affinity: BTreeMap::new(),
            inherited: BTreeMap::new(),
            fragments: BTreeMap::new(),
            hops: BTreeMap::new(),
            tunnel_hops: BTreeMap::new(),
        }
    }
}

impl<A: Ord> Flows<A> {
    /// Both stages.
    pub fn pairs_mut(&mut self) -> [&mut Pairs<A>; 2] {
        [&mut self.half, &mut self.established]
    }

    /// Everything was `jiffies` longer ago.
    fn make_older(&mut self, jiffies: u32) {
        let older = |seen: &mut u32| *seen = seen.wrapping_sub(jiffies);
        for pairs in self.pairs_mut() {
            pairs.flows.values_mut().for_each(|flow| older(&mut flow.seen));
            for reply in pairs.replies.values_mut() {
                older(&mut reply.seen);
                older(&mut reply.hop.filled);
            }
        }
        self.inherited.values_mut().for_each(|entry| older(&mut entry.seen));
        self.fragments.values_mut().for_each(|datagram| older(&mut datagram.seen));
        self.affinity
            .values_mut()
            .chain(self.new_affinity.values_mut())
            .for_each(|known| older(&mut known.seen));
        let hops = self.hops.values_mut().chain(self.tunnel_hops.values_mut());
        hops.for_each(|hop| older(&mut hop.filled));
    }
}

/// Everything that flows leave in tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// IPv4.
    pub v4: Flows<Address4>,
    /// IPv6.
    pub v6: Flows<Address6>,
}

/// A node that stories can be told to.
pub trait Bench {
    /// Gives a frame to a hook.
    fn receive(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Outcome;
    /// Changes the world.
    fn change(&mut self, change: &dyn Fn(&mut World));
    /// One ageing pass.
    fn sweep(&mut self);
    /// What flows have left.
    fn state(&self) -> State;
    /// Replaces what flows have left.
    fn set_state(&mut self, to: &State);
    /// Whether the tables have the sizes of [`Host::of_stories`].
    fn has_host_sizes(&self) -> bool;
    /// The host's own node, for what only it can tell.
    fn node(&self) -> &Node;

    /// Lets `seconds` pass: everything that is there becomes so much older.
    fn age(&mut self, seconds: u32) {
        let hz = self.node().settings().map_or(0, |settings| settings.hz);
        let mut state = self.state();
        state.v4.make_older(seconds * hz);
        state.v6.make_older(seconds * hz);
        self.set_state(&state);
    }

    /// The backend's sides of all half-open flows are evicted.
    fn lose_half_replies(&mut self) {
        let mut state = self.state();
        state.v4.half.replies.clear();
        state.v6.half.replies.clear();
        self.set_state(&state);
    }

    /// The stack carries this direction of a connection.
    fn inherit(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) {
        self.change(&|world| world.records.settings.inherited = 1);
        let mut state = self.state();
        let seen = self.node().now();
        inherit::<V4>(&mut state.v4, seen, protocol, source, destination);
        inherit::<V6>(&mut state.v6, seen, protocol, source, destination);
        self.set_state(&state);
    }
}

fn inherit<F: HostFamily>(
    flows: &mut Flows<F::Address>,
    seen: u32,
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
) {
    if let (Some(from), Some(to)) = (F::from_ip(source.ip()), F::from_ip(destination.ip())) {
        let key = WireKey {
            source: from,
            destination: to,
            source_port: source.port(),
            destination_port: destination.port(),
            protocol: protocol.number(),
            pad: 0,
            pad2: 0,
        };
        flows.inherited.insert(key, Inherited { seen });
    }
}

/// The datapath over collections.
#[derive(Debug)]
pub struct Host {
    /// The node.
    pub node: Node,
    /// What it was made from.
    pub world: World,
}

impl Host {
    /// A node in this world whose clock shows `now`.
    pub fn new(world: World, capacities: Capacities, now: u32) -> Self {
        let mut node = Node::new(capacities);
        node.set_clock(now);
        world.records.install(None, &mut node);
        let mut host = Self { node, world };
        host.surround();
        host
    }

    /// In the world of the stories, an hour before the clock wraps around.
    pub fn of_stories() -> Self {
        const HZ: u32 = 250;
        Self::new(
            World::new(HZ),
            Capacities { flows: 64, half_flows: 64, ..Capacities::default() },
            HZ.wrapping_mul(3600).wrapping_neg(),
        )
    }

    /// Brings the node to what its world says now.
    pub fn surround(&mut self) {
        let fib = self.world.fib();
        self.node.set_fib(move |question| fib.answer(question));
        for &socket in &self.world.sockets {
            self.node.add_socket(socket);
        }
    }

    /// The world learns what packets have turned: who changes it next reads the turns before.
    pub fn keep_turns(&mut self) {
        for id in PRESENT {
            let turn = self.node.turn_now(id);
            if turn != Turn::default() {
                self.world.records.turns.insert(id, turn);
            }
        }
    }

    /// What flows of a family have left.
    pub fn flows<F: HostFamily>(&self) -> Flows<F::Address> {
        Flows {
            half: self.node.pairs::<F>(Stage::Half),
            established: self.node.pairs::<F>(Stage::Established),
            new_affinity: self.node.affinities::<F>(Stage::Half),
            affinity: self.node.affinities::<F>(Stage::Established),
            inherited: self.node.inherited_connections::<F>(),
            fragments: self.node.fragments::<F>(),
            hops: PRESENT.map(|id| (id, self.node.hop::<F>(id))).into(),
            tunnel_hops: PRESENT.map(|id| (id, self.node.hop_to_node::<F>(id))).into(),
        }
    }

    /// Replaces what flows of a family have left.
    ///
    /// # Panics
    /// If the tables are too small for it.
    pub fn set_flows<F: HostFamily>(&mut self, to: &Flows<F::Address>) {
        self.node.clear_flows::<F>();
        for (stage, pairs) in [(Stage::Half, &to.half), (Stage::Established, &to.established)] {
            for (key, flow) in &pairs.flows {
                self.node.put_flow::<F>(stage, key, flow).expect("the table is large enough");
            }
            for (key, reply) in &pairs.replies {
                self.node.put_reply::<F>(stage, key, reply).expect("the table is large enough");
            }
        }
        for (stage, known) in [(Stage::Half, &to.new_affinity), (Stage::Established, &to.affinity)] {
            for (key, to) in known {
                self.node.put_affinity::<F>(stage, key, to).expect("the table is large enough");
            }
        }
        for (key, value) in &to.inherited {
            self.node.put_inherited::<F>(key, value).expect("the table is large enough");
        }
        for (key, value) in &to.fragments {
            self.node.put_fragment::<F>(key, value).expect("the table is large enough");
        }
        to.hops.iter().for_each(|(id, hop)| self.node.set_hop::<F>(*id, *hop));
        to.tunnel_hops.iter().for_each(|(id, hop)| self.node.set_hop_to_node::<F>(*id, *hop));
    }
}

impl Bench for Host {
    fn receive(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Outcome {
        self.node.receive(hook, device, frame)
    }

    fn change(&mut self, change: &dyn Fn(&mut World)) {
        self.keep_turns();
        let old = self.world.records.clone();
        change(&mut self.world);
        self.world.records.install(Some(&old), &mut self.node);
        self.surround();
    }

    fn sweep(&mut self) {
        self.node.sweep();
    }

    fn state(&self) -> State {
        State { v4: self.flows::<V4>(), v6: self.flows::<V6>() }
    }

    fn set_state(&mut self, to: &State) {
        self.set_flows::<V4>(&to.v4);
        self.set_flows::<V6>(&to.v6);
    }

    fn has_host_sizes(&self) -> bool {
        true
    }

    fn node(&self) -> &Node {
        &self.node
    }
}

/// What a packet has cost and counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    reasons: Vec<u64>,
    lookups: Lookups,
}

impl Tally {
    /// Everything so far.
    pub fn of(node: &Node) -> Self {
        let reasons = Reason::ALL.iter().map(|reason| node.counted(*reason)).collect();
        Self { reasons, lookups: node.lookups() }
    }

    /// Reasons counted since.
    pub fn counted_since(&self, earlier: &Self) -> Vec<Reason> {
        let both = self.reasons.iter().zip(&earlier.reasons).zip(Reason::ALL);
        both.filter(|((now, then), _)| now > then).map(|(_, reason)| *reason).collect()
    }

    /// Lookups since, the gate's excepted.
    pub fn lookups_since(&self, earlier: &Self) -> u64 {
        let all = |lookups: &Lookups| lookups.tables + lookups.fib + lookups.sockets;
        all(&self.lookups) - all(&earlier.lookups)
    }
}

/// Flows and replies of both stages, half-open first.
pub fn count_pairs(node: &Node, family: Family) -> [(usize, usize); 2] {
    [Stage::Half, Stage::Established].map(|stage| match family {
        Family::V4 => node.count_pairs::<V4>(stage),
        Family::V6 => node.count_pairs::<V6>(stage),
    })
}
