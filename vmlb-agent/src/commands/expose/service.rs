//! The Service of a group: as it shall be, and whether one that is there is that one.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::super::api::{labels, word};

/// Label that tells Services made here.
pub(in crate::commands) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "vmlb-expose");
/// Value of a group's label.
pub(in crate::commands) const MEMBER: &str = "true";

/// The label of the group whose Service has this name.
pub(in crate::commands) fn group_label(service: &str) -> String {
    format!("expose.vmlb.io/{service}")
}

/// How clients reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Type {
    /// At a port of every node.
    NodePort,
    /// At an address that the cluster hands out.
    LoadBalancer,
}

/// Which nodes serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Policy {
    /// Every node, for VMs of all nodes.
    Cluster,
    /// Each node for its own VMs.
    Local,
}

/// A port, as in `80`, `80:8080`, `53/UDP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Port of the Service.
    pub port: u16,
    /// Port of the VM: a number, or the name of a container port.
    pub target: Option<String>,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
}

impl FromStr for Port {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let wrong =
            || format!("{text:?} is not a port; write PORT, PORT:TARGET, or either with /TCP or /UDP");
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let protocol = protocol.to_uppercase();
        ensure!(["TCP", "UDP", "SCTP"].contains(&protocol.as_str()), wrong());
        let (port, target) = match ports.split_once(':') {
            Some((port, target)) => (port, Some(target.to_owned())),
            None => (ports, None),
        };
        let port = port.parse().ok().filter(|port| *port != 0).with_context(wrong)?;
        ensure!(target.as_ref().is_none_or(|target| !target.is_empty() && target != "0"), wrong());
        Ok(Self { port, target, protocol })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.port, self.protocol)
    }
}

/// A Service as it shall be.
#[derive(Clone, Debug)]
pub(in crate::commands) struct Wanted {
    pub name: String,
    pub namespace: String,
    pub kind: Type,
    pub policy: Option<Policy>,
    pub ports: Vec<(Port, Option<u16>)>,
}

impl Wanted {
    /// Puts ports and node ports together.
    ///
    /// # Errors
    /// When there are more node ports than ports, or a port twice.
    pub fn ports(
        ports: &[Port],
        target: Option<&str>,
        node_ports: &[u16],
    ) -> anyhow::Result<Vec<(Port, Option<u16>)>> {
        ensure!(node_ports.len() <= ports.len(), "there are more --node-port than --port");
        ensure!(
            target.is_none() || ports.len() == 1,
            "--target-port is for one --port; write --port PORT:TARGET"
        );
        let mut paired: Vec<(Port, Option<u16>)> = Vec::new();
        for (place, port) in ports.iter().enumerate() {
            let mut port = port.clone();
            if let Some(target) = target {
                port.target = Some(target.to_owned());
            }
            if paired.iter().any(|(one, _)| (one.port, &one.protocol) == (port.port, &port.protocol)) {
                bail!("port {port} is given twice");
            }
            paired.push((port, node_ports.get(place).copied()));
        }
        Ok(paired)
    }

    /// The object; ports that name no node port keep those of `present`.
    pub fn object(&self, present: Option<&Value>) -> Value {
        let mut spec = json!({
            "type": self.kind_name(),
            "selector": {(group_label(&self.name)): MEMBER},
            "ports": self.ports.iter().map(|(port, node_port)| self.port(port, *node_port, present)).collect::<Vec<_>>(),
        });
        if let Some(policy) = self.policy {
            spec["externalTrafficPolicy"] = json!(match policy {
                Policy::Cluster => "Cluster",
                Policy::Local => "Local",
            });
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name, "namespace": self.namespace, "labels": {(MANAGED_BY.0): MANAGED_BY.1},
            },
            "spec": spec,
        })
    }

    fn kind_name(&self) -> &'static str {
        match self.kind {
            Type::NodePort => "NodePort",
            Type::LoadBalancer => "LoadBalancer",
        }
    }

    fn port(&self, port: &Port, node_port: Option<u16>, present: Option<&Value>) -> Value {
        let target = port.target.clone().unwrap_or_else(|| port.port.to_string());
        let mut object = json!({
            "name": format!("{}-{}", port.protocol.to_lowercase(), port.port),
            "port": port.port,
            "protocol": port.protocol,
            "targetPort": target.parse::<u16>().map_or_else(|_| json!(target), |number| json!(number)),
        });
        let kept = present.and_then(|present| {
            let ports = present["spec"]["ports"].as_array()?;
            let same = ports
                .iter()
                .find(|one| one["port"] == port.port && one["protocol"] == port.protocol.as_str())?;
            u16::try_from(same["nodePort"].as_u64()?).ok()
        });
        if let Some(number) = node_port.or(kept) {
            object["nodePort"] = number.into();
        }
        object
    }

    /// What has to change of a Service that is there; `None`: nothing.
    ///
    /// # Errors
    /// When it is somebody else's.
    pub fn difference(&self, present: &Value) -> anyhow::Result<Option<Value>> {
        ensure!(
            is_ours(present),
            "the name is taken: Service {}/{} is there and was not made by vmlb expose; choose another --name, or delete it",
            self.namespace,
            self.name
        );
        let wanted = self.object(Some(present));
        let same = |field: &str| match (&wanted["spec"][field], &present["spec"][field]) {
            (Value::Array(wanted), Value::Array(present)) => {
                wanted.len() == present.len()
                    && wanted.iter().zip(present).all(|(wanted, present)| is_part(wanted, present))
            }
            (Value::Null, _) => true,
            (wanted, present) => wanted == present,
        };
        let fields = ["type", "selector", "ports", "externalTrafficPolicy"];
        if fields.into_iter().all(same) {
            return Ok(None);
        }
        Ok(Some(json!({"spec": wanted["spec"]})))
    }
}

/// Whether every field of `part` is so in `whole`.
fn is_part(part: &Value, whole: &Value) -> bool {
    part.as_object().into_iter().flatten().all(|(field, value)| whole.get(field) == Some(value))
}

/// Whether `vmlb expose` made this Service.
pub(in crate::commands) fn is_ours(service: &Value) -> bool {
    labels(service).get(MANAGED_BY.0) == Some(&MANAGED_BY.1)
}

/// Whose node port that is, for a message.
pub(in crate::commands) fn holder(services: &[Value], node_port: u16) -> Option<String> {
    let holds = |service: &&Value| {
        let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
        ports.any(|port| port["nodePort"] == node_port) || service["spec"]["healthCheckNodePort"] == node_port
    };
    let service = services.iter().find(holds)?;
    Some(format!("{}/{}", word(service, &["metadata", "namespace"]), word(service, &["metadata", "name"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(ports: &[&str], node_ports: &[u16]) -> anyhow::Result<Wanted> {
        let ports: Vec<Port> = ports.iter().map(|text| text.parse()).collect::<anyhow::Result<_>>()?;
        Ok(Wanted {
            name: "web".into(),
            namespace: "a".into(),
            kind: Type::NodePort,
            policy: None,
            ports: Wanted::ports(&ports, None, node_ports)?,
        })
    }

    #[test]
    fn a_port_is_written_as_kubectl_users_expect_it() -> anyhow::Result<()> {
        let port = |text: &str| text.parse::<Port>();
        assert_eq!(port("80")?, Port { port: 80, target: None, protocol: "TCP".into() });
        assert_eq!(
            port("80:http/udp")?,
            Port { port: 80, target: Some("http".into()), protocol: "UDP".into() }
        );
        for text in ["", "0", "80:", "80:0", "x", "80/icmp", "70000"] {
            assert!(port(text).is_err(), "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_node_port_that_was_allocated_is_kept_and_a_service_that_is_so_is_left_alone() -> anyhow::Result<()> {
        let wanted = wanted(&["80", "53/UDP"], &[])?;
        let mut present = wanted.object(None);
        present["spec"]["ports"][0]["nodePort"] = json!(31923);
        present["spec"]["ports"][1]["nodePort"] = json!(30053);
        present["spec"]["clusterIP"] = json!("10.96.0.9");
        assert_eq!(wanted.difference(&present)?, None);
        assert_eq!(wanted.object(Some(&present))["spec"]["ports"][0]["nodePort"], 31923);
        present["spec"]["ports"][1]["targetPort"] = json!(5353);
        assert!(wanted.difference(&present)?.is_some());
        Ok(())
    }

    #[test]
    fn a_service_of_somebody_else_is_not_touched() -> anyhow::Result<()> {
        let wanted = wanted(&["80"], &[31923])?;
        let mut present = wanted.object(None);
        present["metadata"]["labels"] = json!({"app": "web"});
        assert!(
            wanted.difference(&present).is_err_and(|error| error.to_string().contains("the name is taken"))
        );
        Ok(())
    }

    #[test]
    fn ports_given_twice_and_node_ports_without_a_port_are_refused() {
        assert!(wanted(&["80", "80/TCP"], &[]).is_err());
        assert!(wanted(&["80"], &[31923, 31924]).is_err());
        assert!(wanted(&["80", "80/UDP"], &[31923, 31923]).is_ok());
    }
}
