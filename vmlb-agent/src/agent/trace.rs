//! The lines that the programs log in trace mode.

use std::time::Duration;

use anyhow::Context;
use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::time::interval;

/// Lines are for people: this is at once.
const INTERVAL: Duration = Duration::from_millis(50);

/// Prints what the programs log, as long as the agent runs.
///
/// # Errors
/// When the object was built without log lines.
pub fn print(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let mut logger = EbpfLogger::init(ebpf).context("the BPF object has no log lines to trace")?;
    let mut timer = interval(INTERVAL);
    tokio::spawn(async move {
        loop {
            timer.tick().await;
            logger.flush();
        }
    });
    Ok(())
}
