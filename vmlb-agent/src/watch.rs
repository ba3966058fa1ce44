//! The watch stream: where objects come from. Two sources speak it, a directory of manifests ([`manifests`]) and, with an
//! API server, kube; both send batches of [`Event`] over a channel, and nothing behind the channel can tell them apart.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cluster::Judged;
use crate::object::{Kind, Name, ObjectRef};
use crate::warning::Warning;

pub mod document;
pub mod kube;
pub mod kubevirt;
pub mod manifests;

use kubevirt::{VirtualMachineInstance, VirtualMachineInstanceMigration};

/// An object as the API server or a manifest gives it: decoded, not yet judged.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// A slice of a Service's endpoints.
    EndpointSlice(Arc<EndpointSlice>),
    /// A node.
    Node(Arc<Node>),
    /// A pod.
    Pod(Arc<Pod>),
    /// A VM that runs.
    Vmi(Arc<VirtualMachineInstance>),
    /// A VM's move to another node.
    Migration(Arc<VirtualMachineInstanceMigration>),
}

impl Object {
    /// What it is called. A namespaced object without a namespace is in `default`, as for kubectl.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        let metadata = self.metadata();
        let kind = match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Vmi(_) => Kind::Vmi,
            Self::Migration(_) => Kind::Migration,
        };
        let namespace = match kind {
            Kind::Node => "",
            _ => metadata.namespace.as_deref().unwrap_or("default"),
        };
        ObjectRef { kind, name: Name::new(namespace, metadata.name.as_deref().unwrap_or_default()) }
    }

    /// Name, labels, versions.
    #[must_use]
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Vmi(object) => &object.metadata,
            Self::Migration(object) => &object.metadata,
        }
    }
}

/// One step of a watch stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object exists, in this form. `source` is the file it stands in, empty for the API server.
    Apply {
        /// For warnings.
        source: Arc<str>,
        /// The object.
        object: Object,
    },
    /// The object exists, and has been judged by whoever read it: of thousands that come at once, each leaves what stays of
    /// it before the next one is read.
    Judged(Judged),
    /// The object exists in a form that cannot be read: what was known of it stays.
    Keep(ObjectRef),
    /// The object is gone.
    Delete(ObjectRef),
    /// A listing of this kind begins. Objects of the kind that are not applied again before its [`Event::Listed`] are
    /// gone. The first listing needs none of this, a watch that was cut off does.
    Listing(Kind),
    /// Every object of this kind has been applied.
    Listed(Kind),
    /// What is wrong with a source itself; replaces what was said of it before. Empty: all is well.
    Warnings {
        /// A file, a directory or a watch.
        source: Arc<str>,
        /// What is wrong.
        warnings: Vec<Warning>,
    },
}
