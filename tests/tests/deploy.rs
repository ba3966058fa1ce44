//! The manifests: that every way of making them makes the same objects, that Kubernetes understands every field, and that
//! they grant and run what is meant.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use vmlb_tests::agent;
use vmlb_tests::deploy::{build, cargo, documents, folder, render, without_cargo};
use vmlb_tests::skip::announce;

#[path = "deploy/rights.rs"]
mod rights;

/// Folders with the values of the chart that make the same.
fn ways() -> [(&'static str, Vec<(&'static str, Value)>); 5] {
    let small = json!(["--flows=65536", "--half-flows=16384", "--slots=1048576"]);
    [
        ("base", vec![]),
        ("overlays/hardened", vec![("hardened", json!(true))]),
        ("overlays/openshift", vec![("openshift", json!(true))]),
        ("overlays/k3s", vec![("extraArgs", small), ("memory", json!("128Mi"))]),
        ("uninstall", vec![("detach", json!(true))]),
    ]
}

/// Objects by kind and name.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let name = |object: &Value| format!("{}/{}", object["kind"], object["metadata"]["name"]).replace('"', "");
    objects.into_iter().map(|object| (name(&object), object)).collect()
}

fn same(what: &str, one: Vec<Value>, other: Vec<Value>) -> Result<()> {
    let (one, other) = (by_name(one), by_name(other));
    ensure!(one.keys().eq(other.keys()), "{what}: {:?} and {:?}", one.keys(), other.keys());
    for (name, object) in &one {
        ensure!(Some(object) == other.get(name), "{what}: {name}:\n{object:#}\n{:#}", other[name]);
    }
    Ok(())
}

#[test]
fn kustomize_and_helm_make_the_same_objects() -> Result<()> {
    for (folder, values) in ways() {
        same(folder, build(folder)?, render(&values)?)?;
    }
    Ok(())
}

#[test]
fn a_value_of_the_chart_reaches_the_objects() -> Result<()> {
    let image = json!({"repository": "registry.example/vmlb", "tag": "9", "pullPolicy": "Always"});
    let objects = by_name(render(&[("image", image), ("namespace", json!("other"))])?);
    let daemon_set = &objects["DaemonSet/vmlb"];
    ensure!(daemon_set["metadata"]["namespace"] == "other" && objects.contains_key("Namespace/other"));
    ensure!(objects["ClusterRoleBinding/vmlb"]["subjects"][0]["namespace"] == "other");
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["image"] == "registry.example/vmlb:9" && container["imagePullPolicy"] == "Always");
    Ok(())
}

#[test]
fn kubectl_makes_of_the_folders_what_this_suite_does() -> Result<()> {
    const NAME: &str = "kubectl_makes_of_the_folders_what_this_suite_does";
    let version = Command::new("kubectl").args(["version", "--client"]).output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if !version.contains("Kustomize Version: v5") {
        announce(NAME, "no `kubectl` with kustomize 5 is installed");
        return Ok(());
    }
    for (path, _) in ways() {
        let output = Command::new("kubectl").arg("kustomize").arg(folder().join(path)).output()?;
        ensure!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        same(path, build(path)?, documents(&String::from_utf8(output.stdout)?)?)?;
    }
    Ok(())
}

/// `objects` through the types of one Kubernetes version.
fn through(version: &str, objects: &[Value]) -> Result<Vec<Value>> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut child = cargo()
        .args(["run", "--quiet", "--locked", "--features", version, "--manifest-path"])
        .arg(tests.join("round-trip/Cargo.toml"))
        .arg("--target-dir")
        .arg(tests.join("../target/round-trip"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("standard input is piped")?.write_all(&serde_json::to_vec(objects)?)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "vmlb-round-trip with {version} ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn the_oldest_and_the_newest_kubernetes_know_every_field() -> Result<()> {
    if let Some(why) = without_cargo() {
        announce("the_oldest_and_the_newest_kubernetes_know_every_field", &why);
        return Ok(());
    }
    let mut objects = Vec::new();
    for (folder, _) in ways() {
        objects.extend(build(folder)?);
    }
    // OpenShift's own kind has no type here.
    objects.retain(|object| object["kind"] != "SecurityContextConstraints");
    // A field that nobody knows, so that this test is seen to see one.
    let mut wrong = objects.last().cloned().context("objects")?;
    wrong["spec"]["template"]["spec"]["hostNetwerk"] = json!(true);
    objects.push(wrong);
    for version in ["oldest", "newest"] {
        let answers = through(version, &objects)?;
        ensure!(answers.len() == objects.len());
        for (object, answer) in objects.iter().zip(&answers).rev().skip(1) {
            ensure!(object == answer, "{version}:\n{object:#}\nbecomes\n{answer:#}");
        }
        ensure!(objects.last() != answers.last(), "{version}: the unknown field came back");
    }
    Ok(())
}

#[test]
fn every_way_runs_flags_that_the_program_knows() -> Result<()> {
    for (folder, _) in ways() {
        let objects = by_name(build(folder)?);
        let pod = &objects["DaemonSet/vmlb"]["spec"]["template"]["spec"];
        let lists =
            ["initContainers", "containers"].map(|list| pod[list].as_array().cloned().unwrap_or_default());
        for container in lists.into_iter().flatten() {
            let arguments: Vec<&str> =
                container["args"].as_array().context("args")?.iter().filter_map(Value::as_str).collect();
            // Usage is judged before anything is done.
            let output = Command::new(agent::binary()?).args(&arguments).arg("--help").output()?;
            ensure!(
                output.status.success(),
                "{folder}: {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(())
}

#[test]
fn the_daemon_set_is_what_a_node_service_should_be() -> Result<()> {
    for (folder, _) in ways() {
        let objects = by_name(build(folder)?);
        let spec = &objects["DaemonSet/vmlb"]["spec"];
        let pod = &spec["template"]["spec"];
        ensure!(pod["hostNetwork"] == true && pod["priorityClassName"] == "system-node-critical", "{folder}");
        ensure!(pod["tolerations"] == json!([{"operator": "Exists"}]), "{folder}");
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        ensure!(context["readOnlyRootFilesystem"] == true, "{folder}");
        let mounts: Vec<&str> = container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|mount| mount["mountPath"].as_str())
            .collect();
        ensure!(mounts == ["/sys/fs/bpf", "/run/vmlb"], "{folder}: {mounts:?}");
        if folder == "overlays/hardened" {
            ensure!(context["privileged"].is_null() && context["allowPrivilegeEscalation"] == false);
            let wanted = json!({"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "NET_RAW", "PERFMON"]});
            ensure!(context["capabilities"] == wanted, "{context}");
            ensure!(context["seccompProfile"]["type"] == "RuntimeDefault");
        }
        if folder != "uninstall" {
            ensure!(spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 1, "{folder}");
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                ensure!(container[probe]["httpGet"]["port"] == 9474, "{folder}: {probe}");
            }
        }
        let labels = &objects["Namespace/vmlb-system"]["metadata"]["labels"];
        ensure!(labels["pod-security.kubernetes.io/enforce"] == "privileged", "{folder}");
    }
    Ok(())
}

#[test]
fn version_and_image_are_those_of_the_workspace() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let chart = std::fs::read_to_string(folder().join("helm/vmlb/Chart.yaml"))?;
    for line in [format!("version: {version}"), format!("appVersion: {version}")] {
        ensure!(chart.lines().any(|one| one == line), "{line:?} is not in Chart.yaml");
    }
    let objects = by_name(build("base")?);
    let image = &objects["DaemonSet/vmlb"]["spec"]["template"]["spec"]["containers"][0]["image"];
    if *image != format!("vmlb:{version}").as_str() {
        bail!("the base runs {image}");
    }
    Ok(())
}
