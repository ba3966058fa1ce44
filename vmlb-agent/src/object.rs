//! How objects are named: a kind, a namespace and a name. Every part of the control plane, warnings included, speaks of
//! objects in these terms.

use std::fmt;
use std::sync::Arc;

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `kubevirt.io/v1` VirtualMachineInstance.
    Vmi,
    /// `kubevirt.io/v1` VirtualMachineInstanceMigration.
    Migration,
}

impl Kind {
    /// The kinds without which nothing is written, in the order a source lists them.
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::Pod];
    /// The kinds that KubeVirt brings, and that may be missing.
    pub const KUBEVIRT: [Self; 2] = [Self::Vmi, Self::Migration];
    /// Both.
    pub const EVERY: [Self; 6] =
        [Self::Service, Self::EndpointSlice, Self::Node, Self::Pod, Self::Vmi, Self::Migration];

    /// The word in the object's `kind` field.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Vmi => "VirtualMachineInstance",
            Self::Migration => "VirtualMachineInstanceMigration",
        }
    }

    /// The words in the object's `apiVersion` field.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Service | Self::Node | Self::Pod => "v1",
            Self::Vmi | Self::Migration => "kubevirt.io/v1",
        }
    }

    /// Whether a cluster may lack it.
    #[must_use]
    pub const fn is_optional(self) -> bool {
        matches!(self, Self::Vmi | Self::Migration)
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|kind| kind.name() == name)
    }
}

/// A namespace and a name in it; the namespace of a Node is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Name {
    /// A name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return out.write_str(&self.name);
        }
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

/// Which object: what a deletion names and a warning points at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
}

impl ObjectRef {
    /// A reference.
    #[must_use]
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, name: Name::new(namespace, name) }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.kind.name(), self.name)
    }
}
