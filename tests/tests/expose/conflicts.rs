//! What stands in the way is explained, and nothing is half done.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use vmlb_tests::api_server::objects::service;

use crate::cluster::{Cluster, WEB};

/// Says `words`, which must fail with `code` and leave everything as it is; what was said.
fn refused_without_a_trace(cluster: &Cluster, words: &[&str], code: i32) -> Result<String> {
    let before = cluster.everything();
    let said = cluster.refused(words, code)?;
    ensure!(cluster.everything() == before, "{said}");
    Ok(said)
}

#[test]
fn a_name_that_is_taken_is_not_touched() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.server.put(service("web", 30_100))?;
    let said = refused_without_a_trace(&cluster, &WEB, 1)?;
    ensure!(said.contains("Service a/web is there and was not made by vmlb expose"), "{said}");
    let said = refused_without_a_trace(&cluster, &["unexpose", "--name", "web"], 1)?;
    ensure!(said.contains("was not made by vmlb expose"), "{said}");
    Ok(())
}

#[test]
fn a_node_port_that_is_taken_is_told_with_its_holder() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.server.put(service("other", 31_923))?;
    let said = refused_without_a_trace(&cluster, &WEB, 1)?;
    ensure!(
        said.contains("node port 31923 is taken by Service a/other; choose another --node-port"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_node_port_out_of_range_is_refused_in_the_api_servers_words() -> Result<()> {
    let cluster = Cluster::new()?;
    let words = ["expose", "--vm", "vm01", "--name", "web", "--port", "80", "--node-port", "80"];
    let said = refused_without_a_trace(&cluster, &words, 1)?;
    ensure!(said.contains("The range of valid ports is 30000-32767"), "{said}");
    Ok(())
}

#[test]
fn vms_that_are_not_there_are_all_named_beside_those_that_are() -> Result<()> {
    let cluster = Cluster::new()?;
    let words = ["expose", "--vm", "vm01", "--vm", "vm9", "--pod", "no", "--name", "web", "--port", "80"];
    let said = refused_without_a_trace(&cluster, &words, 1)?;
    ensure!(
        said.contains("no VirtualMachine vm9 in namespace a; there are off, pool-0, pool-1, vm01, vm02"),
        "{said}"
    );
    ensure!(said.contains("no Pod no in namespace a; there are canary"), "{said}");
    Ok(())
}

#[test]
fn a_cluster_without_kubevirt_is_told_apart_from_a_missing_vm() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.server.behave(|faults| faults.absent = vec!["kubevirt.io", "pool.kubevirt.io"]);
    let said = refused_without_a_trace(&cluster, &WEB, 1)?;
    ensure!(
        said.contains("this cluster does not serve virtualmachines.kubevirt.io; is KubeVirt installed?"),
        "{said}"
    );
    // Pods can be grouped all the same.
    cluster.done(&["expose", "--pod", "canary", "--name", "web", "--port", "80"])?;
    cluster.done(&["unexpose", "--name", "web"])?;
    ensure!(cluster.labelled().is_empty(), "{:?}", cluster.labelled());
    Ok(())
}

#[test]
fn whatever_write_fails_everything_is_as_before() -> Result<()> {
    let cluster = Cluster::new()?;
    let before = cluster.everything();
    // Six labels and the Service.
    for write in 0..7 {
        cluster.server.behave(|faults| faults.failing_writes = Some((write, 1)));
        let said = cluster.refused(&WEB, 1)?;
        ensure!(
            said.contains("everything is as it was before") && said.contains("it is scripted so"),
            "{said}"
        );
        ensure!(cluster.everything() == before, "after write {write}: {:?}", cluster.labelled());
    }
    cluster.server.behave(|faults| faults.failing_writes = None);
    cluster.done(&WEB).map(drop)
}

#[test]
fn what_cannot_be_undone_is_named() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.server.behave(|faults| faults.failing_writes = Some((2, usize::MAX)));
    let said = cluster.refused(&WEB, 1)?;
    ensure!(said.contains("these stay behind") && said.contains("vm/vm01 (template) labelled"), "{said}");
    cluster.server.behave(|faults| faults.failing_writes = None);
    let named: BTreeSet<bool> = cluster
        .labelled()
        .iter()
        .filter_map(|one| one.split_once('/'))
        .map(|(_, name)| said.contains(name))
        .collect();
    ensure!(named == BTreeSet::from([true]), "{said}\n{:?}", cluster.labelled());
    // The advice of every help text holds: the command itself goes on from there.
    cluster.done(&WEB).map(drop)
}

#[test]
fn an_unexpose_that_is_cut_short_goes_on_when_it_is_said_again() -> Result<()> {
    let cluster = Cluster::new()?;
    let before = cluster.everything();
    cluster.done(&WEB)?;
    cluster.server.behave(|faults| faults.failing_writes = Some((1, 2)));
    let said = cluster.refused(&["unexpose", "--name", "web"], 1)?;
    ensure!(said.matches("not done: ").count() == 2 && said.contains("say it again"), "{said}");
    cluster.done(&["unexpose", "--name", "web"])?;
    ensure!(cluster.everything() == before, "{:?}", cluster.labelled());
    Ok(())
}

#[test]
fn a_member_that_is_not_ready_is_named_after_the_wait() -> Result<()> {
    let cluster = Cluster::new()?;
    let mut pod = cluster.object("Pod", "virt-launcher-vm02-2")?;
    pod["status"]["conditions"][0]["status"] = "False".into();
    cluster.server.put(pod)?;
    let said = cluster.say(&[&WEB[..], &["--wait", "500ms"]].concat())?;
    ensure!(said.code == 1 && said.err.contains("pod/virt-launcher-vm02-2: it is not ready"), "{said:?}");
    ensure!(cluster.endpoints() == ["virt-launcher-vm01-1"], "what can be served is");
    Ok(())
}

#[test]
fn an_api_server_that_is_away_is_told() -> Result<()> {
    let mut cluster = Cluster::new()?;
    cluster.server.away();
    let said = cluster.refused(&WEB, 1)?;
    ensure!(said.contains("the API server does not answer"), "{said}");
    Ok(())
}
