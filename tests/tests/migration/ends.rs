//! Connections that end after the switch, and a VM of which nothing is heard.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::capture::Capture;
use vmlb_tests::lab::Guest;
use vmlb_tests::lab::flows::Kind;
use vmlb_tests::lab::site::{ELSEWHERE, Site, Timing, VM};
use vmlb_tests::lab::stand_in::StandIn;
use vmlb_tests::probe::wait;
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::service::Policy;

use crate::trial::{FROM_ELSEWHERE, SILENCE, Trial, alone};

/// No flow of these shows where the VM is: only a probe can tell before the API does.
fn silent(kinds: &[Kind]) -> Result<()> {
    let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, kinds)?;
    trial.migrate(1, &Timing { report: Duration::from_secs(6), ..Timing::default() })?;
    thread::sleep(Duration::from_secs(1));
    trial.finish().map(drop)
}

#[test]
fn the_first_word_after_the_switch_is_the_clients() {
    alone("the_first_word_after_the_switch_is_the_clients", || silent(&[Kind::ClientSpeaks]));
}

#[test]
fn the_first_word_after_the_switch_is_the_servers() {
    alone("the_first_word_after_the_switch_is_the_servers", || silent(&[Kind::ServerSpeaks(SILENCE)]));
}

#[test]
fn the_first_packet_after_the_switch_is_the_clients_end() {
    alone("the_first_packet_after_the_switch_is_the_clients_end", || silent(&[Kind::ClientCloses]));
}

#[test]
fn the_first_packet_after_the_switch_is_the_servers_end() {
    alone("the_first_packet_after_the_switch_is_the_servers_end", || silent(&[Kind::ServerCloses(SILENCE)]));
}

#[test]
fn a_clients_reset_reaches_the_vm_where_it_is() {
    alone("a_clients_reset_reaches_the_vm_where_it_is", || {
        let mut trial = Trial::start(Policy::Cluster, &FROM_ELSEWHERE, &[Kind::ClientResets])?;
        ensure!(connections(&trial.vm)? == 2, "two clients, {} connections", connections(&trial.vm)?);
        trial.migrate(1, &Timing::default())?;
        wait("the VM has no connection left", Duration::from_secs(5), || Ok(connections(&trial.vm)? == 0))?;
        trial.finish().map(drop)
    });
}

/// Established connections of the VM's line server.
fn connections(vm: &StandIn) -> Result<usize> {
    let filter = format!("sport = :{}", servers::LINES);
    Ok(vm.namespace.output("ss", &["-Htn", "state", "established", &filter])?.lines().count())
}

#[test]
fn a_reset_of_the_vm_reaches_the_client_after_the_switch() {
    alone("a_reset_of_the_vm_reaches_the_client_after_the_switch", || {
        let mut site = Site::serving(Policy::Cluster)?;
        let mut vm = StandIn::boot(&site.topology, VM, &site.launcher)?;
        let server = site.door(ELSEWHERE, Family::V4).to(servers::HTTP);
        let mut connection = site.client().run(|| requests::connect(server))?;
        let target = site.begin(1, &Timing::default())?;
        let resets = Capture::resets(site.client(), site.topology.clients[0].addresses)?;
        let switch = vm.migrate(&target)?;
        site.report(target, switch, &Timing::default())?;
        // The server does not read what follows the request, and closes: the kernel then answers with a reset.
        write!(connection, "GET / HTTP/1.1\r\n\r\n")?;
        connection.write_all(&[b'x'; 20_000])?;
        let _reset = connection.read_to_end(&mut Vec::new());
        let seen = resets.finish().len();
        ensure!(seen > 0, "the server's reset did not reach the client");
        Ok(())
    });
}

#[test]
fn a_paused_vm_keeps_its_flows() {
    alone("a_paused_vm_keeps_its_flows", || {
        let site = Site::serving(Policy::Cluster)?;
        let vm = StandIn::boot(&site.topology, VM, &site.launcher)?;
        let server = site.door(ELSEWHERE, Family::V4).to(servers::LINES);
        let mut talk = site.client().run(|| requests::Conversation::open(server))?;
        talk.ask("before")?;
        vm.stop()?;
        site.instance.list(&[(&site.launcher.pod, vmlb_tests::manifests::Readiness::NotReady)])?;
        thread::sleep(Duration::from_secs(2));
        vm.resume()?;
        talk.ask("after").context("the endpoint is not ready yet")?;
        site.instance.list(&[(&site.launcher.pod, vmlb_tests::manifests::Readiness::Ready)])?;
        wait("new connections", Duration::from_secs(5), || {
            site.client().run(|| requests::Conversation::open(server)?.ask("new")).map(|_| true)
        })
    });
}
