//! Next hops that nobody has resolved yet: the first packet waits for the answer in the kernel, it is not lost.

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{Agent, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;
use vmlb_tests::{counters, requests, servers};

#[test]
fn the_first_packet_to_an_unresolved_neighbour_arrives_without_being_sent_again() {
    unless_unable("the_first_packet_to_an_unresolved_neighbour_arrives_without_being_sent_again", || {
        // Both ways forward: the backend's node is the neighbour, and the pod itself is.
        for node in [0, 1] {
            let control = retransmitted(node, Way::Control)?;
            let ours = retransmitted(node, Way::Vmlb)?;
            ensure!(ours <= control, "node{}: {ours} segments sent again, {control} without vmlb", node + 1);
        }
        Ok(())
    });
}

/// Who forwards.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Control,
    Vmlb,
}

/// Connects through node number `node` to vm02 right after the node forgot its neighbours, once a family; returns the
/// segments that the client had to send again.
fn retransmitted(node: usize, way: Way) -> Result<u64> {
    let mut cluster = Cluster::build(Attachment::Routed)?;
    match way {
        Way::Control => cluster.install_control()?,
        Way::Vmlb => {
            cluster.start_agents(&Flags::default())?;
            // A living agent would have the neighbour resolved before a packet needs it.
            cluster.agents.iter_mut().filter_map(Option::take).try_for_each(Agent::stop)?;
        }
    }
    let before = counters::retransmitted(cluster.client())?;
    for family in Family::ALL {
        let host = &cluster.topology.nodes[node].namespace;
        forget_neighbours(host)?;
        let frontend = cluster.frontend("second", servers::HTTP, node, family)?;
        let answer = cluster.client().run(|| requests::http(frontend, "/"));
        let answer = answer.with_context(|| format!("{family} through node{}", node + 1))?;
        ensure!(answer.pod() == "vm02");
    }
    Ok(counters::retransmitted(cluster.client())? - before)
}

/// Forgets every neighbour, the permanent and the managed ones too.
fn forget_neighbours(host: &vmlb_tests::namespace::Namespace) -> Result<()> {
    host.ip("neigh flush all nud all\n")?;
    let left = host.output("ip", &["neigh", "show", "nud", "reachable"])?;
    ensure!(left.is_empty(), "neighbours are left: {left}");
    Ok(())
}
