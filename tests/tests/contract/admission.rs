//! Who is admitted.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::pod::Workload;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

use super::objects::{BALANCER, route_balancer, service, wait};

const SILENCE: Duration = Duration::from_millis(600);

/// Two clients, and a Service whose load-balancer addresses lead to the first node.
fn two_clients() -> Result<Cluster> {
    let mut cluster = Cluster::empty(Prefix::unique(), 2, 2, Attachment::Routed)?;
    cluster.add_pod(0, "vm01", Workload::Vm)?;
    cluster.add_pod(1, "vm02", Workload::Vm)?;
    cluster.publish(Service::all_servers("both", 31000), &["vm01", "vm02"])?;
    cluster.start_agents(&Flags::default())?;
    route_balancer(&cluster)?;
    Ok(cluster)
}

fn admit(cluster: &Cluster, ranges: &[String]) -> Result<()> {
    service(cluster, "both", &json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}))?;
    let holds = |row: &Value| row["sourceRanges"].as_array().map_or(0, Vec::len) == ranges.len();
    wait(cluster, "both", |rows| rows.iter().all(holds))
}

/// A block of the client's own address of each family, as people write them.
fn own(cluster: &Cluster, client: usize) -> [String; 2] {
    let addresses = cluster.topology.clients[client].addresses;
    [format!(" {}/32", addresses.v4), format!("{}/128 ", addresses.v6)]
}

/// Whether a connection of client number `client` is answered; if not, nothing is said to it.
fn is_admitted(cluster: &Cluster, client: usize, server: SocketAddr) -> Result<bool> {
    cluster.topology.clients[client].namespace.run(|| match TcpStream::connect_timeout(&server, SILENCE) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error).context("neither admitted nor ignored"),
    })
}

fn turned_away(cluster: &Cluster) -> Result<u64> {
    let drops = agent::json(&cluster.topology.nodes[0], &["drops"])?;
    let row = drops.as_array().into_iter().flatten().find(|row| row["reason"] == "source_range");
    Ok(row.and_then(|row| row["packets"].as_u64()).unwrap_or(0))
}

#[test]
fn source_ranges_admit_those_clients_alone_and_cover_node_ports_where_told_so() {
    unless_unable("source_ranges_admit_those_clients_alone_and_cover_node_ports_where_told_so", || {
        let mut cluster = two_clients()?;
        let balancer = |address: &str| {
            Ok::<_, anyhow::Error>(SocketAddr::new(address.parse::<IpAddr>()?, servers::LINES))
        };
        let [v4, v6] = own(&cluster, 0);
        admit(&cluster, &[v4, v6])?;
        let mut conversations = Vec::new();
        for (family, address) in Family::ALL.into_iter().zip(BALANCER) {
            let (balancer, node_port) =
                (balancer(address)?, cluster.frontend("both", servers::LINES, 0, family)?);
            ensure!(is_admitted(&cluster, 0, balancer)?, "{family}: the client inside");
            let before = turned_away(&cluster)?;
            ensure!(!is_admitted(&cluster, 1, balancer)?, "{family}: the client outside");
            ensure!(turned_away(&cluster)? > before, "{family}: it was not counted");
            ensure!(is_admitted(&cluster, 1, node_port)?, "{family}: node ports are open to all");
            let opened = cluster.topology.clients[0].namespace.run(|| Conversation::open(balancer))?;
            conversations.push(opened);
        }
        // Ranges change: the other client is inside now, by IPv4 alone.
        let [v4, _] = own(&cluster, 1);
        admit(&cluster, &[v4])?;
        ensure!(
            !is_admitted(&cluster, 0, balancer(BALANCER[0])?)?
                && is_admitted(&cluster, 1, balancer(BALANCER[0])?)?
        );
        // Without a block of the family there is none to be outside of.
        ensure!(
            is_admitted(&cluster, 0, balancer(BALANCER[1])?)?
                && is_admitted(&cluster, 1, balancer(BALANCER[1])?)?
        );
        for conversation in &mut conversations {
            conversation.ask("still there?").context("what was open goes on")?;
        }
        cluster.agents[0].take().context("an agent")?.stop()?;
        cluster.launch_agent(0, &Flags::with(&["--source-ranges", "all"]))?;
        cluster.wait_until_serving()?;
        let node_port = cluster.frontend("both", servers::LINES, 0, Family::V4)?;
        ensure!(!is_admitted(&cluster, 0, node_port)? && is_admitted(&cluster, 1, node_port)?);
        admit(&cluster, &[])?;
        ensure!(is_admitted(&cluster, 0, node_port)? && is_admitted(&cluster, 0, balancer(BALANCER[0])?)?);
        let greeting = SocketAddr::new(BALANCER[0].parse()?, servers::GREETING);
        cluster.topology.clients[0].namespace.run(|| requests::greeting(greeting)).map(drop)
    });
}
