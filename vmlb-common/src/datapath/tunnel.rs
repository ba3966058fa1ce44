//! The tunnel between the cluster's nodes (way 6): requests whose source is kept go to their backend's node as they came from
//! the client, and what the backend's node cannot send to the client itself comes back the same way.
//!
//! A packet carries a mark: the backend's tag, because the far node is to serve it by the backend that this one has chosen,
//! and whether the flow is proved, because the far node keeps flows that nobody has proved where a flood may evict them.

use crate::abi::{Device, DeviceFlags, FlowKey, Reply, Tunnel, TunnelShape, Turn};
use crate::checksum::Delta;
use crate::family::{Family, Header};
use crate::kernel::{Kernel, Stage, Step, Tables};
use crate::live::{Live, Slot};
use crate::packet::{Direction, Frame, InIp, InUdp, Outer, Packet, Sending, Transport, overhead};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Be16, Ethernet, Protocol, UdpHeader, VxlanHeader};

use super::clamp;
use super::fragment;
use super::hop::{self, Validity, Way};
use super::place;
use super::reply;
use super::translate::{End, Hops};

/// The bit of a mark that says that the flow is proved; the others are [`crate::abi::Backend::tag`].
pub(super) const PROVED: u32 = 0x8000;

/// What [`arrived`] makes of a packet: a verdict, or one of these.
pub(super) struct Unpacked;

impl Unpacked {
    /// A client's request, or an error about what the client got; the mark is in the parcel.
    pub(super) const REQUEST: u32 = 1 << 31;
    /// A reply that its backend's node has translated.
    pub(super) const REPLY: u32 = 1 << 30;
}

/// What is inside.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct Inside(u32);

impl Inside {
    /// Nothing for vmlb: other things use protocol 4 between nodes too, overlays for one.
    const FOREIGN: Self = Self(0);
    const REQUEST: Self = Self(1);
    const REPLY: Self = Self(2);
    /// For vmlb, but no node of the cluster has sent it.
    const FORGED: Self = Self(3);
}

/// From another node: looks at what is inside, and if it is ours takes it out of its wrapping. Whose flow it is of the next
/// stages find as for any packet; what they cannot read from it is in the parcel.
#[inline(never)]
pub(super) fn arrived<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let Some(frame) = packet.view::<Frame<Outer<F>, UdpHeader>>() else {
        return Verdict::PASS.number();
    };
    let shape = if frame.ip.protocol() == F::IP_IN_IP { TunnelShape::IP } else { TunnelShape::UDP };
    packet.reach(size_of::<InUdp<Outer<F>, F::Header, UdpHeader>>() as u32);
    if P::WHOLE
        && let Some(headers) = inside::<F, P, K>(packet, kernel, shape)
        && headers.ip.is_fragment()
        && concerns_us::<F, K>(kernel, headers.ip)
    {
        return Verdict::FRAGMENT.number();
    }
    let inside = if shape == TunnelShape::IP {
        match packet.view::<InIp<Outer<F>, F::Header, UdpHeader>>() {
            Some(frame) => {
                let mark = u32::from(frame.outer.mark().get());
                judge::<F, P, K>(kernel, &frame.outer, mark, &frame.ip, &frame.transport)
            }
            None => Inside::FOREIGN,
        }
    } else {
        match packet.view::<InUdp<Outer<F>, F::Header, UdpHeader>>() {
            Some(frame) if frame.vxlan.is_of(tunnel(kernel).network) => {
                let mark = u32::from(frame.vxlan.mark.get());
                judge::<F, P, K>(kernel, &frame.outer, mark, &frame.ip, &frame.transport)
            }
            _ => Inside::FOREIGN,
        }
    };
    if P::SENDING == Sending::Frames && inside == Inside::REPLY {
        // Out of its wrapping nobody behind XDP would know whose it is: what TC is to send stays as it is.
        let verdict = Verdict::from_number(if shape == TunnelShape::IP {
            let Some(frame) = packet.view::<InIp<Outer<F>, F::Header, UdpHeader>>() else {
                return Verdict::PASS.number();
            };
            let key = key_of_reply::<F>(&frame.ip, &frame.transport);
            within_reach::<F, P, K>(packet, kernel, &key)
        } else {
            let Some(frame) = packet.view::<InUdp<Outer<F>, F::Header, UdpHeader>>() else {
                return Verdict::PASS.number();
            };
            let key = key_of_reply::<F>(&frame.ip, &frame.transport);
            within_reach::<F, P, K>(packet, kernel, &key)
        });
        if verdict.is_defer() {
            return verdict.number();
        }
    }
    let outcome = match inside {
        Inside::FOREIGN => return Verdict::PASS.number(),
        Inside::FORGED => return Verdict::drop(Reason::TUNNEL_SOURCE).number(),
        Inside::REPLY => Unpacked::REPLY,
        _ => Unpacked::REQUEST,
    };
    if !packet.unwrap::<F>(overhead::<F>(shape)) {
        return Verdict::drop(Reason::MALFORMED).number();
    }
    kernel.trace(packet, Step::UNWRAPPED, outcome);
    outcome
}

/// The two IP headers of a packet in another.
struct Headers<'a, F: Family> {
    outer: &'a Outer<F>,
    ip: &'a F::Header,
}

/// The headers of what another node may have wrapped; nothing is asked of what follows them, for a datagram's last fragment
/// may have less than ports take.
#[inline(always)]
fn inside<'a, F: Family, P: Packet, K: Kernel>(
    packet: &'a mut P,
    kernel: &K,
    shape: u8,
) -> Option<Headers<'a, F>> {
    let headers: Headers<'a, F> = if shape == TunnelShape::IP {
        let frame = packet.view::<InIp<Outer<F>, F::Header, ()>>()?;
        Headers { outer: &frame.outer, ip: &frame.ip }
    } else {
        let frame = packet.view::<InUdp<Outer<F>, F::Header, ()>>()?;
        if !frame.vxlan.is_of(tunnel(kernel).network) {
            return None;
        }
        Headers { outer: &frame.outer, ip: &frame.ip }
    };
    (headers.ip.is_version() && headers.ip.is_plain()).then_some(headers)
}

/// Whether a packet without ports may be a request or a reply of ours.
#[inline(always)]
fn concerns_us<F: Family, K: Kernel + Tables<F>>(kernel: &K, ip: &F::Header) -> bool {
    is_ours::<F, K>(kernel, &ip.destination()) || is_ours::<F, K>(kernel, &ip.source())
}

/// A fragment in another node's wrapping, as [`fragment::remember`] says.
#[inline(never)]
pub(super) fn piece<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let Some(frame) = packet.view::<Frame<Outer<F>, ()>>() else {
        return Verdict::PASS.number();
    };
    let shape = if frame.ip.protocol() == F::IP_IN_IP { TunnelShape::IP } else { TunnelShape::UDP };
    packet.reach(size_of::<InUdp<Outer<F>, F::Header, UdpHeader>>() as u32);
    let Some(Headers { outer, ip }) = inside::<F, P, K>(packet, kernel, shape) else {
        return Verdict::PASS.number();
    };
    let protocol = ip.protocol();
    if protocol != Protocol::TCP && protocol != Protocol::UDP || !concerns_us::<F, K>(kernel, ip) {
        return Verdict::PASS.number();
    }
    if !kernel.is_node(&outer.source()) {
        return Verdict::drop(Reason::TUNNEL_SOURCE).number();
    }
    fragment::remember::<fragment::Tunnel, F, P, K>(kernel, ip, overhead::<F>(shape))
}

/// The flow of a reply that its backend's node has translated.
#[inline(always)]
fn key_of_reply<F: Family>(ip: &F::Header, transport: &UdpHeader) -> FlowKey<F::Address> {
    FlowKey {
        client: ip.destination(),
        frontend: ip.source(),
        client_port: transport.destination.get(),
        frontend_port: transport.source.get(),
        protocol: ip.protocol().number(),
        pad: 0,
        pad2: 0,
    }
}

/// The backend's side of a flow.
struct Found<'a, F: Family> {
    stage: Stage,
    backend: u32,
    reply: Live<'a, Reply<F::Address>>,
}

/// The backend's side of a flow that is whole.
#[inline(always)]
fn find<'a, F: Family, K: Kernel + Tables<F>>(
    kernel: &'a K,
    key: &FlowKey<F::Address>,
) -> Option<Found<'a, F>> {
    let (stage, flow) = match kernel.flow(Stage::Established, key) {
        Some(flow) => (Stage::Established, flow),
        None => (Stage::Half, kernel.flow(Stage::Half, key)?),
    };
    let reply = kernel.reply(stage, &flow.copy().reply_key(key.protocol))?;
    (reply.flow() == *key).then_some(Found { stage, backend: flow.backend(), reply })
}

/// Whether XDP can send a reply to its client: sees to it that the flow knows the next hop.
#[inline(never)]
fn within_reach<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    key: &FlowKey<F::Address>,
) -> u32 {
    // The validity first: LLVM would carry what was not found through the question for it, in a register without a value.
    let Some(validity) = Validity::new::<P, K>(kernel, 0) else { return Verdict::CONTINUE.number() };
    let Some(found) = find::<F, K>(kernel, key) else { return Verdict::CONTINUE.number() };
    hop::aim(packet, kernel, &validity, found.reply.hop(), &way_to_client::<F>(key)).number()
}

#[inline(always)]
fn way_to_client<F: Family>(key: &FlowKey<F::Address>) -> Way<'_, F> {
    Way {
        protocol: Protocol::new(key.protocol),
        source: End { address: &key.frontend, port: key.frontend_port },
        destination: End { address: &key.client, port: key.client_port },
        addresses: Delta::ZERO,
        wanted: DeviceFlags::ANY,
    }
}

/// Whose what is inside is, by the gate; notes the mark and the sender in the parcel.
#[inline(always)]
fn judge<F: Family, P: Packet, K: Kernel + Tables<F>>(
    kernel: &K,
    outer: &Outer<F>,
    mark: u32,
    inner: &F::Header,
    transport: &UdpHeader,
) -> Inside {
    if !inner.is_version() || !inner.is_plain() || P::WHOLE && inner.is_fragment() {
        return Inside::FOREIGN;
    }
    let protocol = inner.protocol();
    let has_ports = protocol == Protocol::TCP || protocol == Protocol::UDP;
    let (from, to) = (inner.source(), inner.destination());
    let asks = if has_ports {
        super::gate::is_frontend(kernel, transport.destination.get()) && is_ours::<F, K>(kernel, &to)
    } else {
        protocol == F::ICMP && is_ours::<F, K>(kernel, &to)
    };
    let answers = has_ports
        && super::gate::is_frontend(kernel, transport.source.get())
        && is_ours::<F, K>(kernel, &from);
    if !asks && !answers {
        return Inside::FOREIGN;
    }
    let via = outer.source();
    if !kernel.is_node(&via) {
        return Inside::FORGED;
    }
    kernel.with_parcel(|parcel| {
        parcel.via = via;
        parcel.mark = mark;
    });
    // A client may have a frontend's port and address for its own; only the mark of a request is never zero.
    if asks && mark != 0 { Inside::REQUEST } else { Inside::REPLY }
}

/// Whether an address is a frontend's here, or another node's, whose node ports it may be.
#[inline(always)]
fn is_ours<F: Family, K: Kernel + Tables<F>>(kernel: &K, address: &F::Address) -> bool {
    super::gate::may_be_frontend(kernel, address) || kernel.is_node(address)
}

/// The tunnel as the settings have it.
#[inline(always)]
pub(super) fn tunnel<K: Kernel>(kernel: &K) -> Tunnel {
    match kernel.settings() {
        Some(settings) => settings.tunnel,
        None => Tunnel::default(),
    }
}

/// A request, or an error about a reply, whose backend ([`crate::kernel::Parcel::backend`]) is on another node: there, as it
/// came from the client.
#[inline(never)]
pub(super) fn carry<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let mut id = 0;
    kernel.with_parcel(|parcel| id = parcel.backend);
    let side = place::side(kernel, id);
    let (Some(backend), Some(slot)) = (kernel.endpoint(Turn::place(id, side)), kernel.tunnel_hop(id)) else {
        return Verdict::drop(Reason::BACKEND_GONE).number();
    };
    let Some(validity) = Validity::new::<P, K>(kernel, place::version(backend, side)) else {
        return Verdict::drop(Reason::NO_TUNNEL).number();
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let octets = frame.ip.payload_length().wrapping_add(size_of::<F::Header>() as u32);
    let is_request = frame.ip.protocol() != F::ICMP;
    let tag = backend.tag;
    kernel.with_parcel(|parcel| parcel.mark |= tag);
    kernel.trace(packet, Step::CARRIED, id);
    let verdict = wrap::<F, P, K>(packet, kernel, &validity, slot, &backend.node, Hops::Counted);
    if is_request && is_sent(verdict) {
        kernel.account(id, |traffic| traffic.add_request(octets));
    }
    verdict.number()
}

#[inline(always)]
fn is_sent(verdict: Verdict) -> bool {
    verdict == Verdict::TRANSMIT || verdict == Verdict::REDIRECT
}

/// A reply, translated, whose client is to get it by the node that it addressed ([`crate::kernel::Parcel::via`]).
#[inline(never)]
pub(super) fn back<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let mut via = F::Address::default();
    kernel.with_parcel(|parcel| {
        via = parcel.via;
        parcel.mark = 0;
    });
    let (Some(slot), Some(validity)) = (kernel.parcel_hop(), Validity::new::<P, K>(kernel, 0)) else {
        return Verdict::drop(Reason::NO_TUNNEL).number();
    };
    // What is there is another flow's.
    slot.fill(crate::abi::Hop::NOWHERE);
    wrap::<F, P, K>(packet, kernel, &validity, slot, &via, Hops::Kept).number()
}

/// Wraps a packet and sends it to a node.
#[inline(always)]
fn wrap<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    validity: &Validity,
    slot: Slot,
    node: &F::Address,
    hops: Hops,
) -> Verdict {
    let tunnel = tunnel(kernel);
    if tunnel.shape == TunnelShape::NONE || *node == F::Address::default() {
        return Verdict::drop(Reason::NO_TUNNEL);
    }
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED);
    };
    let destination = frame.ip.destination();
    let way = Way {
        protocol: F::IP_IN_IP,
        source: End { address: &destination, port: 0 },
        destination: End { address: node, port: 0 },
        addresses: Delta::ZERO,
        wanted: DeviceFlags::UPLINK,
    };
    let verdict = hop::aim(packet, kernel, validity, slot, &way);
    if verdict.is_final() {
        return if verdict.is_punt() { Verdict::drop(verdict.reason()) } else { verdict };
    }
    let wrapping = overhead::<F>(tunnel.shape);
    let verdict = hop::fits::<F, P>(packet, slot.mtu().saturating_sub(wrapping));
    if verdict.is_final() {
        return verdict;
    }
    let mtu = clamp::of_tunnel(kernel, hops, slot.mtu().saturating_sub(wrapping));
    clamp::clamp::<F, P, K>(packet, kernel, mtu);
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED);
    };
    // Networks spread flows by the outer ports.
    let entropy = 0xc000 | (frame.transport.source.get() ^ frame.transport.destination.get()) & 0x3fff;
    let mut label = 0;
    kernel.with_parcel(|parcel| label = u32::from(entropy) << 16 | parcel.mark & 0xffff);
    if !P::WHOLE {
        fragment::note_wrapping::<F, K>(kernel, &frame.ip, node, label);
    }
    Verdict::from_number(seal::<F, P, K>(packet, kernel, slot, node, label, hops))
}

/// What a packet may have by a way that takes `mtu`, once it is wrapped.
#[inline(always)]
pub(super) fn within<F: Family, K: Kernel>(kernel: &K, mtu: u32) -> u32 {
    mtu.saturating_sub(overhead::<F>(tunnel(kernel).shape))
}

/// Whether replies always come back by the tunnel.
#[inline(always)]
pub(super) fn returns_all<K: Kernel>(kernel: &K) -> bool {
    tunnel(kernel).returns != 0
}

/// Whom the far node is to see: this node, by the address that the cluster knows it by, because others are not listened to.
#[inline(always)]
fn own_address<F: Family, K: Kernel + Tables<F>>(kernel: &K, leaving_by: u32) -> Option<&F::Address> {
    let of = |index| {
        let address = kernel.snat_address(kernel.device(index)?);
        (*address != F::Address::default()).then_some(address)
    };
    of(Device::NODE).or_else(|| of(leaving_by))
}

/// Writes the wrapping and sends the packet by `slot`. The label is the mark, and in its upper half the source port of a
/// wrapping in UDP.
#[inline(never)]
pub(super) fn seal<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    slot: Slot,
    node: &F::Address,
    label: u32,
    hops: Hops,
) -> u32 {
    let tunnel = tunnel(kernel);
    let Some(own) = own_address::<F, K>(kernel, slot.ifindex()) else {
        return Verdict::drop(Reason::NO_SNAT_ADDRESS).number();
    };
    let Some(frame) = packet.view::<Frame<F::Header, ()>>() else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    if hops == Hops::Counted {
        if frame.ip.ttl() <= 1 {
            return Verdict::EXPIRED.number();
        }
        let hop = frame.ip.decrement_ttl();
        let _field = frame.ip.fix_checksum(hop);
    }
    let inner = frame.ip.payload_length().wrapping_add(size_of::<F::Header>() as u32);
    let mark = Be16::new(label as u16);
    let wrapping = overhead::<F>(tunnel.shape);
    if !packet.wrap::<F>(tunnel.shape, wrapping) {
        return Verdict::drop(Reason::NO_TUNNEL).number();
    }
    let length = (inner + wrapping).wrapping_sub(size_of::<Outer<F>>() as u32) as u16;
    if tunnel.shape == TunnelShape::IP {
        let Some(frame) = packet.view::<InIp<Outer<F>, F::Header, ()>>() else {
            return Verdict::drop(Reason::MALFORMED).number();
        };
        frame.outer.originate(own, node, F::IP_IN_IP, length);
        frame.outer.set_mark(mark);
    } else {
        let Some(frame) = packet.view::<InUdp<Outer<F>, F::Header, ()>>() else {
            return Verdict::drop(Reason::MALFORMED).number();
        };
        frame.outer.originate(own, node, Protocol::UDP, length);
        frame.udp.source = Be16::new((label >> 16) as u16);
        frame.udp.destination = Be16::new(tunnel.port);
        frame.udp.length = Be16::new(length);
        // None: RFC 768 over IPv4, RFC 6935 over IPv6. What is inside has its own.
        frame.udp.checksum = Be16::default();
        frame.vxlan = VxlanHeader::new(tunnel.network, mark);
        frame.inner = Ethernet {
            destination: [Be16::default(); 3],
            source: [Be16::default(); 3],
            ethertype: F::ETHERTYPE,
        };
    }
    packet.send(slot).number()
}

/// A reply out of the tunnel, as the client is to get it: it proves what any reply proves, and shows where the VM is.
#[inline(never)]
pub(super) fn returned<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let key = key_of_reply::<F>(&frame.ip, &frame.transport);
    let Some(Found { stage, backend, reply }) = find::<F, K>(kernel, &key) else {
        return Verdict::drop(Reason::TUNNEL_FRONTEND).number();
    };
    let mut via = F::Address::default();
    kernel.with_parcel(|parcel| via = parcel.via);
    let side = place::side_where::<F, K>(kernel, backend, |endpoint| endpoint.node == via);
    let verdict = Verdict::from_number(place::answered(kernel, backend, side, u32::from(transport.flags.0)));
    if verdict.is_final() {
        return verdict.number();
    }
    if !reply.revive() {
        return Verdict::drop(Reason::FLOW_BUSY).number();
    }
    let Some(validity) = Validity::new::<P, K>(kernel, 0) else {
        return Verdict::drop(Reason::NO_ROUTE).number();
    };
    reply.seen().refresh(validity.now);
    reply::note(kernel, &transport, stage, reply);
    let verdict = hop::send(packet, kernel, &validity, reply.hop(), &way_to_client::<F>(&key));
    packet.note_backend(backend, Direction::Reply);
    if is_sent(verdict) {
        kernel.account(backend, |traffic| traffic.add_reply(transport.octets));
    }
    verdict.number()
}
