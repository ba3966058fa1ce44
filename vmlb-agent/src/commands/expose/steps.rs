//! Writes in their order: rehearsed in full before the first one is made, and undone where a later one fails.

use std::fmt;

use anyhow::{anyhow, bail};
use serde_json::{Value, json};

use super::super::api::{Cluster, Refused, Resource, Run, nested};
use super::member::Bearer;
use super::service::MEMBER;

/// A write.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::commands) enum Step {
    /// Gives the group's label to an object.
    Label(Bearer),
    /// Takes it away.
    Unlabel(Bearer),
    /// Makes the Service.
    Create(Value),
    /// Changes the Service by a patch; the other one changes it back.
    Change { name: String, patch: Value, back: Value },
    /// Deletes the Service of this UID.
    Delete { name: String, uid: String },
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |bearer: &Bearer| {
            let of = if bearer.resource.pod_labels.len() == 2 { "" } else { " (template)" };
            format!("{}/{}{of}", bearer.resource.short, bearer.name)
        };
        match self {
            Self::Label(bearer) => write!(out, "{} labelled", place(bearer)),
            Self::Unlabel(bearer) => write!(out, "{} unlabelled", place(bearer)),
            Self::Create(service) => {
                write!(out, "service/{} created", service["metadata"]["name"].as_str().unwrap_or_default())
            }
            Self::Change { name, .. } => write!(out, "service/{name} changed"),
            Self::Delete { name, .. } => write!(out, "service/{name} deleted"),
        }
    }
}

/// All writes of a command.
pub(in crate::commands) struct Steps<'a> {
    pub cluster: &'a Cluster,
    /// The group's label.
    pub key: &'a str,
    pub list: Vec<Step>,
}

impl Steps<'_> {
    /// Has the API server check every write and keep none. Returns the Service as it would be, if one is written.
    ///
    /// # Errors
    /// With everything that would fail, in `explain`'s words.
    pub async fn rehearse(&self, explain: impl AsyncFn(&Refused) -> String) -> anyhow::Result<Option<Value>> {
        let (mut trouble, mut forbidden, mut service) = (Vec::new(), None, None);
        for step in &self.list {
            match self.write(step, Run::Rehearsal).await {
                Ok(answer) => service = answer.or(service),
                Err(refused) if refused.is_no_rehearsal() => {}
                Err(refused) => {
                    let said = explain(&refused).await;
                    if !trouble.contains(&said) {
                        trouble.push(said);
                    }
                    forbidden = Some(refused).filter(Refused::is_forbidden).or(forbidden);
                }
            }
        }
        if trouble.is_empty() {
            return Ok(service);
        }
        let said = format!("nothing was changed: {}", trouble.join("; "));
        Err(match forbidden {
            Some(refused) => anyhow::Error::from(refused).context(said),
            None => anyhow!(said),
        })
    }

    /// Makes every write. Returns the Service as it is then, if one was written.
    ///
    /// # Errors
    /// When a write fails; those before it are undone, and what could not be is named.
    pub async fn carry_out(&self) -> anyhow::Result<Option<Value>> {
        let mut service = None;
        for (place, step) in self.list.iter().enumerate() {
            match self.write(step, Run::Real).await {
                Ok(answer) => service = answer.or(service),
                Err(refused) => {
                    let left = self.undo(&self.list[..place], service.as_ref()).await;
                    if left.is_empty() {
                        return Err(anyhow::Error::from(refused).context("everything is as it was before"));
                    }
                    bail!(
                        "{refused}; these stay behind, because undoing them failed too: {}",
                        left.join(", ")
                    );
                }
            }
        }
        Ok(service)
    }

    /// Makes every write that can be made.
    ///
    /// # Errors
    /// With those that failed; another run goes on with them.
    pub async fn carry_out_what_can_be(&self) -> anyhow::Result<()> {
        let mut failed = Vec::new();
        for step in &self.list {
            if let Err(refused) = self.write(step, Run::Real).await {
                failed.push(format!("not done: {step}: {refused}"));
            }
        }
        if failed.is_empty() { Ok(()) } else { bail!("{}; say it again to go on", failed.join("; ")) }
    }

    /// Undoes writes, the last one first; what stays.
    async fn undo(&self, done: &[Step], service: Option<&Value>) -> Vec<String> {
        let mut left = Vec::new();
        for step in done.iter().rev() {
            let back = match step {
                Step::Label(bearer) | Step::Unlabel(bearer) => {
                    self.label(bearer, bearer.value.as_deref(), Run::Real).await
                }
                Step::Create(object) => {
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    let uid = service.and_then(|made| made["metadata"]["uid"].as_str()).unwrap_or_default();
                    self.cluster.delete(Resource::SERVICE, name, uid, Run::Real).await
                }
                Step::Change { name, back, .. } => {
                    self.cluster.patch(Resource::SERVICE, name, back, Run::Real).await.map(drop)
                }
                // Deletions are made last.
                Step::Delete { .. } => Ok(()),
            };
            if back.is_err() {
                left.push(step.to_string());
            }
        }
        left
    }

    async fn write(&self, step: &Step, run: Run) -> Result<Option<Value>, Refused> {
        match step {
            Step::Label(bearer) => self.label(bearer, Some(MEMBER), run).await.map(|()| None),
            Step::Unlabel(bearer) => match self.label(bearer, None, run).await {
                // Gone in the meantime, and its label with it.
                Err(refused) if refused.code == 404 => Ok(None),
                done => done.map(|()| None),
            },
            Step::Create(object) => self.cluster.create(Resource::SERVICE, object, run).await.map(Some),
            Step::Change { name, patch, .. } => {
                self.cluster.patch(Resource::SERVICE, name, patch, run).await.map(Some)
            }
            Step::Delete { name, uid } => {
                self.cluster.delete(Resource::SERVICE, name, uid, run).await.map(|()| None)
            }
        }
    }

    async fn label(&self, bearer: &Bearer, value: Option<&str>, run: Run) -> Result<(), Refused> {
        let patch = nested(bearer.resource.pod_labels, json!({(self.key): value}));
        self.cluster.patch(bearer.resource, &bearer.name, &patch, run).await.map(drop)
    }
}
