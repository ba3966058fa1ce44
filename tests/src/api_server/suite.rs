//! What any API server may do to its watches, the scripted one and the real one alike. After each of it the tables hold
//! what the server's objects call for, without an idle write.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use vmlb_agent::object::{Kind, ObjectRef};
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::watch::kube::Patience;

use super::ApiServer;
use super::fault::Blow;
use super::follower::{Follower, from_scratch};
use super::objects::{Endpoint, NODE, launcher, node, service, slice};

/// An API server that a test has in its hands.
pub trait Api {
    /// The kubeconfig of the agent.
    fn kubeconfig(&self) -> PathBuf;
    /// Creates or replaces an object.
    fn put(&mut self, object: Value) -> Result<()>;
    /// Deletes an object.
    fn delete(&mut self, object: &ObjectRef) -> Result<()>;
    /// Every object of the kinds that are watched.
    fn objects(&mut self) -> Result<Vec<Value>>;
    /// Goes away with its connections.
    fn away(&mut self) -> Result<()>;
    /// Comes back.
    fn resume(&mut self) -> Result<()>;
    /// Stops answering with its connections open, or goes on.
    fn hang(&mut self, state: Hang) -> Result<()>;
    /// Compacts its store.
    fn compact(&mut self) -> Result<()>;
    /// Comes back over an empty store, and is filled with these objects.
    fn replace(&mut self, objects: Vec<Value>) -> Result<()>;
}

/// Whether an API server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// It does not.
    Begin,
    /// It does again.
    End,
}

impl Api for ApiServer {
    fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig()
    }

    fn put(&mut self, object: Value) -> Result<()> {
        ApiServer::put(self, object).map(drop)
    }

    fn delete(&mut self, object: &ObjectRef) -> Result<()> {
        ApiServer::delete(self, object);
        Ok(())
    }

    fn objects(&mut self) -> Result<Vec<Value>> {
        Ok(ApiServer::objects(self))
    }

    fn away(&mut self) -> Result<()> {
        ApiServer::away(self);
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        ApiServer::resume(self)
    }

    fn hang(&mut self, state: Hang) -> Result<()> {
        self.behave(|faults| {
            faults.holds = state == Hang::Begin;
            faults.is_silent = state == Hang::Begin;
        });
        if state == Hang::End {
            // What was silent all the while is heard.
            self.strike(Blow::End);
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        ApiServer::compact(self);
        Ok(())
    }

    fn replace(&mut self, objects: Vec<Value>) -> Result<()> {
        ApiServer::replace(self, objects)
    }
}

/// How long a server that is there may take until its objects are in the tables.
const SOON: Duration = Duration::from_secs(2);
/// For a server that was away.
const PATIENT: Duration = Duration::from_secs(10);

/// An API server and a control plane that follows it.
pub struct Suite<A> {
    server: A,
    follower: Follower<Memory>,
    meaning: fn(&Memory) -> std::collections::BTreeSet<String>,
    turn: u16,
}

impl<A: Api> Suite<A> {
    /// Fills the server and begins to follow it. `meaning` tells tables apart by what they mean.
    ///
    /// # Errors
    /// When the tables do not come to hold what the objects call for.
    pub fn begin(mut server: A, meaning: fn(&Memory) -> std::collections::BTreeSet<String>) -> Result<Self> {
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
        let patience = Patience {
            answer: Duration::from_secs(2),
            silence: Duration::from_secs(2),
            page: 3,
            ..Patience::default()
        };
        let follower = Follower::start(&server.kubeconfig(), patience, Memory::default())?;
        let mut suite = Self { server, follower, meaning, turn: 0 };
        suite.wait_current("the first lists", Duration::from_secs(10))?;
        Ok(suite)
    }

    /// Everything, one after the other.
    ///
    /// # Errors
    /// Names what was not survived.
    pub fn run(&mut self) -> Result<()> {
        self.follow("a quiet server")?;
        self.come_and_go()?;
        self.hang()?;
        self.compact()?;
        self.wander()?;
        self.replace()
    }

    fn come_and_go(&mut self) -> Result<()> {
        for turn in 0..3 {
            self.server.away()?;
            self.stay("away", Duration::from_millis(400 * turn))?;
            self.server.resume()?;
            self.change()?;
            // The 2 s are for compactions and new stores; here each watch has its own wait before its next try.
            self.wait_current("away and back", PATIENT)?;
        }
        Ok(())
    }

    fn hang(&mut self) -> Result<()> {
        self.server.hang(Hang::Begin)?;
        self.stay("hanging", Duration::from_secs(5))?;
        self.server.hang(Hang::End)?;
        self.change()?;
        // A try that began while it hung may still have to end.
        self.wait_current("answering again", Duration::from_secs(10))?;
        // Every watch is back and has lasted a moment.
        self.stay("answering again", Duration::from_secs(3))
    }

    fn compact(&mut self) -> Result<()> {
        self.change()?;
        self.server.compact()?;
        self.follow("compacted under its watches")?;
        self.server.delete(&ObjectRef::new(Kind::EndpointSlice, "a", "s3-x"))?;
        self.server.delete(&ObjectRef::new(Kind::Service, "a", "s3"))?;
        self.server.compact()?;
        self.server.away()?;
        self.server.resume()?;
        self.change()?;
        // Each watch has its own wait before its next try, and a try that began meanwhile may still have to end.
        self.wait_current("compacted and restarted", PATIENT).map(drop)
    }

    fn replace(&mut self) -> Result<()> {
        // Every watch is back and has lasted a moment: what failed before makes the next wait no longer.
        self.stay("before the store is replaced", Duration::from_secs(4))?;
        self.server.replace(Vec::new())?;
        self.wait_current("emptied", SOON)?;
        let mut objects = vec![node(NODE, "192.0.2.1")];
        for number in 5..9 {
            objects.push(service(&format!("s{number}"), 30_100 + number));
            let endpoints = [0, 1].map(|pod| Endpoint::ready(100 + number * 3 + pod));
            objects.push(slice(&format!("s{number}-y"), &format!("s{number}"), &endpoints));
        }
        self.server.replace(objects)?;
        self.wait_current("filled anew", SOON)?;
        self.server.put(slice("s8-y", "s8", &[Endpoint::ready(7)]))?;
        self.wait_current("a change after that", SOON).map(drop)
    }

    /// Many changes of slices, with a restart now and then.
    fn wander(&mut self) -> Result<()> {
        for step in 0..600_u16 {
            let (service, half) = (step * 7 % 6, step / 3 % 2);
            let count = step * 5 % 4;
            let endpoints: Vec<Endpoint> = (0..count)
                .map(|place| Endpoint { pod: (step * 11 + place * 3) % 20, ready: (step + place) % 5 != 0 })
                .collect();
            let name = format!("w{service}-{half}");
            if step % 13 == 0 {
                self.server.delete(&ObjectRef::new(Kind::EndpointSlice, "a", &name))?;
            } else {
                self.server.put(slice(&name, &format!("s{service}"), &endpoints))?;
            }
            self.follower.step(Duration::from_millis(1))?;
            if step % 200 == 199 {
                self.server.compact()?;
                self.server.away()?;
                self.server.resume()?;
            }
        }
        self.follower.settle()?;
        self.wait_current("600 changes", Duration::from_secs(10)).map(drop)
    }

    fn change(&mut self) -> Result<()> {
        self.turn += 1;
        let endpoints = [3, 4, 5].map(|pod| Endpoint { pod, ready: pod != 4 || self.turn.is_multiple_of(2) });
        self.server.put(slice("s1-x", "s1", &endpoints))
    }

    /// Makes sure that a change now is in the tables soon.
    fn follow(&mut self, what: &str) -> Result<()> {
        self.change()?;
        let took = self.wait_current(what, SOON)?;
        println!("{what}: current after {took:?}");
        Ok(())
    }

    fn stay(&mut self, what: &str, time: Duration) -> Result<()> {
        let before = self.follower.tables.writes;
        self.follower.run(time)?;
        let written = self.follower.tables.writes - before;
        ensure!(written == 0, "{what}: {written} writes though nothing has changed");
        Ok(())
    }

    fn wait_current(&mut self, what: &str, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        let wanted = (self.meaning)(&from_scratch(&self.server.objects()?)?);
        self.follower.until_current(patience, what, &wanted, self.meaning)?;
        ensure!(self.follower.tables.idle.is_empty(), "{what}: idle writes: {:?}", self.follower.tables.idle);
        Ok(start.elapsed())
    }
}
