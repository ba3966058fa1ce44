//! Flows by every node: some of the VM's own node, where it sees the client's address, some of the node it moves to, some
//! of a third; and VMs that take their address along.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::lab::flows::Kind;
use vmlb_tests::lab::launcher::Launcher;
use vmlb_tests::lab::site::{ELSEWHERE, Timing};
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::service::Policy;

use crate::trial::{EVERYTHING, FROM_ELSEWHERE, Trial, alone};

/// Silence that lasts through two migrations, on a busy machine too: what ends in between tells nothing.
const LONG_SILENCE: Duration = Duration::from_secs(16);

/// One client each at every door: there are many doors.
const SOME: [Kind; 5] =
    [Kind::Echo, Kind::Push, Kind::Datagrams, Kind::ClientSpeaks, Kind::ServerCloses(LONG_SILENCE)];

#[test]
fn flows_by_the_targets_node_survive() {
    alone("flows_by_the_targets_node_survive", || {
        let doors = Family::ALL.map(|family| (1, family));
        let mut trial = Trial::start(Policy::Cluster, &doors, &EVERYTHING)?;
        trial.migrate(1, &Timing::default())?;
        thread::sleep(Duration::from_secs(1));
        trial.finish().map(drop)
    });
}

#[test]
fn flows_by_the_sources_node_survive() {
    alone("flows_by_the_sources_node_survive", || {
        let doors = Family::ALL.map(|family| (0, family));
        let mut trial = Trial::start(Policy::Cluster, &doors, &EVERYTHING)?;
        trial.migrate(1, &Timing::default())?;
        thread::sleep(Duration::from_secs(1));
        trial.finish().map(drop)
    });
}

#[test]
fn flows_by_all_nodes_survive_two_migrations_there_and_back() {
    alone("flows_by_all_nodes_survive_two_migrations_there_and_back", || {
        let doors = [0, 1, ELSEWHERE].map(|node| Family::ALL.map(|family| (node, family))).concat();
        let mut trial = Trial::start(Policy::Cluster, &doors, &SOME)?;
        there_and_back(&mut trial)?;
        trial.finish().map(drop)
    });
}

#[test]
fn flows_by_a_third_node_survive_two_migrations_there_and_back() {
    alone("flows_by_a_third_node_survive_two_migrations_there_and_back", || {
        let kinds = [&Kind::ACTIVE[..], &[Kind::Upload(2_000_000), Kind::Requests, Kind::ClientSpeaks]];
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &kinds.concat())?;
        there_and_back(&mut trial)?;
        trial.finish().map(drop)
    });
}

fn there_and_back(trial: &mut Trial) -> Result<()> {
    for node in [1, 0] {
        trial.migrate(node, &Timing::default())?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

#[test]
fn a_flow_whose_source_is_kept_survives_there_and_back_and_is_still_kept() {
    alone("a_flow_whose_source_is_kept_survives_there_and_back_and_is_still_kept", || {
        let doors = Family::ALL.map(|family| (0, family));
        let kinds = [Kind::Echo, Kind::Push, Kind::Datagrams, Kind::ClientSpeaks];
        let mut trial = Trial::start(Policy::Local, &doors, &kinds)?;
        let mut flows = Vec::new();
        for family in Family::ALL {
            let door = trial.site.door(0, family);
            let talk = trial.site.client().run(|| Conversation::open(door.to(servers::LINES)))?;
            let socket = trial.site.client().run(|| requests::datagrams(door.to(servers::ECHO)))?;
            flows.push((family, talk, socket));
        }
        for place in ["at home", "away", "back"] {
            match place {
                "away" => drop(trial.migrate(1, &Timing::default())?),
                "back" => drop(trial.migrate(0, &Timing::default())?),
                _ => {}
            }
            for (family, talk, socket) in &mut flows {
                talk.ask(place).with_context(|| format!("{family}, {place}"))?;
                let (_, seen) = requests::who(socket).with_context(|| format!("{family}, {place}"))?;
                let client = trial.site.topology.clients[0].addresses.of(*family);
                ensure!(seen == client, "{family}, {place}: the VM sees {seen}, not {client}");
            }
        }
        trial.finish().map(drop)
    });
}

#[test]
fn a_vm_that_takes_its_address_along_keeps_its_flows() {
    alone("a_vm_that_takes_its_address_along_keeps_its_flows", || {
        let kinds = [&Kind::ACTIVE[..], &[Kind::Requests, Kind::ClientSpeaks]].concat();
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &kinds)?;
        let mut target = trial.site.add_launcher(1)?;
        let own = std::mem::replace(&mut target.pod.addresses, trial.site.launcher.pod.addresses);
        let kept = target.pod.addresses;
        target.namespace().ip(&format!(
            "addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad\naddr del {}/32 dev eth0\naddr del {}/128 dev eth0\n\
             route replace default via 169.254.1.1\n",
            kept.v4, kept.v6, own.v4, own.v6
        ))?;
        trial.site.announce(&target.pod, &Timing::default())?;
        let switch = trial.vm.migrate_and(&target, || lead_to(&trial.site.topology, &target))?;
        trial.flows.switched();
        trial.switches.push(switch);
        trial.site.report(target, switch, &Timing::default())?;
        thread::sleep(Duration::from_secs(1));
        trial.finish().map(drop)
    });
}

/// What a CNI with sticky addresses does when the VM moves.
fn lead_to(topology: &vmlb_tests::topology::Topology, target: &Launcher) -> Result<()> {
    let (pod, via) = (target.pod.addresses, topology.nodes[1].addresses);
    for node in [&topology.nodes[0], &topology.nodes[ELSEWHERE]] {
        node.namespace.ip(&format!(
            "route replace {} via {}\nroute replace {} via {}\n",
            pod.v4, via.v4, pod.v6, via.v6
        ))?;
    }
    let device = &target.pod.device;
    topology.nodes[1]
        .namespace
        .ip(&format!("route replace {} dev {device}\nroute replace {} dev {device}\n", pod.v4, pod.v6))
}
