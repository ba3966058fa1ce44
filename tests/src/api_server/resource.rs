//! What the server serves: resources, and what a method and a path ask of them.

use hyper::Method;

use super::Right;

/// A resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its objects' `kind`.
    pub kind: &'static str,
    /// API group, empty for the core.
    pub group: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// As paths and RBAC name it.
    pub plural: &'static str,
}

const fn resource(
    kind: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
) -> Resource {
    Resource { kind, group, version, plural }
}

/// All there are.
pub static ALL: [Resource; 10] = [
    resource("Service", "", "v1", "services"),
    resource("EndpointSlice", "discovery.k8s.io", "v1", "endpointslices"),
    resource("Node", "", "v1", "nodes"),
    resource("Pod", "", "v1", "pods"),
    resource("Event", "events.k8s.io", "v1", "events"),
    resource("VirtualMachine", "kubevirt.io", "v1", "virtualmachines"),
    resource("VirtualMachineInstance", "kubevirt.io", "v1", "virtualmachineinstances"),
    resource("VirtualMachineInstanceMigration", "kubevirt.io", "v1", "virtualmachineinstancemigrations"),
    resource("VirtualMachineInstanceReplicaSet", "kubevirt.io", "v1", "virtualmachineinstancereplicasets"),
    resource("VirtualMachinePool", "pool.kubevirt.io", "v1alpha1", "virtualmachinepools"),
];

/// The resource whose objects are of that kind.
pub fn of_kind(kind: &str) -> Option<&'static Resource> {
    ALL.iter().find(|resource| resource.kind == kind)
}

impl Resource {
    /// The words in the objects' `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The name with its group, as the API server's messages have it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// What is asked of what.
#[derive(Debug)]
pub(super) struct Route {
    pub verb: &'static str,
    pub resource: &'static Resource,
    pub namespace: Option<String>,
    /// Empty: all of them.
    pub name: String,
}

impl Route {
    /// Reads a method and a path; `None`: nothing of that is served.
    pub fn read(method: &Method, path: &str, is_watch: bool) -> Option<Self> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (group, version, rest) = match &parts[..] {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            rest => (None, rest),
        };
        let (plural, name) = match rest {
            [plural] => (*plural, ""),
            [plural, name] => (*plural, *name),
            _ => return None,
        };
        let known = |one: &&Resource| (one.group, one.version, one.plural) == (group, version, plural);
        let resource = ALL.iter().find(known)?;
        let verb = match (method, name.is_empty()) {
            (&Method::GET, true) if is_watch => "watch",
            (&Method::GET, true) => "list",
            (&Method::GET, false) => "get",
            (&Method::POST, true) => "create",
            (&Method::PATCH, false) => "patch",
            (&Method::DELETE, false) => "delete",
            _ => return None,
        };
        Some(Self { verb, resource, namespace, name: name.to_owned() })
    }

    /// The right it takes.
    pub fn right(&self) -> Right {
        Right { verb: self.verb, group: self.resource.group, resource: self.resource.plural }
    }

    /// The API server's words for a right that is missing.
    pub fn forbidden(&self) -> String {
        let place = match &self.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let Resource { group, plural, .. } = self.resource;
        let object = if self.name.is_empty() { String::new() } else { format!(" {:?}", self.name) };
        format!(
            "{}{object} is forbidden: User \"vmlb\" cannot {} resource {plural:?} in API group {group:?} {place}",
            self.resource.qualified(),
            self.verb
        )
    }
}
