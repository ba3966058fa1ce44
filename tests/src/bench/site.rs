//! Where the bench takes place: the first of two nodes, whose agent has filled the maps and was killed, so that nothing
//! but the measured program runs on them.

use std::fs::File;
use std::net::UdpSocket;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TestRun, TestRunOptions};
use vmlb_agent::bpf::PinnedMap;
use vmlb_agent::loader::programs;
use vmlb_agent::pins::PinRoot;
use vmlb_common::abi::{Flow, FlowKey, Frontend, FrontendKey, Traffic, names};
use vmlb_common::family::{Address4, Address6};
use vmlb_common::verdict::Reason;

use super::flows::{self, Kind, Order, Packets, Phase};
use super::harness::{Harness, TRANSMIT, Target};
use crate::address::{self, Family};
use crate::agent;
use crate::leftovers::Prefix;
use crate::manifests::Manifests;
use crate::service::Protocol;
use crate::topology::{Attachment, Node, Topology};

/// Flows the tables are made for: more than the largest row has.
const FLOWS: &str = "300000";
const PATIENCE: Duration = Duration::from_secs(20);
const UPLINK: &str = "eth0";

/// The node under test.
#[derive(Debug)]
pub struct Site {
    topology: Topology,
    root: PinRoot,
}

/// What the maps of a node counted since they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that went to backends.
    pub requests: u64,
    /// Replies of backends.
    pub replies: u64,
    /// Flows opened.
    pub opened: u64,
    /// Packets by reason, those without one left out.
    pub reasons: Vec<(&'static str, u64)>,
}

impl Site {
    /// Builds the hosts, lets the agent fill the maps, and kills it.
    pub fn build(object: &[u8]) -> Result<Self> {
        let topology = Topology::build(Prefix::unique(), 0, 2, Attachment::Routed)?;
        let node = topology.nodes.first().context("two nodes were asked for")?;
        let root = PinRoot::new(&node.pin_root);
        let manifests = Manifests::new(&topology.folder("manifests")?);
        for node in &topology.nodes {
            manifests.node(node)?;
        }
        manifests.write("services.yaml", services().as_bytes())?;
        let log = topology.folder("logs")?.join("agent.log");
        let mut agent = start_agent(node, &manifests, &log)?;
        let site = Self { topology, root };
        let ready = site.wait_until_serving(object, &mut agent);
        agent.kill()?;
        agent.wait()?;
        ready.with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        Ok(site)
    }

    fn node(&self) -> &Node {
        &self.topology.nodes[0]
    }

    /// Runs `work` in the node's namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.node().namespace.run(work)
    }

    /// The pinned program of uplinks.
    pub fn program(&self) -> Result<ProgramInfo> {
        ProgramInfo::from_pin(self.root.program(programs::XDP)).context("looking at the pinned program")
    }

    /// Index of the uplink; in the node's namespace.
    pub fn ifindex() -> Result<u32> {
        Ok(nix::net::if_::if_nametoindex(UPLINK)?)
    }

    /// The bench object around the node's program; in the node's namespace.
    pub fn harness(&self, object: &[u8]) -> Result<Harness> {
        Harness::load(object, &self.program()?.fd()?, Self::ifindex()?)
    }

    /// Sends opening packets until the node serves both families and knows its neighbours.
    fn wait_until_serving(&self, object: &[u8], agent: &mut Child) -> Result<()> {
        let start = Instant::now();
        let mut next = 1 << 29;
        loop {
            next += 64;
            let served = self.run(|| -> Result<()> {
                for host in [address::NODE_GATEWAY, address::node(1)] {
                    for family in Family::ALL {
                        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
                        UdpSocket::bind(any)?.send_to(b"who has", host.socket(family, 9))?;
                    }
                }
                ensure!(self.root.program(programs::XDP).exists(), "no program yet");
                ensure!(self.frontends()? == FRONTENDS, "frontends are missing");
                let mut harness = self.harness(object)?;
                for (family, protocol) in Family::ALL.into_iter().flat_map(|f| PROTOCOLS.map(|p| (f, p))) {
                    let packets = Packets { kind: Kind::New, family, protocol };
                    for number in next..next + 64 {
                        let course = packets.course(Phase::Opening, number, 1 << 30, Order::Opened);
                        harness.set_course(&course)?;
                        let run = harness.run(Target::Measured, 1)?;
                        ensure!(run.action == TRANSMIT, "{packets:?} ended with action {}", run.action);
                    }
                }
                Ok(())
            });
            let Err(error) = served else { return Ok(()) };
            if let Some(status) = agent.try_wait()? {
                bail!("the agent ended ({status})");
            }
            if start.elapsed() > PATIENCE {
                return Err(error.context("the node does not serve"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends one packet of a pod through the egress program of the uplink; in the node's namespace.
    pub fn leave(&self, egress: &SchedClassifier, frame: &[u8]) -> Result<()> {
        // struct __sk_buff: the device is its eleventh word.
        let mut context = [0u8; 192];
        context[40..44].copy_from_slice(&Self::ifindex()?.to_ne_bytes());
        egress
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
            .context("running the egress program")?;
        Ok(())
    }

    /// The pinned egress program.
    pub fn egress(&self) -> Result<SchedClassifier> {
        Ok(SchedClassifier::from_pin(self.root.program(programs::EGRESS))?)
    }

    /// Frontends of each family.
    fn frontends(&self) -> Result<[usize; 2]> {
        let v4: PinnedMap<FrontendKey<Address4>, Frontend> =
            PinnedMap::open(&self.root, names::FRONTENDS[0])?;
        let v6: PinnedMap<FrontendKey<Address6>, Frontend> =
            PinnedMap::open(&self.root, names::FRONTENDS[1])?;
        // Those of the unspecified address are for other nodes' tunnels.
        let v4 = v4.all()?.into_iter().filter(|(key, _)| key.address != Address4::default()).count();
        let v6 = v6.all()?.into_iter().filter(|(key, _)| key.address != Address6::default()).count();
        Ok([v4, v6])
    }

    /// Established flows of a family.
    pub fn established(&self, family: Family) -> Result<usize> {
        match family {
            Family::V4 => {
                let flows: PinnedMap<FlowKey<Address4>, Flow<Address4>> =
                    PinnedMap::open(&self.root, names::FLOWS[0])?;
                Ok(flows.all()?.len())
            }
            Family::V6 => {
                let flows: PinnedMap<FlowKey<Address6>, Flow<Address6>> =
                    PinnedMap::open(&self.root, names::FLOWS[1])?;
                Ok(flows.all()?.len())
            }
        }
    }

    /// What the maps count now.
    pub fn counts(&self) -> Result<Counts> {
        let traffic: PinnedMap<u32, Traffic> = PinnedMap::open(&self.root, names::TRAFFIC)?;
        let mut counts = Counts::default();
        for (_, values) in traffic.all_per_cpu()? {
            for value in values {
                counts.requests += value.requests;
                counts.replies += value.replies;
                counts.opened += value.opened;
            }
        }
        let reasons: PinnedMap<u32, u64> = PinnedMap::open(&self.root, names::REASONS)?;
        for (number, values) in reasons.all_per_cpu()? {
            counts.reasons.push((Reason::from_number(number).name(), values.iter().sum()));
        }
        Ok(counts)
    }
}

impl Counts {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let reasons = self.reasons.iter().zip(&earlier.reasons);
        Self {
            requests: self.requests - earlier.requests,
            replies: self.replies - earlier.replies,
            opened: self.opened - earlier.opened,
            reasons: reasons
                .map(|(now, then)| (now.0, now.1 - then.1))
                .filter(|(_, packets)| *packets > 0)
                .collect(),
        }
    }
}

/// Frontends of each family: TCP and UDP of one Service a backend, of that of all backends, and of the local one.
const FRONTENDS: [usize; 2] = [2 * (flows::BACKENDS as usize + 2); 2];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn start_agent(node: &Node, manifests: &Manifests, log: &std::path::Path) -> Result<Child> {
    let log = File::create(log)?;
    let mut command = node.namespace.command(agent::binary()?);
    command.args([
        "agent",
        "--node-name",
        &node.name,
        "--device",
        &format!("{UPLINK}=xdp"),
        "--flows",
        FLOWS,
    ]);
    command.arg("--manifests").arg(manifests.folder()).arg("--pin-root").arg(&node.pin_root);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("starting vmlb agent")
}

/// A Service for each remote backend, one for all of them, and one with a backend on the node.
fn services() -> String {
    let remote: Vec<u16> = (0..flows::BACKENDS).collect();
    let mut text = String::new();
    for number in &remote {
        text +=
            &service(&format!("flows-{number}"), flows::FIRST_PORT + number, flows::TARGET, 1, &[*number]);
    }
    text += &service("many", flows::MANY_PORT, flows::MANY_TARGET, 1, &remote);
    text + &service("local", flows::LOCAL_PORT, flows::TARGET, 0, &[0])
}

fn service(name: &str, node_port: u16, target: u16, node: u8, backends: &[u16]) -> String {
    let mut text = format!(
        "---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  type: NodePort\n  ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n\
         \x20 clusterIP: 10.96.1.{host}\n  clusterIPs: [10.96.1.{host}, \"fd00:10:96::1:{host}\"]\n\
         \x20 selector: {{app: bench}}\n  ports:\n",
        host = node_port % 199 + 2
    );
    for protocol in PROTOCOLS.map(Protocol::api) {
        let lower = protocol.to_lowercase();
        text += &format!(
            "  - {{name: {lower}, protocol: {protocol}, port: {target}, targetPort: {target}, nodePort: {node_port}}}\n"
        );
    }
    for family in Family::ALL {
        text += &format!(
            "---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata:\n  name: {name}-{}\n  namespace: default\n  labels: {{kubernetes.io/service-name: {name}}}\n\
             addressType: {family}\nports:\n\
             - {{name: tcp, protocol: TCP, port: {target}}}\n- {{name: udp, protocol: UDP, port: {target}}}\nendpoints:\n",
            family.to_string().to_lowercase()
        );
        for number in backends {
            text += &format!(
                "- {{addresses: [\"{}\"], nodeName: node{}, conditions: {{ready: true, serving: true, terminating: false}}}}\n",
                flows::backend(family, node, *number),
                node + 1
            );
        }
    }
    text
}
