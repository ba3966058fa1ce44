//! Migrations in the middle of which something else happens.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::lab::flows::Kind;
use vmlb_tests::lab::site::{ELSEWHERE, Timing};
use vmlb_tests::manifests::Readiness;
use vmlb_tests::pod::Workload;
use vmlb_tests::service::Policy;

use crate::trial::{EVERYTHING, FROM_ELSEWHERE, Trial, alone};

/// From the switch until the source's address belongs to somebody else.
const REUSE: Duration = Duration::from_secs(1);

#[test]
fn the_agent_is_restarted_between_the_targets_address_and_the_switch() {
    alone("the_agent_is_restarted_between_the_targets_address_and_the_switch", || {
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &EVERYTHING)?;
        let target = trial.site.begin(1, &Timing::default())?;
        trial.site.agents[ELSEWHERE].take().context("an agent")?.kill()?;
        thread::sleep(Duration::from_millis(300));
        trial.site.start_agent(ELSEWHERE)?;
        trial.site.wait_until_serving()?;
        thread::sleep(Duration::from_millis(300));
        let switch = trial.switch(&target)?;
        trial.site.report(target, switch, &Timing::default())?;
        thread::sleep(Duration::from_secs(1));
        trial.finish().map(drop)
    });
}

#[test]
fn there_is_no_agent_at_the_switch() {
    alone("there_is_no_agent_at_the_switch", || {
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &EVERYTHING)?;
        let target = trial.site.begin(1, &Timing::default())?;
        trial.site.agents[ELSEWHERE].take().context("an agent")?.kill()?;
        let switch = trial.switch(&target)?;
        thread::sleep(Duration::from_secs(1));
        trial.site.start_agent(ELSEWHERE)?;
        trial.site.report(target, switch, &Timing { report: Duration::from_secs(3), ..Timing::default() })?;
        trial.site.wait_until_serving()?;
        thread::sleep(Duration::from_secs(1));
        trial.finish().map(drop)
    });
}

#[test]
fn the_sources_node_dies_right_after_the_switch() {
    alone("the_sources_node_dies_right_after_the_switch", || {
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &EVERYTHING)?;
        let target = trial.site.begin(1, &Timing::default())?;
        let switch = trial.switch(&target)?;
        trial.site.topology.nodes[0].namespace.ip("link set eth0 down\n")?;
        trial.site.agents[0].take().context("an agent")?.kill()?;
        // Nobody says that the source has ended.
        thread::sleep(Duration::from_secs(6));
        let source = std::mem::replace(&mut trial.site.launcher, target);
        let (present, instance) = (&trial.site.launcher.pod, &mut trial.site.instance);
        instance.report(present)?;
        instance.open_gate(present)?;
        instance.set_readiness(&source.pod, Readiness::NotReady)?;
        instance.list(&[(&source.pod, Readiness::NotReady), (present, Readiness::Ready)])?;
        thread::sleep(Duration::from_secs(1));
        println!("the VM stood still for {:?}", switch.pause());
        trial.finish().map(drop)
    });
}

#[test]
fn no_packet_of_the_vms_flows_reaches_the_next_pod_with_the_sources_address() {
    alone("no_packet_of_the_vms_flows_reaches_the_next_pod_with_the_sources_address", || {
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &EVERYTHING)?;
        let target = trial.site.begin(1, &Timing::default())?;
        let switch = trial.switch(&target)?;
        let source = std::mem::replace(&mut trial.site.launcher, target);
        thread::sleep(REUSE.saturating_sub(switch.resumed.elapsed().unwrap_or_default()));
        trial.site.instance.leave(&source.pod)?;
        let next = trial.site.topology.replace_pod(source.pod, "next", Workload::Container)?;
        let packets = Capture::only(&next.namespace, capture::is_of_a_flow)?;
        trial.site.manifests.pod(&next)?;
        thread::sleep(Duration::from_secs(2));
        let (present, instance) = (&trial.site.launcher.pod, &mut trial.site.instance);
        instance.report(present)?;
        instance.open_gate(present)?;
        instance.list(&[(present, Readiness::Ready)])?;
        thread::sleep(Duration::from_secs(3));
        check_none(&packets.finish())?;
        trial.finish().map(drop)
    });
}

fn check_none(packets: &[Vec<u8>]) -> Result<()> {
    let first = packets.first().map(|frame| capture::show(frame)).unwrap_or_default();
    ensure!(packets.is_empty(), "{} packets reached the next pod, e.g. {first}", packets.len());
    Ok(())
}

#[test]
fn a_flow_that_opens_while_the_memory_is_copied_survives() {
    alone("a_flow_that_opens_while_the_memory_is_copied_survives", || {
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &[Kind::Echo])?;
        let target = trial.site.begin(1, &Timing::default())?;
        for (node, family) in FROM_ELSEWHERE {
            let kinds = [Kind::ClientSpeaks, Kind::ServerCloses(Duration::from_secs(5)), Kind::ClientCloses];
            trial.flows.start(trial.site.client(), &trial.site.door(node, family), &kinds);
        }
        thread::sleep(Duration::from_secs(1));
        let switch = trial.switch(&target)?;
        trial.site.report(target, switch, &Timing::default())?;
        thread::sleep(Duration::from_secs(1));
        trial.finish().map(drop)
    });
}
