//! The rights that the commands take: those of ClusterRole `vmlb-expose`, and what is said where one is missing.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use vmlb_tests::api_server::Right;
use vmlb_tests::deploy::{self, Role};

use crate::cluster::{Cluster, WEB};

const MIXED: [&str; 15] = [
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
    "80",
];
const AGAIN: [&str; 7] = ["expose", "--vm", "vm02", "--name", "web", "--port", "443"];
const TEMPLATE: [&str; 8] = ["expose", "--pool", "pool", "--pool-template", "--name", "web", "--port", "443"];

/// Every way through the commands, and what they asked for.
fn asked(cluster: &Cluster) -> Result<BTreeSet<Right>> {
    cluster.server.take_rights();
    for words in [&MIXED[..], &AGAIN, &TEMPLATE, &["unexpose", "--name", "web"]] {
        cluster.done(words)?;
    }
    // To tell who there is beside who is not.
    for flag in ["--vm", "--vmi", "--pool", "--replica-set", "--pod"] {
        cluster.refused(&["expose", flag, "nobody", "--name", "web", "--port", "80"], 1)?;
    }
    Ok(cluster.server.take_rights())
}

#[test]
fn the_role_grants_exactly_what_the_commands_ask_for() -> Result<()> {
    deploy::ensure_exactly(Role::Expose, &asked(&Cluster::new()?)?)
}

/// Rights whose lack costs something that is told and not the whole command.
fn is_optional(right: &Right) -> bool {
    // Addresses of nodes are shown as a convenience.
    (right.verb, right.resource) == ("list", "nodes")
}

#[test]
fn each_right_that_is_missing_is_named_and_nothing_is_changed() -> Result<()> {
    for right in deploy::rights(Role::Expose)? {
        let cluster = Cluster::new()?;
        let whole = [&WEB[..], &MIXED[1..11], &["--pool-template"]].concat();
        // The group is there where it takes one to change or to delete.
        let is_last = matches!(right.verb, "delete") || (right.verb, right.resource) == ("patch", "services");
        let lists_all = right.verb == "list" && right.group.ends_with("kubevirt.io");
        if is_last || lists_all {
            cluster.done(&whole)?;
        }
        let words = match (right.verb, is_last || lists_all) {
            ("patch", true) => [&whole[..], &["--port", "443"]].concat(),
            (_, true) => vec!["unexpose", "--name", "web"],
            _ => whole,
        };
        let before = cluster.everything();
        cluster.server.behave(|faults| faults.forbidden = vec![(right.verb, right.resource)]);
        let said = cluster.say(&words)?;
        if is_optional(&right) {
            ensure!(said.code == 0 && said.out.contains("you may not list nodes"), "{right:?}: {said:?}");
            continue;
        }
        let name = if right.group.is_empty() {
            right.resource.to_owned()
        } else {
            format!("{}.{}", right.resource, right.group)
        };
        let wanted = format!("you may not {} {name} in namespace a", right.verb);
        ensure!(said.code == 4 && said.err.contains(&wanted), "{right:?}: {said:?}");
        // Endpoints are looked at when everything is made.
        if right.resource != "endpointslices" {
            ensure!(cluster.everything() == before, "{right:?}: {said:?}");
        }
    }
    Ok(())
}
