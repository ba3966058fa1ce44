//! How long a VM was away, seen by a client that asks all the time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::requests;

/// Time between two questions: the grain of what is measured.
pub const INTERVAL: Duration = Duration::from_millis(5);

/// A client that sends a datagram each [`INTERVAL`] to each of several servers, until it is dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    askers: Vec<JoinHandle<Result<Vec<SystemTime>>>>,
}

impl Watch {
    /// Starts asking the echo servers at `servers` from `host`.
    pub fn start(host: &Namespace, servers: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let askers = servers.iter().map(|&server| {
            let stop = Arc::clone(&stop);
            host.spawn(move || ask_until(&stop, server))
        });
        Self { askers: askers.collect(), stop }
    }

    /// Stops; the times of each server's answers, in the order of the servers.
    pub fn finish(mut self) -> Result<Vec<Answers>> {
        self.stop.store(true, Ordering::Relaxed);
        let answers = std::mem::take(&mut self.askers)
            .into_iter()
            .map(|asker| Ok(Answers { times: asker.join().expect("an asker does not panic")? }));
        answers.collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// When answers arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    times: Vec<SystemTime>,
}

impl Answers {
    /// Answers at these times.
    pub fn at(times: &[SystemTime]) -> Self {
        Self { times: times.to_vec() }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// The longest time without an answer from any of these servers, between the first and the last.
    pub fn longest_gap<'a>(servers: impl IntoIterator<Item = &'a Self>) -> Duration {
        let mut times: Vec<SystemTime> =
            servers.into_iter().flat_map(|answers| answers.times.iter().copied()).collect();
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap_or_default());
        gaps.max().unwrap_or_default()
    }

    /// The longest time without an answer from this server.
    pub fn longest_gap_alone(&self) -> Duration {
        Self::longest_gap([self])
    }

    /// Whether any came after `time`.
    pub fn any_after(&self, time: SystemTime) -> bool {
        self.times.iter().any(|&answer| answer > time)
    }

    /// Whether any came before `time`.
    pub fn any_before(&self, time: SystemTime) -> bool {
        self.times.iter().any(|&answer| answer < time)
    }
}

/// Asks without waiting longer than until the next question; what cannot be sent is as good as lost.
fn ask_until(stop: &AtomicBool, server: SocketAddr) -> Result<Vec<SystemTime>> {
    let socket = requests::datagrams(server)?;
    let mut times = Vec::new();
    let mut next = SystemTime::now();
    while !stop.load(Ordering::Relaxed) {
        // An error here is the ICMP error for an earlier question.
        let _lost = socket.send(b"blackout?");
        next += INTERVAL;
        while let Ok(left) = next.duration_since(SystemTime::now()) {
            // The kernel takes zero as no limit.
            socket
                .set_read_timeout(Some(left.max(Duration::from_micros(100))))
                .context("setting a time limit")?;
            if socket.recv(&mut [0; 16]).is_ok() {
                times.push(SystemTime::now());
            }
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(millis: &[u64]) -> Answers {
        let at = |&milli| SystemTime::UNIX_EPOCH + Duration::from_millis(milli);
        Answers { times: millis.iter().map(at).collect() }
    }

    #[test]
    fn a_gap_of_one_server_is_filled_by_another() {
        let (source, target) = (answers(&[0, 5, 10]), answers(&[70, 75, 200]));
        assert_eq!(Answers::longest_gap([&source, &target]), Duration::from_millis(125));
        assert_eq!(Answers::longest_gap([&source]), Duration::from_millis(5));
        assert_eq!(Answers::longest_gap([]), Duration::ZERO);
    }
}
