//! Rewrites: fields through one view, two deltas on the way, checksums last. Translate and reverse are inverse.

use crate::checksum::Delta;
use crate::family::{Address, Family, Header};
use crate::packet::{Frame, Packet};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Be16, Protocol, UdpHeader};

/// One end of a packet: an address and a port in host order.
pub(super) struct End<'a, F: Family> {
    pub(super) address: &'a F::Address,
    pub(super) port: u16,
}

/// Which hop count the packet leaves with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hops {
    /// The stack forwards it and counts the hop itself.
    Kept,
    /// We forward it.
    Counted,
}

/// The change of both addresses that requests of a flow undergo, but for the backend's address.
#[inline(always)]
pub(super) fn address_delta<A: Address>(client: &A, frontend: &A, peer: &A) -> Delta {
    Delta::ZERO.without(client.sum()).without(frontend.sum()).with(peer.sum())
}

/// Writes both ends; `addresses` is what that changes in the sum of both addresses. [`Verdict::CONTINUE`] when the packet
/// is ready to go. Nothing is written where the verdict is another.
#[inline(always)]
pub(super) fn translate<F: Family, P: Packet>(
    packet: &mut P,
    protocol: Protocol,
    source: &End<'_, F>,
    destination: &End<'_, F>,
    addresses: Delta,
    hops: Hops,
) -> Verdict {
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED);
    };
    let mut hop = Delta::ZERO;
    if hops == Hops::Counted {
        if frame.ip.ttl() <= 1 {
            return Verdict::EXPIRED;
        }
        hop = frame.ip.decrement_ttl();
    }
    let (from, to) = (Be16::new(source.port), Be16::new(destination.port));
    let ports = Delta::ZERO.word(frame.transport.source, from).word(frame.transport.destination, to);
    frame.ip.set_source(source.address);
    frame.ip.set_destination(destination.address);
    (frame.transport.source, frame.transport.destination) = (from, to);
    packet.fix_checksums::<F>(protocol, hop.and(addresses), addresses, ports);
    Verdict::CONTINUE
}
