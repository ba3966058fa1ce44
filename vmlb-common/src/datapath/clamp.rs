//! TCP's maximum segment size (RFC 9293 section 3.7.1) lowered to what a way takes, in SYN and SYN-ACK: where the ICMP errors of
//! path MTU discovery are filtered, nothing else would tell either end.

use crate::abi::ClampMss;
use crate::checksum::Delta;
use crate::family::{Family, Header};
use crate::kernel::{Kernel, Search};
use crate::packet::{Frame, Packet};
use crate::wire::{Be16, Ethernet, Protocol, TcpFlags, TcpHeader};

use super::translate::Hops;
use super::tunnel::tunnel;

/// Most octets of options in a TCP header; each takes one at least.
const OPTIONS: u32 = 40;
/// Kinds of options (IANA), and the length of the one that is looked for.
const END: u8 = 0;
const PADDING: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
const LENGTH: u8 = 4;

/// A way that takes any packet, as far as it is known.
pub(super) const ANY: u32 = u32::MAX;

/// What the data that answer a packet by the tunnel may take: those of a request come by the tunnel too if all replies do, those
/// of a reply always.
#[inline(always)]
pub(super) fn of_tunnel<K: Kernel>(kernel: &K, hops: Hops, mtu: u32) -> u32 {
    if hops == Hops::Kept || tunnel(kernel).returns != 0 { mtu } else { ANY }
}

/// Lowers what a SYN or SYN-ACK lets its receiver send at once to what fits a way, or what the operator says. Never raises it;
/// what is no well-formed list of options stays as it is.
#[inline(always)]
pub(super) fn clamp<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K, mtu: u32) {
    let Some(frame) = packet.view::<Frame<F::Header, TcpHeader>>() else {
        return;
    };
    if frame.ip.protocol() == Protocol::TCP && frame.transport.flags().any(TcpFlags::SYN) {
        lower::<F, P, K>(packet, kernel, mtu);
    }
}

/// The walk over the options of a TCP header: [`Packet::octets_at`] says where they are.
struct Options<'a, P> {
    packet: &'a mut P,
    at: u32,
    end: u32,
    /// Where the option that is looked for is; 0: not met yet.
    found: u32,
}

impl<P: Packet, K: Kernel> Search<K> for Options<'_, P> {
    #[inline(always)]
    fn step(&mut self, _kernel: &K, _number: u32) -> bool {
        if self.at.wrapping_add(u32::from(LENGTH)) > self.end {
            return true;
        }
        let Some([kind, length, ..]) = self.packet.octets_at(self.at).copied() else {
            return true;
        };
        if kind == PADDING {
            self.at = self.at.wrapping_add(1);
            return false;
        }
        if kind == MAXIMUM_SEGMENT_SIZE && length == LENGTH {
            self.found = self.at;
        }
        self.at = self.at.wrapping_add(u32::from(length));
        kind == END || kind == MAXIMUM_SEGMENT_SIZE || length < 2
    }
}

#[inline(never)]
fn lower<F: Family, P: Packet, K: Kernel>(packet: &mut P, kernel: &K, mtu: u32) -> u32 {
    let headers = (size_of::<F::Header>() + size_of::<TcpHeader>()) as u32;
    let clamp = match kernel.settings() {
        Some(settings) => settings.clamp_mss,
        None => ClampMss::OFF,
    };
    let most = clamp.least(mtu.saturating_sub(headers));
    let start = size_of::<Ethernet>() as u32 + headers;
    packet.reach(start + OPTIONS);
    let Some(frame) = packet.view::<Frame<F::Header, TcpHeader>>() else {
        return 0;
    };
    let end = (start - size_of::<TcpHeader>() as u32).wrapping_add(frame.transport.length());
    let mut options = Options { packet, at: start, end, found: 0 };
    kernel.search(OPTIONS, &mut options);
    let (packet, found) = (options.packet, options.found);
    if found == 0 {
        return 0;
    }
    let Some([_, _, high, low]) = packet.octets_at(found) else {
        return 0;
    };
    let old = u16::from(*high) << 8 | u16::from(*low);
    if u32::from(old) <= most {
        return 0;
    }
    let new = most as u16;
    (*high, *low) = ((new >> 8) as u8, new as u8);
    // A word that begins at an odd octet counts with its halves changed over (RFC 1071 section 2).
    let counted = |size: u16| Be16::new(if found & 1 == 0 { size } else { size.swap_bytes() });
    packet.fix_checksums::<F>(
        Protocol::TCP,
        Delta::ZERO,
        Delta::ZERO,
        Delta::ZERO.word(counted(old), counted(new)),
    );
    1
}
