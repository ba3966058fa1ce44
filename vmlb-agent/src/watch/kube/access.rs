//! Where the API server is and who asks it: a service account in the cluster, or a kubeconfig. Read again when the API
//! server no longer accepts what was read, so that rotated tokens and certificates need no restart.

use std::env;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kube::Config;
use kube::client::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;

use super::failure::Failure;
use super::stream;

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);
/// For the questions before the agent starts.
const FIRST: Duration = Duration::from_secs(3);
/// Names of nodes in a message.
const SHOWN: usize = 8;

/// Which API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// A kubeconfig; `None`: the service account of the pod, else `$KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig; `None`: its current one.
    pub context: Option<String>,
}

impl Flags {
    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let is_asked =
            self.context.is_some() || env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
        let mut config = if let Some(file) = &self.kubeconfig {
            let read = || format!("the kubeconfig {}", file.display());
            let kubeconfig = Kubeconfig::read_from(file).with_context(read)?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(read)?
        } else if !is_asked && env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            Config::incluster().context(
                "this is a pod without a usable service account; mount its token or give --kubeconfig",
            )?
        } else {
            Config::from_kubeconfig(&options).await.context(
                "no API server to ask: give --kubeconfig FILE, or run in a pod with a service account, or give --manifests DIR",
            )?
        };
        config.connect_timeout = Some(CONNECT);
        // The watches decide themselves when to try again.
        config.default_retry = false;
        Ok(config)
    }
}

/// A client that is made anew when it is no longer accepted.
#[derive(Debug)]
pub struct Access {
    flags: Flags,
    server: String,
    namespace: String,
    current: Mutex<Held>,
}

#[derive(Clone)]
struct Held {
    generation: u64,
    client: Client,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Client {}", self.generation)
    }
}

impl Access {
    /// Reads where the API server is. It need not answer.
    ///
    /// # Errors
    /// When there is no configuration, or it cannot be used.
    pub async fn open(flags: Flags) -> anyhow::Result<Self> {
        let config = flags.config().await?;
        let server = config.cluster_url.to_string();
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).context("the API server's address or certificates")?;
        Ok(Self { flags, server, namespace, current: Mutex::new(Held { generation: 0, client }) })
    }

    /// The API server's address.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The namespace of the context, or of the pod.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The present client, and its number for [`Self::renew`].
    pub(crate) fn client(&self) -> (u64, Client) {
        let held = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (held.generation, held.client.clone())
    }

    /// Reads credentials and addresses again, unless another watch has done so since `generation` was handed out.
    pub(super) async fn renew(&self, generation: u64) {
        if self.client().0 != generation {
            return;
        }
        let client = self.flags.config().await.and_then(|config| Ok(Client::try_from(config)?));
        match client {
            Ok(client) => {
                let mut held = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                if held.generation == generation {
                    *held = Held { generation: generation + 1, client };
                }
            }
            // A file that is being replaced; what was read before may still do.
            Err(error) => tracing::debug!("the credentials could not be read again: {error:#}"),
        }
    }

    /// Makes sure that the API server has a Node of that name. One that cannot be asked now is no error: the agent goes
    /// on with what is installed.
    ///
    /// # Errors
    /// When there is no such Node.
    pub async fn find_node(&self, name: &str) -> anyhow::Result<()> {
        let plain =
            |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || b".-".contains(&octet);
        ensure!(
            !name.is_empty() && name.len() <= 253 && name.bytes().all(plain),
            "{name:?} is not a node's name; give the one that `kubectl get nodes` shows by --node-name or NODE_NAME"
        );
        let (_, client) = self.client();
        match stream::ask(&client, &format!("/api/v1/nodes/{name}"), FIRST).await {
            Ok(_) => Ok(()),
            Err(Failure::Refused { code: 404, .. }) => {
                let known = self.nodes(&client).await;
                bail!(
                    "the API server at {} knows no node {name:?}{known}; give this node's name by --node-name or NODE_NAME",
                    self.server
                )
            }
            Err(failure) => {
                tracing::warn!("{failure}; going on with what is installed until it answers");
                Ok(())
            }
        }
    }

    /// The nodes there are, for a message.
    async fn nodes(&self, client: &Client) -> String {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Item {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            name: String,
        }
        let path = format!("/api/v1/nodes?limit={}", SHOWN + 1);
        let Ok(mut answer) = stream::ask(client, &path, FIRST).await else { return String::new() };
        let octets = answer.list(FIRST).await.unwrap_or_default();
        let items = serde_json::from_slice::<List>(&octets).map(|list| list.items).unwrap_or_default();
        let names: Vec<&str> = items.iter().take(SHOWN).map(|item| item.metadata.name.as_str()).collect();
        match names.len() {
            0 => ", nor any other".to_owned(),
            shown => format!(", but {}{}", names.join(", "), if items.len() > shown { ", …" } else { "" }),
        }
    }
}
