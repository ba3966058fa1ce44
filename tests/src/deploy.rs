//! The files under `deploy/`, as objects: what they grant, and what kustomize makes of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::api_server::{Right, resource};

mod chart;
mod kustomize;

pub use chart::render;
pub use kustomize::build;

/// The folder `deploy/`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The cargo that built the tests, or else the one on the PATH.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Why a test that builds cannot run, if it cannot: root may have no cargo.
pub fn without_cargo() -> Option<String> {
    let found = cargo().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!found.is_ok_and(|status| status.success())).then(|| "no `cargo` can be run here".to_owned())
}

/// Objects of a stream of YAML documents.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).context("YAML")?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// Objects of one file under `deploy/`.
pub fn read(path: &str) -> Result<Vec<Value>> {
    let file = folder().join(path);
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    documents(&text).with_context(|| file.display().to_string())
}

/// Whose rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The DaemonSet's.
    Agent,
    /// Those of people who say `vmlb expose`.
    Expose,
}

/// Whether a ClusterRole grants what was asked for and nothing beyond.
///
/// # Errors
/// It does not; with what is too much and what is missing.
pub fn ensure_exactly(role: Role, asked: &BTreeSet<Right>) -> Result<()> {
    let granted = rights(role)?;
    ensure!(
        *asked == granted,
        "granted and never used: {:?}; used and not granted: {:?}",
        granted.difference(asked).collect::<Vec<_>>(),
        asked.difference(&granted).collect::<Vec<_>>()
    );
    Ok(())
}

/// What a ClusterRole grants.
pub fn rights(role: Role) -> Result<BTreeSet<Right>> {
    let name = match role {
        Role::Agent => "vmlb",
        Role::Expose => "vmlb-expose",
    };
    let objects = read("base/rbac.yaml")?;
    let object = objects
        .iter()
        .find(|object| object["kind"] == "ClusterRole" && object["metadata"]["name"] == name)
        .with_context(|| format!("no ClusterRole {name}"))?;
    let mut rights = BTreeSet::new();
    for rule in object["rules"].as_array().context("rules")? {
        let words = |field: &str| -> Vec<&str> {
            rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        for (group, plural) in words("apiGroups")
            .into_iter()
            .flat_map(|group| words("resources").into_iter().map(move |plural| (group, plural)))
        {
            let known = resource::ALL.iter().find(|one| (one.group, one.plural) == (group, plural));
            let known = known.with_context(|| format!("{name}: {plural} of {group:?} is not served"))?;
            for verb in words("verbs") {
                let verb =
                    VERBS.iter().find(|one| **one == verb).with_context(|| format!("{name}: {verb}"))?;
                rights.insert(Right { verb, group: known.group, resource: known.plural });
            }
        }
    }
    Ok(rights)
}

const VERBS: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];
