//! A small cluster behind the scripted API server, and an agent's control plane that follows it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::watch::kube::Patience;
use vmlb_tests::api_server::ApiServer;
use vmlb_tests::api_server::follower::{Follower, from_scratch};
use vmlb_tests::api_server::kubevirt::{migration, vmi};
use vmlb_tests::api_server::objects::{Endpoint, NODE, launcher, node, service, slice};

use crate::walk::meaning;

/// A folder of its own, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("vmlb-kube-source-{}-{number}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// Times that let a test see in seconds what takes minutes; the pauses between tries are the real ones.
pub fn quick() -> Patience {
    Patience {
        answer: Duration::from_secs(1),
        silence: Duration::from_millis(700),
        quiet: Duration::from_millis(400),
        page: 3,
        ..Patience::default()
    }
}

/// Both sides.
pub struct Stage {
    pub server: ApiServer,
    pub follower: Follower<Memory>,
    _folder: Folder,
    turn: u16,
}

impl Stage {
    /// Seven Services of three endpoints each, three of them VMs; the tables hold them.
    pub fn set(patience: Patience) -> Result<Self> {
        let folder = Folder::new();
        let server = ApiServer::start(&folder.0)?;
        server.put(node(NODE, "192.0.2.1"))?;
        server.put(node("n1", "192.0.2.2"))?;
        for number in 0..7 {
            server.put(service(&format!("s{number}"), 30_000 + number))?;
            let endpoints = [0, 1, 2].map(|pod| Endpoint::ready(number * 3 + pod));
            server.put(slice(&format!("s{number}-x"), &format!("s{number}"), &endpoints))?;
        }
        for pod in 0..3 {
            server.put(launcher(pod))?;
        }
        // Of each kind one at least: an empty store cannot be told from another.
        server.put(vmi("vm0", None))?;
        server.put(migration("m0", "vm0"))?;
        let follower = Follower::start(&server.kubeconfig(), patience, Memory::default())?;
        let mut stage = Self { server, follower, _folder: folder, turn: 0 };
        stage.wait_current(Duration::from_secs(5))?;
        Ok(stage)
    }

    /// Something changes: an endpoint of `s0` is ready or is not, by turns.
    pub fn change(&mut self) -> Result<()> {
        self.turn += 1;
        let endpoints = [0, 1, 2].map(|pod| Endpoint { pod, ready: pod != 1 || self.turn.is_multiple_of(2) });
        self.server.put(slice("s0-x", "s0", &endpoints))?;
        Ok(())
    }

    /// Follows until the tables hold what the server's objects call for; returns how long that took.
    pub fn wait_current(&mut self, patience: Duration) -> Result<Duration> {
        let server = &self.server;
        let wanted = meaning(&from_scratch(&server.objects())?);
        let what = "the tables hold what the objects call for";
        let took = self.follower.until_current(patience, what, &wanted, meaning);
        let took = took.inspect_err(|_| {
            let found = meaning(&self.follower.tables.tables);
            println!("missing: {:#?}", wanted.difference(&found).collect::<Vec<_>>());
            println!("too much: {:#?}", found.difference(&wanted).collect::<Vec<_>>());
        })?;
        ensure!(self.follower.tables.idle.is_empty(), "idle writes: {:?}", self.follower.tables.idle);
        Ok(took)
    }

    /// Follows for a while and makes sure that nothing is written.
    pub fn stays(&mut self, time: Duration) -> Result<()> {
        let before = self.follower.tables.writes;
        self.follower.run(time)?;
        let written = self.follower.tables.writes - before;
        ensure!(written == 0, "{written} writes though nothing has changed");
        Ok(())
    }

    /// Waits until all six watches are open, so that what strikes watches strikes all.
    pub fn wait_watching(&mut self) -> Result<()> {
        let server = &self.server;
        self.follower.until(Duration::from_secs(5), "six watches", |_| server.watches() == 6).map(drop)
    }

    /// Makes sure that a change now is in the tables soon, and costs a few writes.
    pub fn follows(&mut self, patience: Duration) -> Result<Duration> {
        let (before, start) = (self.follower.tables.writes, Instant::now());
        self.change()?;
        self.wait_current(patience)?;
        let written = self.follower.tables.writes - before;
        ensure!((1..=8).contains(&written), "{written} writes for one endpoint");
        Ok(start.elapsed())
    }
}
