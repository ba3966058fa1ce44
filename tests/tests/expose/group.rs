//! Who is in a group, and that it comes and goes whole.

use anyhow::{Result, ensure};
use serde_json::json;
use vmlb_tests::api_server::kubevirt::{NAMESPACE, launcher_of, vmi};

use crate::cluster::{Cluster, KEY, WEB};

const TWO_VMS: [&str; 6] = [
    "Pod/virt-launcher-vm01-1",
    "Pod/virt-launcher-vm02-2",
    "VirtualMachine/vm01",
    "VirtualMachine/vm02",
    "VirtualMachineInstance/vm01",
    "VirtualMachineInstance/vm02",
];

#[test]
fn two_running_vms_are_behind_a_node_port_by_one_command() -> Result<()> {
    let cluster = Cluster::new()?;
    let out = cluster.done(&WEB)?;
    ensure!(cluster.labelled() == TWO_VMS, "{:?}", cluster.labelled());
    ensure!(cluster.endpoints() == ["virt-launcher-vm01-1", "virt-launcher-vm02-2"]);
    let service = cluster.object("Service", "web")?;
    ensure!(service["spec"]["selector"] == json!({KEY: "true"}), "{service}");
    ensure!(
        service["spec"]["ports"][0]["nodePort"] == 31923 && service["spec"]["ports"][0]["targetPort"] == 80
    );
    for line in [
        "vm/vm01 (template) labelled",
        "pod/virt-launcher-vm02-2 labelled",
        "service/web created",
        "reach it at 80/TCP: 192.0.2.1:31923, 192.0.2.2:31923",
    ] {
        ensure!(out.lines().any(|one| one == line), "{line:?} is not in\n{out}");
    }
    Ok(())
}

#[test]
fn the_same_command_again_changes_nothing() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.done(&WEB)?;
    let before = cluster.server.objects();
    let out = cluster.done(&WEB)?;
    ensure!(out.starts_with("service/web unchanged\n"), "{out}");
    ensure!(cluster.server.objects() == before, "not even a version");
    Ok(())
}

#[test]
fn a_pod_of_the_next_start_or_migration_has_the_label_from_where_it_is_made() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.done(&WEB)?;
    // A live migration makes its pod from the VMI, a start its VMI from the VM's template.
    ensure!(cluster.object("VirtualMachineInstance", "vm01")?["metadata"]["labels"][KEY] == "true");
    ensure!(
        cluster.object("VirtualMachine", "vm01")?["spec"]["template"]["metadata"]["labels"][KEY] == "true"
    );
    ensure!(
        cluster.object("VirtualMachine", "vm01")?["spec"]["template"]["metadata"]["labels"]["app"] == "x"
    );
    Ok(())
}

#[test]
fn vms_instances_pools_replica_sets_and_pods_are_mixed_in_a_group() -> Result<()> {
    let cluster = Cluster::new()?;
    let out = cluster.done(&[
        "expose",
        "--vm",
        "vm01",
        "--vmi",
        "vm02",
        "--pool",
        "pool",
        "--replica-set",
        "set",
        "--pod",
        "canary",
        "--name",
        "web",
        "--port",
        "80:8080",
        "--port",
        "53/udp",
        "--type",
        "LoadBalancer",
    ])?;
    ensure!(cluster.endpoints().len() == 6, "{:?}", cluster.endpoints());
    let labelled = cluster.labelled();
    for name in [
        "VirtualMachine/pool-0",
        "VirtualMachineInstance/set-a",
        "VirtualMachineInstanceReplicaSet/set",
        "Pod/canary",
    ] {
        ensure!(labelled.iter().any(|one| one == name), "{name} is not in {labelled:?}");
    }
    // A pool would restart its VMs.
    ensure!(!labelled.iter().any(|one| one == "VirtualMachinePool/pool"), "{labelled:?}");
    ensure!(out.contains("vmpool/pool: VMs that the pool makes later do not join by themselves"), "{out}");
    // A VMI without its VM: the VM's next start forgets the group.
    ensure!(!labelled.iter().any(|one| one == "VirtualMachine/vm02"), "{labelled:?}");
    let ports = cluster.object("Service", "web")?["spec"]["ports"].clone();
    ensure!(
        ports[0]["name"] == "tcp-80" && ports[1]["name"] == "udp-53" && ports[1]["protocol"] == "UDP",
        "{ports}"
    );
    ensure!(out.contains("no load-balancer address yet"), "{out}");
    Ok(())
}

#[test]
fn the_template_of_a_pool_is_labelled_where_that_is_asked_for() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.done(&["expose", "--pool", "pool", "--pool-template", "--name", "web", "--port", "80"])?;
    ensure!(cluster.labelled().contains(&"VirtualMachinePool/pool".to_owned()));
    cluster.done(&["unexpose", "--name", "web"])?;
    ensure!(cluster.labelled().is_empty(), "{:?}", cluster.labelled());
    Ok(())
}

#[test]
fn a_stopped_vm_joins_when_it_is_started() -> Result<()> {
    let cluster = Cluster::new()?;
    let out = cluster.done(&["expose", "--vm", "vm01", "--vm", "off", "--name", "web", "--port", "80"])?;
    ensure!(out.contains("vm/off: stopped: it joins when it is started (virtctl start off)"), "{out}");
    let labels = cluster.object("VirtualMachine", "off")?["spec"]["template"]["metadata"]["labels"].clone();
    // As KubeVirt does it: the template's labels to the VMI, the VMI's to the pod.
    let (mut instance, mut pod) = (vmi("off", None), launcher_of("off", 40));
    instance["metadata"]["labels"] = labels.clone();
    pod["metadata"]["labels"][KEY] = labels[KEY].clone();
    cluster.server.put(instance)?;
    cluster.server.put(pod)?;
    ensure!(cluster.endpoints().contains(&"virt-launcher-off-40".to_owned()), "{:?}", cluster.endpoints());
    Ok(())
}

#[test]
fn a_second_command_adds_members_and_changes_ports_but_keeps_node_ports() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.done(&["expose", "--vm", "vm01", "--name", "web", "--port", "80", "--node-port", "31923"])?;
    let out = cluster.done(&["expose", "--vm", "vm02", "--name", "web", "--port", "80", "--port", "443"])?;
    ensure!(
        out.contains("service/web changed") && cluster.labelled() == TWO_VMS,
        "{out} {:?}",
        cluster.labelled()
    );
    let ports = cluster.object("Service", "web")?["spec"]["ports"].clone();
    ensure!(ports[0]["nodePort"] == 31923 && ports[1]["port"] == 443, "{ports}");
    Ok(())
}

#[test]
fn what_expose_did_unexpose_takes_back() -> Result<()> {
    let cluster = Cluster::new()?;
    let before = cluster.everything();
    cluster.done(&WEB)?;
    cluster.done(&[
        "expose",
        "--pool",
        "pool",
        "--replica-set",
        "set",
        "--pod",
        "canary",
        "--name",
        "web",
        "--port",
        "80",
    ])?;
    let rehearsed = cluster.done(&["unexpose", "--name", "web", "--dry-run", "server"])?;
    ensure!(
        !cluster.labelled().is_empty() && rehearsed.contains("service/web deleted (dry run)"),
        "{rehearsed}"
    );
    let out = cluster.done(&["unexpose", "--name", "web"])?;
    ensure!(out.starts_with("service/web deleted\n"), "{out}");
    ensure!(cluster.everything() == before, "{:#?}", cluster.labelled());
    ensure!(cluster.done(&["unexpose", "--name", "web"])? == "nothing of group web is there\n");
    Ok(())
}

#[test]
fn one_vm_leaves_a_group_and_the_service_stays() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.done(&WEB)?;
    cluster.done(&["unexpose", "--name", "web", "--vm", "vm02"])?;
    ensure!(cluster.endpoints() == ["virt-launcher-vm01-1"], "{:?}", cluster.endpoints());
    ensure!(cluster.labelled().len() == 3, "{:?}", cluster.labelled());
    cluster.object("Service", "web")?;
    Ok(())
}

#[test]
fn groups_of_two_services_share_vms() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.done(&WEB)?;
    cluster.done(&["expose", "--vm", "vm01", "--name", "ssh", "--port", "22"])?;
    cluster.done(&["unexpose", "--name", "ssh"])?;
    ensure!(cluster.labelled() == TWO_VMS && cluster.endpoints().len() == 2, "{:?}", cluster.labelled());
    ensure!(cluster.server.object("Service", NAMESPACE, "ssh").is_none());
    Ok(())
}
