//! What the datapath tells: VMs that have shown themselves at the target of their migration (map `arrivals`). The ring keeps what
//! nobody has read, also over a restart of the agent; what did not fit shows in map `turns`.

use std::io;

use anyhow::Context;
use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use vmlb_common::abi::{Arrival, ArrivalSign, Turn, names};

use crate::bpf::{PinnedMap, ring};
use crate::migration::{Moment, Task};
use crate::pins::PinRoot;

/// The ring, and what it is compared with.
pub struct Arrivals {
    ring: AsyncFd<RingBuf<MapData>>,
    turns: PinnedMap<u32, Turn>,
}

impl Arrivals {
    /// Opens the maps under `root`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When one is missing or of another layout.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        let path = root.map(names::ARRIVALS);
        let ring = ring::open(&path).with_context(|| format!("cannot listen to map {}", path.display()))?;
        Ok(Self { ring, turns: PinnedMap::open(root, names::TURNS)? })
    }

    /// Waits until there are some. Nothing is lost where the future is dropped.
    ///
    /// # Errors
    /// When the ring cannot be waited for.
    pub async fn next(&mut self) -> io::Result<Vec<Arrival>> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut arrivals = Vec::new();
            while let Some(record) = ring.next() {
                arrivals.extend(parse(&record));
            }
            ready.clear_ready();
            if !arrivals.is_empty() {
                return Ok(arrivals);
            }
        }
    }

    /// Turns of which no arrival has told, because the ring was full or an earlier agent has read it and not acted on it: the
    /// VM of a task that has not turned is at its target.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn missed(&self, tasks: &[Task], now: Moment) -> anyhow::Result<Vec<Arrival>> {
        let mut missed = Vec::new();
        for task in tasks.iter().filter(|task| task.is_installed && task.turned.is_none()) {
            let turn = self.turns.get(&task.backend)?;
            missed.extend(turn.and_then(|turn| as_arrival(task, &turn, now)));
        }
        Ok(missed)
    }
}

/// The arrival that the datapath has not told of.
fn as_arrival(task: &Task, turn: &Turn, now: Moment) -> Option<Arrival> {
    let turned = vmlb_common::abi::Turned(turn.word);
    (turned.side() == task.side && !turned.is_expected()).then_some(Arrival {
        at: now.monotonic,
        // What is between that and now is nobody's silence.
        replied: 0,
        backend: task.backend,
        word: turn.word,
        sign: ArrivalSign::FLOW,
        pad: 0,
    })
}

/// A record of the ring; `None`: it is of another size.
fn parse(record: &[u8]) -> Option<Arrival> {
    let record: &[u8; size_of::<Arrival>()] = record.try_into().ok()?;
    let (words, _) = record.as_chunks::<4>();
    let word = |place: usize| words.get(place).copied().map(u32::from_ne_bytes);
    let (longs, _) = record.as_chunks::<8>();
    let long = |place: usize| longs.get(place).copied().map(u64::from_ne_bytes);
    Some(Arrival {
        at: long(0)?,
        replied: long(1)?,
        backend: word(4)?,
        word: word(5)?,
        sign: word(6)?,
        pad: word(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::Stage;
    use vmlb_common::abi::Turned;

    #[test]
    fn a_record_is_read_field_by_field_and_one_of_another_size_is_not() {
        let mut record = Vec::new();
        record.extend(0x0102_0304_0506_0708_u64.to_ne_bytes());
        record.extend(9_u64.to_ne_bytes());
        for word in [7_u32, 0x301, ArrivalSign::PROBE, 0] {
            record.extend(word.to_ne_bytes());
        }
        let arrival = Arrival {
            at: 0x0102_0304_0506_0708,
            replied: 9,
            backend: 7,
            word: 0x301,
            sign: ArrivalSign::PROBE,
            pad: 0,
        };
        assert_eq!(parse(&record), Some(arrival));
        assert_eq!(parse(&record[..31]), None);
        record.push(0);
        assert_eq!(parse(&record), None);
    }

    #[test]
    fn a_turn_that_was_not_told_of_is_found_by_its_side() {
        let task = Task {
            number: 1,
            backend: 7,
            side: 1,
            tag: 0,
            stage: Stage::Primed,
            is_installed: true,
            endpoints: Vec::new(),
            known: Moment::default(),
            turned: None,
            probe: None,
        };
        let now = Moment { monotonic: 5, wall: 0 };
        let turn = |word: Turned| Turn { word: word.0, pad: 0, replied: 3 };
        let before = Turned::default().expecting(true);
        assert_eq!(as_arrival(&task, &turn(before), now), None);
        let arrival = as_arrival(&task, &turn(before.turned()), now);
        assert_eq!(arrival.map(|arrival| (arrival.at, arrival.backend, arrival.word)), Some((5, 7, 0x101)));
        // Back on its way to the first side: that is the next migration's.
        assert_eq!(as_arrival(&task, &turn(before.turned().expecting(true)), now), None);
    }
}
