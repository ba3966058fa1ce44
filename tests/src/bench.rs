//! `cargo xtask bench`: measurements and what they are held to. [`control`] judges the agent behind an API server; all the
//! rest is `bench packet`: what a packet costs in the datapath, by program runs in the kernel.
//!
//! A wrapper program ([`harness`], `tests/bench-ebpf`) writes the headers of the next flow's packet and tail-calls the
//! program that `vmlb agent` has loaded and whose maps it has filled ([`site`]); flows are established by their own
//! packets ([`prime`]). Every figure is net of an empty program in the same round and is compared with a yardstick of
//! that round: one hit in a hash table with a key of 16 octets ([`measure`]). A row whose packets took another way than
//! the row is about is an error ([`row`]).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::address::Family;
use crate::service::Protocol;

pub mod control;
#[path = "../bench-ebpf/src/course.rs"]
pub mod course;
pub mod flows;
pub mod frame;
pub mod harness;
pub mod measure;
pub mod prime;
pub mod report;
pub mod row;
pub mod site;

use flows::{Kind, Packets};
use harness::{Harness, Target};
use measure::{Effort, Figures};
use report::Report;
use row::Row;
use site::Site;

/// How `bench packet` was called.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much to measure.
    pub effort: Effort,
    /// Only rows whose names contain one of these; none: all.
    pub only: Vec<String>,
    /// The CPU to run on.
    pub cpu: usize,
}

/// Octets of the bench object, which `cargo xtask bench` builds.
fn object() -> Result<Vec<u8>> {
    let path = std::env::var_os("VMLB_BENCH_OBJECT").map(PathBuf::from);
    let path = path.context("VMLB_BENCH_OBJECT is not set: run `cargo xtask bench`")?;
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

impl Options {
    fn wants(&self, row: &Row) -> bool {
        let name = row.to_string();
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// The rows to measure, by protocol.
    fn rows(&self, protocol: Protocol) -> Vec<Row> {
        let rows = Family::ALL.into_iter().flat_map(|family| row::all(family, protocol));
        rows.filter(|row| self.wants(row)).collect()
    }
}

/// Measures what `options` wants, telling `progress` of each row. Packets that took another way than their row is about
/// are in [`Report::faults`].
///
/// # Errors
/// The site cannot be built, or flows cannot be established.
pub fn packet(options: &Options, mut progress: impl FnMut(&Report, &Figures) + Send) -> Result<Report> {
    let object = object()?;
    let mut report = Report {
        machine: report::machine(options.cpu),
        program: String::new(),
        effort: options.effort,
        figures: Vec::new(),
        faults: Vec::new(),
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let rows = options.rows(protocol);
        if rows.is_empty() {
            continue;
        }
        // A site for each: their flows would not fit into the tables together.
        let site = Site::build(&object)?;
        report.program = format!("{:016x}", site.program()?.tag());
        site.run(|| -> Result<()> {
            stay_on(options.cpu)?;
            let mut harness = site.harness(&object)?;
            let mut primed = Primed::default();
            for row in rows {
                primed.see_to(&site, &mut harness, &row)?;
                match measure::measure(&site, &mut harness, row, options.effort) {
                    Ok(figures) => {
                        report.faults.extend(figures.fault.clone());
                        report.figures.push(figures.clone());
                        progress(&report, &figures);
                    }
                    Err(error) => report.faults.push(format!("{error:#}")),
                }
            }
            Ok(())
        })?;
    }
    ensure!(!report.program.is_empty(), "no row is called like {:?}", options.only);
    Ok(report)
}

/// Runs the packets of one row for `duration` without measuring, so that `perf` or `bpftool prog profile` can look.
///
/// # Errors
/// As [`packet`]; or not exactly one row is called `name`.
pub fn profile(options: &Options, name: &str, duration: Duration) -> Result<()> {
    let named = |protocol| options.rows(protocol).into_iter().find(|row| row.to_string() == name);
    let row = [Protocol::Tcp, Protocol::Udp].into_iter().find_map(named);
    let row = row.with_context(|| format!("no row is called {name}"))?;
    let object = object()?;
    let site = Site::build(&object)?;
    site.run(|| -> Result<()> {
        stay_on(options.cpu)?;
        let mut harness = site.harness(&object)?;
        Primed::default().see_to(&site, &mut harness, &row)?;
        measure::measure(&site, &mut harness, row, Effort { rounds: 1, turns: 1, packets: 1 << 16 })?;
        let id = site.program()?.id();
        println!(
            "{row} for {} s in process {} on CPU {}; the measured program has id {id}",
            duration.as_secs(),
            std::process::id(),
            options.cpu
        );
        let start = Instant::now();
        while start.elapsed() < duration {
            harness.run(Target::Measured, options.effort.packets)?;
        }
        Ok(())
    })
}

/// How many flows of each kind are established.
#[derive(Debug, Default)]
struct Primed(Vec<(Kind, Family, u64)>);

impl Primed {
    /// Establishes what `row` needs and is not there.
    fn see_to(&mut self, site: &Site, harness: &mut Harness, row: &Row) -> Result<()> {
        if !row.needs_flows() {
            return Ok(());
        }
        let kind = if row.packets.kind == Kind::Local { Kind::Local } else { Kind::Request };
        let family = row.packets.family;
        let place = self.0.iter().position(|(a, b, _)| (*a, *b) == (kind, family)).unwrap_or_else(|| {
            self.0.push((kind, family, 0));
            self.0.len() - 1
        });
        let (_, _, present) = &mut self.0[place];
        if *present < row.flows {
            prime::prime(site, harness, Packets { kind, ..row.packets }, *present..row.flows)?;
            *present = row.flows;
        }
        Ok(())
    }
}

/// Keeps the calling thread on one CPU: caches, and the hops that the datapath keeps per CPU.
fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to CPU {cpu}"))
}
