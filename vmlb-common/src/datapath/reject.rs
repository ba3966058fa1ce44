//! Refusals: a packet becomes the answer that tells its sender that nobody serves it, and goes back the way it came.

use crate::abi::Bucket;
use crate::checksum::Sum;
use crate::family::{Address, Family, Header};
use crate::kernel::{Kernel, Tables};
use crate::packet::{Frame, Packet, Sending, Transport};
use crate::verdict::{Reason, Verdict};
use crate::wire::{Be16, Ethernet, IcmpHeader, Protocol, TcpFlags, TcpHeader, UdpHeader, Wire, words_of};

/// An ICMP error that quotes an IP header and eight octets, as much as every receiver needs (RFC 792; the eight octets
/// are a whole UDP header).
#[derive(Clone, Copy)]
#[repr(C)]
struct Quoting<I> {
    ethernet: Ethernet,
    ip: I,
    icmp: IcmpHeader,
    quoted: I,
    start: [Be16; 4],
}

// SAFETY: words of alignment 2 behind one another leave no gap.
unsafe impl<I: Wire> Wire for Quoting<I> {}

/// Answers a packet whose sender is to learn that it is refused: one that is too big with the MTU, one without hops with "time
/// exceeded", TCP with a reset, all else with "port unreachable". At TC, where frames cannot be reshaped before their checksums are whole, the stack is left
/// to do it.
#[inline(never)]
pub(super) fn answer<F: Family, P: Packet, K: Kernel + Tables<F>>(
    packet: &mut P,
    kernel: &K,
    refusal: Verdict,
) -> u32 {
    let reason = refusal.reason();
    let Some(settings) = kernel.settings() else {
        return Verdict::punt(reason).number();
    };
    if P::SENDING == Sending::Packets || settings.reject_rate == 0 {
        // The stack would answer a packet of a flow of ours with a reset.
        let verdict = if refusal.is_of_the_way() { Verdict::drop(reason) } else { Verdict::punt(reason) };
        return verdict.number();
    }
    let Some(transport) = Transport::read::<F, P>(packet) else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    let Some(frame) = packet.view::<Frame<F::Header, UdpHeader>>() else {
        return Verdict::drop(Reason::MALFORMED).number();
    };
    // No answer to a crowd, to nobody, or to a reset (RFC 9293 section 3.10.7.1).
    let is_group = frame.ethernet.destination[0].high() & 1 != 0;
    if is_group || !frame.ip.source().is_host() || transport.flags.any(TcpFlags::RST) {
        return Verdict::drop(reason).number();
    }
    let (now, rate, hz) = (kernel.now(), settings.reject_rate, settings.hz);
    if !kernel.spend(|bucket| take(bucket, now, rate, hz)) {
        return Verdict::drop(Reason::REJECT_LIMIT).number();
    }
    let done = if refusal.mtu() != 0 {
        error::<F, P>(packet, F::TOO_BIG, refusal.mtu())
    } else if refusal == Verdict::EXPIRED {
        error::<F, P>(packet, F::TIME_EXCEEDED, 0)
    } else if transport.protocol == Protocol::TCP {
        reset::<F, P>(packet, &transport)
    } else {
        error::<F, P>(packet, F::PORT_UNREACHABLE, 0)
    };
    if done { Verdict::answer(reason) } else { Verdict::drop(reason) }.number()
}

/// Takes one answer out of the bucket, which is full again after a second: every jiffy brings `rate` shares, an answer
/// costs `hz`.
#[inline(always)]
fn take(bucket: &mut Bucket, now: u32, rate: u32, hz: u32) -> bool {
    let (passed, full) = (now.wrapping_sub(bucket.filled), rate.wrapping_mul(hz));
    let left = bucket.left.saturating_add(passed.wrapping_mul(rate));
    let left = if passed >= hz || left > full { full } else { left };
    let taken = left >= hz;
    (bucket.filled, bucket.left) = (now, if taken { left - hz } else { left });
    taken
}

/// A reset from the frontend to the client (RFC 9293 section 3.10.7.1).
#[inline(always)]
fn reset<F: Family, P: Packet>(packet: &mut P, transport: &Transport) -> bool {
    const HEADER: u32 = size_of::<TcpHeader>() as u32;
    if !packet.reshape(size_of::<Frame<F::Header, TcpHeader>>() as u32, 0) {
        return false;
    }
    let Some(frame) = packet.view::<Frame<F::Header, TcpHeader>>() else {
        return false;
    };
    let tcp = &mut frame.transport;
    let headers = size_of::<F::Header>() as u32 + tcp.length();
    let (flags, sequence, acknowledgment) = if transport.flags.any(TcpFlags::ACK) {
        (TcpFlags::RST, transport.acknowledgment, 0)
    } else {
        let marks =
            u32::from(transport.flags.any(TcpFlags::SYN)) + u32::from(transport.flags.any(TcpFlags::FIN));
        let octets = transport.octets.wrapping_sub(headers).wrapping_add(marks);
        (TcpFlags::RST_ACK, 0, transport.sequence.wrapping_add(octets))
    };
    (frame.ethernet.source, frame.ethernet.destination) = (frame.ethernet.destination, frame.ethernet.source);
    (tcp.source, tcp.destination) = (Be16::new(transport.destination_port), Be16::new(transport.source_port));
    tcp.sequence = words_of(sequence);
    tcp.acknowledgment = words_of(acknowledgment);
    tcp.offset_flags = Be16::new((HEADER as u16 / 4) << 12 | flags.0 as u16);
    tcp.window = Be16::new(0);
    tcp.checksum = Be16::new(0);
    tcp.urgent = Be16::new(0);
    let (client, frontend) = (frame.ip.source(), frame.ip.destination());
    frame.ip.originate(&frontend, &client, Protocol::TCP, HEADER as u16);
    let pseudo = pseudo::<F>(&frontend, &client, Protocol::TCP, HEADER);
    frame.transport.checksum = pseudo.and(frame.transport.sum()).complement();
    true
}

/// An ICMP error from the packet's destination to its source, quoting its first octets.
#[inline(never)]
fn error<F: Family, P: Packet>(packet: &mut P, kind: Be16, mtu: u32) -> bool {
    let length = (size_of::<IcmpHeader>() + size_of::<F::Header>() + size_of::<[Be16; 4]>()) as u32;
    let Some(ethernet) = packet.view::<Ethernet>().copied() else {
        return false;
    };
    let kept = size_of::<Frame<F::Header, UdpHeader>>() as u32;
    if !packet.reshape(kept, (size_of::<F::Header>() + size_of::<IcmpHeader>()) as u32) {
        return false;
    }
    let Some(error) = packet.view::<Quoting<F::Header>>() else {
        return false;
    };
    error.ethernet =
        Ethernet { source: ethernet.destination, destination: ethernet.source, ethertype: F::ETHERTYPE };
    error.icmp = IcmpHeader { kind, checksum: Be16::new(0), rest: words_of(mtu) };
    let (to, from) = (error.quoted.source(), error.quoted.destination());
    error.ip.originate(&from, &to, F::ICMP, length as u16);
    let quoted = error.quoted.sum().and(Sum::of(&error.start));
    let body = Sum::of(&[kind]).and(Sum::of(&error.icmp.rest)).and(quoted);
    // ICMP has no pseudo header, ICMPv6 has (RFC 4443 section 2.3).
    let body = if F::VERSION == 4 { body } else { body.and(pseudo::<F>(&from, &to, F::ICMP, length)) };
    error.icmp.checksum = body.complement();
    true
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
fn pseudo<F: Family>(source: &F::Address, destination: &F::Address, protocol: Protocol, length: u32) -> Sum {
    let [high, low] = words_of(length);
    let protocol = Be16::new(u16::from(protocol.number()));
    source.sum().and(destination.sum()).and(Sum::of(&[high, low, protocol]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers given to `asked` packets in each jiffy of `jiffies`, from a time on.
    fn given(bucket: &mut Bucket, from: u32, jiffies: u32, asked: u32, rate: u32, hz: u32) -> u32 {
        let ask =
            |jiffy| (0..asked).filter(|_| take(bucket, from.wrapping_add(jiffy), rate, hz)).count() as u32;
        (0..jiffies).map(ask).sum()
    }

    #[test]
    fn no_more_answers_than_the_rate_are_given_in_a_second_after_the_first() {
        for (rate, hz) in [(1000, 250), (1000, 1000), (10, 250), (1, 100), (250, 300)] {
            // The clock wraps around on the way.
            let (mut bucket, from) = (Bucket::default(), 5u32.wrapping_neg());
            assert_eq!(given(&mut bucket, from, 1, 5000, rate, hz), rate, "what has gathered");
            let second = given(&mut bucket, from.wrapping_add(1), hz, 5000, rate, hz);
            assert!((rate * 9 / 10..=rate).contains(&second), "{second} at {rate} a second, {hz} jiffies");
        }
    }

    #[test]
    fn a_lower_rate_holds_at_once() {
        let mut bucket = Bucket { filled: 100, left: 1000 * 250 };
        assert_eq!(given(&mut bucket, 101, 1, 50, 3, 250), 3);
    }
}
