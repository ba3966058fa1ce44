//! VMs of other nodes behind a CNI's network: an overlay's device with the pods on bridges, as flannel has it, and routed
//! pods, as Calico has them; with `rp_filter`, kube-proxy's rules and the CNI's own beside us.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::overlay::relay::Relay;
use vmlb_tests::overlay::{self, Overlay, attached};
use vmlb_tests::pod::Workload;
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::talk::Talk;
use vmlb_tests::topology::{Attachment, Node};
use vmlb_tests::{probe, requests, servers};

/// Octets of a transfer: thousands of packets each way, most of them in segments not yet cut.
const OCTETS: u64 = 8_000_000;

#[test]
fn vms_behind_vxlan_are_reached_by_xdp() {
    unless_unable("vms_behind_vxlan_are_reached_by_xdp", || {
        by_all_ways(Attachment::Bridged, true, "eth0=xdp")
    });
}

#[test]
fn vms_behind_vxlan_are_reached_by_tc() {
    unless_unable("vms_behind_vxlan_are_reached_by_tc", || by_all_ways(Attachment::Bridged, true, "eth0=tc"));
}

#[test]
fn routed_vms_are_reached_beside_all_rules() {
    unless_unable("routed_vms_are_reached_beside_all_rules", || {
        by_all_ways(Attachment::Routed, false, "eth0=xdp")
    });
}

/// Each node is asked for the VMs of all three.
#[test]
fn vms_of_three_nodes_are_reached_by_one_overlay() {
    unless_unable("vms_of_three_nodes_are_reached_by_one_overlay", || {
        let mut cluster = Cluster::empty(Prefix::unique(), 1, 3, Attachment::Bridged)?;
        let vms = ["vm01", "vm02", "vm03"];
        for (index, (vm, first_port)) in vms.into_iter().zip([31100, 31200, 31300]).enumerate() {
            cluster.add_pod(index, vm, Workload::Vm)?;
            cluster.publish(Service::all_servers(vm, first_port), &[vm])?;
        }
        cluster.publish(Service::all_servers("all", 31000), &vms)?;
        Overlay::Vxlan.lay(&cluster)?;
        overlay::shrink(&cluster)?;
        beside(&cluster)?;
        cluster.start_agents(&Flags::default())?;
        attached(&cluster)?;
        for family in Family::ALL {
            for (asked, node) in cluster.topology.nodes.iter().enumerate() {
                for (home, vm) in vms.into_iter().enumerate() {
                    let client = cluster.topology.clients[0].addresses.of(family);
                    let source =
                        if asked == home { client } else { overlay::address(node, family).parse()? };
                    let at = |port| cluster.frontend(vm, port, asked, family);
                    let frontends = [at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?];
                    let served = || requests::served_by(frontends, 300_000, (vm, source));
                    cluster
                        .client()
                        .run(served)
                        .with_context(|| format!("{family}, {vm} by {}", node.name))?;
                }
            }
        }
        // Each VM is chosen, whichever node is asked.
        let mut talk = Talk::with_each(&cluster, &["all"], 0..3, 24, 0)?;
        talk.go_on()?;
        took_nothing(&cluster)
    });
}

#[test]
fn vms_behind_a_tunnel_without_ethernet_are_reached() {
    unless_unable("vms_behind_a_tunnel_without_ethernet_are_reached", || {
        let mut cluster = Cluster::build(Attachment::Bridged)?;
        let nodes = [0, 1].map(|node: usize| &cluster.topology.nodes[node].namespace);
        let relay = Relay::start(nodes, overlay::DEVICE)?;
        Overlay::Tun.lay(&cluster)?;
        overlay::shrink(&cluster)?;
        beside(&cluster)?;
        cluster.start_agents(&Flags::default())?;
        attached(&cluster)?;
        let capture = Capture::start(cluster.client())?;
        for family in Family::ALL {
            let source = overlay::address(&cluster.topology.nodes[0], family).parse()?;
            let at = |port| cluster.frontend("second", port, 0, family);
            let frontends = [at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?];
            cluster
                .client()
                .run(|| requests::served_by(frontends, OCTETS, ("vm02", source)))
                .with_context(|| format!("{family}"))?;
            // What the node itself talks about by the tunnel is received as before, at ports that we look at too.
            let node = &cluster.topology.nodes[0].namespace;
            node.set_sysctl("net/ipv4/ip_local_port_range", "20000 20999")?;
            let vm = cluster.find("vm02")?.addresses;
            let http = vm.socket(family, servers::HTTP);
            ensure!(node.run(|| requests::http(http, "/"))?.pod() == "vm02");
            let echo = vm.socket(family, servers::ECHO);
            node.run(|| requests::echo(&requests::datagrams(echo)?, &[0x5a; 900]))?;
        }
        let checked = capture::check_sums(&capture.finish())?;
        ensure!(checked > 1000, "only {checked} packets were seen");
        drop(relay);
        took_nothing(&cluster)
    });
}

/// Puts beside us what may take packets away: strict reverse paths, a CNI's masquerading, kube-proxy's rules.
fn beside(cluster: &Cluster) -> Result<()> {
    for node in &cluster.topology.nodes {
        overlay::check_paths(&node.namespace)?;
        overlay::masquerade(node)?;
    }
    cluster.install_control()
}

/// A cluster with everything beside us that may take packets away.
fn cluster(attachment: Attachment, has_overlay: bool) -> Result<Cluster> {
    let cluster = Cluster::build(attachment)?;
    if has_overlay {
        Overlay::Vxlan.lay(&cluster)?;
        overlay::shrink(&cluster)?;
    }
    beside(&cluster)?;
    Ok(cluster)
}

/// A VM of this node, one of another with SNAT, and one of another with the client's address kept.
fn by_all_ways(attachment: Attachment, has_overlay: bool, device: &str) -> Result<()> {
    let mut cluster = cluster(attachment, has_overlay)?;
    let (kept, ours) = (
        Service { forwarding: Some("dsr"), ..Service::all_servers("kept", 31300) },
        Flags { device: device.to_owned(), others: ["--tunnel", "ip"].map(str::to_owned).into() },
    );
    cluster.publish(kept, &["vm02"])?;
    cluster.install_control()?;
    cluster.start_agents(&ours)?;
    if has_overlay {
        attached(&cluster)?;
    }
    let capture = Capture::start(cluster.client())?;
    for family in Family::ALL {
        let client = cluster.topology.clients[0].addresses.of(family);
        let node = &cluster.topology.nodes[0];
        let snat: IpAddr =
            if has_overlay { overlay::address(node, family).parse()? } else { node.addresses.of(family) };
        for (service, pod, source) in
            [("first", "vm01", client), ("second", "vm02", snat), ("kept", "vm02", client)]
        {
            let at = |port| cluster.frontend(service, port, 0, family);
            let frontends = [at(servers::HTTP)?, at(servers::BULK)?, at(servers::ECHO)?];
            let asked = cluster.client().run(|| requests::served_by(frontends, OCTETS, (pod, source)));
            asked.with_context(|| format!("{family}, Service {service} ({device})"))?;
        }
    }
    let mut talk = Talk::open(&cluster, "both", 16, 16)?;
    talk.go_on()?;
    let checked = capture::check_sums(&capture.finish())?;
    ensure!(checked > 1000, "only {checked} packets were seen");
    took_nothing(&cluster)
}

/// No connection of a client took the rules beside us.
fn took_nothing(cluster: &Cluster) -> Result<()> {
    let hits = cluster.control_hits()?;
    ensure!(hits == 0, "{hits} connections took kube-proxy's rules");
    for node in &cluster.topology.nodes {
        let hits = overlay::masqueraded(node)?;
        ensure!(hits == 0, "{hits} connections were masqueraded on {}", node.name);
    }
    Ok(())
}

#[test]
fn who_sends_more_than_an_overlay_takes_learns_of_it() {
    unless_unable("who_sends_more_than_an_overlay_takes_learns_of_it", || {
        let mut cluster = Cluster::build(Attachment::Bridged)?;
        Overlay::Vxlan.lay(&cluster)?;
        // Otherwise TCP would hear of it beforehand.
        cluster.start_agents(&Flags::with(&["--clamp-mss", "off"]))?;
        attached(&cluster)?;
        for family in Family::ALL {
            // The pods know nothing of the overlay, so neither does the client by their word.
            let bulk = cluster.frontend("second", servers::BULK, 0, family)?;
            cluster.client().run(|| requests::upload(bulk, OCTETS, 0))?;
            cluster.client().run(|| requests::download(bulk, OCTETS, 0))?;
            let known = cluster.client().output("ip", &["route", "get", &bulk.ip().to_string()])?;
            ensure!(known.contains(&format!("mtu {}", overlay::MTU)), "{family}: the client knows {known}");
        }
        Ok(())
    });
}

#[test]
fn a_service_that_no_way_leads_to_is_left_to_the_stack_as_a_whole() {
    unless_unable("a_service_that_no_way_leads_to_is_left_to_the_stack_as_a_whole", || {
        let mut cluster = cluster(Attachment::Bridged, true)?;
        cluster.start_agents(&Flags::default())?;
        // As a CNI's own device may be: what is behind it is nobody's business but the CNI's.
        let node = &cluster.topology.nodes[0];
        let prefix = &vmlb_tests::address::pod_prefixes(1)[0];
        node.namespace.ip(&format!(
            "link add cni-host type veth peer name cni-net\nlink set cni-host up\nlink set cni-net up\n\
             route replace {prefix} dev cni-host\n"
        ))?;
        let is_left = |service: &str, what: &str| {
            let left = agent::json(node, &["services"])?;
            let rows = left.as_array().into_iter().flatten();
            let of_service: Vec<_> =
                rows.filter(|row| row["name"] == service).map(ToString::to_string).collect();
            Ok::<_, anyhow::Error>(!of_service.is_empty() && of_service.iter().all(|row| row.contains(what)))
        };
        probe::wait("the reason", Duration::from_secs(10), || is_left("second", "leads into cni-host"))?;
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(100));
            ensure!(
                is_left("second", "leads into cni-host")?,
                "it is served again, though nothing has changed"
            );
        }
        ensure!(is_left("both", "leads into cni-host")? && !is_left("first", "leads into")?);
        let gateway = overlay::address(&cluster.topology.nodes[1], Family::V4);
        node.namespace
            .ip(&format!("route replace {prefix} via {gateway} dev {} onlink\n", overlay::DEVICE))?;
        probe::wait("the way back", Duration::from_secs(10), || Ok(!is_left("second", "leads into")?))?;
        let http = cluster.frontend("second", servers::HTTP, 0, Family::V4)?;
        ensure!(cluster.client().run(|| requests::http(http, "/"))?.pod() == "vm02");
        ensure!(cluster.control_hits()? == 0);
        // OVN-Kubernetes is known by its device.
        node.namespace.ip("link set cni-host down\nlink set cni-host name ovn-k8s-mp0\n")?;
        probe::wait("OVN's reason", Duration::from_secs(10), || {
            Ok(is_left("first", "OVN-Kubernetes")? && is_left("second", "OVN-Kubernetes")?)
        })?;
        cluster.client().run(|| requests::http(http, "/")).context("by the stack")?;
        let found = node.namespace.command(agent::binary()?).arg("check").output()?;
        let said = String::from_utf8_lossy(&found.stdout).into_owned();
        ensure!(said.contains("pods are OVN-Kubernetes'") && !found.status.success(), "vmlb check: {said}");
        ensure!(cluster.control_hits()? == 1);
        Ok(())
    });
}

/// `vmlb status` has the ways of this node's VM and of the other's, in sum and each, and `vmlb flows` the device.
fn is_told(node: &Node) -> Result<()> {
    let status = agent::json(node, &["status"])?;
    let of = |list: &str, field: &str, value: &str| {
        let mut rows = status[list].as_array().into_iter().flatten();
        rows.find(|row| row[field] == value).cloned().with_context(|| format!("no {value}: {}", status[list]))
    };
    let (stack, overlay) = (of("ways", "way", "stack")?, of("ways", "way", "overlay")?);
    ensure!(stack["backends"] == 1 && stack["device"].is_null() && stack["examples"][0] == "default/vm01");
    ensure!(overlay["backends"] == 1 && overlay["device"] == overlay::DEVICE, "{overlay}");
    let vm02 = of("backends", "name", "default/vm02")?;
    ensure!(vm02["ways"][1]["way"] == "overlay", "{vm02}");
    let flows = agent::json(node, &["flows"])?;
    let mut flows = flows.as_array().into_iter().flatten();
    let flow = flows.find(|flow| flow["way"] == "overlay").context("no flow by the overlay")?;
    ensure!(flow["device"] == overlay::DEVICE && flow["backend"] == "default/vm02", "{flow}");
    Ok(())
}

#[test]
fn an_overlay_that_comes_later_and_again_is_followed_and_left() {
    unless_unable("an_overlay_that_comes_later_and_again_is_followed_and_left", || {
        let mut cluster = Cluster::build(Attachment::Bridged)?;
        cluster.start_agents(&Flags::default())?;
        let http = cluster.frontend("second", servers::HTTP, 0, Family::V4)?;
        let node = &cluster.topology.nodes[0];
        let snat: IpAddr = overlay::address(node, Family::V4).parse()?;
        for (round, device) in [(1, "first"), (2, "second")] {
            if round == 2 {
                for node in &cluster.topology.nodes {
                    node.namespace.ip(&format!("link del {}\n", overlay::DEVICE))?;
                }
            }
            Overlay::Vxlan.lay(&cluster).with_context(|| format!("the {device} device"))?;
            probe::wait("the way by the overlay", Duration::from_secs(10), || {
                Ok(cluster
                    .client()
                    .run(|| requests::http(http, "/"))
                    .is_ok_and(|answer| answer.client == snat))
            })?;
        }
        let status = agent::json(node, &["status"])?;
        let devices = status["devices"].as_array().context("devices")?;
        let shown = devices.iter().find(|device| device["name"] == overlay::DEVICE).context("not shown")?;
        ensure!(shown["flags"] == serde_json::json!(["overlay"]), "shown as {shown}");
        let backends = agent::json(node, &["backends"])?;
        let of = |name: &str| backends.as_array().into_iter().flatten().find(|row| row["name"] == name);
        for (vm, way) in [("vm01", "stack"), ("vm02", "overlay")] {
            let ways = &of(vm).context("not listed")?["ways"];
            ensure!(ways[0]["way"] == way && ways[1]["way"] == way, "{vm} is reached by {ways}");
        }
        is_told(node)?;
        for (index, node) in cluster.topology.nodes.iter().enumerate() {
            cluster.agents[index].take().context("an agent")?.stop()?;
            agent::detach(node)?;
            let left = node.namespace.output("bpftool", &["net", "show", "dev", overlay::DEVICE])?;
            ensure!(!left.contains("vmlb"), "after detach: {left}");
        }
        Ok(())
    });
}
