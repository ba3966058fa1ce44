//! The directory of Kubernetes manifests that the agents read: one file an object, replaced in one step so that no
//! reader meets half a file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_agent::watch::{Object, document};

use crate::address::Family;
use crate::pod::{Pod, Workload};
use crate::service::{Port, Service};
use crate::topology::Node;

/// What an EndpointSlice says of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It takes connections.
    Ready,
    /// A readiness gate or probe says no.
    NotReady,
}

/// A manifests directory.
#[derive(Clone, Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// Uses `folder`, which exists.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The directory to give to `vmlb agent --manifests`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the file `name` as it is given, whatever is in it.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let (path, partial) = (self.folder.join(name), self.folder.join(format!(".{name}.partial")));
        fs::write(&partial, content)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// The objects of all files, as an API server would show them.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let contents = document::read("", &fs::read(&path)?);
            ensure!(contents.warnings.is_empty(), "{}: {:?}", path.display(), contents.warnings);
            for object in contents.objects {
                objects.push(match object {
                    Object::Service(object) => serde_json::to_value(&*object)?,
                    Object::EndpointSlice(object) => serde_json::to_value(&*object)?,
                    Object::Node(object) => serde_json::to_value(&*object)?,
                    Object::Pod(object) => serde_json::to_value(&*object)?,
                    Object::Vmi(object) => serde_json::to_value(&*object)?,
                    Object::Migration(object) => serde_json::to_value(&*object)?,
                });
            }
        }
        Ok(objects)
    }

    /// Removes the file `name`.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// Writes a Node.
    pub fn node(&self, node: &Node) -> Result<()> {
        let text = format!(
            "apiVersion: v1\n\
             kind: Node\n\
             metadata:\n  name: {name}\n\
             status:\n  addresses:\n\
             \x20 - {{type: InternalIP, address: \"{v4}\"}}\n\
             \x20 - {{type: InternalIP, address: \"{v6}\"}}\n\
             \x20 - {{type: Hostname, address: {name}}}\n",
            name = node.name,
            v4 = node.addresses.v4,
            v6 = node.addresses.v6
        );
        self.write(&format!("node-{}.yaml", node.name), text.as_bytes())
    }

    /// Writes a Pod, with KubeVirt's labels if it carries a VM.
    pub fn pod(&self, pod: &Pod) -> Result<()> {
        let labels = match pod.workload {
            Workload::Vm => format!(
                "    kubevirt.io: virt-launcher\n    kubevirt.io/created-by: {}\n    vm.kubevirt.io/name: {}\n",
                pod.vmi_uid(),
                pod.vm.name
            ),
            Workload::Container => String::new(),
        };
        let text = format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata:\n  name: {object}\n  namespace: default\n  uid: {uid}\n\
             \x20 labels:\n    app: welcome\n{labels}\
             spec:\n  nodeName: {node}\n  containers: []\n\
             status:\n  phase: Running\n  podIP: \"{v4}\"\n  podIPs:\n  - ip: \"{v4}\"\n  - ip: \"{v6}\"\n\
             \x20 conditions:\n  - {{type: Ready, status: \"True\"}}\n",
            object = pod.object(),
            uid = pod.uid(),
            node = pod.node,
            v4 = pod.addresses.v4,
            v6 = pod.addresses.v6
        );
        self.write(&format!("pod-{}.yaml", pod.name), text.as_bytes())
    }

    /// Removes a Pod.
    pub fn remove_pod(&self, name: &str) -> Result<()> {
        self.remove(&format!("pod-{name}.yaml"))
    }

    /// Writes a Service.
    pub fn service(&self, service: &Service) -> Result<()> {
        let ports: String = service.ports.iter().map(service_port).collect();
        let text = format!(
            "apiVersion: v1\n\
             kind: Service\n\
             metadata:\n  name: {name}\n  namespace: default\n{annotations}\
             spec:\n  type: NodePort\n  externalTrafficPolicy: {policy}\n\
             \x20 ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n\
             \x20 clusterIP: 10.96.0.{host}\n  clusterIPs: [10.96.0.{host}, \"fd00:10:96::{host}\"]\n\
             \x20 selector:\n    app: welcome\n  ports:\n{ports}",
            name = service.name,
            annotations = service.forwarding.map_or_else(String::new, |forwarding| {
                format!("  annotations: {{vmlb.io/forwarding: {forwarding}}}\n")
            }),
            policy = service.policy.api(),
            host = service.ports.first().map_or(1, |port| port.node_port % 250 + 2),
        );
        self.write(&format!("service-{}.yaml", service.name), text.as_bytes())
    }

    /// Writes the EndpointSlices of `service`, one a family, with `pods` ready.
    pub fn endpoints(&self, service: &Service, pods: &[&Pod]) -> Result<()> {
        let ready: Vec<_> = pods.iter().map(|&pod| (pod, Readiness::Ready)).collect();
        self.endpoints_as(service, &ready)
    }

    /// The same with pods that are ready or not.
    pub fn endpoints_as(&self, service: &Service, pods: &[(&Pod, Readiness)]) -> Result<()> {
        let ports: String = service.ports.iter().map(slice_port).collect();
        let slices: Vec<String> = Family::ALL
            .into_iter()
            .map(|family| {
                let endpoints: String =
                    pods.iter().map(|(pod, readiness)| endpoint(family, pod, *readiness)).collect();
                let list = if endpoints.is_empty() { " []\n".to_owned() } else { format!("\n{endpoints}") };
                format!(
                    "apiVersion: discovery.k8s.io/v1\n\
                     kind: EndpointSlice\n\
                     metadata:\n  name: {name}-{suffix}\n  namespace: default\n\
                     \x20 labels:\n    kubernetes.io/service-name: {name}\n\
                     addressType: {family}\nports:\n{ports}endpoints:{list}",
                    name = service.name,
                    suffix = family.to_string().to_lowercase(),
                )
            })
            .collect();
        self.write(&format!("endpoints-{}.yaml", service.name), slices.join("---\n").as_bytes())
    }
}

fn service_port(port: &Port) -> String {
    format!(
        "  - {{name: {}, protocol: {}, port: {}, targetPort: {}, nodePort: {}}}\n",
        port.name,
        port.protocol.api(),
        port.target,
        port.target,
        port.node_port
    )
}

fn slice_port(port: &Port) -> String {
    format!("- {{name: {}, protocol: {}, port: {}}}\n", port.name, port.protocol.api(), port.target)
}

fn endpoint(family: Family, pod: &Pod, readiness: Readiness) -> String {
    let ready = readiness == Readiness::Ready;
    format!(
        "- addresses: [\"{}\"]\n  nodeName: {}\n\
         \x20 conditions: {{ready: {ready}, serving: {ready}, terminating: false}}\n\
         \x20 targetRef: {{kind: Pod, namespace: default, name: {}, uid: {}}}\n",
        pod.addresses.of(family),
        pod.node,
        pod.object(),
        pod.uid()
    )
}
