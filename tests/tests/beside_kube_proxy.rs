//! vmlb beside kube-proxy: what the node's stack carries stays with it, what vmlb carries ends in peace, new connections
//! go to whoever serves them at the time.

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::pod::Workload;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::talk::Talk;
use vmlb_tests::topology::{Attachment, Node};
use vmlb_tests::{maps, servers};

/// Conversations of each protocol, over both families and both nodes.
const TCP: usize = 200;
const UDP: usize = 50;

#[test]
fn an_agent_that_starts_cuts_and_moves_no_connection_of_the_stack() {
    unless_unable("an_agent_that_starts_cuts_and_moves_no_connection_of_the_stack", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        cluster.install_control()?;
        let mut talk = Talk::open(&cluster, "both", TCP, UDP)?;
        let hits = cluster.control_hits()?;
        ensure!(hits == (TCP + UDP) as u64, "{hits} connections took the rules");
        for node in 0..2 {
            cluster.launch_agent(node, &Flags::default())?;
        }
        // Asked all the time while the agents start.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            talk.go_on().context("while the agents start")?;
        }
        cluster.wait_until_serving()?;
        talk.go_on().context("once they serve")?;
        for node in &cluster.topology.nodes {
            let left = maps::dump(node, "inherited_v4")?.len() + maps::dump(node, "inherited_v6")?.len();
            ensure!(left >= UDP / 2, "only {left} tuples are left to the stack of {}", node.name);
        }
        ensure!(cluster.control_hits()? == hits, "a connection was opened anew");
        // New ones are vmlb's, also those of clients that talk to the stack by another port.
        let mut ours = Talk::open(&cluster, "both", 20, 10)?;
        ensure!(cluster.control_hits()? == hits, "a new connection took the rules");
        for node in 0..2 {
            cluster.agents[node].take().context("an agent")?.kill()?;
        }
        ours.go_on().context("without agents")?;
        talk.go_on().context("without agents")?;
        cluster.start_agents(&Flags::default())?;
        ours.go_on().context("after a restart")?;
        talk.go_on().context("after a restart")?;
        for (index, node) in cluster.topology.nodes.iter().enumerate() {
            cluster.agents[index].take().context("an agent")?.stop()?;
            agent::detach(node)?;
        }
        talk.go_on().context("after vmlb was taken down")?;
        ensure!(cluster.control_hits()? == hits);
        Talk::open(&cluster, "both", 4, 4).context("new connections without vmlb")?;
        ensure!(cluster.control_hits()? == hits + 8);
        Ok(())
    });
}

#[test]
fn a_service_left_to_the_stack_works_on_pods_that_vmlb_serves_too() {
    unless_unable("a_service_left_to_the_stack_works_on_pods_that_vmlb_serves_too", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        cluster.install_control()?;
        cluster.start_agents(&Flags::default())?;
        let open = |node| Ok::<_, anyhow::Error>(maps::dump(node, "frontends_v4")?.len());
        let before = open(&cluster.topology.nodes[0])?;
        cluster.manifests.remove("service-second.yaml")?;
        for node in &cluster.topology.nodes {
            wait_until(|| Ok(open(node)? == before * 2 / 3)).context("the Service is still served")?;
        }
        let mut ours = Talk::open(&cluster, "both", 8, 8)?;
        ensure!(cluster.control_hits()? == 0, "the rules were met");
        // The rules masquerade to any port, half of the time to one that vmlb uses too.
        let mut theirs = Talk::open(&cluster, "second", 40, 20).context("through the stack")?;
        ensure!(cluster.control_hits()? == 60, "{} of 60 took the rules", cluster.control_hits()?);
        theirs.go_on()?;
        ours.go_on()
    });
}

#[test]
fn a_frontend_that_appears_later_leaves_the_stack_its_udp() {
    unless_unable("a_frontend_that_appears_later_leaves_the_stack_its_udp", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        cluster.add_pod(1, "vm03", Workload::Vm)?;
        let third = Service::all_servers("third", 31300);
        cluster.publish(third.clone(), &["vm03"])?;
        cluster.install_control()?;
        // What the agents do not know yet.
        let hidden = cluster.services.pop().context("a Service")?;
        cluster.manifests.remove("service-third.yaml")?;
        cluster.start_agents(&Flags::default())?;
        cluster.services.push(hidden);
        let mut talk = Talk::open(&cluster, "third", 20, 20)?;
        ensure!(cluster.control_hits()? == 40, "vmlb serves what it does not know");
        cluster.publish(third, &["vm03"])?;
        cluster.wait_until_serving()?;
        for _ in 0..3 {
            talk.go_on().context("once vmlb serves the Service too")?;
        }
        ensure!(cluster.control_hits()? == 40, "a connection was opened anew");
        Talk::open(&cluster, "third", 4, 4)?;
        ensure!(cluster.control_hits()? == 40, "a new connection took the rules");
        Ok(())
    });
}

#[test]
fn the_datapath_asks_no_more_once_nothing_is_left_to_the_stack() {
    unless_unable("the_datapath_asks_no_more_once_nothing_is_left_to_the_stack", || {
        let mut cluster = Cluster::build(Attachment::Routed)?;
        cluster.install_control()?;
        let mut talk = Talk::open(&cluster, "both", 20, 20)?;
        cluster.start_agents(&Flags::default())?;
        talk.go_on()?;
        for node in &cluster.topology.nodes {
            ensure!(inherited(node)? == 1, "{} inherited nothing", node.name);
        }
        // The next packets are the last for conntrack to wait for so long.
        for node in &cluster.topology.nodes {
            for timeout in ["udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait", "tcp_timeout_close"]
            {
                node.namespace.set_sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "2")?;
            }
        }
        talk.go_on()?;
        drop(talk);
        let start = Instant::now();
        for node in &cluster.topology.nodes {
            while inherited(node)? != 0 {
                ensure!(start.elapsed() < Duration::from_secs(90), "{} still asks", node.name);
                thread::sleep(Duration::from_millis(500));
            }
        }
        println!("nothing was left after {:.0} s", start.elapsed().as_secs_f32());
        Ok(())
    });
}

#[test]
fn draining_gives_new_connections_to_the_stack_and_lets_ours_end() {
    unless_unable("draining_gives_new_connections_to_the_stack_and_lets_ours_end", || {
        let flags = Flags::with(&["--timeout", "udp=3s,udp-opening=2s"]);
        let mut cluster = Cluster::serving(Attachment::Routed, &flags)?;
        cluster.install_control()?;
        let mut ours = Talk::open(&cluster, "both", 40, 16)?;
        ensure!(cluster.control_hits()? == 0, "the rules were met");
        let bulk = cluster.frontend("second", servers::BULK, 0, Family::V4)?;
        let transfer = cluster.client().spawn(move || requests::download(bulk, 50_000_000, 10_000_000));
        let mut drains = Vec::new();
        for (index, node) in cluster.topology.nodes.iter().enumerate() {
            cluster.agents[index].take().context("an agent")?.stop()?;
            drains.push(agent::command(node, &["detach", "--drain", "30s"])?.spawn()?);
        }
        let begun = Instant::now();
        for node in &cluster.topology.nodes {
            wait_until(|| Ok(maps::dump(node, "frontends_v4")?.is_empty())).context("frontends are open")?;
        }
        // Masqueraded by the stack to whatever port: half of them come to our SNAT ports.
        let mut theirs = Talk::open(&cluster, "second", 80, 40).context("new connections while draining")?;
        ensure!(cluster.control_hits()? == 120, "{} of 120 took the rules", cluster.control_hits()?);
        ours.go_on().context("while draining")?;
        theirs.go_on().context("while draining")?;
        // So long as somebody talks, nothing ends.
        thread::sleep(Duration::from_secs(2));
        ours.go_on().context("later")?;
        transfer.join().map_err(|_| anyhow::anyhow!("the transfer panicked"))??;
        ours.go_on().context("after the transfer")?;
        ensure!(drains.iter_mut().all(|drain| matches!(drain.try_wait(), Ok(None))), "a drain ended early");
        drop(ours);
        for drain in &mut drains {
            end_of(drain, Duration::from_secs(30).saturating_sub(begun.elapsed()))?;
        }
        println!("drained after {:.1} s", begun.elapsed().as_secs_f32());
        for node in &cluster.topology.nodes {
            ensure!(maps::pins(node).is_empty(), "pins are left");
        }
        theirs.go_on().context("after vmlb was taken down")?;
        ensure!(cluster.control_hits()? == 120, "a connection was opened anew");
        Ok(())
    });
}

#[test]
fn what_does_not_end_in_time_is_cut_and_no_sooner() {
    unless_unable("what_does_not_end_in_time_is_cut_and_no_sooner", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let lines = cluster.frontend("second", servers::LINES, 0, Family::V4)?;
        let mut conversation = cluster.client().run(|| Conversation::open(lines))?;
        conversation.ask("before")?;
        cluster.agents[0].take().context("an agent")?.stop()?;
        let node = &cluster.topology.nodes[0];
        let begun = Instant::now();
        let mut drain = agent::command(node, &["detach", "--drain", "4s"])?.spawn()?;
        while begun.elapsed() < Duration::from_secs(3) {
            conversation.ask("meanwhile")?;
            thread::sleep(Duration::from_millis(50));
        }
        end_of(&mut drain, Duration::from_secs(10))?;
        ensure!(begun.elapsed() >= Duration::from_secs(4), "cut after {:?}", begun.elapsed());
        ensure!(conversation.ask("after").is_err(), "somebody still carries the connection");
        Ok(())
    });
}

/// `settings.inherited`, as bpftool shows it.
fn inherited(node: &Node) -> Result<u64> {
    let dump = maps::dump(node, "settings")?;
    dump.values().next().and_then(|settings| settings["inherited"].as_u64()).context("settings.inherited")
}

fn wait_until(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_so()? {
        ensure!(start.elapsed() < Duration::from_secs(10), "it never is");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits for the end of a command, which must be a success.
fn end_of(child: &mut Child, patience: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "it ended with {status}");
            return Ok(());
        }
        if start.elapsed() > patience {
            child.kill()?;
            bail!("it did not end within {patience:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
