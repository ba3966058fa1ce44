//! A small cluster with one VM that migrates through it: nodes with vmlb, launchers, the API's side of the story, and a
//! pod that has nothing to do with it, to tell what the machine itself costs.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::crowd;
use super::kubevirt::Instance;
use super::launcher::{Launcher, Rules};
use super::{Guest, Switch};
use crate::address::Family;
use crate::agent::{Agent, Flags};
use crate::leftovers::Prefix;
use crate::manifests::{Manifests, Readiness};
use crate::namespace::Namespace;
use crate::pod::{Pod, Workload};
use crate::servers;
use crate::service::{Policy, Port, Protocol, Published, Service};
use crate::topology::{Attachment, Topology};

/// The VM.
pub const VM: &str = "vm01";

/// The pod that stays.
pub const OTHER: &str = "other";

/// Number of the node that neither launcher is on.
pub const ELSEWHERE: usize = 2;

/// When the API tells what happened, beside the moment of the VM's own switch.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the target pod's address to the start of the copying.
    pub prepared: Duration,
    /// From there to the moment in which the VM is told to move.
    pub copying: Duration,
    /// From the moment in which the VM runs at the target to the API's report.
    pub report: Duration,
    /// What the EndpointSlices say meanwhile.
    pub listing: Listing,
}

/// What the EndpointSlices list during a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The source until the report, the target a second after it.
    AfterReport,
    /// The target, and only it, from the start of the copying.
    TargetEarly,
    /// Neither as ready for so long after the switch.
    NeitherFor(Duration),
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            prepared: Duration::from_secs(1),
            copying: Duration::from_secs(1),
            report: Duration::from_secs(1),
            listing: Listing::AfterReport,
        }
    }
}

/// A way in: a node's address of one family.
#[derive(Clone, Debug)]
pub struct Door {
    /// What tables call it.
    pub name: String,
    address: IpAddr,
    service: Service,
}

impl Door {
    /// The frontend that leads to the pods' port `target`.
    pub fn to(&self, target: u16) -> SocketAddr {
        SocketAddr::new(self.address, self.service.node_port(target))
    }
}

/// The cluster. Dropping it removes everything.
#[derive(Debug)]
pub struct Site {
    /// Agents by node; `None` while a node has none.
    pub agents: Vec<Option<Agent>>,
    /// Where the VM is.
    pub launcher: Launcher,
    /// The API's side.
    pub instance: Instance,
    /// The pod that stays, on node number 1.
    pub other: Pod,
    /// What the agents read.
    pub manifests: Manifests,
    services: [Service; 2],
    launchers: u32,
    /// The hosts.
    pub topology: Topology,
}

impl Site {
    /// A client and three nodes; the VM's launcher is on the first, and nothing runs in it yet. The VM's Service has `policy`.
    pub fn build(policy: Policy) -> Result<Self> {
        let mut topology = Topology::build(Prefix::unique(), 1, 3, Attachment::Routed)?;
        let manifests = Manifests::new(&topology.folder("manifests")?);
        for node in &topology.nodes {
            manifests.node(node)?;
        }
        let other = topology.add_pod(1, OTHER, Workload::Container)?;
        let mut launcher = topology.add_launcher(0, "launcher1", &Rules::All)?;
        VM.clone_into(&mut launcher.pod.vm.name);
        let services = [service(VM, 31000, policy), service(OTHER, 31100, Policy::Cluster)];
        services.iter().try_for_each(|service| manifests.service(service))?;
        manifests.pod(&other)?;
        manifests.endpoints(&services[1], &[&other])?;
        let instance = Instance::run(&manifests, &services[..1], &launcher.pod)?;
        let agents = topology.nodes.iter().map(|_| None).collect();
        Ok(Self { agents, launcher, instance, other, manifests, services, launchers: 1, topology })
    }

    /// The same with vmlb serving on every node.
    pub fn serving(policy: Policy) -> Result<Self> {
        let mut site = Self::build(policy)?;
        for node in 0..site.topology.nodes.len() {
            site.start_agent(node)?;
        }
        site.wait_until_serving()?;
        Ok(site)
    }

    /// Starts vmlb on node number `node`.
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        let host = self.topology.nodes.get(node).context("no such node")?;
        let log = self.topology.folder("logs")?.join(format!("{}.log", host.name));
        self.agents[node] = Some(Agent::start(host, &self.manifests, &Flags::default(), &log)?);
        Ok(())
    }

    /// Waits until every agent serves both Services.
    pub fn wait_until_serving(&mut self) -> Result<()> {
        let home = self.launcher.pod.node.clone();
        for (agent, node) in self.agents.iter_mut().zip(&self.topology.nodes) {
            let published = self.services.iter().map(|service| {
                // The VM's Service bears its name, and so does the other.
                let away = service.policy == Policy::Local && node.name != home;
                let pods = if away { Vec::new() } else { vec![service.name.clone()] };
                Published { service: service.clone(), pods }
            });
            if let Some(agent) = agent {
                agent.wait_until_serving(node, &published.collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// The client.
    pub fn client(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    /// The way in to the VM by node number `node`.
    pub fn door(&self, node: usize, family: Family) -> Door {
        self.door_to(0, node, family)
    }

    /// The way in to the pod that stays, by node number `node`.
    pub fn other_door(&self, node: usize, family: Family) -> Door {
        self.door_to(1, node, family)
    }

    fn door_to(&self, service: usize, node: usize, family: Family) -> Door {
        let host = &self.topology.nodes[node];
        Door {
            name: format!("{} {family}", host.name),
            address: host.addresses.of(family),
            service: self.services[service].clone(),
        }
    }

    /// The API up to the moment before the VM moves: a target pod on node number `node`, prepared, and the copying begun.
    pub fn begin(&mut self, node: usize, timing: &Timing) -> Result<Launcher> {
        let target = self.add_launcher(node)?;
        self.announce(&target.pod, timing)?;
        Ok(target)
    }

    /// A launcher for the VM on node number `node` that the API does not show yet.
    pub fn add_launcher(&mut self, node: usize) -> Result<Launcher> {
        self.launchers += 1;
        let name = format!("launcher{}", self.launchers);
        let mut target = self.topology.add_launcher(node, &name, &Rules::All)?;
        target.adopt(&self.launcher);
        Ok(target)
    }

    /// What [`Site::begin`] does with a target that is there.
    pub fn announce(&mut self, target: &Pod, timing: &Timing) -> Result<()> {
        self.instance.schedule(target)?;
        thread::sleep(Duration::from_millis(200));
        self.instance.prepare(&self.launcher.pod, target)?;
        thread::sleep(timing.prepared);
        self.instance.copy()?;
        if timing.listing == Listing::TargetEarly {
            self.instance.set_readiness(target, Readiness::Ready)?;
            self.instance.list(&[(target, Readiness::Ready)])?;
        }
        thread::sleep(timing.copying);
        Ok(())
    }

    /// The API from the switch on, up to the source's end.
    pub fn report(&mut self, target: Launcher, switch: Switch, timing: &Timing) -> Result<()> {
        let source = std::mem::replace(&mut self.launcher, target);
        self.tell(&source.pod, switch, timing)
    }

    /// What [`Site::report`] does; the source's namespace stays.
    pub fn tell(&mut self, source: &Pod, switch: Switch, timing: &Timing) -> Result<()> {
        let (target, instance) = (&self.launcher.pod, &mut self.instance);
        let blind = match timing.listing {
            Listing::NeitherFor(time) => {
                instance.list(&[(source, Readiness::NotReady), (target, Readiness::NotReady)])?;
                time
            }
            Listing::AfterReport | Listing::TargetEarly => timing.report + Duration::from_secs(1),
        };
        wait_until(switch.resumed + timing.report);
        instance.report(target)?;
        wait_until(switch.resumed + blind);
        instance.open_gate(target)?;
        instance.list(&[(source, Readiness::NotReady), (target, Readiness::Ready)])?;
        instance.leave(source)?;
        instance.list(&[(target, Readiness::Ready)])
    }

    /// A whole migration of `guest` to node number `node`; `moved` is called at the switch.
    pub fn migrate(
        &mut self,
        guest: &mut impl Guest,
        node: usize,
        timing: &Timing,
        moved: impl FnOnce(),
    ) -> Result<Switch> {
        let target = self.begin(node, timing)?;
        let switch = guest.migrate(&target)?;
        moved();
        self.report(target, switch, timing)?;
        Ok(switch)
    }
}

fn wait_until(time: SystemTime) {
    thread::sleep(time.duration_since(SystemTime::now()).unwrap_or_default());
}

/// Every server of the rig behind one Service.
fn service(name: &str, first: u16, policy: Policy) -> Service {
    let mut service = Service::all_servers(name, first);
    service.policy = policy;
    let [one, other] = crowd::PORTS;
    for (name, target) in [("push", servers::PUSH), ("crowd1", one), ("crowd2", other)] {
        let node_port = first + u16::try_from(service.ports.len()).unwrap_or_default();
        service.ports.push(Port { name, protocol: Protocol::Tcp, node_port, target });
    }
    service
}
