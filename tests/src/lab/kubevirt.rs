//! What KubeVirt and the endpoint controller write about a VM that migrates, as files for `vmlb agent --manifests`: the
//! VirtualMachineInstance, its launcher pods, the migration and the EndpointSlices, each when it happens. Who calls decides
//! about the order and the times, which differ from cluster to cluster and are what vmlb must not depend on.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::manifests::{Manifests, Readiness};
use crate::pod::{Pod, Vm};
use crate::service::Service;

/// The annotation by which a target pod tells that the VM runs in it.
const READY: &str = "kubevirt.io/migration-target-ready-timestamp";

/// A VM as the API shows it.
#[derive(Debug)]
pub struct Instance {
    manifests: Manifests,
    services: Vec<Service>,
    vm: Vm,
    /// The VirtualMachineInstance.
    object: Value,
    /// The present or last VirtualMachineInstanceMigration.
    migration: Value,
    /// Launcher pods by name.
    pods: BTreeMap<String, Value>,
    migrations: u32,
}

impl Instance {
    /// The VM in `pod` runs there, ready, behind `services`.
    pub fn run(manifests: &Manifests, services: &[Service], pod: &Pod) -> Result<Self> {
        let vm = pod.vm.clone();
        let object = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {
                "name": vm.name, "namespace": "default", "uid": vm.uid, "labels": {"kubevirt.io/nodeName": pod.node},
                "creationTimestamp": now()?,
            },
            "spec": {"domain": {}},
            "status": {
                "phase": "Running", "nodeName": pod.node, "activePods": {pod.uid(): pod.node},
                "interfaces": [interface(pod)],
            },
        });
        let mut instance = Self {
            manifests: manifests.clone(),
            services: services.to_vec(),
            vm,
            object,
            migration: Value::Null,
            pods: BTreeMap::new(),
            migrations: 0,
        };
        instance.pods.insert(pod.name.clone(), launcher(pod)?);
        instance.change_pod(pod, |object| {
            show_addresses(object, pod);
            set_ready(object, Readiness::Ready);
        })?;
        instance.change(|_| {})?;
        instance.list(&[(pod, Readiness::Ready)])?;
        Ok(instance)
    }

    /// What the EndpointSlices list.
    pub fn list(&self, pods: &[(&Pod, Readiness)]) -> Result<()> {
        self.services.iter().try_for_each(|service| self.manifests.endpoints_as(service, pods))
    }

    /// A migration is asked for, and its target pod is there, without an address yet.
    pub fn schedule(&mut self, target: &Pod) -> Result<()> {
        self.migrations += 1;
        let name = format!("{}-migration-{}", self.vm.name, self.migrations);
        self.migration = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"name": name, "namespace": "default", "uid": self.job(), "creationTimestamp": now()?},
            "spec": {"vmiName": self.vm.name},
        });
        self.phase("Scheduling")?;
        let mut object = launcher(target)?;
        object["metadata"]["labels"]["kubevirt.io/migrationJobUID"] = self.job().into();
        self.pods.insert(target.name.clone(), object);
        self.change_pod(target, |_| {})
    }

    /// The target pod runs and has its addresses; its readiness gate holds it back.
    pub fn prepare(&mut self, source: &Pod, target: &Pod) -> Result<()> {
        self.change_pod(target, |object| show_addresses(object, target))?;
        let job = self.job();
        self.change(|object| {
            object["metadata"]["labels"]["kubevirt.io/migrationTargetNodeName"] = target.node.clone().into();
            object["status"]["activePods"][target.uid()] = target.node.clone().into();
            object["status"]["migrationState"] = json!({
                "migrationUid": job, "mode": "PreCopy",
                "sourceNode": source.node, "sourcePod": source.object(),
                "targetNode": target.node, "targetPod": target.object(),
            });
        })?;
        self.phase("PreparingTarget")
    }

    /// The VM's memory is being copied.
    pub fn copy(&mut self) -> Result<()> {
        let time = now()?;
        self.change(|object| object["status"]["migrationState"]["startTimestamp"] = time.into())?;
        self.phase("Running")
    }

    /// The target's handler has seen the VM run there: first in the VM's object, then at the pod, then the node's name.
    pub fn report(&mut self, target: &Pod) -> Result<()> {
        let time = now()?;
        self.change(|object| {
            object["status"]["migrationState"]["targetNodeDomainReadyTimestamp"] = time.clone().into();
        })?;
        self.change_pod(target, |object| object["metadata"]["annotations"][READY] = time.clone().into())?;
        self.change(|object| {
            object["metadata"]["labels"] = json!({"kubevirt.io/nodeName": target.node});
            let status = &mut object["status"];
            status["nodeName"] = target.node.clone().into();
            status["interfaces"] = json!([interface(target)]);
            status["migrationState"]["completed"] = true.into();
            status["migrationState"]["endTimestamp"] = time.clone().into();
        })?;
        self.phase("Succeeded")
    }

    /// The gate lets the target's readiness follow; the source's has not changed.
    pub fn open_gate(&mut self, target: &Pod) -> Result<()> {
        self.change_pod(target, |object| set_ready(object, Readiness::Ready))
    }

    /// A pod's condition.
    pub fn set_readiness(&mut self, pod: &Pod, readiness: Readiness) -> Result<()> {
        self.change_pod(pod, |object| set_ready(object, readiness))
    }

    /// The source's process has gone: its pod stays as an object that still shows its addresses.
    pub fn leave(&mut self, source: &Pod) -> Result<()> {
        self.end_pod(source, "Succeeded")
    }

    /// The migration failed: the VM never left, and the target pod ends.
    pub fn fail(&mut self, target: &Pod) -> Result<()> {
        let time = now()?;
        self.change(|object| {
            object["metadata"]["labels"]["kubevirt.io/migrationTargetNodeName"].take();
            let state = &mut object["status"]["migrationState"];
            (state["failed"], state["completed"]) = (true.into(), true.into());
            state["endTimestamp"] = time.into();
        })?;
        self.phase("Failed")?;
        self.end_pod(target, "Failed")
    }

    fn end_pod(&mut self, pod: &Pod, phase: &str) -> Result<()> {
        self.change_pod(pod, |object| {
            object["status"]["phase"] = phase.into();
            set_ready(object, Readiness::NotReady);
        })?;
        self.change(|object| {
            if let Some(pods) = object["status"]["activePods"].as_object_mut() {
                pods.remove(&pod.uid());
            }
        })
    }

    fn job(&self) -> String {
        format!("{:08x}-0000-4000-bbbb-000000000000", self.migrations)
    }

    fn phase(&mut self, phase: &str) -> Result<()> {
        self.migration["status"] = json!({"phase": phase});
        self.write("migration", &self.vm.name, &self.migration)
    }

    fn change(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        change(&mut self.object);
        self.write("vmi", &self.vm.name, &self.object)
    }

    fn change_pod(&mut self, pod: &Pod, change: impl FnOnce(&mut Value)) -> Result<()> {
        let object = self.pods.get_mut(&pod.name).with_context(|| format!("{} was not shown", pod.name))?;
        change(object);
        self.write("pod", &pod.name, &self.pods[&pod.name])
    }

    /// JSON is YAML.
    fn write(&self, kind: &str, name: &str, object: &Value) -> Result<()> {
        self.manifests.write(&format!("{kind}-{name}.yaml"), object.to_string().as_bytes())
    }
}

/// A launcher pod that has just been made.
fn launcher(pod: &Pod) -> Result<Value> {
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.object(), "namespace": "default", "uid": pod.uid(), "creationTimestamp": now()?,
            "labels": {
                "app": "welcome", "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": pod.vmi_uid(),
                "vm.kubevirt.io/name": pod.vm.name,
            },
            "annotations": {"kubevirt.io/domain": pod.vm.name},
            "ownerReferences": [{
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": pod.vm.name,
                "uid": pod.vmi_uid(), "controller": true,
            }],
        },
        "spec": {"nodeName": pod.node, "containers": []},
        "status": {"phase": "Pending"},
    }))
}

fn show_addresses(object: &mut Value, pod: &Pod) {
    let addresses = pod.addresses;
    object["status"] = json!({
        "phase": "Running", "podIP": addresses.v4, "podIPs": [{"ip": addresses.v4}, {"ip": addresses.v6}],
    });
    set_ready(object, Readiness::NotReady);
}

fn set_ready(object: &mut Value, readiness: Readiness) {
    let ready = if readiness == Readiness::Ready { "True" } else { "False" };
    object["status"]["conditions"] = json!([
        {"type": "ContainersReady", "status": "True"},
        {"type": "kubevirt.io/virtual-machine-unpaused", "status": ready},
        {"type": "Ready", "status": ready},
    ]);
}

fn interface(pod: &Pod) -> Value {
    let addresses = pod.addresses;
    json!({"name": "default", "ipAddress": addresses.v4, "ipAddresses": [addresses.v4, addresses.v6]})
}

/// The time in the API's form, which has the grain of a second.
fn now() -> Result<String> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    Ok(jiff::Timestamp::from_second(seconds.try_into()?)?.to_string())
}
