//! The rig by itself: kernel forwarding and the nftables control carry what vmlb will carry, so that a failure
//! elsewhere is vmlb's, and nothing of a rig outlives it.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::capture::{self, Capture};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::{Attachment, Topology};
use vmlb_tests::{namespace, requests, servers};

#[test]
fn the_control_answers_from_routed_pods() {
    unless_unable("the_control_answers_from_routed_pods", || the_control_answers(Attachment::Routed));
}

#[test]
fn the_control_answers_from_bridged_pods() {
    unless_unable("the_control_answers_from_bridged_pods", || the_control_answers(Attachment::Bridged));
}

fn the_control_answers(attachment: Attachment) -> Result<()> {
    let cluster = Cluster::build(attachment)?;
    cluster.install_control()?;
    let capture = Capture::start(cluster.client())?;
    let mut asked = 0;
    for family in Family::ALL {
        for (service, pod) in [("first", "vm01"), ("second", "vm02")] {
            for node in 0..2 {
                asked += ask_everything(&cluster, family, service, pod, node)?;
            }
        }
    }
    ensure!(cluster.control_hits()? == asked, "{} hits for {asked} connections", cluster.control_hits()?);
    let checked = capture::check_sums(&capture.finish())?;
    ensure!(checked > 5000, "only {checked} packets were seen");
    Ok(())
}

/// Asks every server through one frontend; returns how many connections that took.
fn ask_everything(cluster: &Cluster, family: Family, service: &str, pod: &str, node: usize) -> Result<u64> {
    let at = |port| cluster.frontend(service, port, node, family);
    let (http, banner, bulk, echo) =
        (at(servers::HTTP)?, at(servers::BANNER)?, at(servers::BULK)?, at(servers::ECHO)?);
    let greeting = at(servers::GREETING)?;
    cluster.client().run(|| {
        ensure!(requests::http(http, "/")?.pod() == pod);
        ensure!(requests::banner(banner)? == format!("SSH-2.0-{pod}"));
        ensure!(requests::greeting(greeting)? == pod);
        requests::download(bulk, 5_000_000, 0)?;
        requests::upload(bulk, 5_000_000, 0)?;
        let socket = requests::datagrams(echo)?;
        ensure!(requests::who(&socket)?.0 == pod);
        requests::echo(&socket, &[7; 1200])?;
        Ok(6)
    })
}

#[test]
fn a_dropped_rig_leaves_nothing_even_after_a_panic() {
    unless_unable("a_dropped_rig_leaves_nothing_even_after_a_panic", || {
        let (sender, names) = std::sync::mpsc::channel();
        let outcome = std::panic::catch_unwind(move || {
            let topology = Topology::build(Prefix::unique(), 1, 1, Attachment::Routed).expect("a topology");
            sender
                .send((topology.router.name().to_owned(), topology.folder("logs").expect("a folder")))
                .expect("sent");
            panic!("on purpose");
        });
        ensure!(outcome.is_err());
        let (router, folder) = names.recv()?;
        let prefix = router.trim_end_matches("router");
        ensure!(!folder.exists(), "{} is left", folder.display());
        for place in [namespace::FOLDER, vmlb_tests::bpffs::ROOT] {
            let left = fs::read_dir(Path::new(place))?
                .flatten()
                .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
            ensure!(left.is_none(), "{left:?} is left");
        }
        Ok(())
    });
}
