//! The API server as the commands of groups ask it: with a kubeconfig from anywhere, one question at a time, and every
//! refusal in words that say what to do about it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use form_urlencoded::Serializer;
use http::Request;
use kube::client::Client;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::watch::kube::{Access, Flags};

mod resource;

pub use resource::{Resource, Scope};

/// Until an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Whose the fields are that the commands set.
const FIELD_MANAGER: &str = "vmlb";

/// Which cluster and namespace.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterFlags {
    /// Namespace. Without it: that of the context, else `default`
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Kubeconfig. Without it: $KUBECONFIG, else ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Without it: its current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Whether a write is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The API server checks everything and keeps nothing (`dryRun=All`).
    Rehearsal,
    /// For good.
    Real,
}

/// Why the API server did not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status; 0: no answer.
    pub code: u16,
    /// The word for programs, as in `AlreadyExists`.
    pub reason: String,
    /// The sentence for people.
    pub message: String,
    /// What was asked, as RBAC names it.
    verb: &'static str,
    resource: &'static Resource,
    namespace: String,
}

impl Refused {
    /// Whether it is a matter of rights. Quotas and other admission answer 403 too, in other words.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.code == 403 && self.message.contains(" cannot ")
    }

    /// Whether a webhook of the cluster cannot rehearse; what it says tells nothing about the real write.
    #[must_use]
    pub fn is_no_rehearsal(&self) -> bool {
        self.code == 400 && self.message.contains("does not support dry run")
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            0 => write!(out, "the API server does not answer: {}", self.message),
            401 => write!(out, "the API server does not accept the kubeconfig's credentials: log in again"),
            403 if self.is_forbidden() => {
                write!(out, "you may not {} {}", self.verb, self.resource.qualified())?;
                if !self.namespace.is_empty() {
                    write!(out, " in namespace {}", self.namespace)?;
                }
                write!(
                    out,
                    " ({}); ask for that right, or for ClusterRole vmlb-expose, which has all that is needed",
                    self.message
                )
            }
            _ => out.write_str(&self.message),
        }
    }
}

impl std::error::Error for Refused {}

/// A cluster, a namespace of it, and who asks.
pub struct Cluster {
    client: Client,
    /// The namespace of everything that has one.
    pub namespace: String,
}

impl Cluster {
    /// Reads where the API server is. It need not answer yet.
    ///
    /// # Errors
    /// When there is no configuration, or it cannot be used.
    pub async fn open(flags: &ClusterFlags) -> anyhow::Result<Self> {
        let which = Flags { kubeconfig: flags.kubeconfig.clone(), context: flags.context.clone() };
        let access =
            Access::open(which).await.context("no cluster to ask; name one by --kubeconfig or --context")?;
        let namespace = flags.namespace.clone().unwrap_or_else(|| access.namespace().to_owned());
        let (_, client) = access.client();
        Ok(Self { client, namespace })
    }

    /// An object, if it is there.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn get(&self, resource: &'static Resource, name: &str) -> Result<Option<Value>, Refused> {
        let path = resource.path(self.scope(resource), name);
        match self.ask("get", resource, &self.namespace, Request::get(path), &Value::Null).await {
            Ok(object) => Ok(Some(object)),
            Err(refused) if refused.code == 404 => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// The objects that `selector` (empty: no condition) selects; `None`: the cluster does not serve this resource.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn list(
        &self,
        resource: &'static Resource,
        scope: Scope<'_>,
        selector: &str,
    ) -> Result<Option<Vec<Value>>, Refused> {
        let mut path = resource.path(scope, "");
        if !selector.is_empty() {
            let query = Serializer::new(String::new()).append_pair("labelSelector", selector).finish();
            path = format!("{path}?{query}");
        }
        let namespace = if let Scope::Namespace(name) = scope { name } else { "" };
        match self.ask("list", resource, namespace, Request::get(path), &Value::Null).await {
            Ok(mut list) => Ok(Some(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())),
            Err(refused) if refused.code == 404 => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    /// The objects of the namespace that `selector` selects; none where the cluster does not serve this resource.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn list_here(
        &self,
        resource: &'static Resource,
        selector: &str,
    ) -> Result<Vec<Value>, Refused> {
        Ok(self.list(resource, self.scope(resource), selector).await?.unwrap_or_default())
    }

    /// Makes an object; returns it as it is then.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn create(
        &self,
        resource: &'static Resource,
        object: &Value,
        run: Run,
    ) -> Result<Value, Refused> {
        let path = with_run(resource.path(self.scope(resource), ""), run);
        let request = Request::post(path).header("content-type", "application/json");
        self.ask("create", resource, &self.namespace, request, object).await
    }

    /// Changes an object by a merge patch (RFC 7386); returns it as it is then.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn patch(
        &self,
        resource: &'static Resource,
        name: &str,
        patch: &Value,
        run: Run,
    ) -> Result<Value, Refused> {
        let path = with_run(resource.path(self.scope(resource), name), run);
        let request = Request::patch(path).header("content-type", "application/merge-patch+json");
        self.ask("patch", resource, &self.namespace, request, patch).await
    }

    /// Deletes the object of that UID; one that is not there is as good as deleted.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn delete(
        &self,
        resource: &'static Resource,
        name: &str,
        uid: &str,
        run: Run,
    ) -> Result<(), Refused> {
        let path = with_run(resource.path(self.scope(resource), name), run);
        let request = Request::delete(path).header("content-type", "application/json");
        // Another object of that name, made in the meantime, is not ours to delete.
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}});
        match self.ask("delete", resource, &self.namespace, request, &body).await {
            Ok(_) => Ok(()),
            Err(refused) if refused.code == 404 => Ok(()),
            Err(refused) => Err(refused),
        }
    }

    fn scope(&self, resource: &Resource) -> Scope<'_> {
        if resource.is_namespaced { Scope::Namespace(&self.namespace) } else { Scope::All }
    }

    async fn ask(
        &self,
        verb: &'static str,
        resource: &'static Resource,
        namespace: &str,
        request: http::request::Builder,
        body: &Value,
    ) -> Result<Value, Refused> {
        let namespace = if resource.is_namespaced { namespace } else { "" };
        let refused = |code, reason: &str, message: String| Refused {
            code,
            reason: reason.to_owned(),
            message,
            verb,
            resource,
            namespace: namespace.to_owned(),
        };
        let octets = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = request.body(octets).map_err(|error| refused(0, "", error.to_string()))?;
        let answer = timeout(PATIENCE, self.client.request::<Value>(request)).await;
        let answer = answer.map_err(|_| refused(0, "", format!("nothing came in {PATIENCE:?}")))?;
        answer.map_err(|error| match error {
            kube::Error::Api(status) => refused(status.code, &status.reason, status.message.clone()),
            other => refused(0, "", format!("{:#}", anyhow::Error::from(other))),
        })
    }
}

fn with_run(path: String, run: Run) -> String {
    match run {
        Run::Rehearsal => format!("{path}?fieldManager={FIELD_MANAGER}&dryRun=All"),
        Run::Real => format!("{path}?fieldManager={FIELD_MANAGER}"),
    }
}

/// A word of an object, by its path; empty where there is none.
pub(super) fn word<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// What is at a path, whose parts may hold any character.
pub(super) fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, part| value.get(part))
}

/// `value` under a path of new objects.
pub(super) fn nested(path: &[&str], value: Value) -> Value {
    path.iter().rev().fold(value, |value, part| json!({(*part): value}))
}

/// An object's labels.
pub(super) fn labels(object: &Value) -> BTreeMap<&str, &str> {
    let labels = at(object, &["metadata", "labels"]).and_then(Value::as_object).into_iter().flatten();
    labels.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
}

/// Runs what asks the API server.
///
/// # Errors
/// Those of the asking.
pub(super) fn block_on<T>(asking: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime to ask the API server with")?.block_on(asking)
}
