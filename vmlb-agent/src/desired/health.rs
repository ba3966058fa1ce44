//! What a balancer outside the cluster may ask of this node about a Service of policy Local.

use std::collections::BTreeSet;

use super::Here;
use crate::identity::Identity;
use crate::index::Index;
use crate::index::service::{Families, Service};
use crate::index::slice::{Endpoint, Family};

/// An answer at a Service's `healthCheckNodePort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port at which it is given.
    pub port: u16,
    /// Ready backends on this node that take new flows, so none in maintenance. One that has an endpoint in both families
    /// counts once.
    pub local_ready: usize,
}

/// Computes the answer. `None`: the Service has no such port.
#[must_use]
pub fn health_check(
    index: &Index,
    here: &Here,
    service: &Service,
    families: Families,
) -> Option<HealthCheck> {
    if service.health_port == 0 {
        return None;
    }
    let slices = index.slices(&service.name).filter(|slice| match slice.family {
        Family::V4 => families.v4,
        Family::V6 => families.v6,
    });
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let known = endpoints.filter_map(|endpoint| Some((index.identify(endpoint)?, endpoint)));
    let is_local_ready = |(identity, endpoint): &(Identity, &Endpoint)| {
        let endpoint = index.relocate(identity, endpoint);
        endpoint.ready && endpoint.node.as_deref() == Some(&*here.node)
    };
    let backends = known.filter(is_local_ready).map(|(identity, _)| identity);
    let backends: BTreeSet<Identity> = backends.filter(|identity| index.weight(identity) > 0).collect();
    Some(HealthCheck { port: service.health_port, local_ready: backends.len() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::HealthCheck;
    use crate::cluster::{Decoded, decode};
    use crate::desired::{Desired, Here};
    use crate::facts::NodeFacts;
    use crate::index::Index;
    use crate::object::Name;
    use crate::serving::Serving;
    use crate::watch::document;

    fn apply(index: &mut Index, object: &Value) {
        for object in document::read("", object.to_string().as_bytes()).objects {
            if let Decoded::Use(entry) = decode(&object).0 {
                index.apply(*entry);
            }
        }
    }

    fn service(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "a"}, "spec": spec})
    }

    fn local(port: u16) -> Value {
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        service(json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port, "ports": ports
        }))
    }

    fn slice(family: &str, endpoints: &[(&str, &str, &str, bool)]) -> Value {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(address, pod, node, ready)| {
                json!({
                    "addresses": [address], "nodeName": node, "conditions": {"ready": ready, "serving": true},
                    "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-{pod}")},
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": format!("web-{family}"), "namespace": "a", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"port": 8080}], "endpoints": endpoints,
        })
    }

    struct World {
        index: Index,
        desired: Desired,
        here: Here,
    }

    impl World {
        fn new() -> Self {
            let here = Here { node: "n1".into(), serving: Serving::default(), facts: NodeFacts::default() };
            Self { index: Index::default(), desired: Desired::default(), here }
        }

        /// Applies an object; what has changed about the answers since.
        fn take(&mut self, object: &Value) -> Vec<Option<HealthCheck>> {
            apply(&mut self.index, object);
            for name in self.index.take_touched().services {
                self.desired.refresh_service(&self.index, &self.here, &name);
            }
            self.desired.take_health_changes().into_iter().map(|(_, check)| check).collect()
        }
    }

    #[test]
    fn ready_backends_of_this_node_count_once_whatever_their_families() {
        let mut world = World::new();
        assert_eq!(world.take(&local(32001)), [Some(HealthCheck { port: 32001, local_ready: 0 })]);
        let v4 =
            [("10.0.0.1", "p1", "n1", true), ("10.0.0.2", "p2", "n2", true), ("10.0.0.3", "p3", "n1", false)];
        assert_eq!(world.take(&slice("IPv4", &v4)), [Some(HealthCheck { port: 32001, local_ready: 1 })]);
        // The same pod in the other family, and one that only has that.
        let v6 = [("fd00::1", "p1", "n1", true), ("fd00::4", "p4", "n1", true)];
        assert_eq!(world.take(&slice("IPv6", &v6)), [Some(HealthCheck { port: 32001, local_ready: 2 })]);
        // Another node's endpoint changes nothing here.
        let v4 = [
            ("10.0.0.1", "p1", "n1", true),
            ("10.0.0.2", "p2", "n2", false),
            ("10.0.0.3", "p3", "n1", false),
        ];
        assert_eq!(world.take(&slice("IPv4", &v4)), []);
    }

    #[test]
    fn a_backend_in_maintenance_is_no_reason_to_send_clients_here() {
        let mut world = World::new();
        world.take(&local(32001));
        let pod = |weight: &str| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "p1", "namespace": "a", "uid": "uid-p1", "annotations": {"vmlb.io/weight": weight}},
            })
        };
        world.take(&pod("100"));
        let check = |local_ready| Some(HealthCheck { port: 32001, local_ready });
        assert_eq!(world.take(&slice("IPv4", &[("10.0.0.1", "p1", "n1", true)])), [check(1)]);
        assert_eq!(world.take(&pod("0")), [check(0)]);
        assert_eq!(world.take(&pod("1")), [check(1)]);
    }

    #[test]
    fn the_port_goes_with_the_service_its_type_and_its_policy() {
        let mut world = World::new();
        world.take(&local(32001));
        assert_eq!(world.take(&local(32002)), [Some(HealthCheck { port: 32002, local_ready: 0 })]);
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        let cluster = service(json!({"type": "LoadBalancer", "healthCheckNodePort": 32002, "ports": ports}));
        assert_eq!(world.take(&cluster), [None]);
        world.take(&local(32001));
        world.index.delete(&crate::object::ObjectRef::new(crate::object::Kind::Service, "a", "web"));
        world.desired.refresh_service(&world.index, &world.here, &Name::new("a", "web"));
        assert_eq!(world.desired.take_health_changes(), [(Name::new("a", "web"), None)]);
    }

    #[test]
    fn a_service_left_to_the_stack_is_not_vouched_for() {
        let mut world = World::new();
        let mut object = local(32001);
        object["spec"]["loadBalancerSourceRanges"] = json!(["everywhere"]);
        assert_eq!(world.take(&object), []);
    }
}
