//! Who belongs to a group, and which objects carry the group's label for them. A pod gets its labels once, from its VMI,
//! and a VMI from its VM's template: so the template is labelled for the next start, the VMI for the pod that the next
//! live migration makes, and the pod for now.

use clap::Args;
use serde_json::Value;

use super::super::api::{Cluster, Refused, Resource, at, word};

/// Who is meant.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Members of the group")]
pub struct Members {
    /// VirtualMachine, running or not; this and the following may be given several times
    #[arg(long, value_name = "NAME")]
    pub vm: Vec<String>,
    /// VirtualMachineInstance
    #[arg(long, value_name = "NAME")]
    pub vmi: Vec<String>,
    /// VirtualMachinePool: the VMs that it has now
    #[arg(long, value_name = "NAME")]
    pub pool: Vec<String>,
    /// VirtualMachineInstanceReplicaSet: its instances, and those that it will make
    #[arg(long, value_name = "NAME")]
    pub replica_set: Vec<String>,
    /// Plain pod
    #[arg(long, value_name = "NAME")]
    pub pod: Vec<String>,
}

impl Members {
    /// All names with their resources.
    pub(in crate::commands) fn named(&self) -> impl Iterator<Item = (&'static Resource, &str)> {
        let lists = [
            (Resource::VM, &self.vm),
            (Resource::VMI, &self.vmi),
            (Resource::POOL, &self.pool),
            (Resource::REPLICA_SET, &self.replica_set),
            (Resource::POD, &self.pod),
        ];
        lists
            .into_iter()
            .flat_map(|(resource, names)| names.iter().map(move |name| (resource, name.as_str())))
    }
}

/// Whether the template of a pool gets the label too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum PoolTemplate {
    /// It stays as it is: a pool restarts its VMs when its template changes.
    Kept,
    /// It does.
    Labelled,
}

/// An object that carries the label, or shall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::commands) struct Bearer {
    pub resource: &'static Resource,
    pub name: String,
    /// The label's value now; `None`: it has none.
    pub value: Option<String>,
}

/// A member as it is now.
#[derive(Clone, Debug)]
pub(in crate::commands) struct Member {
    /// As in `vm/web-1`.
    pub name: String,
    pub bearers: Vec<Bearer>,
    /// Pods that carry its traffic now; none: it does not run.
    pub pods: Vec<String>,
    /// What the operator should know about it.
    pub note: Option<String>,
}

/// What was found of those named.
#[derive(Debug, Default)]
pub(in crate::commands) struct Found {
    pub members: Vec<Member>,
    /// Why some cannot be members.
    pub problems: Vec<String>,
}

impl Found {
    /// Everything that carries the label or shall, once.
    pub fn bearers(&self) -> Vec<Bearer> {
        let mut all: Vec<Bearer> = Vec::new();
        for bearer in self.members.iter().flat_map(|member| &member.bearers) {
            if !all.contains(bearer) {
                all.push(bearer.clone());
            }
        }
        all
    }

    /// The pods that carry traffic now.
    pub fn pods(&self) -> Vec<&str> {
        self.members.iter().flat_map(|member| &member.pods).map(String::as_str).collect()
    }
}

/// Looks members up.
pub(in crate::commands) struct Finder<'a> {
    pub cluster: &'a Cluster,
    /// The group's label.
    pub key: &'a str,
    pub pool_template: PoolTemplate,
}

impl Finder<'_> {
    /// Looks up everybody named; who is not there is a problem.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn find(&self, members: &Members) -> Result<Found, Refused> {
        let mut found = Found::default();
        for (resource, name) in members.named() {
            let Some(object) = self.cluster.get(resource, name).await? else {
                found.problems.push(self.missing(resource, name).await?);
                continue;
            };
            if !word(&object, &["metadata", "deletionTimestamp"]).is_empty() {
                found.problems.push(format!("{}/{name} is being deleted", resource.short));
                continue;
            }
            found.members.push(self.member(resource, name, &object).await?);
        }
        Ok(found)
    }

    /// Says that there is nobody of that name, and who there is.
    async fn missing(&self, resource: &'static Resource, name: &str) -> Result<String, Refused> {
        const SHOWN: usize = 8;
        let scope = super::super::api::Scope::Namespace(&self.cluster.namespace);
        let listed = match self.cluster.list(resource, scope, "").await {
            Ok(listed) => listed,
            Err(refused) if refused.is_forbidden() => Some(Vec::new()),
            Err(refused) => return Err(refused),
        };
        let Some(others) = listed else {
            return Ok(format!(
                "{name}: this cluster does not serve {}; is KubeVirt installed?",
                resource.qualified()
            ));
        };
        let names: Vec<&str> =
            others.iter().take(SHOWN).map(|other| word(other, &["metadata", "name"])).collect();
        let others = match (names.len(), others.len() > SHOWN) {
            (0, _) => String::new(),
            (_, more) => format!("; there are {}{}", names.join(", "), if more { ", …" } else { "" }),
        };
        Ok(format!("no {} {name} in namespace {}{others}", resource.kind, self.cluster.namespace))
    }

    /// The member of that object, with everything that belongs to it.
    pub async fn member(
        &self,
        resource: &'static Resource,
        name: &str,
        object: &Value,
    ) -> Result<Member, Refused> {
        let mut member = Member {
            name: format!("{}/{name}", resource.short),
            bearers: Vec::new(),
            pods: Vec::new(),
            note: None,
        };
        match resource.short {
            "vm" => self.add_vm(&mut member, name, object).await?,
            "vmi" => self.add_vmi(&mut member, name, object).await?,
            "vmirs" => {
                member.bearers.push(self.bearer(resource, name, object));
                for instance in self.owned(Resource::VMI, object).await? {
                    let name = word(&instance, &["metadata", "name"]).to_owned();
                    self.add_vmi(&mut member, &name, &instance).await?;
                }
            }
            "vmpool" => self.add_pool(&mut member, name, object).await?,
            _ => self.add_plain_pod(&mut member, name, object),
        }
        if member.pods.is_empty() && member.note.is_none() {
            member.note = Some("no pod yet: it joins when it starts".to_owned());
        }
        Ok(member)
    }

    async fn add_vm(&self, member: &mut Member, name: &str, vm: &Value) -> Result<(), Refused> {
        member.bearers.push(self.bearer(Resource::VM, name, vm));
        match self.cluster.get(Resource::VMI, name).await? {
            Some(vmi) => self.add_vmi(member, name, &vmi).await,
            None => {
                member.note = Some(format!("stopped: it joins when it is started (virtctl start {name})"));
                Ok(())
            }
        }
    }

    async fn add_vmi(&self, member: &mut Member, name: &str, vmi: &Value) -> Result<(), Refused> {
        member.bearers.push(self.bearer(Resource::VMI, name, vmi));
        let selector = format!("kubevirt.io/created-by={}", word(vmi, &["metadata", "uid"]));
        for pod in self.cluster.list_here(Resource::POD, &selector).await? {
            // The source of a finished migration stays as an object.
            if is_over(&pod) {
                continue;
            }
            let name = word(&pod, &["metadata", "name"]);
            member.bearers.push(self.bearer(Resource::POD, name, &pod));
            member.pods.push(name.to_owned());
        }
        Ok(())
    }

    async fn add_pool(&self, member: &mut Member, name: &str, pool: &Value) -> Result<(), Refused> {
        for vm in self.owned(Resource::VM, pool).await? {
            let name = word(&vm, &["metadata", "name"]).to_owned();
            self.add_vm(member, &name, &vm).await?;
        }
        let bearer = self.bearer(Resource::POOL, name, pool);
        match self.pool_template {
            PoolTemplate::Kept if bearer.value.is_none() => {
                member.note = Some(
                    "VMs that the pool makes later do not join by themselves: its template stays as it is, because a \
                     pool restarts its VMs when that changes (--pool-template labels it)"
                        .to_owned(),
                );
            }
            PoolTemplate::Kept | PoolTemplate::Labelled => member.bearers.push(bearer),
        }
        Ok(())
    }

    fn add_plain_pod(&self, member: &mut Member, name: &str, pod: &Value) {
        member.bearers.push(self.bearer(Resource::POD, name, pod));
        if is_over(pod) {
            member.note = Some("it has ended".to_owned());
            return;
        }
        member.pods.push(name.to_owned());
        let owners =
            at(pod, &["metadata", "ownerReferences"]).and_then(Value::as_array).into_iter().flatten();
        if let Some(owner) = owners.into_iter().find(|owner| owner["controller"] == true) {
            member.note = Some(format!(
                "pods that {} {} makes later do not join: label its template",
                word(owner, &["kind"]),
                word(owner, &["name"])
            ));
        }
    }

    fn bearer(&self, resource: &'static Resource, name: &str, object: &Value) -> Bearer {
        let value = at(object, resource.pod_labels).and_then(|labels| labels.get(self.key)?.as_str());
        Bearer { resource, name: name.to_owned(), value: value.map(str::to_owned) }
    }

    /// Those that `owner` controls.
    async fn owned(&self, resource: &'static Resource, owner: &Value) -> Result<Vec<Value>, Refused> {
        let mut all = self.cluster.list_here(resource, "").await?;
        let uid = word(owner, &["metadata", "uid"]);
        all.retain(|object| {
            let owners = at(object, &["metadata", "ownerReferences"]).and_then(Value::as_array);
            owners.into_iter().flatten().any(|one| one["controller"] == true && word(one, &["uid"]) == uid)
        });
        Ok(all)
    }

    /// Everything of the namespace that carries the label.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn all(&self) -> Result<Vec<Bearer>, Refused> {
        let mut all = Vec::new();
        for resource in [Resource::POD, Resource::VMI, Resource::VM, Resource::REPLICA_SET, Resource::POOL] {
            // A template's labels are not the object's own, so that no selector finds them.
            let selector = if resource.pod_labels.len() == 2 { self.key } else { "" };
            for object in self.cluster.list_here(resource, selector).await? {
                let bearer = self.bearer(resource, word(&object, &["metadata", "name"]), &object);
                all.extend(Some(bearer).filter(|bearer| bearer.value.is_some()));
            }
        }
        Ok(all)
    }
}

fn is_over(pod: &Value) -> bool {
    matches!(word(pod, &["status", "phase"]), "Succeeded" | "Failed")
}
