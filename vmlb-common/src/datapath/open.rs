//! New flows: which service, which backend, which way, and both sides of the flow made.

use core::mem::MaybeUninit;

use crate::abi::{
    Backend, BackendFlags, ClientKey, Delivery, DeviceFlags, Flow, FlowKey, Frontend, FrontendFlags,
    FrontendKey, Plain, Reply, Seen, Service, ServiceFlags, TagKey, Turn,
};
use crate::family::Family;
use crate::flow::selection_hash;
use crate::kernel::{Kernel, Query, Stage, Step, Tables};
use crate::packet::{Frame, Packet, Transport, flow_key};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Protocol, TcpFlags, UdpHeader};

use super::Origin;
use super::affinity;
use super::end;
use super::hop::{NOWHERE, device_flags, leaves_by};
use super::inherited::{holds_replies, is_inherited};
use super::place::{self, present};
use super::snat::{self, Tuple};
use super::translate::address_delta;
use super::tunnel::PROVED;

/// Sees to it that a request has a flow. [`Verdict::CONTINUE`] when it has one.
#[inline(never)]
pub(super) fn open<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    origin: Origin,
) -> u32 {
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let now = kernel.now();
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let mut space = MaybeUninit::uninit();
    let reply = Reply::<F::Address>::emptied(&mut space);
    reply.flow = flow_key::<F>(&frame.ip, &transport);
    if is_open(kernel, transport.flags, &reply.flow) {
        return Verdict::CONTINUE.number();
    }
    // Another CPU may have proved the flow since it was looked for among the established ones.
    if !transport.flags.is_opening() && kernel.flow(Stage::Established, &reply.flow).is_some() {
        return Verdict::drop(Reason::FLOW_BUSY).number();
    }
    reply.seen = now;
    let is_carried = origin == Origin::TUNNEL;
    let Some(frontend) = frontend(kernel, &reply.flow, origin) else {
        return Verdict::PASS.number();
    };
    if transport.protocol == Protocol::TCP && !transport.flags.is_opening() && !is_carried {
        return Verdict::punt(Reason::MID_FLOW).number();
    }
    if transport.protocol == Protocol::UDP && !is_carried && is_inherited::<F, P, K>(packet, kernel) {
        return Verdict::punt(Reason::INHERITED).number();
    }
    let Some(service) = kernel.service(frontend.service) else {
        return Verdict::PASS.number();
    };
    let client = ClientKey { service: frontend.service, client: reply.flow.client };
    // The node that the client addressed has asked.
    if frontend.flags & FrontendFlags::RANGES != 0 && !is_carried && !kernel.is_in_ranges(&client) {
        return Verdict::drop(Reason::SOURCE_RANGE).number();
    }
    let hash = selection_hash(&reply.flow.client, &transport);
    let target = if is_carried {
        let mut mark = 0;
        kernel.with_parcel(|parcel| {
            mark = parcel.mark;
            reply.via = parcel.via;
        });
        kernel.tagged(&TagKey { service: frontend.service, tag: mark & !PROVED })
    } else {
        affinity::target(choose(kernel, &service, &client, hash))
    };
    let Some(target) = target else {
        // This node may be the last to hear of the VM: a refusal would end a flow that lives.
        let verdict =
            if is_carried { Verdict::drop(Reason::TUNNEL_TARGET) } else { without_backend(&service) };
        return verdict.number();
    };
    let side = if is_carried {
        place::near::<F, K>(kernel, target.backend)
    } else {
        place::side(kernel, target.backend)
    };
    let Some(backend) = kernel.endpoint(Turn::place(target.backend, side)) else {
        return Verdict::punt(Reason::NO_BACKEND).number();
    };
    let is_here = backend.flags & BackendFlags::LOCAL != 0;
    if is_carried && !is_here {
        return Verdict::drop(Reason::TUNNEL_TARGET).number();
    }
    kernel.trace(packet, Step::CHOSEN, target.backend);
    let mut space = MaybeUninit::uninit();
    let flow = Flow::<F::Address>::emptied(&mut space);
    flow.backend = target.backend;
    flow.service = frontend.service;
    flow.seen = now;
    flow.peer = reply.flow.client;
    flow.peer_port = transport.source_port;
    flow.target_port = target.port;
    flow.delivery = Delivery::SNAT;
    flow.turn = place::count(kernel, target.backend).wrapping_sub(1);
    let verdict = Verdict::from_number(deliver(packet, kernel, service.flags, backend, flow, reply));
    if verdict.is_final() {
        return verdict.number();
    }
    if is_here && !is_carried && flow.delivery == Delivery::KEPT {
        straighten::<F, P, K>(packet, kernel, backend, flow, reply);
    }
    reply.delivery = flow.delivery;
    flow.address_sum = address_delta(&reply.flow.client, &reply.flow.frontend, &flow.peer).fold();
    reply.address_sum = flow.address_sum;
    let keeps_port = flow.delivery.keeps_source() && keep_port(kernel, flow, reply);
    if !keeps_port && !snat::reserve_port(kernel, hash, flow, reply) {
        return Verdict::reject(Reason::SNAT_EXHAUSTED).number();
    }
    if holds_replies(kernel, &flow.reply_key(reply.flow.protocol)) {
        // One tuple cannot have two masters: the stack, which has this one already, is to serve the newcomer too.
        kernel.remove_reply(Stage::Half, &flow.reply_key(reply.flow.protocol));
        return Verdict::punt(Reason::INHERITED).number();
    }
    if kernel.add_flow(Stage::Half, &reply.flow, flow).is_err() {
        // Another CPU has just opened it; its reservation stands, ours goes, and the packet is found there.
        kernel.remove_reply(Stage::Half, &flow.reply_key(reply.flow.protocol));
        return Verdict::CONTINUE.number();
    }
    if service.affinity != 0 && !is_carried {
        affinity::note(kernel, &client, &target);
    }
    kernel.account(flow.backend, |traffic| traffic.opened = traffic.opened.wrapping_add(1));
    kernel.trace(packet, Step::OPENED, u32::from(flow.peer_port));
    Verdict::CONTINUE.number()
}

/// Whether the request has a half-open flow that can serve it. One that cannot is removed: its other side was evicted,
/// its backend is gone (UDP moves to another), or TCP is done with it and a new connection comes from the same port.
#[inline(never)]
fn is_open<F: Family, K: Kernel + Tables<F>>(kernel: &K, flags: TcpFlags, key: &FlowKey<F::Address>) -> bool {
    let Some(live) = kernel.flow(Stage::Half, key) else {
        return false;
    };
    let reply_key = live.copy().reply_key(key.protocol);
    let whole = match kernel.reply(Stage::Half, &reply_key) {
        Some(reply) => reply.flow() == *key,
        None => false,
    };
    let moves =
        key.protocol == Protocol::UDP.number() && present::<F, K>(kernel, reply_key.backend).is_none();
    let again = flags.is_opening() && Seen::is_closed(live.flags().get());
    if whole && !moves && !again {
        return true;
    }
    end::remove(kernel, Stage::Half, key);
    false
}

#[inline(always)]
fn frontend<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    flow: &FlowKey<F::Address>,
    origin: Origin,
) -> Option<Frontend> {
    let (port, protocol) = (flow.frontend_port, flow.protocol);
    let found = kernel.frontend(&FrontendKey { address: flow.frontend, port, protocol, pad: 0 });
    if found.is_some() || origin != Origin::TUNNEL || !kernel.is_node(&flow.frontend) {
        return found;
    }
    // A node port of another node: every node has it.
    kernel.frontend(&FrontendKey { address: F::Address::default(), port, protocol, pad: 0 })
}

/// The target that the client stays with, else one of the selection table's; as [`affinity::target`] reads it. A
/// subprogram, so that the verifier walks what comes then once, not once for each way to a target.
#[inline(never)]
fn choose<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    service: &Service,
    client: &ClientKey<F::Address>,
    hash: u32,
) -> u64 {
    let selection = service.selection;
    if selection.size == 0 {
        return affinity::NONE;
    }
    if service.affinity != 0 {
        let known = affinity::recall(kernel, client, service.affinity);
        if known != affinity::NONE {
            return known;
        }
    }
    let number = if service.flags & ServiceFlags::RANDOM != 0 { kernel.random() } else { hash };
    match kernel.slot(selection.offset.wrapping_add(number % selection.size)) {
        Some(target) => affinity::number(&target),
        None => affinity::NONE,
    }
}

#[inline(always)]
fn without_backend(service: &Service) -> Verdict {
    if service.flags & ServiceFlags::DROP_IF_EMPTY != 0 {
        Verdict::drop(Reason::NO_LOCAL_BACKEND)
    } else {
        Verdict::reject(Reason::NO_BACKEND)
    }
}

/// By which way the flow's backend is reached: `flow` says so.
#[inline(never)]
fn deliver<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    service: u32,
    backend: &Backend<F::Address>,
    flow: &mut Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> u32 {
    let is_here = backend.flags & BackendFlags::LOCAL != 0;
    if is_here {
        let verdict = here(packet, kernel, service, flow, reply);
        if verdict.is_final() {
            return verdict.number();
        }
    } else if service & ServiceFlags::DSR != 0 && backend.node != F::Address::default() {
        flow.delivery = Delivery::KEPT;
    }
    if flow.delivery == Delivery::KEPT {
        return Verdict::CONTINUE.number();
    }
    if reply.via != F::Address::default() {
        return Verdict::drop(Reason::SOURCE_NOT_KEPT).number();
    }
    elsewhere(packet, kernel, backend, flow, reply).number()
}

/// Past the stack instead of through it, where that is wanted and the pod's device may be handed packets. Not within
/// [`deliver`]: the chain of calls would be too deep.
#[inline(never)]
fn straighten<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    backend: &Backend<F::Address>,
    flow: &mut Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> u32 {
    const STRAIGHT: u32 = DeviceFlags::POD_SIDE | DeviceFlags::DIRECT;
    if device_flags(kernel, packet.ifindex()) & DeviceFlags::DIRECT == 0 {
        return 0;
    }
    let there =
        Query { source: &reply.flow.client, destination: &backend.address, protocol: reply.flow.protocol };
    // What is no device has no flags.
    let ifindex = leaves_by::<F, P, K>(packet, kernel, &there);
    if device_flags(kernel, ifindex) & STRAIGHT == STRAIGHT {
        flow.delivery = Delivery::PEER;
    }
    0
}

/// A backend on this node: by the stack with the client's address kept, if replies to the client will meet our egress
/// program; else with SNAT by the pod's device. `flow.delivery` says which.
#[inline(always)]
fn here<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    service: u32,
    flow: &mut Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> Verdict {
    let back = Query {
        source: &reply.flow.frontend,
        destination: &reply.flow.client,
        protocol: reply.flow.protocol,
    };
    let ifindex = leaves_by::<F, P, K>(packet, kernel, &back);
    if ifindex & NOWHERE != 0 {
        return Verdict::punt(Reason::from_number(ifindex & !NOWHERE));
    }
    if device_flags(kernel, ifindex) & DeviceFlags::UPLINK != 0 {
        flow.delivery = Delivery::KEPT;
    } else if service & ServiceFlags::LOCAL != 0 {
        return Verdict::punt(Reason::SOURCE_NOT_KEPT);
    }
    Verdict::CONTINUE
}

/// Makes the reply's side with the client's own port, where no flow by another frontend has the tuple.
#[inline(always)]
fn keep_port<F: Family, K: Kernel + Tables<F>>(
    kernel: &K,
    flow: &Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> bool {
    let key = flow.reply_key(reply.flow.protocol);
    let tuple = snat::reserve(kernel, &key, reply);
    tuple == Tuple::RESERVED || tuple == Tuple::OVER && snat::take_over(kernel, &key, reply)
}

/// With SNAT, towards another node or into a pod's device.
#[inline(always)]
fn elsewhere<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    backend: &Backend<F::Address>,
    flow: &mut Flow<F::Address>,
    reply: &Reply<F::Address>,
) -> Verdict {
    let there =
        Query { source: &reply.flow.frontend, destination: &backend.address, protocol: reply.flow.protocol };
    let ifindex = leaves_by::<F, P, K>(packet, kernel, &there);
    if ifindex & NOWHERE != 0 {
        return Verdict::punt(Reason::from_number(ifindex & !NOWHERE));
    }
    let remote = backend.flags & BackendFlags::LOCAL == 0;
    let wanted = if remote { DeviceFlags::OUTWARD } else { DeviceFlags::POD_SIDE };
    if device_flags(kernel, ifindex) & wanted == 0 {
        return Verdict::punt(Reason::FOREIGN_DEVICE);
    }
    // A pod's device need not have an address; the one that clients reach this node by serves.
    let Some(from) = kernel.device(if remote { ifindex } else { packet.ifindex() }) else {
        return Verdict::punt(Reason::NO_SNAT_ADDRESS);
    };
    flow.peer = *kernel.snat_address(from);
    if flow.peer == F::Address::default() {
        return Verdict::punt(Reason::NO_SNAT_ADDRESS);
    }
    Verdict::CONTINUE
}
