//! Establishes flows by the packets that establish them, through the program itself: whatever the layout of its tables.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::flows::{Kind, Order, Packets, Phase};
use super::harness::{Harness, Target};
use super::site::Site;

/// Flows half open at a time, far fewer than the half-open tables hold.
const BATCH: u64 = 4096;

/// Establishes the flows of `range` of `packets` (requests or local ones); in the node's namespace.
pub fn prime(site: &Site, harness: &mut Harness, packets: Packets, range: Range<u64>) -> Result<()> {
    let before = site.established(packets.family)?;
    let mut first = range.start;
    while first < range.end {
        let count = BATCH.min(range.end - first);
        pass(harness, packets, Phase::Opening, first, count)?;
        if packets.kind == Kind::Local {
            answer_locally(site, packets, first..first + count)?;
        } else {
            pass(harness, packets.replies(), Phase::Answer, first, count)?;
        }
        pass(harness, packets, Phase::Going, first, count)?;
        first += count;
    }
    let established = site.established(packets.family)? - before;
    let wanted = range.end - range.start;
    ensure!(established as u64 == wanted, "{established} of {wanted} flows of {packets:?} were established");
    Ok(())
}

/// One packet of each flow.
fn pass(harness: &mut Harness, packets: Packets, phase: Phase, first: u64, count: u64) -> Result<()> {
    harness.set_course(&packets.course(phase, first, 1 << 30, Order::Opened))?;
    harness.run(Target::Measured, u32::try_from(count)?)?;
    Ok(())
}

/// Replies of this node's own backends leave through the stack and the egress program.
fn answer_locally(site: &Site, packets: Packets, range: Range<u64>) -> Result<()> {
    let egress = site.egress()?;
    for number in range {
        site.leave(&egress, &packets.local_answer(number))?;
    }
    Ok(())
}
