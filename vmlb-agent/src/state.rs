//! What only the running agent knows, as a file for the commands: `/run/vmlb/<hash of the pin root>/state.json`.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::handover::Tally;
use crate::http::ListenerState;
use crate::loader::attach::Mode;
use crate::migration::Migration;
use crate::pins::PinRoot;
use crate::sync::LeftState;
use crate::warning::Warning;
use crate::watch::kube::{Phase, WatchState};

/// What a device is to vmlb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Clients and other nodes are reached through it.
    Uplink,
    /// Pods of this node are behind it.
    PodSide,
    /// Pods of other nodes are reached through it, but no clients.
    Overlay,
}

/// A device that programs are on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
    /// What it is to vmlb.
    pub role: Role,
    /// By which hook packets come in.
    pub mode: Mode,
    /// Why not by XDP.
    pub reason: Option<String>,
    /// The device that carries it and has its XDP program, with tags, for people.
    #[serde(default)]
    pub on: Option<String>,
}

/// A live migration, and what this node has done for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationState {
    /// As the control plane has it.
    pub migration: Migration,
    /// What was done.
    pub tally: Tally,
}

/// The agent's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// When it was written, milliseconds since 1970.
    pub written: u64,
    /// The agent's process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// What the first sync waits for; absent: the maps follow the objects.
    pub waiting: Option<String>,
    /// Why the last sync failed; absent: it did not.
    pub error: Option<String>,
    /// When the maps were last found to follow the objects, milliseconds since 1970; 0: never.
    pub synced: u64,
    /// When something was last written for it, milliseconds since 1970; 0: never.
    pub changed: u64,
    /// Changes of objects that waited for the maps.
    pub queued: u64,
    /// How TC programs are attached.
    pub tc: String,
    /// Devices that programs are on.
    pub devices: Vec<DeviceState>,
    /// Next hops that are kept fresh.
    pub neighbours: usize,
    /// What the operator should know about the node.
    pub advice: Vec<String>,
    /// The watches of the API server; none where manifests are read.
    #[serde(default)]
    pub watches: Vec<WatchState>,
    /// Ports where health checks and metrics are answered, or should be.
    pub listeners: Vec<ListenerState>,
    /// Objects with something wrong.
    pub warnings: Vec<Warning>,
    /// Ports of Services that are left to the node's stack.
    pub left: Vec<LeftState>,
    /// Live migrations that are under way, and the last that are over.
    #[serde(default)]
    pub migrations: Vec<MigrationState>,
}

/// What about a state is worth writing when it changes; how fresh things are is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gist {
    waiting: Option<String>,
    error: Option<String>,
    changed: u64,
    devices: Vec<DeviceState>,
    neighbours: usize,
    watches: Vec<(Phase, Option<String>, bool)>,
    listeners: Vec<ListenerState>,
    migrations: Vec<MigrationState>,
}

/// Milliseconds since 1970.
#[must_use]
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn path(root: &PinRoot) -> PathBuf {
    root.runtime().join("state.json")
}

impl State {
    /// How old it is.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(millis(SystemTime::now()).saturating_sub(self.written))
    }

    /// How long before it was written something had been, `at` in milliseconds since 1970; `None`: never.
    #[must_use]
    pub fn before(&self, at: u64) -> Option<Duration> {
        (at != 0).then(|| Duration::from_millis(self.written.saturating_sub(at)))
    }

    /// See [`Gist`]. Without what the control plane has a revision of ([`crate::sync::Sync::revision`]).
    #[must_use]
    pub fn gist(&self) -> Gist {
        Gist {
            waiting: self.waiting.clone(),
            error: self.error.clone(),
            changed: self.changed,
            devices: self.devices.clone(),
            neighbours: self.neighbours,
            watches: self
                .watches
                .iter()
                .map(|watch| (watch.phase, watch.error.clone(), watch.failures == 0))
                .collect(),
            listeners: self.listeners.clone(),
            migrations: self.migrations.clone(),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn write(&mut self, root: &PinRoot) -> anyhow::Result<()> {
        self.written = millis(SystemTime::now());
        let path = path(root);
        let next = path.with_extension("json.new");
        fs::create_dir_all(root.runtime())
            .and_then(|()| fs::write(&next, serde_json::to_vec(self)?))
            .and_then(|()| fs::rename(&next, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// What the last agent wrote; `None`: nothing that can be read.
    #[must_use]
    pub fn read(root: &PinRoot) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(root)).ok()?).ok()
    }
}
