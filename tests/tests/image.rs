//! The image, run under podman with the settings of the manifests: it serves, goes on without its agent, and goes without a
//! trace.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::address::Family;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::deploy::build;
use vmlb_tests::podman::{Container, Image, podman, reason};
use vmlb_tests::probe::{get, wait};
use vmlb_tests::skip::{announce, unless_unable};
use vmlb_tests::topology::Attachment;
use vmlb_tests::{maps, requests, servers};

const PATIENCE: Duration = Duration::from_secs(30);
/// Small tables, as for every agent of a test.
const SMALL: [&str; 8] = ["--flows", "4096", "--half-flows", "4096", "--slots", "65536", "--backends", "256"];

#[test]
fn the_image_serves_as_the_manifests_run_it_and_leaves_nothing() {
    const NAME: &str = "the_image_serves_as_the_manifests_run_it_and_leaves_nothing";
    if let Some(why) = reason() {
        return announce(NAME, &why);
    }
    unless_unable(NAME, || {
        let image = Image::build()?;
        ensure!(image.files()? == ["vmlb"], "{:?}", image.files()?);
        let shell =
            podman().args(["run", "--rm", "--network=none", "--entrypoint=/bin/sh", &image.0]).output()?;
        ensure!(!shell.status.success(), "there is a shell: {shell:?}");
        for way in ["base", "overlays/hardened"] {
            serves(&image, way).context(way)?;
        }
        Ok(())
    });
}

/// The pod template of a way's DaemonSet.
fn template(way: &str) -> Result<Value> {
    let objects = build(way)?;
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet").context("a DaemonSet")?;
    Ok(daemon_set["spec"]["template"]["spec"].clone())
}

fn serves(image: &Image, way: &str) -> Result<()> {
    let cluster = Cluster::build(Attachment::Routed)?;
    let logs = cluster.topology.folder("logs")?;
    std::fs::create_dir_all(&logs)?;
    let container = &template(way)?["containers"][0];
    let mut running = Vec::new();
    for node in &cluster.topology.nodes {
        let root = node.pin_root.display().to_string();
        let more = ["--manifests", "/manifests", "--pin-root", &root, "--device", "eth0=xdp"];
        let volumes: [(&Path, &str); 1] = [(cluster.manifests.folder(), "/manifests")];
        let log = logs.join(format!("{}.log", node.name));
        running.push(Container::start(
            image,
            container,
            node,
            &[&more[..], &SMALL].concat(),
            &volumes,
            &log,
        )?);
    }
    for (container, node) in running.iter_mut().zip(&cluster.topology.nodes) {
        let log = || std::fs::read_to_string(logs.join(format!("{}.log", node.name))).unwrap_or_default();
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 9474));
            let path = template(way)?["containers"][0][probe]["httpGet"]["path"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            wait(probe, PATIENCE, || {
                ensure!(!container.has_ended()?, "the agent has ended:\n{}", log());
                Ok(node.namespace.run(|| get(at, &path)).is_ok_and(|reply| reply.status == 200))
            })
            .with_context(log)?;
        }
        let metrics =
            node.namespace.run(|| get(SocketAddr::from((Ipv4Addr::LOCALHOST, 9475)), "/metrics"))?;
        ensure!(metrics.body.contains("vmlb_agent_info"), "{metrics:?}");
    }
    ask_everybody(&cluster)?;
    running.into_iter().try_for_each(Container::stop)?;
    ask_everybody(&cluster).context("without agents")?;
    let detach = &template("uninstall")?["initContainers"][0];
    for node in &cluster.topology.nodes {
        ensure!(!maps::pins(node).is_empty());
        let root = node.pin_root.display().to_string();
        let log = logs.join(format!("{}-detach.log", node.name));
        let container = Container::start(image, detach, node, &["--pin-root", &root], &[], &log)?;
        container.end().with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        ensure!(maps::pins(node).is_empty(), "{:?}", maps::pins(node));
        let net = node.namespace.output("bpftool", &["net"])?;
        ensure!(!net.contains("vmlb"), "{net}");
    }
    Ok(())
}

/// Both VMs answer through both nodes, by both families.
fn ask_everybody(cluster: &Cluster) -> Result<()> {
    for family in Family::ALL {
        for node in 0..2 {
            for (service, vm) in [("first", "vm01"), ("second", "vm02")] {
                let frontend = cluster.frontend(service, servers::HTTP, node, family)?;
                let answer = cluster.client().run(|| requests::http(frontend, "/"))?;
                ensure!(answer.pod() == vm, "{frontend}: {answer:?}");
            }
        }
    }
    Ok(())
}
