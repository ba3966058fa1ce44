//! Arithmetic on flows: the hash that chooses a backend alike on every node, and the walk over SNAT ports.

use crate::abi::{PortRange, Settings};
use crate::family::Address;
use crate::packet::Transport;

/// Mixes a word into a hash; the constants and rotations are MurmurHash3's (public domain, A. Appleby).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

#[inline(always)]
const fn finish(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// The hash of a request for choosing its backend. The frontend's address is not in it: a client that reaches a Service
/// through two nodes meets the same backend.
#[inline(always)]
pub fn selection_hash<A: Address>(client: &A, transport: &Transport) -> u32 {
    let ports = u32::from(transport.source_port) << 16 | u32::from(transport.destination_port);
    let hash = mix(u32::from(transport.protocol.number()), client.fold());
    finish(mix(hash, ports))
}

/// The `attempt`-th SNAT port to try for a flow, or 0 where the node has none. Where to begin depends on the flow and on
/// the node's secret, so that the next port is not told by the last.
#[inline(always)]
pub fn snat_port(settings: &Settings, hash: u32, attempt: u32) -> u16 {
    let count = settings.snat_port_count;
    if count == 0 {
        return 0;
    }
    nth(&settings.snat_ports, index(finish(hash ^ settings.secret), attempt, count))
}

/// Which of `count` ports the `attempt`-th is. Each flow takes steps of its own: with one step for all, taken ports form
/// runs, and a search that meets a run goes along it to the end. And all steps are primes above any count: with a factor
/// in common, a search would come back before it has met all ports.
#[inline(always)]
fn index(start: u32, attempt: u32, count: u32) -> u32 {
    let step = STEPS[(start >> 29) as usize];
    start.wrapping_add(attempt.wrapping_mul(step)) % count
}

/// Primes above 65,535 and below 2^23, so that no product of theirs in 512 attempts overflows.
const STEPS: [u32; 8] = [65_537, 131_071, 524_287, 786_433, 1_179_649, 5_767_169, 7_340_033, 8_380_417];

/// Port number `index` of the ranges laid end to end; 0 past the end.
#[inline(always)]
fn nth(ranges: &[PortRange; 4], index: u32) -> u16 {
    let mut index = index;
    let mut at = 0;
    while at < 4 {
        let range = ranges[at];
        let count = range.count();
        if index < count {
            // `index` < `count` <= 65,535, and `first` + `index` <= `last`.
            return range.first.wrapping_add((index & 0xffff) as u16);
        }
        index -= count;
        at += 1;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_the_ranges_is_met_once_in_a_round() {
        let ranges = [
            PortRange { first: 1024, last: 1100 },
            PortRange { first: 0, last: 0 },
            PortRange { first: 61_000, last: 61_022 },
            PortRange { first: 65_535, last: 65_535 },
        ];
        let count: u32 = ranges.iter().map(|range| range.count()).sum();
        let met: std::collections::BTreeSet<u16> = (0..count).map(|index| nth(&ranges, index)).collect();
        assert_eq!(count, 77 + 23 + 1);
        assert_eq!(u32::try_from(met.len()).unwrap(), count);
        assert!(
            met.iter().all(|port| ranges.iter().any(|r| r.count() > 0 && (r.first..=r.last).contains(port)))
        );
        assert_eq!(nth(&ranges, count), 0);
    }

    #[test]
    fn no_search_goes_in_a_small_circle() {
        for hash in 0..10_000 {
            let met: std::collections::BTreeSet<u32> =
                (0..32).map(|attempt| index(finish(hash), attempt, 1000)).collect();
            // Where 32 bits overflow on the way, ports may be met a second time, but not a third.
            assert!(met.len() >= 16, "{hash}: {}", met.len());
        }
    }
}
