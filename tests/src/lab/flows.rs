//! Clients that talk to a VM while it migrates, each in a way of its own, and note when they were answered.

mod datagrams;
mod ends;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::results::{Outcome, Results};
use super::site::Door;
use crate::namespace::Namespace;

/// How often clients that are active speak, or are spoken to.
pub const INTERVAL: Duration = Duration::from_millis(10);

/// A client's way to talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A line each [`INTERVAL`], which comes back.
    Echo,
    /// Octets from the server, so many a second, with their hash.
    Download(u64),
    /// Octets to the server, so many a second, with their hash.
    Upload(u64),
    /// The server sends a line each [`INTERVAL`].
    Push,
    /// A datagram each [`INTERVAL`], which comes back.
    Datagrams,
    /// The server sends a datagram each [`INTERVAL`], so many.
    PushedDatagrams(u32),
    /// A new connection each 100 ms with one request.
    Requests,
    /// Idle up to each switch, then the client speaks.
    ClientSpeaks,
    /// Idle for so long, then the server speaks, first.
    ServerSpeaks(Duration),
    /// Idle up to the switch, then the client closes.
    ClientCloses,
    /// Idle for so long, then the server closes.
    ServerCloses(Duration),
    /// Idle up to the switch, then the client resets.
    ClientResets,
}

impl Kind {
    /// Those that are never silent: their gaps count.
    pub const ACTIVE: [Self; 5] =
        [Self::Echo, Self::Download(4_000_000), Self::Push, Self::Datagrams, Self::PushedDatagrams(6000)];

    /// Whether its gaps count.
    pub fn is_active(self) -> bool {
        matches!(
            self,
            Self::Echo | Self::Download(_) | Self::Push | Self::Datagrams | Self::PushedDatagrams(_)
        )
    }

    /// Whether something of it must come after the switch, by the server alone.
    pub fn waits_for_the_server(self) -> bool {
        matches!(self, Self::ServerSpeaks(_) | Self::ServerCloses(_))
    }
}

/// What a client met.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When something came from the server.
    pub times: Vec<SystemTime>,
    /// Datagrams or requests sent.
    pub sent: u64,
    /// How many of them went unanswered.
    pub lost: u64,
    /// How long the slowest answer took.
    pub slowest: Duration,
}

impl Seen {
    fn note(&mut self) {
        self.times.push(SystemTime::now());
    }
}

/// What clients wait for.
#[derive(Debug, Default)]
struct Stage {
    stop: AtomicBool,
    switches: AtomicU32,
}

impl Stage {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits for switch number `number`; whether it came before the end.
    fn wait_for(&self, number: u32) -> bool {
        while self.switches.load(Ordering::Acquire) < number {
            if self.is_over() {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Sleeps until `time` or the end, or not at all.
    fn sleep_until(&self, time: SystemTime) {
        if !self.is_over() {
            thread::sleep(time.duration_since(SystemTime::now()).unwrap_or_default());
        }
    }
}

/// Clients that are talking. Dropping them ends them.
#[derive(Debug, Default)]
pub struct Flows {
    stage: Arc<Stage>,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    kind: Kind,
    name: String,
    via: String,
    thread: JoinHandle<Result<Seen>>,
}

impl Flows {
    /// Starts a client of each of `kinds` in `host`, to the servers behind `door`.
    pub fn start(&mut self, host: &Namespace, door: &Door, kinds: &[Kind]) {
        for &kind in kinds {
            let (stage, way) = (Arc::clone(&self.stage), door.clone());
            let thread = host.spawn(move || talk(kind, &stage, &way));
            let name = format!("{kind:?}");
            self.clients.push(Client { kind, name, via: door.name.clone(), thread });
        }
    }

    /// Tells the clients that the VM has switched.
    pub fn switched(&self) {
        self.stage.switches.fetch_add(1, Ordering::AcqRel);
    }

    /// How many clients have ended by themselves, by failure or because they were through.
    pub fn ended(&self) -> usize {
        self.clients.iter().filter(|client| client.thread.is_finished()).count()
    }

    /// Ends the clients; what they met.
    pub fn finish(mut self) -> Results {
        self.stage.stop.store(true, Ordering::Release);
        let outcomes = std::mem::take(&mut self.clients).into_iter().map(|client| {
            let seen = client.thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the client panicked")));
            Outcome { kind: client.kind, name: client.name, via: client.via, seen }
        });
        Results::new(outcomes.collect())
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stage.stop.store(true, Ordering::Release);
    }
}

fn talk(kind: Kind, stage: &Stage, door: &Door) -> Result<Seen> {
    use crate::servers::{BULK, ECHO, HTTP, LINES, PUSH};
    let to = |port: u16| -> SocketAddr { door.to(port) };
    match kind {
        Kind::Echo => streams::echo(stage, to(LINES)),
        Kind::Download(rate) => streams::download(stage, to(BULK), rate),
        Kind::Upload(rate) => streams::upload(stage, to(BULK), rate),
        Kind::Push => streams::push(stage, to(PUSH)),
        Kind::Datagrams => datagrams::echo(stage, to(ECHO)),
        Kind::PushedDatagrams(count) => datagrams::pushed(stage, to(ECHO), count),
        Kind::Requests => streams::requests(stage, to(HTTP)),
        Kind::ClientSpeaks => ends::client_speaks(stage, to(LINES)),
        Kind::ServerSpeaks(silence) => ends::server_goes_on(to(PUSH), silence, 2),
        Kind::ClientCloses => ends::client_closes(stage, to(LINES)),
        Kind::ServerCloses(silence) => ends::server_goes_on(to(PUSH), silence, 1),
        Kind::ClientResets => ends::client_resets(stage, to(LINES)),
    }
}
