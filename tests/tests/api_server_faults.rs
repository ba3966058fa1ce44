//! The agent as it is delivered behind an API server that fails: connections go on, new ones are served, health stays as
//! it is, the status tells how old things are, and nothing unchanged is written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::api_server::{ApiServer, Blow};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::probe::{Reply, get, wait};
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::talk::Talk;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{load, requests, servers};

/// From the end of a fault until the maps are current, after a compaction or a new store.
const SOON: Duration = Duration::from_secs(2);
/// The same where the agent may just have begun to wait before its next try.
const AFTER_A_PAUSE: Duration = Duration::from_secs(4);

/// A cluster whose first node's agent follows an API server in that node's namespace; the second one's reads manifests.
struct Stage {
    cluster: Cluster,
    server: ApiServer,
    talk: Talk,
    /// Services published so far to see whether the agent follows.
    late: u16,
}

impl Stage {
    fn set() -> Result<Self> {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        let folder = cluster.topology.folder("api-server")?;
        let server = cluster.topology.nodes[0].namespace.run(|| ApiServer::start(&folder))?;
        for object in cluster.manifests.objects()? {
            server.put(object)?;
        }
        let kubeconfig = server.kubeconfig();
        let kubeconfig = kubeconfig.to_str().context("a plain path")?;
        cluster.launch_agent(0, &Flags::with(&["--kubeconfig", kubeconfig]))?;
        cluster.launch_agent(1, &Flags::default())?;
        cluster.wait_until_serving()?;
        let talk = Talk::open(&cluster, "both", 16, 8)?;
        Ok(Self { cluster, server, talk, late: 0 })
    }

    fn node(&self) -> &Namespace {
        &self.cluster.topology.nodes[0].namespace
    }

    /// Listens again, where the agent can reach it.
    fn resume(&mut self) -> Result<()> {
        let node = Namespace::open(self.node().name())?;
        node.run(|| self.server.resume())
    }

    /// Restarts over another store.
    fn replace(&mut self, objects: Vec<Value>) -> Result<()> {
        let node = Namespace::open(self.node().name())?;
        node.run(|| self.server.replace(objects))
    }

    /// How often the agent has written something so far.
    fn writes(&self) -> usize {
        let said = self.cluster.agents[0].as_ref().map(|agent| agent.said()).unwrap_or_default();
        said.lines().filter(|line| line.contains("wrote ")).count()
    }

    /// The conversations go on, for so long.
    fn talk_for(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.talk.go_on()?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A new Service, told to the API server whether it is there or not.
    fn publish(&mut self) -> Result<()> {
        self.late += 1;
        let name = format!("late{}", self.late);
        self.cluster.publish(Service::single(&name, 32_500 + self.late, servers::HTTP), &["vm01", "vm02"])?;
        for object in self.cluster.manifests.objects()? {
            if object["metadata"]["name"].as_str().is_some_and(|found| found.starts_with(&name)) {
                self.server.put(object)?;
            }
        }
        Ok(())
    }

    /// Waits until the last Service published is served by the node that follows the API server.
    fn wait_current(&self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        for family in Family::ALL {
            let frontend = self.cluster.frontend(&format!("late{}", self.late), servers::HTTP, 0, family)?;
            wait("the last change is in the maps", patience, || {
                Ok(self.cluster.client().run(|| requests::http(frontend, "/")).is_ok())
            })?;
        }
        println!("  current after {:?}", start.elapsed());
        Ok(())
    }

    /// Whether every watch of the agent is as `wanted` says.
    fn watches(&self, wanted: impl Fn(&Value) -> bool) -> Result<bool> {
        let status = agent::json(&self.cluster.topology.nodes[0], &["status"])?;
        let watches = status["watches"].as_array().context("watches")?;
        ensure!(watches.len() == 6, "{status}");
        Ok(watches.iter().all(wanted))
    }

    fn wait_well(&self) -> Result<()> {
        // The status is written at most once a second.
        wait("every watch is well", Duration::from_secs(3), || {
            self.watches(|watch| {
                watch["phase"] == "watching"
                    && watch["failures"] == 0
                    && watch["error"].is_null()
                    && watch["staleness"].as_u64().is_some_and(|age| age < 5)
            })
        })
    }

    fn healthz(&self) -> Result<Reply> {
        let server = self.cluster.topology.nodes[0].addresses.socket(Family::V4, 10256);
        self.cluster.client().run(|| get(server, "/healthz"))
    }

    fn wait_watching(&self) -> Result<()> {
        wait("six watches are open", AFTER_A_PAUSE, || Ok(self.server.watches() == 6))
    }

    fn cut_streams(&mut self) -> Result<()> {
        for _ in 0..10 {
            self.server.strike(Blow::Cut);
            self.talk_for(Duration::from_millis(150))?;
        }
        Ok(())
    }

    fn expire(&mut self) -> Result<()> {
        self.server.compact();
        self.server.strike(Blow::Error(410, "Expired"));
        self.talk_for(Duration::from_millis(500))
    }

    /// Nothing is said on watches that are open, and nothing answered, until the server is restarted.
    fn hang(&mut self) -> Result<()> {
        self.server.behave(|faults| faults.is_silent = true);
        self.talk_for(Duration::from_millis(500))?;
        self.server.behave(|faults| faults.holds = true);
        self.server.strike(Blow::Cut);
        self.talk_for(Duration::from_secs(2))?;
        self.server.behave(|faults| (faults.is_silent, faults.holds) = (false, false));
        self.resume()
    }

    fn be_away(&mut self) -> Result<()> {
        let server = &mut self.server;
        self.cluster.topology.nodes[0].namespace.run(|| server.away());
        let start = Instant::now();
        let is_told = |watch: &Value| {
            watch["phase"] == "retrying"
                && watch["failures"].as_u64().is_some_and(|failures| failures > 2)
                && watch["error"].as_str().is_some_and(|error| !error.is_empty())
                && watch["staleness"].as_u64().is_some_and(|age| age >= 5)
        };
        while !self.watches(is_told)? {
            ensure!(
                start.elapsed() < Duration::from_secs(12),
                "the status does not tell that the server is away"
            );
            self.talk_for(Duration::from_millis(300))?;
        }
        self.resume()
    }

    /// As after a restore from a backup: the same objects, but versions begin anew.
    fn restore(&mut self) -> Result<()> {
        self.replace(self.server.objects())?;
        self.talk_for(Duration::from_millis(500))
    }

    /// One fault after the other; nothing may be written for them, and a change right after each is served.
    fn suffer_all(&mut self) -> Result<()> {
        type Fault = fn(&mut Stage) -> Result<()>;
        let faults: [(&str, Fault, Duration); 5] = [
            ("streams that are cut", Self::cut_streams, SOON),
            ("a compaction", Self::expire, SOON),
            ("a server that hangs", Self::hang, AFTER_A_PAUSE),
            ("a server that is away", Self::be_away, AFTER_A_PAUSE),
            ("a server restored from a backup", Self::restore, SOON),
        ];
        for (name, fault, patience) in faults {
            println!("{name}");
            self.wait_watching().context(name)?;
            let before = self.writes();
            fault(self).context(name)?;
            self.wait_well().context(name)?;
            let writes = self.writes() - before;
            ensure!(writes == 0, "{name}: {writes} writes though nothing had changed");
            self.publish()?;
            self.wait_current(patience).context(name)?;
            self.talk.go_on().context(name)?;
        }
        Ok(())
    }

    /// The store loses everything, this node too, and is filled again. Nobody is served meanwhile; whoever was silent goes
    /// on.
    fn lose_everything(&mut self) -> Result<()> {
        let objects = self.server.objects();
        self.replace(Vec::new())?;
        let node = &self.cluster.topology.nodes[0];
        wait("no Service is served", SOON, || {
            Ok(agent::json(node, &["services"])?.as_array().is_some_and(Vec::is_empty))
        })?;
        // Nodes are watched by a watch of their own.
        wait("the node gets no new clients", SOON, || {
            let reply = self.healthz()?;
            Ok(reply.status == 503 && reply.json()?["nodeEligible"] == false)
        })?;
        for object in objects {
            self.server.put(object)?;
        }
        self.publish()?;
        self.wait_current(SOON)?;
        wait("the node is well", SOON, || Ok(self.healthz()?.status == 200))?;
        self.wait_well()?;
        self.talk.go_on()
    }
}

/// Asks for the node's health all the time while `work` runs; fails with the first answer that is not 200.
fn healthy_during<T>(stage: &mut Stage, work: impl FnOnce(&mut Stage) -> Result<T>) -> Result<T> {
    let client = Namespace::open(stage.cluster.client().name())?;
    let healthz = stage.cluster.topology.nodes[0].addresses.socket(Family::V4, 10256);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let probes = scope.spawn(|| {
            client.run(|| {
                let mut asked = 0;
                while !stop.load(Ordering::Acquire) {
                    let reply = get(healthz, "/healthz")?;
                    ensure!(reply.status == 200, "after {asked} probes: {reply:?}");
                    asked += 1;
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(asked)
            })
        });
        let outcome = work(stage);
        stop.store(true, Ordering::Release);
        let Ok(asked) = probes.join() else { bail!("the probe panicked") };
        let (outcome, asked) = (outcome?, asked.context("health")?);
        ensure!(asked > 20, "only {asked} probes were answered");
        Ok(outcome)
    })
}

#[test]
fn faults_of_the_api_server_cut_nothing_write_nothing_and_flap_no_health() {
    unless_unable("faults_of_the_api_server_cut_nothing_write_nothing_and_flap_no_health", || {
        let mut stage = Stage::set()?;
        let client = Namespace::open(stage.cluster.client().name())?;
        let frontend = stage.cluster.frontend("both", servers::HTTP, 0, Family::V6)?;
        let ((), report) =
            load::during(&client, frontend, 2, || healthy_during(&mut stage, Stage::suffer_all))?;
        let failures = &report.failures;
        ensure!(failures.is_empty(), "{} requests failed, e.g. {}", failures.len(), failures[0]);
        let answers: u64 = report.answers.values().sum();
        ensure!(answers > 1000, "only {answers} requests were answered");
        stage.lose_everything().context("a store that is emptied and filled")
    });
}
