//! `vmlb detach --drain`: no flow begins any more, and those there are may end by themselves.

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Context;
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun};
use vmlb_common::abi::{Flow, FlowKey, Frontend, FrontendKey, Seen, TargetKey, names};
use vmlb_common::family::{Address, Address4, Address6};

use crate::bpf::{PinnedMap, Plain};
use crate::loader::{programs, resize};
use crate::pins::PinRoot;

/// Between two looks at the flow tables.
const LOOK: Duration = Duration::from_millis(250);
/// Between two ageing passes.
const SWEEP: Duration = Duration::from_secs(1);
/// Between two lines in the log.
const TELL: Duration = Duration::from_secs(10);
/// After both sides have said that they are done, the last acknowledgments are still on their way.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Closes every frontend: from now on no packet is the start of anything, and the stack gets what vmlb does not know.
///
/// # Errors
/// When a map cannot be written.
pub fn close_frontends(root: &PinRoot) -> anyhow::Result<()> {
    // An agent that was killed while it replaced maps has left programs that use the old ones.
    for root in resize::leftovers(root)?.iter().chain([root]) {
        empty::<FrontendKey<Address4>, Frontend>(root, names::FRONTENDS[0])?;
        empty::<FrontendKey<Address6>, Frontend>(root, names::FRONTENDS[1])?;
    }
    Ok(())
}

/// Waits until the flows have ended, for `patience` at most; how many are left.
///
/// # Errors
/// When a map cannot be read or written, or the ageing program does not run.
pub fn wait(root: &PinRoot, patience: Duration) -> anyhow::Result<usize> {
    if !root.map(names::FLOWS[0]).exists() {
        return Ok(0);
    }
    // What the stack masquerades from now on may take any port: its resets are its own.
    empty::<TargetKey, u32>(root, names::TARGETS)?;
    let begin = Instant::now();
    let (mut swept, mut told) = (begin, None::<Instant>);
    let mut ended = None;
    loop {
        let left = count(root)?;
        if left > 0 {
            ended = None;
        } else if ended.get_or_insert_with(Instant::now).elapsed() >= LAST_WORDS {
            return Ok(0);
        }
        let time_left = patience.saturating_sub(begin.elapsed());
        if time_left.is_zero() {
            return Ok(left);
        }
        if left > 0 && told.is_none_or(|at| at.elapsed() >= TELL) {
            tracing::info!("draining: {left} flows are left, {} s to go", time_left.as_secs());
            told = Some(Instant::now());
        }
        std::thread::sleep(LOOK.min(time_left));
        if swept.elapsed() >= SWEEP {
            sweep(root)?;
            swept = Instant::now();
        }
    }
}

/// Flows that neither TCP nor time has ended.
fn count(root: &PinRoot) -> anyhow::Result<usize> {
    let mut left = 0;
    for table in [names::FLOWS, names::HALF_FLOWS] {
        left += count_in::<Address4>(root, table[0])? + count_in::<Address6>(root, table[1])?;
    }
    Ok(left)
}

fn count_in<A: Address + Plain + Debug>(root: &PinRoot, name: &'static str) -> anyhow::Result<usize> {
    let map: PinnedMap<FlowKey<A>, Flow<A>> = PinnedMap::open(root, name)?;
    let mut left = 0;
    map.each(|_, flow| {
        left += usize::from(!Seen::is_closed(flow.flags));
        ControlFlow::Continue(())
    })?;
    Ok(left)
}

/// One ageing pass, which is the agent's task while there is one.
fn sweep(root: &PinRoot) -> anyhow::Result<()> {
    let pin = root.program(programs::SWEEP);
    if !pin.exists() {
        return Ok(());
    }
    let program = RawTracePoint::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
    program.test_run(RawTracePointRunOptions::new()).context("cannot run the ageing program")?;
    Ok(())
}

/// Empties a map; one that is not there, or of another version's layout, is not read.
fn empty<K: Plain + Debug, V: Plain>(root: &PinRoot, name: &'static str) -> anyhow::Result<()> {
    if !root.map(name).exists() {
        return Ok(());
    }
    let map: PinnedMap<K, V> = match PinnedMap::open(root, name) {
        Ok(map) => map,
        Err(error) => {
            tracing::info!("{error:#}");
            return Ok(());
        }
    };
    for (key, _) in map.all()? {
        map.remove(&key)?;
    }
    Ok(())
}
