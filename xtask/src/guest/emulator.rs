//! QEMU with a test host in it: reads its report and counts.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vmlb_guest::job::Line;
use vmlb_guest::machine::{self, Machine};

use crate::test_output::{Reader, Tally};

/// Time until the guest has its jobs, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);

/// Time without a line before a guest is given up. Tests that take minutes say what they are at (`pace::at`).
const SILENCE: Duration = Duration::from_secs(300);

/// QEMU; dropping it ends it.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// What came of the jobs so far.
struct Report<'a> {
    release: &'a str,
    titles: &'a [String],
    reader: Reader,
    ended: usize,
    tally: Tally,
    broken: Option<String>,
    /// Shows a line to people.
    show: fn(&str),
}

/// Starts the machine and reads its report to the end. Jobs that it did not come to are one failure.
///
/// # Errors
/// QEMU does not start.
pub fn run(machine: &Machine, release: &str, titles: &[String], console: &Path) -> Result<Tally> {
    println!("\nguest: Linux {release} under emulation");
    let start = Instant::now();
    let mut command = machine.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut emulator = Emulator(command.spawn().context("cannot start QEMU")?);
    let lines = lines(&mut emulator)?;
    let mut report = Report::new(release, titles, |text| println!("{text}"));
    let mut patience = BOOT;
    loop {
        match lines.recv_timeout(patience) {
            Ok(line) => {
                if matches!(line, Line::Ready(_)) {
                    println!("guest: booted in {:.0?}", start.elapsed());
                    patience = SILENCE;
                }
                report.take(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                report.broken = Some(format!("it said nothing for {patience:?}"));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(emulator);
    std::io::stdout().flush()?;
    println!("guest: ended after {:.0?}", start.elapsed());
    Ok(report.finish(console))
}

/// A channel with the report's lines, which ends with QEMU.
fn lines(emulator: &mut Emulator) -> Result<Receiver<Line>> {
    let output = emulator.0.stdout.take().context("standard output is piped")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = Line::decode(&String::from_utf8_lossy(&line));
            if line.is_some_and(|line| sender.send(line).is_err()) {
                return;
            }
        }
    });
    Ok(receiver)
}

impl<'a> Report<'a> {
    fn new(release: &'a str, titles: &'a [String], show: fn(&str)) -> Self {
        let (reader, tally) = (Reader::default(), Tally::default());
        Self { release, titles, reader, ended: 0, tally, broken: None, show }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Ready(_) => {}
            Line::Begin(job) => {
                self.reader = Reader::default();
                let title = self.titles.get(job).map_or("?", String::as_str);
                (self.show)(&format!("\nguest {}: {title}", self.release));
            }
            Line::Output(text) => {
                if let Some(text) = self.reader.read(&text) {
                    (self.show)(text);
                }
            }
            Line::Error(text) => eprintln!("{text}"),
            Line::End(_, success) => {
                self.tally += std::mem::take(&mut self.reader).finish(success);
                self.ended += 1;
            }
            Line::Broken(why) => self.broken = Some(why),
        }
    }

    /// The counts; a guest that did not come to its end counts as a failure, and its kernel's last words are shown.
    fn finish(mut self, console: &Path) -> Tally {
        if self.ended == self.titles.len() && self.broken.is_none() {
            return self.tally;
        }
        self.tally += Tally::one_failed();
        let why = self.broken.unwrap_or_else(|| "it ended by itself".to_owned());
        (self.show)(&format!("the guest ended after {} of {} jobs: {why}", self.ended, self.titles.len()));
        (self.show)(&format!("its kernel's last words:\n{}", machine::last_words(console, 30)));
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is counted after `lines` of a guest that was given two jobs.
    fn counted(lines: &[Line]) -> Tally {
        let titles = ["first".to_owned(), "second".to_owned()];
        let mut report = Report::new("6.1.0-1-amd64", &titles, |_| {});
        lines.iter().cloned().for_each(|line| report.take(line));
        report.finish(Path::new("/nonexistent"))
    }

    fn output(text: &str) -> Line {
        Line::Output(text.to_owned())
    }

    #[test]
    fn what_jobs_print_is_counted_as_if_they_ran_here() {
        let first = output("test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        let second = output("test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        let skip = output("SKIPPED: a_test: no SCTP");
        let lines =
            [Line::Begin(0), skip, first, Line::End(0, true), Line::Begin(1), second, Line::End(1, false)];
        assert_eq!(counted(&lines), Tally { passed: 2, failed: 1, skipped: 2 });
    }

    #[test]
    fn a_guest_that_does_not_come_to_its_last_job_is_a_failure() {
        assert_eq!(counted(&[]), Tally::one_failed());
        let first = [Line::Begin(0), Line::End(0, true)];
        assert_eq!(counted(&first), Tally { passed: 1, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_guest_that_says_it_is_broken_is_a_failure() {
        let broken = Line::Broken("no 9P".to_owned());
        let lines = [Line::Begin(0), Line::End(0, true), Line::Begin(1), Line::End(1, true), broken];
        assert_eq!(counted(&lines), Tally { passed: 2, failed: 1, skipped: 0 });
    }
}
