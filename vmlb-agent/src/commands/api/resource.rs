//! The resources that the commands of groups deal with: where they are, and where labels for pods stand in them.

/// A resource of the API server.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its objects' `kind`.
    pub kind: &'static str,
    /// As kubectl's output names it.
    pub short: &'static str,
    /// As RBAC and paths name it.
    pub plural: &'static str,
    /// API group, empty for the core.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// Whether its objects are in namespaces.
    pub is_namespaced: bool,
    /// Where the labels stand that pods get; empty: nowhere.
    pub pod_labels: &'static [&'static str],
}

/// Where to look for objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// In one namespace.
    Namespace(&'a str),
    /// Everywhere.
    All,
}

const OWN: &[&str] = &["metadata", "labels"];
const TEMPLATE: &[&str] = &["spec", "template", "metadata", "labels"];
const KUBEVIRT: &str = "kubevirt.io";

impl Resource {
    /// Services.
    pub const SERVICE: &Self = &Self::core("Service", "service", "services", true, &[]);
    /// EndpointSlices.
    pub const ENDPOINT_SLICE: &Self = &Self {
        group: "discovery.k8s.io",
        ..Self::core("EndpointSlice", "endpointslice", "endpointslices", true, &[])
    };
    /// Nodes.
    pub const NODE: &Self = &Self::core("Node", "node", "nodes", false, &[]);
    /// Pods: launchers of VMs and plain ones.
    pub const POD: &Self = &Self::core("Pod", "pod", "pods", true, OWN);
    /// VMs. A pod gets its labels from its VMI, a VMI from its VM's template.
    pub const VM: &Self = &Self::kubevirt("VirtualMachine", "vm", "virtualmachines", KUBEVIRT, TEMPLATE);
    /// Running VMs. The pod that a live migration makes gets its labels from here.
    pub const VMI: &Self =
        &Self::kubevirt("VirtualMachineInstance", "vmi", "virtualmachineinstances", KUBEVIRT, OWN);
    /// Replica sets of VMIs.
    pub const REPLICA_SET: &Self = &Self::kubevirt(
        "VirtualMachineInstanceReplicaSet",
        "vmirs",
        "virtualmachineinstancereplicasets",
        KUBEVIRT,
        TEMPLATE,
    );
    /// Pools of VMs.
    pub const POOL: &Self = &Self {
        // Served by every release so far; v1beta1 is there from 1.8 on only.
        version: "v1alpha1",
        ..Self::kubevirt(
            "VirtualMachinePool",
            "vmpool",
            "virtualmachinepools",
            "pool.kubevirt.io",
            &["spec", "virtualMachineTemplate", "spec", "template", "metadata", "labels"],
        )
    };

    const fn core(
        kind: &'static str,
        short: &'static str,
        plural: &'static str,
        is_namespaced: bool,
        pod_labels: &'static [&'static str],
    ) -> Self {
        Self { kind, short, plural, group: "", version: "v1", is_namespaced, pod_labels }
    }

    const fn kubevirt(
        kind: &'static str,
        short: &'static str,
        plural: &'static str,
        group: &'static str,
        pod_labels: &'static [&'static str],
    ) -> Self {
        Self { kind, short, plural, group, version: "v1", is_namespaced: true, pod_labels }
    }

    /// The name with its group, as in `virtualmachines.kubevirt.io`.
    #[must_use]
    pub fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Where an object is, or with an empty name all of them.
    #[must_use]
    pub fn path(&self, scope: Scope<'_>, name: &str) -> String {
        let mut path = match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if let Scope::Namespace(namespace) = scope {
            path = format!("{path}/namespaces/{namespace}");
        }
        path = format!("{path}/{}", self.plural);
        if name.is_empty() { path } else { format!("{path}/{name}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        assert_eq!(Resource::NODE.path(Scope::All, "a"), "/api/v1/nodes/a");
        assert_eq!(
            Resource::POOL.path(Scope::Namespace("n"), ""),
            "/apis/pool.kubevirt.io/v1alpha1/namespaces/n/virtualmachinepools"
        );
        assert_eq!(Resource::VM.qualified(), "virtualmachines.kubevirt.io");
    }
}
