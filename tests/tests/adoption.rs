//! What an agent makes of the maps and links that another one left: taken over, taken over into maps of other sizes,
//! repaired, or refused.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vmlb_agent::pins::PinRoot;
use vmlb_agent::settings::SettingsMap;
use vmlb_tests::address::Family;
use vmlb_tests::agent::{Agent, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::counters;
use vmlb_tests::namespace::{self, Namespace};
use vmlb_tests::requests;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::talk::Talk;
use vmlb_tests::topology::{Attachment, Node};
use vmlb_tests::{load, maps, probe, servers};

const LARGER: [&str; 12] = [
    "--flows",
    "131072",
    "--half-flows",
    "32768",
    "--backends",
    "512",
    "--services",
    "128",
    "--slots",
    "131072",
    "--frontends",
    "512",
];
const SMALLER: [&str; 12] = [
    "--flows",
    "16384",
    "--half-flows",
    "1024",
    "--backends",
    "64",
    "--services",
    "32",
    "--slots",
    "32768",
    "--frontends",
    "128",
];

#[test]
fn flows_live_on_in_maps_of_another_size() {
    unless_unable("flows_live_on_in_maps_of_another_size", || {
        for method in [&[][..], &["--clsact"]] {
            let flags = |sizes: &[&str]| Flags::with(&[sizes, method].concat());
            let mut cluster = Cluster::serving(Attachment::Routed, &flags(&[]))?;
            let mut talk = talk(&cluster, 10)?;
            let client = Namespace::open(cluster.client().name())?;
            let frontend = cluster.frontend("both", servers::HTTP, 0, Family::V4)?;
            let bulk = cluster.frontend("second", servers::BULK, 0, Family::V4)?;
            let transfer = client.spawn(move || requests::download(bulk, 60_000_000, 15_000_000));
            let ((), report) = load::during(&client, frontend, 2, || {
                for (sizes, entries) in [(&LARGER[..], 131_072), (&SMALLER, 16_384), (&[], 65_536)] {
                    restart(&mut cluster, &flags(sizes))?;
                    for node in &cluster.topology.nodes {
                        ensure!(entries_of(node, "flows_v4")? == entries);
                        ensure!(entries_of(node, "replies_v6")? == entries);
                        ensure_tidy(node)?;
                    }
                    talk.go_on().with_context(|| format!("with {entries} flows, {method:?}"))?;
                }
                Ok(())
            })?;
            let failures = &report.failures;
            ensure!(failures.is_empty(), "{} requests failed, e.g. {}", failures.len(), failures[0]);
            transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))??;
        }
        Ok(())
    });
}

#[test]
fn an_agent_lets_go_the_programs_of_before_that_it_does_not_need() {
    unless_unable("an_agent_lets_go_the_programs_of_before_that_it_does_not_need", || {
        let with = |device: &str| Flags { device: device.to_owned(), ..Flags::default() };
        let mut cluster = Cluster::serving(Attachment::Routed, &with("eth0=xdp"))?;
        let common =
            ["egress", "egress_fragment", "ingress_fragment", "pod", "pod_fragment", "sweep"].as_slice();
        needs(&cluster.topology.nodes[0], &[common, &["ingress", "xdp", "xdp_fragment"]].concat(), 1)?;
        restart(&mut cluster, &with("eth0=tc"))?;
        needs(&cluster.topology.nodes[0], &[common, &["ingress_full"]].concat(), 0)
    });
}

/// Just these programs are pinned, and that many for fragments are in XDP's slots.
fn needs(node: &Node, programs: &[&str], slots: usize) -> Result<()> {
    let mut wanted: Vec<_> =
        programs.iter().map(|name| node.pin_root.join(format!("programs/vmlb_{name}"))).collect();
    wanted.sort();
    let pinned = || {
        let pins = maps::pins(node).into_iter();
        pins.filter(|pin| pin.starts_with(node.pin_root.join("programs"))).collect::<Vec<_>>()
    };
    probe::wait("the programs that are needed", Duration::from_secs(10), || Ok(pinned() == wanted))
        .with_context(|| format!("{:?}", pinned()))?;
    let calls = maps::dump(node, "xdp_calls")?;
    ensure!(calls.values().filter(|slot| slot.get("error").is_none()).count() == slots, "{calls:?}");
    Ok(())
}

#[test]
fn maps_too_small_for_what_is_in_use_are_refused() {
    unless_unable("maps_too_small_for_what_is_in_use_are_refused", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut talk = talk(&cluster, 20)?;
        for agent in &mut cluster.agents {
            agent.take().context("an agent")?.stop()?;
        }
        for (flag, value, kept) in [("--flows", "16", "65536"), ("--slots", "1024", "65536")] {
            let node = &cluster.topology.nodes[0];
            let said = Agent::refused(node, &cluster.manifests, &Flags::with(&[flag, value]))?;
            ensure!(said.contains(&format!("{flag} {kept}")) && said.contains("there is room for"), "{said}");
            ensure!(entries_of(node, "flows_v4")? == 65_536);
            ensure_tidy(node)?;
            talk.go_on().context("after the refusal")?;
        }
        cluster.start_agents(&Flags::default())?;
        talk.go_on()
    });
}

#[test]
fn an_agent_killed_at_any_moment_of_its_start_leaves_what_the_next_repairs() {
    unless_unable("an_agent_killed_at_any_moment_of_its_start_leaves_what_the_next_repairs", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        // On a fresh node first: nothing can be cut there, but the next agent has to find its way.
        let start = Instant::now();
        cluster.start_agents(&Flags::default())?;
        let whole = start.elapsed();
        for node in 0..2 {
            cluster.agents[node].take().context("an agent")?.stop()?;
            vmlb_tests::agent::detach(&cluster.topology.nodes[node])?;
        }
        for part in 1..=6 {
            kill_after(&mut cluster, &Flags::default(), whole * part / 8)?;
            ensure_served_after(&mut cluster, &Flags::default())?;
            for node in 0..2 {
                cluster.agents[node].take().context("an agent")?.stop()?;
                vmlb_tests::agent::detach(&cluster.topology.nodes[node])?;
            }
        }
        cluster.start_agents(&Flags::default())?;
        let mut talk = talk(&cluster, 5)?;
        let sizes = [&LARGER[..], &[], &SMALLER];
        for part in 1..=16_u32 {
            for agent in &mut cluster.agents {
                agent.take().map(Agent::kill).transpose()?;
            }
            // Some starts are cut off one after another, each with sizes of its own.
            let flags = Flags::with(sizes[part as usize % 3]);
            kill_after(&mut cluster, &flags, whole * part / 16)?;
            if part % 3 == 0 {
                continue;
            }
            let flags = Flags::with(sizes[part as usize / 2 % 3]);
            ensure_served_after(&mut cluster, &flags)
                .with_context(|| format!("after {part}/16 of a start"))?;
            for node in &cluster.topology.nodes {
                ensure_tidy(node)?;
            }
            talk.go_on().with_context(|| format!("after {part}/16 of a start"))?;
        }
        Ok(())
    });
}

#[test]
fn not_one_datagram_is_lost_through_restarts() {
    unless_unable("not_one_datagram_is_lost_through_restarts", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        // Translated twice by node1; delivered by the stack of node2.
        for (node, family) in [(0, Family::V4), (1, Family::V6)] {
            let frontend = cluster.frontend("second", servers::ECHO, node, family)?;
            let client = Namespace::open(cluster.client().name())?;
            let pod = Namespace::open(cluster.find("vm02")?.namespace.name())?;
            let overflows = || -> Result<u64> {
                Ok(counters::udp_overflows(&client, family)? + counters::udp_overflows(&pod, family)?)
            };
            let before = overflows()?;
            let stop = AtomicBool::new(false);
            let (sent, answered) = thread::scope(|scope| -> Result<(u64, u64)> {
                let stream = scope.spawn(|| client.run(|| count_answers(frontend, &stop)));
                let restarts = (0..6).try_for_each(|round| {
                    thread::sleep(Duration::from_millis(100));
                    let agent = cluster.agents[node].take().context("an agent")?;
                    if round % 2 == 0 {
                        agent.stop()?
                    } else {
                        agent.kill()?
                    }
                    thread::sleep(Duration::from_millis(100));
                    cluster.launch_agent(node, &Flags::default())?;
                    cluster.wait_until_serving()
                });
                stop.store(true, Ordering::Release);
                let counts = stream.join().map_err(|_| anyhow::anyhow!("the stream panicked"))??;
                restarts.map(|()| counts)
            })?;
            // What a busy machine's sockets had no room for was not lost on the way.
            let overflown = overflows()? - before;
            println!(
                "{family} through node{}: {sent} datagrams, {answered} answers, {overflown} overflown",
                node + 1
            );
            ensure!(sent > 5000, "only {sent} datagrams were sent");
            ensure!(
                sent == answered + overflown,
                "{} of {sent} datagrams were lost",
                sent - answered - overflown
            );
        }
        Ok(())
    });
}

/// Sends two thousand numbered datagrams a second until `stop`; how many, and how many came back.
fn count_answers(frontend: SocketAddr, stop: &AtomicBool) -> Result<(u64, u64)> {
    let socket = requests::datagrams(frontend)?;
    requests::who(&socket)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
    let receiver = socket.try_clone()?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let answers = thread::spawn(move || receive_numbers(&receiver));
    let (start, mut sent) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Acquire) {
        socket.send(&sent.to_be_bytes())?;
        sent += 1;
        thread::sleep(Duration::from_micros(500 * sent).saturating_sub(start.elapsed()));
    }
    Ok((sent, answers.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?))
}

fn receive_numbers(socket: &UdpSocket) -> u64 {
    let mut seen = std::collections::HashSet::new();
    let mut number = [0; 8];
    while let Ok(8) = socket.recv(&mut number) {
        seen.insert(number);
    }
    seen.len() as u64
}

#[test]
fn flags_may_change_between_runs_without_cutting_a_connection() {
    unless_unable("flags_may_change_between_runs_without_cutting_a_connection", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut talk = talk(&cluster, 10)?;
        let runs = [
            Flags::with(&["--snat-ports", "20000-24999,62000-63999", "--timeout", "tcp=4000s,udp=60s"]),
            Flags { device: "eth0=tc".to_owned(), ..Flags::default() },
            Flags { device: "eth0=tc".to_owned(), ..Flags::with(&["--clsact", "--sweep-interval", "1s"]) },
            Flags::default(),
        ];
        for flags in runs {
            restart(&mut cluster, &flags)?;
            talk.go_on().with_context(|| format!("{flags:?}"))?;
            for family in Family::ALL {
                for node in 0..2 {
                    let frontend = cluster.frontend("second", servers::HTTP, node, family)?;
                    cluster
                        .client()
                        .run(|| requests::http(frontend, "/"))
                        .with_context(|| format!("{flags:?}"))?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn maps_of_another_version_are_refused_and_left_alone() {
    unless_unable("maps_of_another_version_are_refused_and_left_alone", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let mut talk = talk(&cluster, 3)?;
        cluster.agents[0].take().context("an agent")?.stop()?;
        let node = &cluster.topology.nodes[0];
        let mut settings = SettingsMap::open(&PinRoot::new(&node.pin_root))?;
        let ours = *settings.current().context("settings")?;
        settings.set(vmlb_common::abi::Settings { version: 999, ..ours })?;
        let before = maps::dump(node, "settings")?;
        let said = Agent::refused(node, &cluster.manifests, &Flags::default())?;
        ensure!(said.contains("layout version 999") && said.contains("vmlb detach"), "{said}");
        ensure!(maps::dump(node, "settings")? == before);
        talk.go_on()?;
        settings.set(ours)?;
        replace_map(node, "neighbours", 12)?;
        let said = Agent::refused(node, &cluster.manifests, &Flags::default())?;
        ensure!(said.contains("neighbours: ") && said.contains("value size is 12, wanted 4"), "{said}");
        talk.go_on()
    });
}

/// Puts a hash map with values of so many octets in the place of a pinned one.
fn replace_map(node: &Node, name: &str, value: u32) -> Result<()> {
    let pin = node.pin_root.join(name);
    std::fs::remove_file(&pin)?;
    let value = value.to_string();
    let mut command = Command::new("bpftool");
    command.args(["map", "create"]).arg(&pin);
    command
        .args(["type", "hash", "key", "20", "value", &value, "entries", "4096", "name", name, "flags", "1"]);
    namespace::run(&mut command).map(drop)
}

#[test]
fn a_second_agent_is_refused_and_told_of_the_first() {
    unless_unable("a_second_agent_is_refused_and_told_of_the_first", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let first = cluster.agents[0].as_ref().context("an agent")?.pid()?;
        let said = Agent::refused(&cluster.topology.nodes[0], &cluster.manifests, &Flags::default())?;
        ensure!(said.contains(&format!("process {first}")), "{said}");
        let frontend = cluster.frontend("second", servers::HTTP, 0, Family::V4)?;
        cluster.client().run(|| requests::http(frontend, "/")).map(drop)
    });
}

/// Three times as many of TCP as of UDP, to each node by each family.
fn talk(cluster: &Cluster, each: usize) -> Result<Talk> {
    Talk::with_each(cluster, &["both"], 0..2, each, each.div_ceil(3))
}

fn restart(cluster: &mut Cluster, flags: &Flags) -> Result<()> {
    for node in 0..cluster.agents.len() {
        cluster.agents[node].take().context("an agent")?.stop()?;
        cluster.launch_agent(node, flags)?;
    }
    cluster.wait_until_serving()
}

/// Starts the agents of both nodes and kills them after `delay`.
fn kill_after(cluster: &mut Cluster, flags: &Flags, delay: Duration) -> Result<()> {
    for node in 0..2 {
        cluster.launch_agent(node, flags)?;
    }
    thread::sleep(delay);
    cluster.agents.iter_mut().filter_map(Option::take).try_for_each(Agent::kill)
}

fn ensure_served_after(cluster: &mut Cluster, flags: &Flags) -> Result<()> {
    cluster.start_agents(flags)?;
    for family in Family::ALL {
        for node in 0..2 {
            let frontend = cluster.frontend("both", servers::HTTP, node, family)?;
            cluster.client().run(|| requests::http(frontend, "/"))?;
        }
    }
    Ok(())
}

fn entries_of(node: &Node, map: &str) -> Result<u64> {
    let path = node.pin_root.join(map);
    let text = namespace::run(Command::new("bpftool").args(["--json", "map", "show", "pinned"]).arg(&path))?;
    let shown: serde_json::Value = serde_json::from_str(&text)?;
    shown["max_entries"].as_u64().with_context(|| format!("the size of {map}"))
}

/// No maps are left that nobody uses.
fn ensure_tidy(node: &Node) -> Result<()> {
    for folder in ["fresh", "retired"] {
        ensure!(!node.pin_root.join(folder).exists(), "{} has {folder}/ left", node.name);
    }
    Ok(())
}
