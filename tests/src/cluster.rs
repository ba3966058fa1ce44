//! A small cluster: hosts, VMs, Services, and either vmlb or the nftables control on every node.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::address::Family;
use crate::agent::{Agent, Flags};
use crate::kube_proxy;
use crate::leftovers::Prefix;
use crate::manifests::Manifests;
use crate::namespace::Namespace;
use crate::pod::{Pod, Workload};
use crate::service::{Published, Service};
use crate::topology::{Attachment, Topology};

/// Two nodes with a VM each, and Services for them. Dropping it removes everything.
#[derive(Debug)]
pub struct Cluster {
    /// Agents by node; `None` while a node has none.
    pub agents: Vec<Option<Agent>>,
    /// Pods, in the order in which they were started.
    pub pods: Vec<Pod>,
    /// The Services.
    pub services: Vec<Published>,
    /// What the agents read.
    pub manifests: Manifests,
    /// The hosts.
    pub topology: Topology,
}

impl Cluster {
    /// A client, two nodes and `vm01` on the first, `vm02` on the second. Every server of both is published as Service
    /// `both`, and alone as `first` and `second`. Nothing serves them yet.
    pub fn build(attachment: Attachment) -> Result<Self> {
        let mut cluster = Self::empty(Prefix::unique(), 1, 2, attachment)?;
        cluster.add_pod(0, "vm01", Workload::Vm)?;
        cluster.add_pod(1, "vm02", Workload::Vm)?;
        cluster.publish(Service::all_servers("both", 31000), &["vm01", "vm02"])?;
        cluster.publish(Service::all_servers("first", 31100), &["vm01"])?;
        cluster.publish(Service::all_servers("second", 31200), &["vm02"])?;
        Ok(cluster)
    }

    /// The same with vmlb serving on both nodes.
    pub fn serving(attachment: Attachment, flags: &Flags) -> Result<Self> {
        let mut cluster = Self::build(attachment)?;
        cluster.start_agents(flags)?;
        Ok(cluster)
    }

    /// Hosts only.
    pub fn empty(prefix: Prefix, clients: u8, nodes: u8, attachment: Attachment) -> Result<Self> {
        let topology = Topology::build(prefix, clients, nodes, attachment)?;
        let manifests = Manifests::new(&topology.folder("manifests")?);
        for node in &topology.nodes {
            manifests.node(node)?;
        }
        let agents = topology.nodes.iter().map(|_| None).collect();
        Ok(Self { agents, pods: Vec::new(), services: Vec::new(), manifests, topology })
    }

    /// Starts a pod on node number `node`.
    pub fn add_pod(&mut self, node: usize, name: &str, workload: Workload) -> Result<()> {
        let pod = self.topology.add_pod(node, name, workload)?;
        self.manifests.pod(&pod)?;
        self.pods.push(pod);
        Ok(())
    }

    /// Writes a Service with the pods `names` ready, in place of an earlier one of its name.
    pub fn publish(&mut self, service: Service, names: &[&str]) -> Result<()> {
        let pods = names.iter().map(|name| self.find(name)).collect::<Result<Vec<_>>>()?;
        self.manifests.service(&service)?;
        self.manifests.endpoints(&service, &pods)?;
        self.services.retain(|published| published.service.name != service.name);
        self.services.push(Published { service, pods: names.iter().map(|&name| name.to_owned()).collect() });
        Ok(())
    }

    /// Starts vmlb on every node and waits until all serve.
    pub fn start_agents(&mut self, flags: &Flags) -> Result<()> {
        for node in 0..self.topology.nodes.len() {
            self.launch_agent(node, flags)?;
        }
        self.wait_until_serving()
    }

    /// Starts vmlb on node number `node` without waiting.
    pub fn launch_agent(&mut self, node: usize, flags: &Flags) -> Result<()> {
        let host = self.topology.nodes.get(node).context("no such node")?;
        let log = self.topology.folder("logs")?.join(format!("{}.log", host.name));
        self.agents[node] = Some(Agent::start(host, &self.manifests, flags, &log)?);
        Ok(())
    }

    /// Waits until every node that has an agent serves what is published.
    pub fn wait_until_serving(&mut self) -> Result<()> {
        for (agent, node) in self.agents.iter_mut().zip(&self.topology.nodes) {
            if let Some(agent) = agent {
                agent.wait_until_serving(node, &self.services)?;
            }
        }
        Ok(())
    }

    /// Puts the nftables control on every node.
    pub fn install_control(&self) -> Result<()> {
        let services = self
            .services
            .iter()
            .map(|published| {
                let pods = published.pods.iter().map(|name| self.find(name)).collect::<Result<Vec<_>>>()?;
                Ok((&published.service, pods))
            })
            .collect::<Result<Vec<_>>>()?;
        let borrowed: Vec<_> = services.iter().map(|(service, pods)| (*service, pods.as_slice())).collect();
        for node in &self.topology.nodes {
            kube_proxy::install(&node.namespace, &borrowed)?;
        }
        Ok(())
    }

    /// Connections that took the control's rules, over all nodes.
    pub fn control_hits(&self) -> Result<u64> {
        self.topology.nodes.iter().map(|node| kube_proxy::hits(&node.namespace)).sum()
    }

    /// The pod of that name.
    pub fn find(&self, name: &str) -> Result<&Pod> {
        self.pods.iter().find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))
    }

    /// The frontend of Service `service` for the pods' port `target` on node number `node`.
    pub fn frontend(&self, service: &str, target: u16, node: usize, family: Family) -> Result<SocketAddr> {
        let published = self.services.iter().find(|published| published.service.name == service);
        let port = published.with_context(|| format!("no Service {service}"))?.service.node_port(target);
        Ok(self.topology.nodes.get(node).context("no such node")?.addresses.socket(family, port))
    }

    /// The first client.
    pub fn client(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    /// Leaves everything up for good.
    pub fn keep(self) {
        self.agents.into_iter().flatten().for_each(Agent::keep);
        self.pods.into_iter().for_each(Pod::keep);
        self.topology.keep();
    }
}
