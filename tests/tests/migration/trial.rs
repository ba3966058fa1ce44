//! What the trials share: a VM, clients at several nodes, and a look at what reached them.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::lab::flows::{Flows, Kind};
use vmlb_tests::lab::results::Results;
use vmlb_tests::lab::site::{ELSEWHERE, Site, Timing, VM};
use vmlb_tests::lab::stand_in::StandIn;
use vmlb_tests::lab::{Guest, Switch};
use vmlb_tests::maps;
use vmlb_tests::service::Policy;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Node;

/// How long the stand-in is nowhere, beyond what moving its cable takes: as long as a real VM.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Idle for longer than it takes until the VM has switched.
pub const SILENCE: Duration = Duration::from_secs(8);

/// Everything that a client can do.
pub const EVERYTHING: [Kind; 12] = [
    Kind::Echo,
    Kind::Download(4_000_000),
    Kind::Upload(2_000_000),
    Kind::Push,
    Kind::Datagrams,
    Kind::PushedDatagrams(6000),
    Kind::Requests,
    Kind::ClientSpeaks,
    Kind::ServerSpeaks(SILENCE),
    Kind::ClientCloses,
    Kind::ServerCloses(SILENCE),
    Kind::ClientResets,
];

/// The node that neither launcher is on, in both families.
pub const FROM_ELSEWHERE: [(usize, Family); 2] = [(ELSEWHERE, Family::V4), (ELSEWHERE, Family::V6)];

/// Runs one trial at a time: they measure time, on the same cores.
pub fn alone(name: &str, test: impl FnOnce() -> Result<()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    unless_unable(name, || {
        let _alone = ALONE.lock().unwrap_or_else(|failed| failed.into_inner());
        test()
    });
}

/// A VM with clients.
pub struct Trial {
    pub flows: Flows,
    control: Flows,
    resets: Option<Capture>,
    pub switches: Vec<Switch>,
    pub vm: StandIn,
    pub site: Site,
}

impl Trial {
    /// The VM on the first node; at each of `doors` (a node's number and a family) a client of each of `kinds`.
    pub fn start(policy: Policy, doors: &[(usize, Family)], kinds: &[Kind]) -> Result<Self> {
        let site = Site::serving(policy)?;
        let mut vm = StandIn::boot(&site.topology, VM, &site.launcher)?;
        vm.pause = PAUSE;
        let resets = Capture::resets(site.client(), site.topology.clients[0].addresses)?;
        let (mut flows, mut control) = (Flows::default(), Flows::default());
        for &(node, family) in doors {
            flows.start(site.client(), &site.door(node, family), kinds);
        }
        control.start(site.client(), &site.other_door(ELSEWHERE, Family::V4), &[Kind::Echo, Kind::Datagrams]);
        thread::sleep(Duration::from_millis(700));
        let trial = Self { flows, control, resets: Some(resets), switches: Vec::new(), vm, site };
        ensure!(trial.flows.ended() == 0, "{}", trial.flows.finish());
        Ok(trial)
    }

    /// A whole migration to node number `node`.
    pub fn migrate(&mut self, node: usize, timing: &Timing) -> Result<Switch> {
        let switch = self.site.migrate(&mut self.vm, node, timing, || self.flows.switched())?;
        self.switches.push(switch);
        Ok(switch)
    }

    /// The VM moves to `target`, and the clients hear of it.
    pub fn switch(&mut self, target: &vmlb_tests::lab::launcher::Launcher) -> Result<Switch> {
        let switch = self.vm.migrate(target)?;
        self.flows.switched();
        self.switches.push(switch);
        Ok(switch)
    }

    /// Ends the clients: all got through, and no reset reached any.
    pub fn finish(self) -> Result<Results> {
        Ok(self.finish_with_hiccup()?.0)
    }

    /// The same; also the longest gap of a client that has nothing to do with the VM.
    pub fn finish_with_hiccup(mut self) -> Result<(Results, Duration)> {
        let results = std::mem::take(&mut self.flows).finish();
        let control = std::mem::take(&mut self.control).finish();
        let resets = self.resets.take().context("finished once")?.finish();
        let hiccup = control.hiccup()?;
        let verdict = results.judge(&self.switches, hiccup);
        verdict.with_context(|| self.logs())?;
        let shown: Vec<String> = resets.iter().map(|frame| capture::show(frame)).collect();
        ensure!(resets.is_empty(), "{} resets reached the client, e.g. {}", shown.len(), shown[0]);
        Ok((results, hiccup))
    }

    /// What the agents said last.
    fn logs(&self) -> String {
        let logs = self.site.agents.iter().flatten().map(|agent| {
            let log = agent.log();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(25)..].join("\n")
        });
        logs.collect::<Vec<_>>().join("\n---\n")
    }
}

/// The words of map `turns` that are not zero, by backend.
pub fn turns(node: &Node) -> Result<Vec<(String, u64)>> {
    let entries = maps::dump(node, "turns")?.into_iter();
    Ok(entries
        .filter_map(|(key, value)| Some((key, value["word"].as_u64()?)))
        .filter(|(_, word)| *word != 0)
        .collect())
}
