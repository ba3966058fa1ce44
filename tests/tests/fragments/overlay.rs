//! Datagrams in fragments to and from pods behind an overlay.

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::overlay::relay::Relay;
use vmlb_tests::overlay::{self, Overlay};
use vmlb_tests::servers;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::Attachment;

use super::{at_once, counted, exchange, narrow, room};

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_through_vxlan() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_through_vxlan", || {
        let cluster = Cluster::build(Attachment::Bridged)?;
        arrive_whole(cluster, Overlay::Vxlan)
    });
}

#[test]
fn datagrams_of_64_kilobytes_arrive_whole_through_a_tunnel_without_ethernet() {
    unless_unable("datagrams_of_64_kilobytes_arrive_whole_through_a_tunnel_without_ethernet", || {
        let cluster = Cluster::build(Attachment::Bridged)?;
        let nodes = [0, 1].map(|node: usize| &cluster.topology.nodes[node].namespace);
        let _relay = Relay::start(nodes, overlay::DEVICE)?;
        arrive_whole(cluster, Overlay::Tun)
    });
}

fn arrive_whole(mut cluster: Cluster, overlay: Overlay) -> Result<()> {
    overlay.lay(&cluster)?;
    overlay::shrink(&cluster)?;
    cluster.start_agents(&Flags::default())?;
    overlay::attached(&cluster)?;
    narrow(cluster.client())?;
    for family in Family::ALL {
        let frontend = cluster.frontend("second", servers::ECHO, 0, family)?;
        cluster.client().run(|| exchange(frontend, room(family))).with_context(|| format!("{family}"))?;
    }
    at_once(&cluster)?;
    // A sender that is moved to another CPU in the middle of a datagram puts its fragments out of order, now and then.
    for (reason, few) in
        [("fragment", 100), ("fragment_order", 100), ("malformed", 0), ("uncuttable", 0), ("too_big", 0)]
    {
        let counted = counted(&cluster, reason)?;
        ensure!(counted <= few, "{counted} packets counted as {reason}");
    }
    Ok(())
}
