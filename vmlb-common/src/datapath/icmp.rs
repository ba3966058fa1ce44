//! ICMP errors that quote packets of our flows: both the packet and what it quotes are translated, so that each end learns
//! of what it sent itself (RFC 5508 section 4.2 asks the same of a NAT).

use crate::abi::{BackendFlags, Delivery, DeviceFlags, FlowKey, Pod, Reply, ReplyKey};
use crate::checksum::Delta;
use crate::family::{Address, Family, Header, V6Fragment};
use crate::kernel::{Kernel, Stage, Step, Tables};
use crate::live::{Live, Slot};
use crate::packet::{Outer, Packet, Sending, udp_checksum};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Be16, Ethernet, IcmpHeader, Protocol, TcpHeader, UdpHeader, Wire};

use super::hop::{self, Validity, Way};
use super::place::{is_at, present, side, version};
use super::translate::{End, Hops};

/// An ICMP error as far as it is looked at: it quotes an IP header and the first octets behind it. Of a family in which a
/// header more is in the quoted packet, it is whole itself.
#[derive(Clone, Copy)]
#[repr(C)]
struct Quoting<O, I, L> {
    ethernet: Ethernet,
    ip: O,
    icmp: IcmpHeader,
    quoted: I,
    transport: L,
}

/// [`Quoting`] of a family.
type ErrorOf<F, L> = Quoting<Outer<F>, <F as Family>::Header, L>;

/// Octets of the largest.
pub(super) const MOST: u32 = size_of::<ErrorOf<V6Fragment, TcpHeader>>() as u32;

// SAFETY: words of alignment 2 behind one another leave no gap.
unsafe impl<O: Wire, I: Wire, L: Wire> Wire for Quoting<O, I, L> {}

/// What is quoted, besides addresses.
#[derive(Clone, Copy)]
struct Quoted {
    source_port: u16,
    destination_port: u16,
    protocol: Protocol,
}

impl Quoted {
    /// Reads an ICMP packet; `None` where it is no error, or quotes nothing that could be ours.
    #[inline(always)]
    fn read<F: Family, P: Packet>(packet: &mut P) -> Option<Self> {
        let headers = (size_of::<Ethernet>() + size_of::<Outer<F>>()) as u32;
        let available = packet.length().wrapping_sub(headers);
        let error = packet.view::<ErrorOf<F, UdpHeader>>()?;
        let length = error.ip.payload_length();
        let least = (size_of::<IcmpHeader>() + size_of::<F::Header>() + size_of::<UdpHeader>()) as u32;
        let quoted = &error.quoted;
        let protocol = quoted.protocol();
        let is_ours = protocol == Protocol::TCP || protocol == Protocol::UDP;
        let is_whole = length >= least && length <= available;
        if !is_whole || !is_ours || !F::is_error(error.icmp.kind.high()) || !is_plain(quoted) {
            return None;
        }
        Some(Self {
            source_port: error.transport.source.get(),
            destination_port: error.transport.destination.get(),
            protocol,
        })
    }
}

/// A datagram's first fragment has the ports too; who sent the others need not hear of them.
#[inline(always)]
fn is_plain<H: Header>(quoted: &H) -> bool {
    quoted.is_version() && quoted.is_plain() && quoted.piece().offset == 0
}

/// Whether an error quotes a fragment whose header is behind the IP header, for those who know it.
#[inline(always)]
pub(super) fn quotes_fragment<F: Family, P: Packet>(packet: &mut P) -> bool {
    match packet.view::<ErrorOf<F, ()>>() {
        Some(error) => {
            F::is_error(error.icmp.kind.high()) && error.quoted.protocol() == Protocol::IPV6_FRAGMENT
        }
        None => false,
    }
}

/// From the wire, about a reply of ours that a client got: on to the backend, as if the backend's own packet were quoted.
#[inline(never)]
pub(super) fn about_reply<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let Some(quoted) = Quoted::read::<F, P>(packet) else {
        return Verdict::PASS.number();
    };
    let Some(error) = packet.view::<ErrorOf<F, UdpHeader>>() else {
        return Verdict::PASS.number();
    };
    let key = FlowKey {
        client: error.quoted.destination(),
        frontend: error.quoted.source(),
        client_port: quoted.destination_port,
        frontend_port: quoted.source_port,
        protocol: quoted.protocol.number(),
        pad: 0,
        pad2: 0,
    };
    let live = match kernel.flow(Stage::Established, &key) {
        Some(live) => live,
        None => match kernel.flow(Stage::Half, &key) {
            Some(live) => live,
            None => return Verdict::CONTINUE.number(),
        },
    };
    let (id, delivery, peer) = (live.backend(), live.delivery(), live.peer());
    let (Some(backend), Some(slot)) = (present::<F, K>(kernel, id), kernel.backend_hop(id)) else {
        return Verdict::drop(Reason::BACKEND_GONE).number();
    };
    kernel.trace(packet, Step::QUOTED, id);
    let mut rewrite = Rewrite::<F> {
        from: None,
        to: &backend.address,
        source: End { address: &backend.address, port: live.target_port() },
        destination: End { address: &peer, port: live.peer_port() },
    };
    let is_here = backend.flags & BackendFlags::LOCAL != 0;
    if delivery == Delivery::KEPT && is_here {
        return rewrite.deliver::<P>(packet, quoted.protocol).number();
    }
    if delivery.keeps_source() && !is_here {
        kernel.with_parcel(|parcel| {
            parcel.backend = id;
            parcel.mark = super::tunnel::PROVED;
        });
        return Verdict::CARRY.number();
    }
    if is_here && P::SENDING == Sending::Frames {
        return Verdict::defer(Reason::POD_DEVICE).number();
    }
    if delivery != Delivery::PEER {
        // The pod's node need not believe that its sender is on this way.
        rewrite.from = Some(&peer);
    }
    let wanted = if is_here { DeviceFlags::POD_SIDE } else { DeviceFlags::OUTWARD };
    let version = version(backend, side(kernel, id));
    rewrite.send(packet, kernel, quoted.protocol, version, slot, wanted).number()
}

/// From the wire, about a request of ours that another node's pod got.
#[inline(never)]
pub(super) fn from_wire<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    match Quoted::read::<F, P>(packet) {
        Some(quoted) => about_request::<F, P, K>(packet, kernel, &quoted).number(),
        None => Verdict::PASS.number(),
    }
}

/// From a pod of this node, to an address we SNATed from.
#[inline(never)]
pub(super) fn from_pod<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    match Quoted::read::<F, P>(packet) {
        Some(quoted) => about_request::<F, P, K>(packet, kernel, &quoted).number(),
        None => Verdict::PASS.number(),
    }
}

/// On the way out of the node's stack: from a pod of this node, or from the stack itself about a packet that it could not
/// deliver to one. The client is to hear of the frontend, which is all it knows.
#[inline(never)]
pub(super) fn leaving<F: Family, P: Packet, K: Kernel + Tables<F>>(packet: &mut P, kernel: &K) -> u32 {
    let Some(quoted) = Quoted::read::<F, P>(packet) else {
        return Verdict::PASS.number();
    };
    let Some((live, pod)) = find::<F, P, K>(packet, kernel, &quoted) else {
        return Verdict::PASS.number();
    };
    if !live.delivery().keeps_source() {
        return Verdict::PASS.number();
    }
    if !is_at::<F, K>(kernel, &pod) {
        return Verdict::drop(Reason::NOT_PRESENT).number();
    }
    kernel.trace(packet, Step::QUOTED, pod.backend);
    let Some(error) = packet.view::<ErrorOf<F, UdpHeader>>() else {
        return Verdict::PASS.number();
    };
    let flow = live.flow();
    let is_from_pod = error.ip.source() == error.quoted.destination();
    let rewrite = Rewrite::<F> {
        from: if is_from_pod { Some(&flow.frontend) } else { None },
        to: &flow.client,
        source: End { address: &flow.client, port: flow.client_port },
        destination: End { address: &flow.frontend, port: flow.frontend_port },
    };
    rewrite.deliver::<P>(packet, quoted.protocol).number()
}

/// About a request that we sent to a pod with SNAT, or past the stack: on to the client, from the frontend.
#[inline(always)]
fn about_request<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    quoted: &Quoted,
) -> Verdict {
    let Some((live, pod)) = find::<F, P, K>(packet, kernel, quoted) else {
        return Verdict::PASS;
    };
    if live.delivery() == Delivery::KEPT {
        return Verdict::PASS;
    }
    if !is_at::<F, K>(kernel, &pod) {
        return Verdict::drop(Reason::NOT_PRESENT);
    }
    kernel.trace(packet, Step::QUOTED, pod.backend);
    let flow = live.flow();
    let rewrite = Rewrite::<F> {
        from: Some(&flow.frontend),
        to: &flow.client,
        source: End { address: &flow.client, port: flow.client_port },
        destination: End { address: &flow.frontend, port: flow.frontend_port },
    };
    rewrite.send(packet, kernel, quoted.protocol, 0, live.hop(), DeviceFlags::ANY)
}

/// The flow whose request is quoted, by its backend's side; and whose the pod is.
#[inline(always)]
fn find<'a, F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &'a K,
    quoted: &Quoted,
) -> Option<(Live<'a, Reply<F::Address>>, Pod)> {
    let error = packet.view::<ErrorOf<F, UdpHeader>>()?;
    let pod = error.quoted.destination();
    let mut key = ReplyKey {
        backend: 0,
        peer: error.quoted.source(),
        target_port: quoted.destination_port,
        peer_port: quoted.source_port,
        protocol: quoted.protocol.number(),
        pad: 0,
        pad2: 0,
    };
    let pod = kernel.pod(&pod)?;
    key.backend = pod.backend;
    let live = match kernel.reply(Stage::Established, &key) {
        Some(live) => live,
        None => kernel.reply(Stage::Half, &key)?,
    };
    Some((live, pod))
}

/// What becomes of an error.
struct Rewrite<'a, F: Family> {
    /// Its new source; `None`: it stays.
    from: Option<&'a F::Address>,
    /// Its new destination.
    to: &'a F::Address,
    /// Source of what it quotes.
    source: End<'a, F>,
    /// Destination of what it quotes.
    destination: End<'a, F>,
}

impl<F: Family> Rewrite<'_, F> {
    /// Sends the error by `slot`'s hop.
    #[inline(always)]
    fn send<P: Packet, K: Kernel + Tables<F>>(
        &self,
        packet: &mut P,
        kernel: &K,
        protocol: Protocol,
        version: u32,
        slot: Slot,
        wanted: u32,
    ) -> Verdict {
        let Some(validity) = Validity::new::<P, K>(kernel, version) else {
            return Verdict::PASS;
        };
        let way = Way {
            protocol: F::ICMP,
            source: End { address: self.from.unwrap_or(self.to), port: 0 },
            destination: End { address: self.to, port: 0 },
            addresses: Delta::ZERO,
            wanted,
        };
        let verdict = hop::aim(packet, kernel, &validity, slot, &way);
        if verdict.is_punt() {
            // The stack knows nothing of the flow, and would believe what is not said of the node.
            return Verdict::drop(verdict.reason());
        }
        if verdict.is_final() {
            return verdict;
        }
        let verdict = Verdict::from_number(self.apply::<P>(packet, protocol, Hops::Counted));
        if verdict.is_final() { verdict } else { packet.send(slot) }
    }

    /// Writes both headers and every checksum, for the stack to forward.
    #[inline(always)]
    fn deliver<P: Packet>(&self, packet: &mut P, protocol: Protocol) -> Verdict {
        let verdict = Verdict::from_number(self.apply::<P>(packet, protocol, Hops::Kept));
        if verdict.is_final() { verdict } else { Verdict::DELIVER }
    }

    /// Writes both headers and every checksum; [`Verdict::CONTINUE`] where that has gone well.
    #[inline(never)]
    fn apply<P: Packet>(&self, packet: &mut P, protocol: Protocol, hops: Hops) -> u32 {
        let Some(error) = packet.view::<ErrorOf<F, UdpHeader>>() else {
            return Verdict::drop(Reason::MALFORMED).number();
        };
        let mut hop = Delta::ZERO;
        if hops == Hops::Counted {
            if error.ip.ttl() <= 1 {
                return Verdict::drop(Reason::TTL_EXPIRED).number();
            }
            hop = error.ip.decrement_ttl();
        }
        let mut outer = Delta::ZERO.without(error.ip.destination().sum()).with(self.to.sum());
        error.ip.set_destination(self.to);
        if let Some(from) = self.from {
            outer = outer.without(error.ip.source().sum()).with(from.sum());
            error.ip.set_source(from);
        }
        let _field = error.ip.fix_checksum(hop.and(outer));
        let (source, destination) = (self.source.address, self.destination.address);
        let addresses = Delta::ZERO
            .without(error.quoted.source().sum())
            .without(error.quoted.destination().sum())
            .with(source.sum())
            .with(destination.sum());
        error.quoted.set_source(source);
        error.quoted.set_destination(destination);
        let field = error.quoted.fix_checksum(addresses);
        let (from, to) = (Be16::new(self.source.port), Be16::new(self.destination.port));
        let ports = Delta::ZERO.word(error.transport.source, from).word(error.transport.destination, to);
        (error.transport.source, error.transport.destination) = (from, to);
        let mut inner = addresses.and(field).and(ports);
        if protocol == Protocol::UDP {
            let old = error.transport.checksum;
            error.transport.checksum = udp_checksum::<F>(old, addresses.and(ports));
            inner = inner.word(old, error.transport.checksum);
        }
        // ICMPv6 has a pseudo header (RFC 4443 section 2.3).
        let sum = if F::VERSION == 4 { inner } else { inner.and(outer) };
        error.icmp.checksum = sum.apply(error.icmp.checksum);
        if protocol == Protocol::TCP {
            quoted_tcp_checksum::<F, P>(packet, addresses.and(ports));
        }
        if F::VERSION == 6 {
            // All else makes up for itself; no checksum covers the hop.
            packet.fix_header::<F>(hop);
        }
        Verdict::CONTINUE.number()
    }
}

/// The checksum of a quoted TCP header, where so much of it is quoted.
#[inline(always)]
fn quoted_tcp_checksum<F: Family, P: Packet>(packet: &mut P, change: Delta) {
    let least = (size_of::<IcmpHeader>() + size_of::<F::Header>() + size_of::<TcpHeader>()) as u32;
    if let Some(error) = packet.view::<ErrorOf<F, TcpHeader>>()
        && error.ip.payload_length() >= least
    {
        let old = error.transport.checksum;
        error.transport.checksum = change.apply(old);
        error.icmp.checksum = Delta::ZERO.word(old, error.transport.checksum).apply(error.icmp.checksum);
    }
}
