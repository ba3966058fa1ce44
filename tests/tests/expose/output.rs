//! What is printed for people and programs, and that rehearsals write nothing.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use vmlb_tests::agent;
use vmlb_tests::deploy;
use vmlb_tests::skip::announce;

use crate::cluster::{Cluster, WEB};

#[test]
fn a_dry_run_writes_nothing_and_shows_the_service() -> Result<()> {
    let cluster = Cluster::new()?;
    let before = cluster.server.objects();
    for mode in ["client", "server"] {
        let text = cluster.done(&[&WEB[..], &["--dry-run", mode, "--output", "json"]].concat())?;
        let service: serde_json::Value = serde_json::from_str(&text)?;
        ensure!(service["spec"]["ports"][0]["nodePort"] == 31923, "{text}");
        // Only the API server knows a Service's address.
        ensure!(service["spec"]["clusterIP"].is_string() == (mode == "server"), "{mode}: {text}");
        let out = cluster.done(&[&WEB[..], &["--dry-run", mode]].concat())?;
        ensure!(out.lines().all(|line| line.ends_with("dry run)")) && out.lines().count() == 7, "{out}");
    }
    ensure!(cluster.server.objects() == before);
    Ok(())
}

#[test]
fn yaml_of_a_dry_run_is_a_manifest() -> Result<()> {
    let cluster = Cluster::new()?;
    let text = cluster.done(&[&WEB[..], &["--dry-run", "client", "-o", "yaml"]].concat())?;
    let documents = deploy::documents(&text)?;
    let [service] = &documents[..] else { anyhow::bail!("one document: {text}") };
    ensure!(service["kind"] == "Service" && service["metadata"]["name"] == "web", "{text}");
    ensure!(service["spec"]["selector"]["expose.vmlb.io/web"] == "true", "{text}");
    ensure!(cluster.done(&[&WEB[..], &["-o", "name"]].concat())? == "service/web\n");
    Ok(())
}

#[test]
fn kubectl_finds_it_as_a_plugin() -> Result<()> {
    const NAME: &str = "kubectl_finds_it_as_a_plugin";
    let cluster = Cluster::new()?;
    let folder = std::env::temp_dir().join(format!("vmlb-plugin-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    symlink(agent::binary()?, folder.join("kubectl-vmlb"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([folder.clone()].into_iter().chain(std::env::split_paths(&path)))?;
    let run = |words: &[&str]| {
        Command::new("kubectl").arg("vmlb").args(words).env("PATH", &path).stdin(Stdio::null()).output()
    };
    let help = match run(&["expose", "--help"]) {
        Ok(output) => String::from_utf8(output.stdout)?,
        Err(error) => {
            std::fs::remove_dir_all(folder)?;
            announce(NAME, &format!("the program `kubectl` cannot be run: {error}"));
            return Ok(());
        }
    };
    let kubeconfig = cluster.server.kubeconfig().display().to_string();
    let output = run(&[&WEB[..], &["-n", "a", "--kubeconfig", &kubeconfig]].concat())?;
    std::fs::remove_dir_all(folder)?;
    ensure!(help.contains("Usage: kubectl vmlb expose"), "{help}");
    ensure!(output.status.success() && cluster.endpoints().len() == 2, "{output:?}");
    Ok(())
}
