//! Requests of flows that are known: find the flow, find where its backend is now, translate, send.

use crate::abi::{
    BackendFlags, ClientKey, Delivery, DeviceFlags, Flow, FlowKey, Life, Reply, ReplyKey, Seen, Turn,
};
use crate::checksum::Delta;
use crate::family::{Address, Family};
use crate::kernel::{Kernel, Refused, Stage, Step, Tables};
use crate::live::Live;
use crate::packet::{Direction, Frame, Packet, Sending, Transport, flow_key};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Be16, Protocol, TcpFlags, TcpHeader, UdpHeader};

use super::Origin;
use super::affinity;
use super::clamp;
use super::end;
use super::hop::{self, Validity, Way};
use super::place;
use super::translate::{End, Hops, translate};
use super::tunnel::PROVED;

/// A request of a proved flow: the path of nearly every packet we serve.
#[inline(never)]
pub(super) fn established<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    origin: Origin,
) -> u32 {
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let key = flow_key::<F>(&frame.ip, &transport);
    let Some(live) = kernel.flow(Stage::Established, &key) else {
        return Verdict::CONTINUE.number();
    };
    kernel.trace(packet, Step::ESTABLISHED, live.backend());
    let way = (Stage::Established, origin);
    request(packet, kernel, way, &transport, &key, &live.copy(), live).number()
}

/// A request of a flow that is not proved yet. Where this packet proves it, the flow is in the other table afterwards.
#[inline(never)]
pub(super) fn half_open<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    origin: Origin,
) -> u32 {
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let key = flow_key::<F>(&frame.ip, &transport);
    let Some(live) = kernel.flow(Stage::Half, &key) else {
        // It was there a moment ago: another CPU has moved it, or it was evicted.
        return Verdict::drop(Reason::FLOW_BUSY).number();
    };
    // The other side may have been evicted and its SNAT port given away, or this entry been given to another flow since
    // the lookup: only a copy whose other side names this flow is believed.
    let flow = live.copy();
    let reply_key = flow.reply_key(key.protocol);
    let reply = match kernel.reply(Stage::Half, &reply_key) {
        Some(reply) if reply.flow() == key => reply,
        _ => return Verdict::drop(Reason::FLOW_BUSY).number(),
    };
    kernel.trace(packet, Step::HALF_OPEN, flow.backend);
    let (mut stage, mut live) = (Stage::Half, live);
    let is_proved = proves(&transport, reply) || origin == Origin::TUNNEL && is_marked::<F, K>(kernel);
    if is_proved && promote(kernel, &key, &flow, &reply_key) != 0 {
        kernel.trace(packet, Step::PROMOTED, flow.backend);
        affinity::keep(kernel, &ClientKey { service: flow.service, client: key.client });
        // The old entry is no more, and may be another flow's already.
        let Some(promoted) = kernel.flow(Stage::Established, &key) else {
            return Verdict::drop(Reason::FLOW_BUSY).number();
        };
        (stage, live) = (Stage::Established, promoted);
    }
    request(packet, kernel, (stage, origin), &transport, &key, &flow, live).number()
}

/// Whether this request shows that the client has what the backend answered: for TCP an acknowledgment of the SYN-ACK's
/// sequence number (a spoofed one guesses it once in 4,096), for UDP any packet after an answer.
#[inline(always)]
fn proves<A: Address>(transport: &Transport, reply: Live<'_, Reply<A>>) -> bool {
    const AHEAD: u32 = 1 << 20;
    if reply.flags().get() & Seen::ANSWERED == 0 {
        return false;
    }
    let refused =
        transport.flags.any(TcpFlags::SYN.with(TcpFlags::RST)) || !transport.flags.any(TcpFlags::ACK);
    transport.protocol == Protocol::UDP
        || !refused && transport.acknowledgment.wrapping_sub(reply.sequence().get()) < AHEAD
}

/// Whether the node that the client addressed says that the flow is proved.
#[inline(always)]
fn is_marked<F: Family, K: Kernel + Tables<F>>(kernel: &K) -> bool {
    let mut mark = 0;
    kernel.with_parcel(|parcel| mark = parcel.mark);
    mark & PROVED != 0
}

/// Moves both sides to the tables that nothing evicts. The new pair is whole before the old one goes, and a new flow
/// checks both tables for its key, so that no moment leaves the tuple free.
#[inline(never)]
fn promote<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    key: &FlowKey<F::Address>,
    flow: &Flow<F::Address>,
    reply_key: &ReplyKey<F::Address>,
) -> u32 {
    let Some(live) = kernel.reply(Stage::Half, reply_key) else {
        return 0;
    };
    // From one table into the other: a copy would not fit the stack.
    match kernel.add_reply(Stage::Established, reply_key, live.shared()) {
        Ok(()) => {}
        // Another CPU is at it.
        Err(Refused::Exists) => return 0,
        Err(Refused::Full) => {
            kernel.count(Reason::TABLE_FULL_ESTABLISHED);
            return 0;
        }
    }
    if let Some(promoted) = kernel.reply(Stage::Established, reply_key) {
        promoted.life().set(Life::LIVE);
    }
    if kernel.add_flow(Stage::Established, key, flow).is_err() {
        kernel.remove_reply(Stage::Established, reply_key);
        kernel.count(Reason::TABLE_FULL_ESTABLISHED);
        return 0;
    }
    kernel.remove_flow(Stage::Half, key);
    kernel.remove_reply(Stage::Half, reply_key);
    1
}

/// Translates and sends a request. `flow` is the copy to believe, `live` takes what the packet changes.
#[inline(always)]
fn request<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    (stage, origin): (Stage, Origin),
    transport: &Transport,
    key: &FlowKey<F::Address>,
    flow: &Flow<F::Address>,
    live: Live<'_, Flow<F::Address>>,
) -> Verdict {
    if !live.revive() {
        return Verdict::drop(Reason::FLOW_BUSY);
    }
    let turned = match kernel.turn(flow.backend) {
        Some(turn) => turn.turned(),
        None => return orphaned(kernel, stage, key),
    };
    let side =
        if origin == Origin::TUNNEL { place::near::<F, K>(kernel, flow.backend) } else { turned.side() };
    let Some(backend) = kernel.endpoint(Turn::place(flow.backend, side)) else {
        return orphaned(kernel, stage, key);
    };
    let is_here = backend.flags & BackendFlags::LOCAL != 0;
    if origin == Origin::TUNNEL && !is_here {
        return Verdict::drop(Reason::TUNNEL_TARGET);
    }
    let Some(validity) = Validity::new::<P, K>(kernel, place::version(backend, side)) else {
        return Verdict::PASS;
    };
    live.seen().refresh(validity.now);
    let (mut flags, mut next) = (transport.flags, transport.sequence.wrapping_add(transport.consumed));
    if live.turn() != turned.count() {
        live.set_turn(turned.count());
        if flags.any(TcpFlags::FIN) {
            let _withheld = withhold_fin::<F, P>(packet);
            flags = flags.without(TcpFlags::FIN);
            next = next.wrapping_sub(1);
        }
    }
    if transport.protocol == Protocol::TCP {
        live.next().refresh(next);
        live.acknowledged().refresh(transport.acknowledgment);
    }
    if flags.any(end::MARKS) && end::note_request(kernel, stage, flags, key) == end::Outcome::REMOVED {
        return Verdict::CONTINUE;
    }
    if origin == Origin::TUNNEL && flow.flags & Seen::HEARD == 0 {
        note_heard(kernel, stage, key, flow, live);
    }
    let destination = End { address: &backend.address, port: flow.target_port };
    let addresses = Delta::from_folded(flow.address_sum).with(backend.address.sum());
    let source = End { address: &flow.peer, port: flow.peer_port };
    // What another node's tunnel brings goes through the stack: behind XDP nobody would know that it was wrapped.
    let by_stack =
        flow.delivery == Delivery::KEPT || origin == Origin::TUNNEL && flow.delivery == Delivery::PEER;
    let verdict = if flow.delivery.keeps_source() && !is_here {
        kernel.with_parcel(|parcel| {
            parcel.backend = flow.backend;
            parcel.mark = if stage == Stage::Established { PROVED } else { 0 };
        });
        Verdict::CARRY
    } else if by_stack {
        // The source's address stays; its port too, unless another frontend's flow has it.
        let verdict =
            translate::<F, P>(packet, transport.protocol, &source, &destination, addresses, Hops::Kept);
        if verdict.is_final() {
            verdict
        } else {
            clamp::clamp::<F, P, K>(packet, kernel, clamp::ANY);
            Verdict::DELIVER
        }
    } else if is_here && P::SENDING == Sending::Frames {
        Verdict::defer(Reason::POD_DEVICE)
    } else if let Some(slot) = kernel.backend_hop(flow.backend) {
        let wanted = if is_here { DeviceFlags::POD_SIDE } else { DeviceFlags::OUTWARD };
        let way = Way { protocol: transport.protocol, source, destination, addresses, wanted };
        hop::send(packet, kernel, &validity, slot, &way)
    } else {
        Verdict::drop(Reason::BACKEND_GONE)
    };
    if verdict.is_punt() {
        // The flow is ours: the stack would answer a reset.
        return Verdict::drop(verdict.reason());
    }
    packet.note_backend(flow.backend, Direction::Request);
    if !verdict.is_defer() && !verdict.is_drop() && verdict != Verdict::CARRY {
        kernel.account(flow.backend, |traffic| traffic.add_request(transport.octets));
    }
    verdict
}

/// A request by the tunnel, after a reply and of a flow that the node it comes from calls proved: that node has seen a reply,
/// and the next ones need not go there. Without that word it may be a SYN that is sent again because the reply was lost.
#[inline(always)]
fn note_heard<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    key: &FlowKey<F::Address>,
    flow: &Flow<F::Address>,
    live: Live<'_, Flow<F::Address>>,
) {
    if is_marked::<F, K>(kernel)
        && let Some(reply) = kernel.reply(stage, &flow.reply_key(key.protocol))
        && reply.flags().get() & Seen::ANSWERED != 0
    {
        reply.flags().insert(Seen::HEARD);
        live.flags().insert(Seen::HEARD);
    }
}

/// The first packet of a flow to where its VM has moved is not to be a FIN: KubeVirt's translation there would not know the
/// connection and lose it (`nf_conntrack` takes no FIN for a beginning). The client sends the FIN again.
#[inline(never)]
fn withhold_fin<F: Family, P: Packet>(packet: &mut P) -> u32 {
    let mut change = Delta::ZERO;
    if let Some(frame) = packet.view::<Frame<F::Header, TcpHeader>>() {
        let old = frame.transport.offset_flags;
        frame.transport.offset_flags = Be16::new(old.get() & !u16::from(TcpFlags::FIN.0));
        change = change.word(old, frame.transport.offset_flags);
    }
    packet.fix_checksums::<F>(Protocol::TCP, Delta::ZERO, Delta::ZERO, change);
    0
}

/// The backend is gone: UDP moves to another at once, TCP cannot and its client is told.
#[inline(always)]
fn orphaned<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    stage: Stage,
    key: &FlowKey<F::Address>,
) -> Verdict {
    if key.protocol == Protocol::UDP.number() && end::remove(kernel, stage, key) == end::Outcome::REMOVED {
        return Verdict::CONTINUE;
    }
    end::note_reset(kernel, stage, key);
    Verdict::reject(Reason::BACKEND_GONE)
}
