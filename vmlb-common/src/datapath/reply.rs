//! Replies of backends: matched by the backend's identity, the frontend put back as their source.

use crate::abi::{BackendFlags, Delivery, DeviceFlags, FlowKey, Pod, Reply, ReplyKey, Seen, TargetKey, Turn};
use crate::checksum::{Delta, Sum};
use crate::family::{Address, Family, Header};
use crate::kernel::{Ends, Kernel, Stage, Step, Tables};
use crate::live::Live;
use crate::packet::{Frame, Packet, Transport};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Protocol, UdpHeader};

use super::clamp;
use super::end;
use super::gate;
use super::hop::{self, Validity, Way};
use super::place;
use super::translate::{End, Hops, translate};
use super::tunnel;

/// From another node, to an address we SNATed from (way 5).
#[inline(never)]
pub(super) fn remote<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    reversed::<F, P, K>(packet, kernel, Delivery::SNAT).number()
}

/// From a pod of this node, to an address we SNATed from, or to a client whose requests went past the stack.
#[inline(never)]
pub(super) fn through_device<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    reversed::<F, P, K>(packet, kernel, Delivery::PEER).number()
}

/// From a pod of this node, through the stack, on the way out to the client (way 3).
#[inline(never)]
pub(super) fn through_stack<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::PASS.number();
    };
    let Some(found) = find::<F, P, K>(packet, kernel, &transport) else {
        return Verdict::PASS.number();
    };
    if !found.live.delivery().keeps_source() {
        return Verdict::PASS.number();
    }
    let verdict = found.sighted(kernel, &transport);
    if verdict.is_final() {
        return verdict.number();
    }
    if !found.live.revive() {
        return Verdict::drop(Reason::FLOW_BUSY).number();
    }
    found.live.seen().refresh(kernel.now());
    note(kernel, &transport, found.stage, found.live);
    let frontend = End { address: &found.flow.frontend, port: found.flow.frontend_port };
    let client = End { address: &found.flow.client, port: found.flow.client_port };
    let verdict =
        translate::<F, P>(packet, transport.protocol, &frontend, &client, found.addresses(), Hops::Kept);
    if verdict.is_final() {
        return verdict.number();
    }
    clamp::clamp::<F, P, K>(packet, kernel, clamp::ANY);
    kernel.account(found.backend, |traffic| traffic.add_reply(transport.octets));
    let via = found.live.via();
    if via != F::Address::default() && found.returns(kernel) {
        kernel.with_parcel(|parcel| parcel.via = via);
        return Verdict::CARRY.number();
    }
    Verdict::DELIVER.number()
}

/// A reply that was matched.
struct Found<'a, F: Family> {
    stage: Stage,
    backend: u32,
    /// Which of the backend's endpoints it came from.
    side: u32,
    /// The share of the pod's address in a checksum.
    pod: Sum,
    live: Live<'a, Reply<F::Address>>,
    flow: FlowKey<F::Address>,
}

impl<F: Family> Found<'_, F> {
    /// Whether a reply goes back by the node that the client addressed: until that node is known to know of it, or always.
    #[inline(always)]
    fn returns<K: Kernel>(&self, kernel: &K) -> bool {
        self.live.flags().get() & Seen::HEARD == 0 || tunnel::returns_all(kernel)
    }

    /// Whether the VM is, or has just shown itself to be, where the reply comes from; a reset from elsewhere is dropped.
    #[inline(always)]
    fn sighted<K: Kernel>(&self, kernel: &K, transport: &Transport) -> Verdict {
        Verdict::from_number(place::answered(kernel, self.backend, self.side, u32::from(transport.flags.0)))
    }

    /// What the reverse translation changes in the sum of both addresses: the opposite of what a request undergoes.
    #[inline(always)]
    fn addresses(&self) -> Delta {
        Delta::from_folded(self.live.address_sum()).with(self.pod).inverse()
    }
}

#[inline(always)]
fn find<'a, F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &'a K,
    transport: &Transport,
) -> Option<Found<'a, F>> {
    let ip = &packet.view::<Frame<F::Header, UdpHeader>>()?.ip;
    let address = ip.source();
    let mut key = ReplyKey {
        backend: 0,
        peer: ip.destination(),
        target_port: transport.source_port,
        peer_port: transport.destination_port,
        protocol: transport.protocol.number(),
        pad: 0,
        pad2: 0,
    };
    let Pod { backend, side } = kernel.pod(&address)?;
    key.backend = backend;
    let pod = address.sum();
    // One copy for both tables: where two paths meet with an address in hand, LLVM takes it apart into octets.
    let (stage, live) = match kernel.reply(Stage::Established, &key) {
        Some(live) => (Stage::Established, live),
        None => (Stage::Half, kernel.reply(Stage::Half, &key)?),
    };
    let flow = live.flow();
    // The half-open table gives entries away under our hands; what was copied counts if the key still leads to an entry
    // that says the same.
    if stage == Stage::Half && kernel.reply(Stage::Half, &key)?.flow() != flow {
        return None;
    }
    kernel.trace(packet, Step::REPLY, backend);
    Some(Found { stage, backend, side, pod, live, flow })
}

/// To one of our SNAT ports, and of no flow: the answer to a probe, or somebody else's.
#[inline(always)]
fn unmatched<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    transport: &Transport,
) -> Verdict {
    match kernel.settings() {
        Some(settings) if settings.probe_port == transport.destination_port => {}
        _ => return Verdict::CONTINUE,
    }
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::CONTINUE;
    };
    let Some(pod) = kernel.pod(&frame.ip.source()) else {
        return Verdict::CONTINUE;
    };
    let verdict = place::probed(kernel, pod.backend, pod.side, transport);
    // Every node probes from the same port: the answer to another's agent says the same here, and is on its way there.
    if is_anothers::<F, K>(kernel, &pod, &frame.ip.destination()) { Verdict::CONTINUE } else { verdict }
}

/// Whether what one of our pods sends to an address is for another node. The gate alone only says "maybe not".
#[inline(always)]
fn is_anothers<F: Family, K: Kernel + Tables<F>>(kernel: &K, pod: &Pod, address: &F::Address) -> bool {
    if !gate::is_snat(kernel, address) {
        return true;
    }
    match kernel.endpoint(Turn::place(pod.backend, pod.side)) {
        Some(endpoint) => {
            let is_here = endpoint.flags & BackendFlags::LOCAL != 0;
            is_here && endpoint.node != *address && kernel.is_node(address)
        }
        None => false,
    }
}

/// The rewrites of this delivery, or of SNAT, undone, and out to the client.
#[inline(always)]
fn reversed<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    delivery: Delivery,
) -> Verdict {
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::drop(Reason::MALFORMED);
    };
    let Some(found) = find::<F, P, K>(packet, kernel, &transport) else {
        return unmatched::<F, P, K>(packet, kernel, &transport);
    };
    if found.live.delivery() != delivery && found.live.delivery() != Delivery::SNAT {
        return Verdict::PASS;
    }
    let verdict = found.sighted(kernel, &transport);
    if verdict.is_final() {
        return verdict;
    }
    if !found.live.revive() {
        return Verdict::drop(Reason::FLOW_BUSY);
    }
    let Some(validity) = Validity::new::<P, K>(kernel, 0) else {
        return Verdict::PASS;
    };
    found.live.seen().refresh(validity.now);
    note(kernel, &transport, found.stage, found.live);
    let way = Way {
        protocol: transport.protocol,
        source: End { address: &found.flow.frontend, port: found.flow.frontend_port },
        destination: End { address: &found.flow.client, port: found.flow.client_port },
        addresses: found.addresses(),
        // The client's way back is the node's routing, not ours to choose.
        wanted: DeviceFlags::ANY,
    };
    let verdict = hop::send(packet, kernel, &validity, found.live.hop(), &way);
    if verdict.is_punt() {
        // The node's stack has no connection of this tuple and would reset the VM's.
        return Verdict::drop(verdict.reason());
    }
    if !verdict.is_defer() && !verdict.is_drop() {
        kernel.account(found.backend, |traffic| traffic.add_reply(transport.octets));
    }
    verdict
}

/// Notes what the reply proves or ends.
#[inline(always)]
pub(super) fn note<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    transport: &Transport,
    stage: Stage,
    live: Live<'_, Reply<F::Address>>,
) {
    note_answer::<F>(transport, stage, live);
    if transport.flags.any(end::ENDS) {
        end::note_reply(kernel, stage, transport.flags, live);
    }
}

/// Notes the first reply: what the client is to acknowledge before it is believed. A flow that came by the tunnel in its
/// middle is proved already; its first reply tells the node that it came by.
#[inline(always)]
fn note_answer<F: Family>(transport: &Transport, stage: Stage, live: Live<'_, Reply<F::Address>>) {
    let is_first = live.flags().get() & Seen::ANSWERED == 0;
    if !is_first || stage == Stage::Established && live.via() == F::Address::default() {
        return;
    }
    if transport.protocol == Protocol::UDP || stage == Stage::Established {
        live.flags().insert(Seen::ANSWERED);
    } else if transport.flags.is_syn_ack() {
        live.sequence().set(transport.sequence.wrapping_add(1));
        live.flags().insert(Seen::ANSWERED);
    }
}

/// A reset that this node's stack answers to a target from one of our SNAT ports. Such a packet of a target's had no flow
/// here and went to the stack, because it could have been kube-proxy's (which masquerades to any port); the stack that
/// knows nothing of it either must not kill the VM's connection.
#[inline(never)]
pub(super) fn own_reset<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::CONTINUE.number();
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::CONTINUE.number();
    };
    // As the packet that is answered had them.
    let ends = Ends {
        source: frame.ip.destination(),
        destination: frame.ip.source(),
        source_port: transport.destination_port,
        destination_port: transport.source_port,
    };
    match kernel.settings() {
        // The agent ends what its probes have opened.
        Some(settings) if settings.probe_port != ends.destination_port => {}
        _ => return Verdict::CONTINUE.number(),
    }
    let Some(pod) = kernel.pod(&ends.source) else {
        return Verdict::CONTINUE.number();
    };
    let target =
        TargetKey { backend: pod.backend, port: ends.source_port, protocol: Protocol::TCP.number(), pad: 0 };
    if !kernel.is_target(&target) || kernel.has_socket::<F>(packet.context(), transport.protocol, &ends) {
        return Verdict::CONTINUE.number();
    }
    Verdict::drop(Reason::OWN_RESET).number()
}
