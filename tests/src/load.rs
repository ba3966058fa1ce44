//! Clients that ask all the time while a test changes something.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::namespace::Namespace;
use crate::requests;

/// What the clients met.
#[derive(Debug, Default)]
pub struct Report {
    /// Answers by pod.
    pub answers: BTreeMap<String, u64>,
    /// Requests without an answer, each with the reason.
    pub failures: Vec<String>,
}

/// Lets `clients` threads in `host` ask the HTTP server at `frontend`, each again as soon as it is answered, until
/// `work` has ended.
pub fn during<T>(
    host: &Namespace,
    frontend: SocketAddr,
    clients: usize,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Report)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..clients).map(|_| scope.spawn(|| host.run(|| ask_until(&stop, frontend)))).collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Release);
        let mut report = Report::default();
        for thread in threads {
            let part = thread.join().unwrap_or_default();
            report.failures.extend(part.failures);
            for (pod, count) in part.answers {
                *report.answers.entry(pod).or_default() += count;
            }
        }
        let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((outcome, report))
    })
}

fn ask_until(stop: &AtomicBool, frontend: SocketAddr) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Acquire) {
        match requests::http(frontend, "/") {
            Ok(answer) => *report.answers.entry(answer.pod().to_owned()).or_default() += 1,
            Err(error) => report.failures.push(format!("{error:#}")),
        }
    }
    report
}
