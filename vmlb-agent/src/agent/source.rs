//! Where the agent's objects come from, and which node it is.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tokio::sync::mpsc;

use crate::warning::Warning;
use crate::watch::Event;
use crate::watch::kube::{Access, Board, Events, Flags, Kube, Notice, Patience, WatchState};
use crate::watch::manifests::Manifests;

/// Flags that name the source of objects and this node.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceFlags {
    /// Folder of Kubernetes manifests (*.yaml, *.yml, *.json: Service, EndpointSlice, Node, Pod), read again when they
    /// change. Without it: the API server
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "context"])]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the API server. Without it: $KUBECONFIG, in a pod its service account, else ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Without it: its current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Name of this node, as in the objects. Without it: the host's name
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
}

impl SourceFlags {
    fn node(&self) -> anyhow::Result<String> {
        match self.node_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => Ok(name.to_owned()),
            None => {
                let name = fs::read_to_string("/proc/sys/kernel/hostname");
                let name = name.context("the host's name cannot be read; give --node-name")?;
                // As the kubelet does it.
                Ok(name.trim().to_lowercase())
            }
        }
    }
}

/// Objects, for the node of this name.
pub(super) struct Source {
    pub node: String,
    pub events: mpsc::Receiver<Vec<Event>>,
    board: Option<Board>,
    told: Option<Events>,
}

impl Source {
    /// Begins to read or to watch. An API server that does not answer is waited for.
    ///
    /// # Errors
    /// When there is no source, or the API server has no node of this name.
    pub async fn open(flags: &SourceFlags) -> anyhow::Result<Self> {
        let node = flags.node()?;
        if let Some(folder) = &flags.manifests {
            let events = Manifests::new(folder.clone()).watch()?;
            return Ok(Self { node, events, board: None, told: None });
        }
        let flags = Flags { kubeconfig: flags.kubeconfig.clone(), context: flags.context.clone() };
        let access = Access::open(flags.clone()).await?;
        access.find_node(&node).await?;
        tracing::info!("following {} as node {node}", access.server());
        let told = Events::start(Access::open(flags).await?, &node);
        let (board, events) = Kube::start(access, &node, Patience::default()).split();
        Ok(Self { node, events, board: Some(board), told: Some(told) })
    }

    /// Where the watches of the API server tell how they are; `None` for manifests.
    pub fn board(&self) -> Option<&Board> {
        self.board.as_ref()
    }

    /// Makes Kubernetes Events of warnings that have just appeared; with manifests there is nobody to tell.
    pub fn tell(&self, warnings: &[Warning]) {
        if let Some(told) = &self.told {
            told.tell(warnings);
        }
    }

    /// Makes Kubernetes Events of what has just happened to VMs.
    pub fn note(&self, notices: Vec<Notice>) {
        if let Some(told) = &self.told {
            notices.into_iter().for_each(|notice| told.note(notice));
        }
    }

    /// Why nobody can be told; `None`: everybody can.
    pub fn refusal(&self) -> Option<String> {
        self.told.as_ref().and_then(Events::refusal)
    }

    /// How the watches of the API server are; none for manifests.
    pub fn watches(&self) -> Vec<WatchState> {
        self.board.iter().flat_map(Board::states).collect()
    }
}

/// Waits until a watch fails or works again; for ever where manifests are read.
pub(super) async fn watches_changed(board: Option<&Board>) {
    match board {
        Some(board) => board.changed().await,
        None => std::future::pending().await,
    }
}
