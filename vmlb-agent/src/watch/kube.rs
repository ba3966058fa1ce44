//! An API server as a watch stream: one list and watch for each kind, over kube's client.
//!
//! The lists and watches are made here and not by a ready-made informer, because an informer keeps a copy of every object,
//! lists everything again after a silence, and ends a stream over one object that it cannot decode. Here a watch that was
//! cut goes on where it stopped, an object that cannot be read costs itself, and nothing is kept of an object once it has
//! been handed on. Whatever the API server does, what was handed on stays until a complete list says otherwise.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Event;
use crate::object::Kind;

pub mod access;
pub mod board;
mod decode;
pub mod events;
mod failure;
pub mod patience;
mod stream;
mod watcher;

pub use access::{Access, Flags};
pub use board::{Board, Phase, WatchState};
pub use events::{Events, Notice};
pub use patience::Patience;

use watcher::Watcher;

/// Batches under way: few, so that a large list is held back in the API server rather than piled up here.
const BATCHES: usize = 4;

/// Where the objects of a kind are, and which of them are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Resource {
    kind: Kind,
    /// As RBAC and people name it.
    plural: &'static str,
    path: &'static str,
    labels: Option<&'static str>,
    /// The one object of the kind without which something is wrong: this node's.
    own: Option<String>,
}

impl Resource {
    /// Headless Services and those of another proxy never leave the API server (CONTRACT §1); of pods only those that
    /// carry VMs are of use. Of other nodes the addresses are: tunnels come from there and lead there.
    ///
    /// All are asked for whole: metadata alone has no addresses, ports, conditions or phases. A launcher pod's address
    /// and phase are needed before any EndpointSlice tells of them, that is during a live migration.
    fn of(kind: Kind, node: &str) -> Self {
        const OURS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
        let (plural, path, labels, own) = match kind {
            Kind::Service => ("services", "/api/v1/services", Some(OURS), None),
            Kind::EndpointSlice => {
                ("endpointslices", "/apis/discovery.k8s.io/v1/endpointslices", Some(OURS), None)
            }
            Kind::Node => ("nodes", "/api/v1/nodes", None, Some(node.to_owned())),
            Kind::Pod => ("pods", "/api/v1/pods", Some("kubevirt.io=virt-launcher"), None),
            Kind::Vmi => {
                let path = "/apis/kubevirt.io/v1/virtualmachineinstances";
                ("virtualmachineinstances", path, None, None)
            }
            Kind::Migration => {
                let path = "/apis/kubevirt.io/v1/virtualmachineinstancemigrations";
                ("virtualmachineinstancemigrations", path, None, None)
            }
        };
        Self { kind, plural, path, labels, own }
    }
}

/// The source: a watch of each kind on the current runtime.
#[derive(Debug)]
pub struct Kube {
    board: Board,
    events: mpsc::Receiver<Vec<Event>>,
}

impl Kube {
    /// Begins to list and watch. Must be called within a tokio runtime; the watches end when the receiver is dropped.
    #[must_use]
    pub fn start(access: Access, node: &str, patience: Patience) -> Self {
        let access = Arc::new(access);
        let board = Board::default();
        let (sender, events) = mpsc::channel(BATCHES);
        for kind in Kind::EVERY {
            let resource = Resource::of(kind, node);
            let watcher =
                Watcher::new(resource, access.clone(), patience.clone(), board.clone(), sender.clone());
            tokio::spawn(watcher.run());
        }
        Self { board, events }
    }

    /// How the watches are, and their events; every batch belongs together.
    #[must_use]
    pub fn split(self) -> (Board, mpsc::Receiver<Vec<Event>>) {
        (self.board, self.events)
    }
}
