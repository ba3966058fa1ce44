//! Kubernetes Events about what is wrong, where an operator looks first: at the Service, the VMI and the Node
//! (`kubectl describe`), and at the VMI what became of its flows when it moved. All agents of a cluster say the same of a
//! Service; an Event's name follows from what it says, so that it is there once, whoever was first. Nothing waits for Events,
//! and without the right to make them the agent goes on.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use form_urlencoded::Serializer;
use http::Request;
use k8s_openapi::jiff::Timestamp;
use kube::client::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Access;
use crate::object::Kind;
use crate::warning::Warning;

/// Events that may wait; what is beyond is in the log and in `vmlb status` all the same.
const WAITING: usize = 64;
/// Until an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A note may have 1 KiB (`events.k8s.io/v1`).
const NOTE: usize = 1000;
/// Who says so.
const CONTROLLER: &str = "vmlb.io/agent";

/// How what [`Events::refusal`] says begins.
pub const NONE_MADE: &str = "no Events are made";

/// What is to be said of a VirtualMachineInstance, once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// The VMI's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What is told: with the UID and the node's name it tells this Event from others.
    pub occasion: String,
    /// Whether somebody should look at it.
    pub is_warning: bool,
    /// A word in CamelCase.
    pub reason: &'static str,
    /// What happened.
    pub note: String,
}

/// What Events are made of.
#[derive(Debug)]
enum Said {
    Warning(Warning),
    Notice(Notice),
}

/// Where warnings and notices are handed in.
#[derive(Debug)]
pub struct Events {
    said: mpsc::Sender<Said>,
    refusal: Arc<Mutex<Option<String>>>,
}

impl Events {
    /// Begins to make Events of what is handed in. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(access: Access, node: &str) -> Self {
        let (sender, said) = mpsc::channel(WAITING);
        let refusal = Arc::default();
        let reporter = Reporter { access, node: node.to_owned(), refusal: Arc::clone(&refusal) };
        tokio::spawn(reporter.run(said));
        Self { said: sender, refusal }
    }

    /// Why the API server takes none, and what to do about it; `None`: it does, or there was nothing to say yet.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hands in warnings that have just appeared. Does not wait.
    pub fn tell(&self, warnings: &[Warning]) {
        for warning in warnings {
            if let Err(error) = self.said.try_send(Said::Warning(warning.clone())) {
                tracing::debug!("no Event of it: {error}");
                return;
            }
        }
    }

    /// Hands in what has just happened to a VM. Does not wait.
    pub fn note(&self, notice: Notice) {
        if let Err(error) = self.said.try_send(Said::Notice(notice)) {
            tracing::debug!("no Event of it: {error}");
        }
    }
}

struct Reporter {
    access: Access,
    node: String,
    refusal: Arc<Mutex<Option<String>>>,
}

impl Reporter {
    async fn run(self, mut said: mpsc::Receiver<Said>) {
        while let Some(said) = said.recv().await {
            let (_, client) = self.access.client();
            let event = match said {
                Said::Warning(warning) => {
                    let Some(subject) = Subject::read(&warning.object) else { continue };
                    let Some(regarding) = subject.regarding(&client).await else { continue };
                    event(&self.node, &regarding, &warning)
                }
                Said::Notice(notice) => event_of_notice(&self.node, &notice),
            };
            let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
            let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
            let request = Request::post(path).header("content-type", "application/json");
            match ask(&client, request, event.to_string().into_bytes()).await {
                Ok(_) => drop(self.set_refusal(None)),
                Err(error) => self.note(&error),
            }
        }
    }

    /// Says once that Events are not taken.
    fn note(&self, error: &kube::Error) {
        match error {
            // Another node has said it, or this one before.
            kube::Error::Api(status) if status.code == 409 => {}
            kube::Error::Api(status) if status.code == 403 => {
                let refusal = format!(
                    "{NONE_MADE} ({}); grant create on events of events.k8s.io by a ClusterRole",
                    status.message
                );
                if self.set_refusal(Some(refusal.clone())).is_none() {
                    tracing::warn!("{refusal}");
                }
            }
            error => tracing::debug!("no Event: {error:#}"),
        }
    }

    /// Returns what was said before.
    fn set_refusal(&self, refusal: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.refusal.lock().unwrap_or_else(PoisonError::into_inner), refusal)
    }
}

async fn ask(client: &Client, request: http::request::Builder, body: Vec<u8>) -> Result<Value, kube::Error> {
    let request = request.body(body).map_err(kube::Error::HttpError)?;
    match timeout(PATIENCE, client.request::<Value>(request)).await {
        Ok(answer) => answer,
        Err(_) => Err(kube::Error::Service("nothing came in time".into())),
    }
}

/// The object of a warning.
#[derive(Debug, PartialEq, Eq)]
struct Subject<'a> {
    kind: Kind,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Subject<'a> {
    /// Reads `Service a/b` or `Node a`; `None`: not one object of a kind that is watched.
    fn read(text: &'a str) -> Option<Self> {
        let (kind, name) = text.split_once(' ')?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let kind = Kind::from_name(kind)?;
        (!name.is_empty() && (kind == Kind::Node) == namespace.is_empty()).then_some(Self {
            kind,
            namespace,
            name,
        })
    }

    /// What the Event is about, with the UID that `kubectl describe` selects by. A launcher pod stands for its VMI.
    async fn regarding(&self, client: &Client) -> Option<Value> {
        let plural = match self.kind {
            // As kubelets name nodes in Events.
            Kind::Node => {
                return Some(
                    json!({"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.name}),
                );
            }
            Kind::Service => "services",
            Kind::Pod => "pods",
            Kind::EndpointSlice => "endpointslices",
            Kind::Vmi => "virtualmachineinstances",
            Kind::Migration => "virtualmachineinstancemigrations",
        };
        let root = match self.kind.api_version() {
            "v1" => "/api/v1".to_owned(),
            version => format!("/apis/{version}"),
        };
        let selector = format!("metadata.name={}", self.name);
        let query = Serializer::new(String::new()).append_pair("fieldSelector", &selector).finish();
        let path = format!("{root}/namespaces/{}/{plural}?{query}", self.namespace);
        let list = ask(client, Request::get(path), Vec::new()).await.ok()?;
        let object = list["items"].as_array()?.first()?;
        let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let vmi = owners.into_iter().find(|owner| owner["kind"] == "VirtualMachineInstance");
        let (about, api_version, kind) = match vmi {
            Some(owner) => (owner, owner["apiVersion"].as_str()?, "VirtualMachineInstance"),
            None => (&object["metadata"], self.kind.api_version(), self.kind.name()),
        };
        Some(json!({
            "apiVersion": api_version, "kind": kind, "namespace": self.namespace, "name": about["name"], "uid": about["uid"],
        }))
    }
}

/// Whoever says it first has said it for all nodes.
fn event(node: &str, regarding: &Value, warning: &Warning) -> Value {
    let text = Warning { source: String::new(), object: String::new(), ..warning.clone() }.to_string();
    let mut hasher = DefaultHasher::new();
    (regarding["uid"].as_str(), &text).hash(&mut hasher);
    let says = Says { kind: "Warning", reason: "NotServed", action: "Serving", note: &text };
    made(node, regarding, hasher.finish(), &says)
}

/// Each node speaks of its own flows, and once of each occasion, also after a restart of the agent.
fn event_of_notice(node: &str, notice: &Notice) -> Value {
    let regarding = json!({
        "apiVersion": Kind::Vmi.api_version(), "kind": Kind::Vmi.name(), "namespace": notice.namespace, "name": notice.name,
        "uid": notice.uid,
    });
    let mut hasher = DefaultHasher::new();
    (&notice.uid, &notice.occasion, notice.reason, node).hash(&mut hasher);
    let kind = if notice.is_warning { "Warning" } else { "Normal" };
    let says = Says { kind, reason: notice.reason, action: "Migration", note: &notice.note };
    made(node, &regarding, hasher.finish(), &says)
}

struct Says<'a> {
    kind: &'static str,
    reason: &'static str,
    action: &'static str,
    note: &'a str,
}

fn made(node: &str, regarding: &Value, hash: u64, says: &Says<'_>) -> Value {
    let name = regarding["name"].as_str().unwrap_or_default();
    // Events about nodes are kept in `default`.
    let namespace = regarding["namespace"].as_str().unwrap_or("default");
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
    let short = name.char_indices().nth(200).map_or(name, |(end, _)| &name[..end]);
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": format!("{short}.{hash:016x}"), "namespace": namespace},
        // MicroTime takes exactly six digits.
        "eventTime": format!("{:.6}", now),
        "type": says.kind,
        "reason": says.reason,
        "action": says.action,
        "note": says.note.chars().take(NOTE).collect::<String>(),
        "regarding": regarding,
        "reportingController": CONTROLLER,
        "reportingInstance": node.chars().take(128).collect::<String>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning() -> Warning {
        Warning {
            source: "x".into(),
            object: "Service a/b".into(),
            field: "spec.sessionAffinity".into(),
            message: "is not served".into(),
            remedy: "leave it out".into(),
        }
    }

    #[test]
    fn objects_are_read_from_warnings() {
        let service = Subject::read("Service a/b");
        assert_eq!(service, Some(Subject { kind: Kind::Service, namespace: "a", name: "b" }));
        assert_eq!(Subject::read("Node n"), Some(Subject { kind: Kind::Node, namespace: "", name: "n" }));
        for text in ["", "Service", "Service b", "Widget a/b", "Node a/b", "nodes"] {
            assert_eq!(Subject::read(text), None, "{text}");
        }
    }

    #[test]
    fn two_nodes_give_the_same_event_one_name_and_another_message_another() {
        let about = json!({"kind": "Service", "namespace": "a", "name": "b", "uid": "u"});
        let one = event("n0", &about, &warning());
        let other = event("n1", &about, &Warning { source: String::new(), ..warning() });
        assert_eq!(one["metadata"], other["metadata"]);
        assert_eq!(one["note"], "spec.sessionAffinity: is not served; leave it out");
        let third = event("n0", &about, &Warning { message: "is empty".into(), ..warning() });
        assert_ne!(one["metadata"], third["metadata"]);
    }

    #[test]
    fn the_time_of_an_event_has_six_digits() {
        let time = event("n", &json!({"name": "b"}), &warning())["eventTime"].clone();
        let digits = time.as_str().and_then(|time| Some(time.split_once('.')?.1.trim_end_matches('Z').len()));
        assert_eq!(digits, Some(6), "{time}");
    }

    #[test]
    fn a_migration_is_told_of_once_by_each_node() {
        let notice = Notice {
            namespace: "a".into(),
            name: "vm".into(),
            uid: "u".into(),
            occasion: "pod-2".into(),
            is_warning: false,
            reason: "MigrationCarried",
            note: "Carried 37 flows, blackout 48 ms".into(),
        };
        let one = event_of_notice("n0", &notice);
        // Counted anew by an agent that was restarted.
        let again = event_of_notice("n0", &Notice { note: "Carried 36 flows".into(), ..notice.clone() });
        assert_eq!(one["metadata"], again["metadata"]);
        assert_ne!(one["metadata"], event_of_notice("n1", &notice)["metadata"]);
        let next = Notice { occasion: "pod-3".into(), ..notice };
        assert_ne!(one["metadata"], event_of_notice("n0", &next)["metadata"]);
        assert_eq!(
            (&one["type"], &one["note"]),
            (&json!("Normal"), &json!("Carried 37 flows, blackout 48 ms"))
        );
        let about = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "namespace": "a", "name": "vm", "uid": "u",
        });
        assert_eq!(one["regarding"], about);
    }
}
