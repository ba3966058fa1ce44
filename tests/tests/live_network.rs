//! A node whose network changes under vmlb: links, addresses, routes and neighbours.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use vmlb_common::abi::DeviceFlags;
use vmlb_tests::address::{self, Family};
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::maps;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::pass;
use vmlb_tests::pod::Workload;
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::service::Service;
use vmlb_tests::skip::{self, unless_unable};
use vmlb_tests::talk::Talk;
use vmlb_tests::topology::{Attachment, Node};

/// What an address may take from the moment it is there until its node ports are served.
const SECOND: Duration = Duration::from_secs(1);

/// No flag names the uplink.
fn unnamed() -> Flags {
    Flags { device: String::new(), ..Flags::default() }
}

#[test]
fn uplinks_are_found_without_flags_and_by_patterns() {
    unless_unable("uplinks_are_found_without_flags_and_by_patterns", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &unnamed())?;
        for node in &cluster.topology.nodes {
            ensure!(uplinks(node)? == ["eth0"], "uplinks of {} are {:?}", node.name, uplinks(node)?);
        }
        // Neither a default route nor an address tells of them; the flags do, as soon as they are there.
        cluster.agents[0].take().context("an agent")?.stop()?;
        let mut flags = Flags::default();
        flags.others.extend(["--device", "extra0=tc", "--device", "more?=tc"].map(str::to_owned));
        cluster.launch_agent(0, &flags)?;
        cluster.wait_until_serving()?;
        let node = &cluster.topology.nodes[0];
        for (number, device) in ["extra0", "more0", "more1", "other0"].into_iter().enumerate() {
            node.namespace
                .ip(&format!("link add {device} type veth peer name far{number}\nlink set {device} up\n"))?;
        }
        wait(SECOND * 2, || Ok(uplinks(node)? == ["eth0", "extra0", "more0", "more1"]))
            .context("devices that came")?;
        node.namespace.ip("link del extra0\nlink del more0\n")?;
        wait(SECOND * 2, || Ok(uplinks(node)? == ["eth0", "more1"])).context("devices that went")?;
        serves(&cluster, 0)
    });
}

#[test]
fn an_address_that_comes_serves_within_a_second_and_one_that_goes_stops() {
    unless_unable("an_address_that_comes_serves_within_a_second_and_one_that_goes_stops", || {
        let flags = Flags::with(&["--nodeport-addresses", "uplinks"]);
        let cluster = Cluster::serving(Attachment::Routed, &flags)?;
        let node = &cluster.topology.nodes[0];
        for (family, text) in [(Family::V4, "172.18.0.77/24"), (Family::V6, "fd00:18::77/64")] {
            let address: IpAddr = text.split_once('/').context("a prefix")?.0.parse()?;
            let port = cluster.frontend("second", servers::HTTP, 0, family)?.port();
            let frontend = SocketAddr::new(address, port);
            let nodad = if family == Family::V6 { "nodad" } else { "" };
            for _ in 0..3 {
                node.namespace.ip(&format!("addr add {text} dev eth0 {nodad}\n"))?;
                let added = Instant::now();
                wait(SECOND, || is_open(node, frontend))
                    .with_context(|| format!("{frontend} is not open within a second"))?;
                println!("{frontend} is open after {:?}", added.elapsed());
                cluster.client().run(|| requests::http(frontend, "/"))?;
                node.namespace.ip(&format!("addr del {text} dev eth0\n"))?;
                wait(SECOND, || Ok(!is_open(node, frontend)?))
                    .with_context(|| format!("{frontend} is still open after a second"))?;
            }
            // The others are none the worse.
            serves(&cluster, 0)?;
        }
        Ok(())
    });
}

/// What an agent has asked is answered, also where messages that nobody asked for have overrun what it listens to.
#[test]
fn an_agent_that_was_told_too_much_at_once_goes_on() {
    unless_unable("an_agent_that_was_told_too_much_at_once_goes_on", || {
        let flags = Flags::with(&["--nodeport-addresses", "uplinks"]);
        let cluster = Cluster::serving(Attachment::Routed, &flags)?;
        let node = &cluster.topology.nodes[0];
        let agent = cluster.agents[0].as_ref().context("an agent")?;
        let routes = |word: &str| -> String {
            let ends = (0..20_000).map(|number| (number / 250, number % 250));
            ends.map(|(a, b)| format!("route {word} 10.99.{a}.{b}/32 via 172.18.0.1\n")).collect()
        };
        for _ in 0..5 {
            thread::scope(|scope| {
                let added = scope.spawn(|| node.namespace.ip(&routes("add")));
                // By then it looks routes up, because there are new ones.
                thread::sleep(Duration::from_millis(60));
                kill(agent.pid()?, Signal::SIGSTOP)?;
                added.join().map_err(|_| anyhow::anyhow!("adding routes panicked"))?
            })?;
            node.namespace.ip(&routes("del"))?;
            kill(agent.pid()?, Signal::SIGCONT)?;
            thread::sleep(Duration::from_millis(300));
        }
        ensure!(agent.said().contains("buffer full"), "nothing was overrun:\n{}", agent.said());
        node.namespace.ip("addr add 172.18.0.77/24 dev eth0\n")?;
        let port = cluster.frontend("second", servers::HTTP, 0, Family::V4)?.port();
        let frontend = SocketAddr::new("172.18.0.77".parse()?, port);
        wait(requests::PATIENCE, || is_open(node, frontend)).context("the agent takes no notice")?;
        serves(&cluster, 0)
    });
}

#[test]
fn another_address_on_an_uplink_cuts_no_flow_and_moves_no_snat_address() {
    unless_unable("another_address_on_an_uplink_cuts_no_flow_and_moves_no_snat_address", || {
        let flags = Flags::with(&["--review-interval", "500ms"]);
        let mut cluster = Cluster::empty(Prefix::unique(), 1, 2, Attachment::Routed)?;
        // No VM is on the first node: a pod's device would borrow the uplink's address and so keep the gate open.
        for (vm, service, port) in [("vm01", "first", 31100), ("vm02", "second", 31200)] {
            cluster.add_pod(1, vm, Workload::Vm)?;
            cluster.publish(Service::all_servers(service, port), &[vm])?;
        }
        cluster.start_agents(&flags)?;
        let own = Family::ALL.map(|family| cluster.topology.nodes[0].addresses.of(family).to_string());
        let mut talk = talk(&cluster)?;
        let node = &cluster.topology.nodes[0].namespace;
        // Of one network, IPv4 would take it for a secondary one.
        node.ip("addr add 172.18.0.77/32 dev eth0\naddr add fd00:18::77/64 dev eth0 nodad\n")?;
        let listed =
            node.output("ip", &["-6", "-oneline", "address", "show", "dev", "eth0", "scope", "global"])?;
        ensure!(listed.lines().next().is_some_and(|first| first.contains("fd00:18::77")), "{listed}");
        past_a_review_and_a_restart(&mut cluster, &flags, &mut talk)?;
        ensure!(snat_addresses(&cluster)? == own, "SNAT takes {:?}", snat_addresses(&cluster)?);

        // Deprecated, the old ones take no new flows, and their flows go on.
        let [v4, v6] = &own;
        cluster.topology.nodes[0].namespace.ip(&format!(
            "addr change {v4}/24 dev eth0 preferred_lft 0\naddr change {v6}/64 dev eth0 preferred_lft 0\n"
        ))?;
        let others = ["172.18.0.77", "fd00:18::77"];
        wait(SECOND * 2, || Ok(snat_addresses(&cluster)? == others)).context("deprecated addresses")?;
        past_a_review_and_a_restart(&mut cluster, &flags, &mut talk)?;
        ensure!(snat_addresses(&cluster)? == others, "SNAT takes {:?}", snat_addresses(&cluster)?);
        serves(&cluster, 0)
    });
}

/// Conversations and new connections while the first node's agent looks at its network again, is stopped and started.
fn past_a_review_and_a_restart(cluster: &mut Cluster, flags: &Flags, talk: &mut Talk) -> Result<()> {
    thread::sleep(SECOND * 2);
    talk.go_on().context("after a review")?;
    serves(cluster, 0).context("after a review")?;
    cluster.agents[0].take().context("an agent")?.stop()?;
    cluster.launch_agent(0, flags)?;
    cluster.wait_until_serving()?;
    talk.go_on().context("after a restart")?;
    serves(cluster, 0).context("after a restart")
}

/// The addresses that SNAT takes on the first node's uplink, as `vmlb status` tells.
fn snat_addresses(cluster: &Cluster) -> Result<Vec<String>> {
    let status = agent::json(&cluster.topology.nodes[0], &["status"])?;
    let devices = status["devices"].as_array().context("devices")?;
    let uplink = devices.iter().find(|device| device["name"] == "eth0").context("eth0")?;
    let addresses = ["snatV4", "snatV6"].into_iter().filter_map(|name| uplink[name].as_str());
    Ok(addresses.map(str::to_owned).collect())
}

#[test]
fn an_uplink_that_gets_its_addresses_late_serves_then() {
    unless_unable("an_uplink_that_gets_its_addresses_late_serves_then", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        let node = &cluster.topology.nodes[0].namespace;
        let addresses = address::node(0);
        node.ip(&format!("addr del {}/24 dev eth0\naddr del {}/64 dev eth0\n", addresses.v4, addresses.v6))?;
        for node in 0..2 {
            cluster.launch_agent(node, &Flags::default())?;
        }
        thread::sleep(SECOND * 2);
        readdress(&cluster.topology.nodes[0])?;
        let begun = Instant::now();
        cluster.wait_until_serving()?;
        println!("served {:?} after the addresses came", begun.elapsed());
        serves(&cluster, 0)
    });
}

#[test]
fn an_uplink_deleted_and_made_again_serves_again_by_itself() {
    unless_unable("an_uplink_deleted_and_made_again_serves_again_by_itself", || {
        for flags in [Flags::default(), unnamed()] {
            let mut cluster = Cluster::serving(Attachment::Routed, &flags)?;
            let mut talk = talk(&cluster)?;
            let node = &cluster.topology.nodes[0];
            for _ in 0..2 {
                cluster.topology.router.ip("link del node1\n")?;
                thread::sleep(Duration::from_millis(300));
                cable(&cluster.topology.router, node)?;
                let made = Instant::now();
                wait(SECOND * 5, || serves(&cluster, 0).map(|()| true).or(Ok(false)))
                    .with_context(|| format!("{flags:?}"))?;
                println!("served {:?} after the uplink was made again", made.elapsed());
            }
            // Flows outlive the device.
            talk.go_on()?;
            cluster.agents[0].as_mut().context("an agent")?.pid()?;
        }
        Ok(())
    });
}

#[test]
fn an_uplink_goes_on_under_another_name_mac_and_mtu() {
    unless_unable("an_uplink_goes_on_under_another_name_mac_and_mtu", || {
        let cluster = Cluster::serving(Attachment::Routed, &unnamed())?;
        let mut talk = talk(&cluster)?;
        let (node, router) = (&cluster.topology.nodes[0], &cluster.topology.router);
        if let Err(refused) = node.namespace.ip("link set eth0 name up.0\n") {
            ensure!(refused.to_string().contains("busy"), "{refused:#}");
            let why = "this kernel (before 6.2) renames no device that is up";
            skip::announce("an_uplink_goes_on_under_another_name_mac_and_mtu", why);
            return Ok(());
        }
        wait(SECOND * 2, || Ok(uplinks(node)? == ["up.0"])).context("another name")?;
        talk.go_on().context("another name")?;
        serves(&cluster, 0)?;
        node.namespace.ip("link set up.0 address 02:00:00:00:0d:77\n")?;
        let addresses = node.addresses;
        // What gratuitous ARP would say.
        router.ip(&format!(
            "neigh replace {} lladdr 02:00:00:00:0d:77 dev br0\nneigh replace {} lladdr 02:00:00:00:0d:77 dev br0\n",
            addresses.v4, addresses.v6
        ))?;
        // The other node answers to it as well.
        cluster.topology.nodes[1].namespace.ip(&format!(
            "neigh replace {} lladdr 02:00:00:00:0d:77 dev eth0\nneigh replace {} lladdr 02:00:00:00:0d:77 dev eth0\n",
            addresses.v4, addresses.v6
        ))?;
        talk.go_on().context("another MAC address")?;
        serves(&cluster, 0).context("another MAC address")?;
        // All of a segment have one.
        node.namespace.ip("link set up.0 mtu 1400\n")?;
        cluster.topology.nodes[1].namespace.ip("link set eth0 mtu 1400\n")?;
        router.ip("link set node1 mtu 1400\nlink set node2 mtu 1400\n")?;
        talk.go_on().context("another MTU")?;
        serves(&cluster, 0).context("another MTU")?;
        ensure!(uplinks(node)? == ["up.0"]);
        Ok(())
    });
}

#[test]
fn flows_follow_a_next_hop_to_another_mac_within_a_tenth_of_a_second() {
    unless_unable("flows_follow_a_next_hop_to_another_mac_within_a_tenth_of_a_second", || {
        for family in Family::ALL {
            let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
            let router = &cluster.topology.router;
            // The router tells its neighbours, as redundant routers do.
            router.set_sysctl("net/ipv4/conf/br0/arp_notify", "1")?;
            router.set_sysctl("net/ipv6/conf/br0/ndisc_notify", "1")?;
            for node in &cluster.topology.nodes {
                // By default a neighbour's address is believed for a second at least.
                node.namespace.set_sysctl("net/ipv4/neigh/eth0/locktime", "0")?;
            }
            let frontend = cluster.frontend("second", servers::ECHO, 0, family)?;
            let mut stalls = Vec::new();
            for last in 1..=4 {
                let stall = longest_silence(cluster.client(), frontend, || {
                    thread::sleep(Duration::from_millis(300));
                    router.ip(&format!("link set br0 address 02:00:00:00:aa:{last:02x}\n"))?;
                    thread::sleep(Duration::from_millis(700));
                    Ok(())
                })?;
                stalls.push(stall);
            }
            println!("{family}: longest silences around a change of MAC address: {stalls:?}");
            stalls.sort_unstable();
            // One of four may meet a busy machine.
            ensure!(stalls[2] < Duration::from_millis(100), "{family}: {stalls:?}");
        }
        Ok(())
    });
}

#[test]
fn flows_follow_their_routes() {
    unless_unable("flows_follow_their_routes", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut talk = talk(&cluster)?;
        let router = &cluster.topology.router;
        router.ip("addr add 172.18.0.2/24 dev br0\naddr add fd00:18::2/64 dev br0 nodad\n")?;
        for node in &cluster.topology.nodes {
            node.namespace
                .ip("route replace default via 172.18.0.2\nroute replace default via fd00:18::2\n")?;
        }
        talk.go_on().context("another gateway")?;
        router.ip("addr del 172.18.0.1/24 dev br0\naddr del fd00:18::1/64 dev br0\n")?;
        // Deleting the first address of a network deletes the others with it unless they are promoted.
        router.ip("addr replace 172.18.0.2/24 dev br0\n")?;
        talk.go_on().context("without the old gateway")?;
        serves(&cluster, 0)?;
        // Pods of the other node by way of the router, and back.
        let other = cluster.topology.nodes[1].addresses;
        let [v4, v6] = address::pod_prefixes(1);
        router.ip(&format!("route add {v4} via {}\nroute add {v6} via {}\n", other.v4, other.v6))?;
        let node = &cluster.topology.nodes[0].namespace;
        node.ip(&format!("route replace {v4} via 172.18.0.2\nroute replace {v6} via fd00:18::2\n"))?;
        talk.go_on().context("pods by way of the router")?;
        serves(&cluster, 0).context("pods by way of the router")?;
        // Unreachable for a while: connections wait.
        node.ip(&format!(
            "route del {v4}\nroute del {v6}\nroute add unreachable {v4}\nroute add unreachable {v6}\n"
        ))?;
        thread::sleep(Duration::from_millis(300));
        node.ip(&format!(
            "route del unreachable {v4}\nroute del unreachable {v6}\nroute add {v4} via {}\nroute add {v6} via {}\n",
            other.v4, other.v6
        ))?;
        talk.go_on().context("after a time without a route")?;
        serves(&cluster, 0).context("after a time without a route")
    });
}

/// Names of the devices that the datapath takes for uplinks, as bpftool and ip tell.
fn uplinks(node: &Node) -> Result<Vec<String>> {
    let links: serde_json::Value = serde_json::from_str(&node.namespace.output("ip", &["-json", "link"])?)?;
    let links = links.as_array().context("links")?;
    let mut names = Vec::new();
    for (ifindex, device) in maps::dump(node, "devices")? {
        if device["flags"].as_u64().context("flags")? & u64::from(DeviceFlags::UPLINK) != 0 {
            let link = links.iter().find(|link| link["ifindex"].as_u64() == ifindex.parse().ok());
            let name = link.and_then(|link| link["ifname"].as_str()).unwrap_or("gone");
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether the datapath knows the frontend, as bpftool tells.
fn is_open(node: &Node, frontend: SocketAddr) -> Result<bool> {
    let map = if frontend.is_ipv4() { "frontends_v4" } else { "frontends_v6" };
    let octets = match frontend.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let address = serde_json::json!(octets);
    let found = maps::dump(node, map)?.into_keys().any(|key| {
        let key: serde_json::Value = serde_json::from_str(&key).unwrap_or_default();
        key["port"] == frontend.port() && key["address"]["octets"] == address
    });
    Ok(found)
}

/// Asks for everything that a client might ask of node number `node`.
fn serves(cluster: &Cluster, node: usize) -> Result<()> {
    for family in Family::ALL {
        for service in ["first", "second"] {
            let http = cluster.frontend(service, servers::HTTP, node, family)?;
            let bulk = cluster.frontend(service, servers::BULK, node, family)?;
            cluster.client().run(|| {
                let answer = std::net::TcpStream::connect_timeout(&http, Duration::from_millis(1500));
                answer.with_context(|| format!("{http}"))?;
                requests::http(http, "/")?;
                requests::download(bulk, 300_000, 0)
            })?;
        }
    }
    Ok(())
}

/// Conversations with both pods through the first node.
fn talk(cluster: &Cluster) -> Result<Talk> {
    Talk::with_each(cluster, &["first", "second"], 0..1, 1, 0)
}

fn wait(patience: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        if start.elapsed() > patience {
            bail!("not within {patience:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The longest time without an answer while datagrams go to an echo server every two milliseconds and `work` runs.
fn longest_silence(
    client: &Namespace,
    frontend: SocketAddr,
    work: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stream = scope.spawn(|| client.run(|| ask_until(&stop, frontend)));
        let worked = work();
        stop.store(true, Ordering::Release);
        let silence = stream.join().map_err(|_| anyhow::anyhow!("the stream panicked"))??;
        worked.map(|()| silence)
    })
}

fn ask_until(stop: &AtomicBool, frontend: SocketAddr) -> Result<Duration> {
    let socket = requests::datagrams(frontend)?;
    requests::who(&socket)?;
    socket.set_read_timeout(Some(Duration::from_millis(2)))?;
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut answer = [0; 16];
    while !stop.load(Ordering::Acquire) {
        socket.send(b"tick")?;
        if socket.recv(&mut answer).is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(longest.max(last.elapsed()))
}

/// Lays the cable of the first node again, after its end in the router was deleted.
fn cable(router: &Namespace, node: &Node) -> Result<()> {
    let device = &node.name;
    router.ip(&format!(
        "link add {device} type veth peer name eth0 address 02:00:00:00:0d:01 netns {}\nlink set {device} up\n",
        node.namespace.name()
    ))?;
    router.offloads(device, &["tx", "off", "gro", "on"])?;
    node.namespace.offloads("eth0", &["tx", "off"])?;
    router.ip(&format!("link set {device} master br0\n"))?;
    pass::attach(router, device, &node.pin_root.join("pass"))?;
    readdress(node)
}

/// Gives the first node its addresses and the routes that went with them.
fn readdress(node: &Node) -> Result<()> {
    let (own, gateway, other) = (node.addresses, address::NODE_GATEWAY, address::node(1));
    let [v4, v6] = address::pod_prefixes(1);
    node.namespace.ip(&format!(
        "addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route replace default via {}\n\
         route replace default via {}\n\
         route replace {v4} via {}\n\
         route replace {v6} via {}\n",
        own.v4, own.v6, gateway.v4, gateway.v6, other.v4, other.v6
    ))
}
