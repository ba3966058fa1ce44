//! A VM and its migrations, as KubeVirt's own objects tell of them.

use std::sync::Arc;

use crate::identity::Identity;
use crate::object::Name;

/// A VirtualMachineInstance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmi {
    /// Its name.
    pub name: Name,
    /// What it is as a backend.
    pub identity: Identity,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Its present or last migration.
    pub migration: Option<Migration>,
}

/// A VM's present or last migration (`status.migrationState`). Times are milliseconds since 1970, of a second's grain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// UID of its [`Job`].
    pub job: Option<Arc<str>>,
    /// The pod it goes to, in the VM's namespace.
    pub target_pod: Option<Arc<str>>,
    /// The node it goes to.
    pub target_node: Option<Arc<str>>,
    /// When it began.
    pub started: Option<u64>,
    /// When the target had the VM running.
    pub domain_ready: Option<u64>,
    /// It is over.
    pub completed: bool,
    /// It is over, and the VM never left.
    pub failed: bool,
    /// Somebody wants it to end.
    pub abort_requested: bool,
}

/// A VirtualMachineInstanceMigration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub name: Name,
    /// Its UID, which target pods carry.
    pub uid: Arc<str>,
    /// The name of its VM, in the same namespace.
    pub vmi: Arc<str>,
    /// The VM never left.
    pub failed: bool,
}
