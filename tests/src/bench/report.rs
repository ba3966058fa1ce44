//! Figures as a table for people and as JSON, and whether the targets are met.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::measure::{Effort, Figures, Spread};
use crate::address::Family;

/// IPv6 may cost so many times what IPv4 does.
const TWINS: f64 = 1.3;

/// All figures of one run of the bench.
#[derive(Debug)]
pub struct Report {
    /// The machine, its kernel and the CPU that was used.
    pub machine: String,
    /// The kernel's tag of the measured program.
    pub program: String,
    /// How much was measured.
    pub effort: Effort,
    /// Figures by row.
    pub figures: Vec<Figures>,
    /// What went wrong, a line a row.
    pub faults: Vec<String>,
}

/// What a row is held to, in yardsticks, and why.
struct Target {
    most: f64,
    why: &'static str,
}

impl Target {
    fn is_met_by(&self, figures: &Figures) -> bool {
        figures.ratio.median <= self.most
    }
}

impl Report {
    /// The targets of a row.
    fn targets(&self, figures: &Figures) -> Vec<Target> {
        let mut targets = Vec::new();
        if let Some(most) = figures.row.limit().yardsticks() {
            targets.push(Target { most, why: "own" });
        }
        let family = figures.row.packets.family;
        if family == Family::V6 && !figures.row.is_foreign() {
            let twin = self.figures.iter().find(|other| figures.row.is_twin(&other.row));
            targets.extend(twin.map(|v4| Target { most: v4.ratio.median * TWINS, why: "1.3 IPv4" }));
        }
        targets
    }

    /// The targets that are missed, in words. Rows that are not valid are among [`Report::faults`].
    pub fn missed(&self) -> Vec<String> {
        let valid = self.figures.iter().filter(|figures| figures.fault.is_none());
        let over = valid.flat_map(|figures| {
            let targets = self.targets(figures).into_iter();
            targets.filter(|target| !target.is_met_by(figures)).map(move |target| (figures, target))
        });
        over.map(|(figures, target)| {
            format!(
                "{}: {:.2} yardsticks, at most {:.2} ({})",
                figures.row, figures.ratio.median, target.most, target.why
            )
        })
        .collect()
    }

    /// The table, with a line of heads.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}\nmeasured program {}; {} rounds of {} packets; quartiles in brackets; × is to the yardstick of the same \
             round\n\n{:34} {:>8} {:>17} {:>10} {:>7} {:>15}   {}\n",
            self.machine,
            self.program,
            self.effort.rounds,
            u64::from(self.effort.turns) * u64::from(self.effort.packets),
            "row",
            "ns",
            "",
            "yardstick",
            "×",
            "",
            "targets"
        );
        for figures in &self.figures {
            text += &self.line(figures);
        }
        for fault in &self.faults {
            text += &format!("\nNOT VALID: {fault}\n");
        }
        text
    }

    /// One line of the table.
    pub fn line(&self, figures: &Figures) -> String {
        let Figures { row, nanoseconds, yardstick, ratio, .. } = figures;
        let mut targets: Vec<String> = self
            .targets(figures)
            .iter()
            .map(|target| {
                let met = if target.is_met_by(figures) { "met" } else { "MISSED" };
                let why = if target.why == "own" { String::new() } else { format!(" ({})", target.why) };
                format!("≤ {:.2} ×{why} {met}", target.most)
            })
            .collect();
        if figures.fault.is_some() {
            targets = vec!["NOT VALID".to_owned()];
        }
        format!(
            "{:34} {:>8.1} {:>17} {:>10.1} {:>7.2} {:>15}   {}\n",
            row.to_string(),
            nanoseconds.median,
            format!("[{:.1}, {:.1}]", nanoseconds.low, nanoseconds.high),
            yardstick.median,
            ratio.median,
            format!("[{:.2}, {:.2}]", ratio.low, ratio.high),
            targets.join("; ")
        )
        .trim_end()
        .to_owned()
            + "\n"
    }

    /// Everything, rounds included.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .figures
            .iter()
            .map(|figures| {
                let targets: Vec<Value> = self
                    .targets(figures)
                    .iter()
                    .map(|target| {
                        json!({"yardsticks": target.most, "why": target.why, "met": target.is_met_by(figures)})
                    })
                    .collect();
                let rounds: Vec<Value> = figures
                    .rounds
                    .iter()
                    .map(|round| json!([round.empty, round.yardstick, round.measured]))
                    .collect();
                json!({
                    "row": figures.row.to_string(),
                    "nanoseconds": spread(figures.nanoseconds),
                    "yardstick": spread(figures.yardstick),
                    "ratio": spread(figures.ratio),
                    "targets": targets,
                    "rounds": rounds,
                    "fault": figures.fault,
                })
            })
            .collect();
        json!({
            "machine": self.machine,
            "program": self.program,
            "rounds": self.effort.rounds,
            "packets": u64::from(self.effort.turns) * u64::from(self.effort.packets),
            "rows": rows,
            "faults": self.faults,
        })
    }

    /// Writes table and JSON into `folder`, by the time of day and as `packet-latest`.
    pub fn keep(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let json = serde_json::to_string(&self.json())?;
        for name in [format!("packet-{seconds}"), "packet-latest".to_owned()] {
            for (extension, text) in [("txt", &self.table()), ("json", &json)] {
                let path = folder.join(format!("{name}.{extension}"));
                fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn spread(of: Spread) -> Value {
    json!({"median": of.median, "low": of.low, "high": of.high})
}

/// The machine in one line.
pub fn machine(cpu: usize) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("CPU", |(_, name)| name);
    let load = read("/proc/loadavg");
    format!(
        "{model}, {} CPUs, Linux {}; pinned to CPU {cpu}; load {}",
        cpuinfo.matches("processor\t").count(),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::super::flows::{Kind, Order, Packets};
    use super::super::row::Row;
    use super::*;
    use crate::service::Protocol;

    /// An established flow's row with this ratio.
    fn figures(family: Family, ratio: f64) -> Figures {
        let packets = Packets { kind: Kind::Request, family, protocol: Protocol::Tcp };
        let at = |median| Spread { median, low: median, high: median };
        Figures {
            row: Row { packets, flows: 1, order: Order::Opened },
            nanoseconds: at(ratio * 28.0),
            yardstick: at(28.0),
            ratio: at(ratio),
            rounds: Vec::new(),
            fault: None,
        }
    }

    fn missed(figures: Vec<Figures>) -> Vec<String> {
        let report = Report {
            machine: String::new(),
            program: String::new(),
            effort: Effort { rounds: 1, turns: 1, packets: 1 },
            figures,
            faults: Vec::new(),
        };
        report.missed()
    }

    #[test]
    fn a_row_over_its_own_limit_or_over_its_twins_is_missed() {
        assert!(missed(vec![figures(Family::V4, 4.1), figures(Family::V6, 5.3)]).is_empty());
        let over = missed(vec![figures(Family::V4, 4.2), figures(Family::V6, 5.4)]);
        assert_eq!(over, ["established-v4-tcp-1: 4.20 yardsticks, at most 4.10 (own)"]);
        let over = missed(vec![figures(Family::V4, 4.0), figures(Family::V6, 5.3)]);
        assert_eq!(over, ["established-v6-tcp-1: 5.30 yardsticks, at most 5.20 (1.3 IPv4)"]);
        // What took another way than the row is about says nothing about the limit.
        let fault = Figures { fault: Some("another way".to_owned()), ..figures(Family::V4, 9.0) };
        assert!(missed(vec![fault]).is_empty());
    }
}
