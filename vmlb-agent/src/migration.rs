//! Live migration, as the control plane sees it: what the agent is to do now for each VM that moves ([`Task`]), what has
//! happened ([`Migration`]), and the state machine behind both ([`machine`]). Pure; the clock is passed in.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub mod fleet;
pub mod machine;
#[cfg(test)]
mod tests;

/// A moment on two clocks: the one by which the datapath tells times, and the one by which people do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment {
    /// Nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
    pub monotonic: u64,
    /// Milliseconds since 1970.
    pub wall: u64,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        let since = clock_gettime(ClockId::CLOCK_MONOTONIC);
        let monotonic = since.map_or(0, |time| {
            u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000
                + u64::try_from(time.tv_nsec()).unwrap_or(0)
        });
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic, wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    }

    /// The moment at which the monotonic clock showed (or will show) `monotonic`.
    #[must_use]
    pub const fn at(self, monotonic: u64) -> Self {
        let wall = if monotonic <= self.monotonic {
            self.wall.saturating_sub((self.monotonic - monotonic) / 1_000_000)
        } else {
            self.wall.saturating_add((monotonic - self.monotonic) / 1_000_000)
        };
        Self { monotonic, wall }
    }

    /// Nanoseconds from `earlier` to this.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.monotonic.saturating_sub(earlier.monotonic)
    }
}

/// How far a migration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The target is known; its answers are accepted, and the first of them turns the VM's flows to it.
    Known,
    /// The same, and its connection tracking has been told of the flows.
    Primed,
    /// The VM is at the target; the source's last answers are still accepted.
    Turned,
    /// It is over: the source is forgotten.
    Settled,
    /// It was given up: the VM never left, the target is forgotten.
    Aborted,
    /// Nothing was heard of it for too long; the target is forgotten until the API says that the VM is there.
    TimedOut,
}

impl Stage {
    /// Whether nothing more comes.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Settled | Self::Aborted | Self::TimedOut)
    }
}

/// What was seen of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// A second pod of the VM with an address.
    TargetPod,
    /// The VMI's `migrationState.startTimestamp`.
    Started,
    /// The agent has primed the target's connection tracking.
    Primed,
    /// The datapath: a packet of one of the VM's flows came from the target.
    Flow,
    /// The datapath: the target answered a probe.
    Probe,
    /// The target pod's annotation `kubevirt.io/migration-target-ready-timestamp`.
    Annotation,
    /// The VMI's `migrationState.targetNodeDomainReadyTimestamp`.
    DomainReady,
    /// The VMI's `status.nodeName` is the target's node.
    NodeName,
    /// The VMI's `migrationState.completed`, not failed.
    Completed,
    /// The VMI's `migrationState.abortRequested`; the VM may still move.
    AbortRequested,
    /// The VMI's `migrationState.failed`, or the VirtualMachineInstanceMigration's phase `Failed`.
    Failed,
    /// The target pod has ended or is gone before the VM was there.
    TargetGone,
    /// The source pod has ended or is gone.
    SourceGone,
    /// The time after which the source's address is forgotten all the same has passed.
    Expired,
}

/// A sign, when it was seen here, and when it was given according to who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// What.
    pub sign: Sign,
    /// When it was first seen here.
    pub at: Moment,
    /// The API's own time of it, milliseconds since 1970, where it has one (a second's grain).
    pub stated: Option<u64>,
}

/// One of the two pods of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// Its node; empty: not known.
    pub node: String,
    /// Whether that is this node.
    pub is_local: bool,
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
}

/// A migration, under way or over: for `vmlb migrations`, events and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Counts migrations since the agent started, from 1: tells one from another.
    pub number: u64,
    /// Backend id; 0: it has none (no Service selects the VM).
    pub backend: u32,
    /// The VMI's UID.
    pub identity: String,
    /// The VMI's namespace.
    pub namespace: String,
    /// The VMI's name.
    pub name: String,
    /// How far it has come.
    pub stage: Stage,
    /// Where the VM is, or was before it moved.
    pub source: End,
    /// Where it goes, or went.
    pub target: End,
    /// Everything that was seen, in order.
    pub signals: Vec<Signal>,
    /// What turned the flows to the target; `None`: nothing has. One of `Flow`, `Probe`, `Annotation`, `DomainReady`,
    /// `NodeName`, `Completed`, `SourceGone`.
    pub turned_by: Option<Sign>,
    /// When the target became known.
    pub known: Moment,
    /// When the flows were turned.
    pub turned: Option<Moment>,
    /// When the stage last changed.
    pub changed: Moment,
    /// When the source last answered before the turn; `None`: not while the migration was known, or it was not the
    /// datapath that turned.
    pub replied: Option<Moment>,
}

impl Migration {
    /// Nanoseconds in which the VM was heard of at neither side, as this node's flows show it.
    #[must_use]
    pub fn blackout(&self) -> Option<u64> {
        Some(self.turned?.since(self.replied?))
    }

    /// When a sign was first seen.
    #[must_use]
    pub fn signal(&self, sign: Sign) -> Option<&Signal> {
        self.signals.iter().find(|signal| signal.sign == sign)
    }
}

/// The target of a migration in one family, as maps `backends_*` hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The target's address.
    pub address: IpAddr,
    /// The address of its node, of the same family; `None`: not known.
    pub node: Option<IpAddr>,
    /// Whether it is on this node.
    pub is_local: bool,
}

/// What the agent is to do now for a VM that moves. There is one for each migration in the stages `Known`, `Primed` and
/// `Turned`; what has none needs nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// [`Migration::number`].
    pub number: u64,
    /// Backend id, never 0.
    pub backend: u32,
    /// The side of the target in maps `backends_*`.
    pub side: u32,
    /// [`vmlb_common::abi::Backend::tag`].
    pub tag: u32,
    /// How far it has come.
    pub stage: Stage,
    /// Whether the target is installed at its side and accepted: before that nothing is to be sent there.
    pub is_installed: bool,
    /// The target, at most one endpoint a family.
    pub endpoints: Vec<Endpoint>,
    /// Since when the target is known.
    pub known: Moment,
    /// When the flows were turned: prime once more after it.
    pub turned: Option<Moment>,
    /// Whether to probe, and since when: from the migration's start, or where the API does not tell of it, from when the
    /// target was known. Never after the turn.
    pub probe: Option<Moment>,
}
