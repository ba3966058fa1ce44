//! The operator's commands, as a person or a script calls them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::probe::wait;
use vmlb_tests::requests::{self, Conversation};
use vmlb_tests::servers;
use vmlb_tests::service::Service;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::{Attachment, Node};

#[path = "commands/scale.rs"]
mod scale;
#[path = "commands/traffic.rs"]
mod traffic;

const COMMANDS: [&str; 5] = ["status", "services", "backends", "flows", "drops"];
const SOON: Duration = Duration::from_secs(5);

fn output(node: &Node, arguments: &[&str]) -> Result<Output> {
    let output = agent::command(node, arguments)?.output()?;
    ensure!(output.status.success(), "vmlb {arguments:?}: {output:?}");
    Ok(output)
}

fn text(node: &Node, arguments: &[&str]) -> Result<String> {
    Ok(String::from_utf8(output(node, arguments)?.stdout)?)
}

/// Rows of a list as JSON.
fn rows(node: &Node, arguments: &[&str]) -> Result<Vec<Value>> {
    let value = agent::json(node, arguments)?;
    value.as_array().cloned().with_context(|| format!("{arguments:?}: not a list: {value}"))
}

/// The row in which `field` is `value`.
fn row(rows: &[Value], field: &str, value: &str) -> Result<Value> {
    rows.iter()
        .find(|row| row[field] == value)
        .cloned()
        .with_context(|| format!("no {field} {value}: {rows:?}"))
}

/// A VM with a sessionAffinity that there is not.
fn publish_left(cluster: &Cluster) -> Result<()> {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: sticky, namespace: default}\nspec:\n  type: NodePort\n\
                \x20 sessionAffinity: Cookie\n  ports: [{name: http, protocol: TCP, port: 80, nodePort: 31800}]\n";
    cluster.manifests.write("service-sticky.yaml", text.as_bytes())
}

#[test]
fn commands_show_what_the_node_does() {
    unless_unable("commands_show_what_the_node_does", || {
        let mut cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        publish_left(&cluster)?;
        cluster.publish(Service::single("empty", 31700, servers::HTTP), &[])?;
        cluster.wait_until_serving()?;
        let mut conversations = Vec::new();
        for (service, family) in [("first", Family::V4), ("second", Family::V4), ("second", Family::V6)] {
            let frontend = cluster.frontend(service, servers::LINES, 0, family)?;
            let mut conversation = cluster.client().run(|| Conversation::open(frontend))?;
            conversation.ask("hello")?;
            conversations.push(conversation);
        }
        let echo = cluster.frontend("first", servers::ECHO, 0, Family::V4)?;
        cluster.client().run(|| requests::echo(&requests::datagrams(echo)?, b"hello"))?;
        // Nobody is behind it: the node's stack refuses.
        let empty = cluster.frontend("empty", servers::HTTP, 0, Family::V4)?;
        ensure!(cluster.client().run(|| requests::http(empty, "/")).is_err());
        let node = &cluster.topology.nodes[0];
        services(node)?;
        backends(node)?;
        flows(node, &cluster.topology.clients[0].addresses.v4.to_string())?;
        drops(node)?;
        status(node)?;
        let pid = cluster.agents[0].take().context("an agent")?;
        pid.kill()?;
        let node = &cluster.topology.nodes[0];
        for command in COMMANDS {
            ensure!(!text(node, &[command])?.is_empty(), "{command} without an agent");
        }
        let status = agent::json(node, &["status"])?;
        ensure!(
            status["agent"]["pid"].is_null() && text(node, &["status"])?.contains("not running"),
            "{status}"
        );
        ensure!(
            row(&rows(node, &["services"])?, "name", "sticky")?["reason"].is_string(),
            "it is still known"
        );
        Ok(())
    });
}

fn services(node: &Node) -> Result<()> {
    wait("the reason is told", SOON, || {
        let sticky = row(&rows(node, &["services"])?, "name", "sticky")?;
        Ok(sticky["reason"].as_str().is_some_and(|reason| reason.contains("sessionAffinity"))
            && sticky["id"].is_null())
    })?;
    let all = rows(node, &["services"])?;
    ensure!(all.len() == 3 * 6 + 2, "{} rows", all.len());
    let both = all.iter().find(|row| row["name"] == "both" && row["portName"] == "http").context("both")?;
    let shares: Vec<f64> = both["backends"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|backend| backend["share"].as_f64())
        .collect();
    ensure!(shares.len() == 2 && (99.8..=100.0).contains(&shares.iter().sum()), "{shares:?}");
    let names: Vec<&str> = all.iter().filter_map(|row| row["name"].as_str()).collect();
    ensure!(names.is_sorted(), "{names:?}");
    let table = text(node, &["services"])?;
    let line = |name: &str| {
        table.lines().find(|line| line.starts_with(name)).with_context(|| format!("{name}: {table}"))
    };
    ensure!(line("default/sticky")?.contains("sessionAffinity is neither None nor ClientIP"));
    ensure!(line("default/empty")?.contains("none-usable"));
    let wide = text(node, &["services", "--output", "wide"])?;
    ensure!(
        wide.lines().count() == table.lines().count() && wide.contains("SLOTS") && !table.contains("SLOTS")
    );
    Ok(())
}

fn backends(node: &Node) -> Result<()> {
    let all = rows(node, &["backends"])?;
    ensure!(all.len() == 2, "{all:?}");
    let [first, second] = ["vm01", "vm02"].map(|name| row(&all, "name", name));
    let (first, second) = (first?, second?);
    for (backend, host, flows) in [(&first, "node1", 2), (&second, "node2", 2)] {
        ensure!(
            backend["kind"] == "VM" && backend["namespace"] == "default" && backend["node"] == host,
            "{backend}"
        );
        ensure!(backend["addresses"].as_array().is_some_and(|addresses| addresses.len() == 2), "{backend}");
        ensure!(backend["targets"].as_array().is_some_and(|targets| targets.len() == 6), "{backend}");
        ensure!(backend["weight"] == 100, "{backend}");
        // Alone in one Service, one of two in another.
        ensure!(backend["share"].as_f64().is_some_and(|share| (50.0..90.0).contains(&share)), "{backend}");
        ensure!(backend["flows"] == flows && backend["traffic"]["newFlows"] == flows, "{backend}");
        ensure!(
            backend["traffic"]["requestPackets"].as_u64().is_some_and(|packets| packets >= 4),
            "{backend}"
        );
        ensure!(backend["traffic"]["replyOctets"].as_u64().is_some_and(|octets| octets >= 160), "{backend}");
    }
    let table = text(node, &["backends"])?;
    ensure!(table.lines().count() == 3 && table.contains("default/vm01"), "{table}");
    ensure!(text(node, &["backends", "--output", "wide"])?.contains("REPLY-BYTES"));
    Ok(())
}

fn flows(node: &Node, client: &str) -> Result<()> {
    let count =
        |arguments: &[&str]| Ok::<_, anyhow::Error>(rows(node, &[&["flows"], arguments].concat())?.len());
    ensure!(count(&[])? == 4, "{:?}", rows(node, &["flows"]));
    let tenth = format!("{}/8", client);
    for (arguments, wanted) in [
        (&["--service", "default/second"][..], 2),
        (&["--service", "first"], 2),
        (&["--service", "secon"], 0),
        (&["--backend", "vm01"], 2),
        (&["--backend", "default/vm02", "--client", client], 1),
        (&["--client", client], 3),
        (&["--client", &tenth], 3),
        (&["--client", "10.0.0.1"], 0),
        (&["--protocol", "udp"], 1),
        (&["--protocol", "tcp", "--state", "established"], 3),
        (&["--state", "closed"], 0),
        (&["--limit", "3"], 3),
        (&["--limit", "0"], 0),
    ] {
        ensure!(count(arguments)? == wanted, "{arguments:?}: {} flows", count(arguments)?);
    }
    let limited = output(node, &["flows", "--limit", "1"])?;
    ensure!(String::from_utf8_lossy(&limited.stderr).contains("more flows than --limit"), "{limited:?}");
    let second =
        row(&rows(node, &["flows", "--service", "second", "--client", client])?, "backend", "default/vm02")?;
    ensure!(
        second["delivery"] == "snat"
            && second["way"] == "uplink"
            && second["device"] == "eth0"
            && second["state"] == "established",
        "{second}"
    );
    ensure!(second["peer"] != second["client"] && second["target"].is_string(), "{second}");
    Ok(())
}

fn drops(node: &Node) -> Result<()> {
    let rejected = row(&rows(node, &["drops"])?, "reason", "no_backend")?;
    ensure!(rejected["outcome"] == "rejected" && rejected["packets"].as_u64() >= Some(1), "{rejected}");
    ensure!(
        rejected["rate"].is_null() && rejected["explanation"].as_str().is_some_and(|text| text.len() > 10)
    );
    let all = rows(node, &["drops", "--all"])?;
    ensure!(all.len() > 15 && all.iter().any(|row| row["packets"] == 0), "{all:?}");
    let mut watch = Watched::start(node, &["drops", "--output", "json", "--watch", "0.2"])?;
    let first: Value = serde_json::from_str(&watch.line()?)?;
    let second: Value = serde_json::from_str(&watch.line()?)?;
    ensure!(first[0]["rate"].is_null() && second[0]["rate"].is_number(), "{first} {second}");
    Ok(())
}

fn status(node: &Node) -> Result<()> {
    let status = agent::json(node, &["status"])?;
    ensure!(status["node"] == "node1" && status["agent"]["pid"].is_number(), "{status}");
    ensure!(
        status["sync"]["age"].as_u64().is_some_and(|age| age < 120) && status["sync"]["error"].is_null(),
        "{status}"
    );
    let uplink = status["devices"].as_array().into_iter().flatten().find(|device| device["name"] == "eth0");
    ensure!(uplink.is_some_and(|uplink| uplink["mode"] == "xdp"), "{status}");
    ensure!(status["flows"][0]["established"].as_u64() >= Some(2), "{status}");
    ensure!(status["portsServed"] == 19 && status["portsLeft"] == 1, "{status}");
    ensure!(
        row(status["reasons"].as_array().context("reasons")?, "reason", "no_backend").is_ok(),
        "{status}"
    );
    ensure!(
        row(status["tables"].as_array().context("tables")?, "map", "slots")?["entries"].as_u64() > Some(0)
    );
    let way = row(status["ways"].as_array().context("ways")?, "way", "uplink")?;
    ensure!(way["device"] == "eth0" && way["backends"].as_u64() >= Some(1), "{way}");
    let backend = row(status["backends"].as_array().context("backends")?, "name", "default/vm01")?;
    ensure!(backend["ways"][0]["way"] == "stack" && backend["ways"][1]["way"] == "stack", "{backend}");
    let wide = text(node, &["status", "--output", "wide"])?;
    ensure!(
        wide.lines().any(|line| line.starts_with("default/vm01") && line.contains("on this node")),
        "{wide}"
    );
    let text = text(node, &["status"])?;
    ensure!(!text.contains("\ndefault/vm01"), "each backend, though nobody asked: {text}");
    ensure!(text.contains("follow the objects as of") && text.contains("10256 for health"), "{text}");
    Ok(())
}

/// A command that answers again and again; killed when dropped.
struct Watched {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watched {
    fn start(node: &Node, arguments: &[&str]) -> Result<Self> {
        let mut child =
            agent::command(node, arguments)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "it ended: {line:?}");
        Ok(line)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn piped_output_is_plain_and_a_reader_that_goes_is_no_error() {
    unless_unable("piped_output_is_plain_and_a_reader_that_goes_is_no_error", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        publish_left(&cluster)?;
        let frontend = cluster.frontend("both", servers::LINES, 0, Family::V4)?;
        let mut conversation = cluster.client().run(|| Conversation::open(frontend))?;
        conversation.ask("hello")?;
        let node = &cluster.topology.nodes[0];
        for command in COMMANDS {
            for form in ["table", "wide", "json"] {
                let text = text(node, &[command, "--output", form])?;
                ensure!(
                    text.ends_with('\n') && !text.contains(['\x1b', '\t', '\r']),
                    "{command} {form}: {text:?}"
                );
                ensure!(!text.lines().any(|line| line.ends_with(' ')), "{command} {form}: {text:?}");
                if command != "status" && form != "json" {
                    // Every row has a word for every column but the last, which may be a sentence.
                    let mut lines = text.lines();
                    let heads = lines.next().context("heads")?.split_whitespace().count();
                    ensure!(
                        lines.all(|line| line.split_whitespace().count() >= heads),
                        "{command} {form}: {text}"
                    );
                }
            }
            let mut watch = Watched::start(node, &[command, "--watch", "0.1"])?;
            let first = watch.line()?;
            ensure!(!first.contains('\x1b'), "{command}: {first:?}");
            // `head -1` is gone now.
            watch.lines = BufReader::new(
                Command::new("true").stdout(Stdio::piped()).spawn()?.stdout.take().context("a pipe")?,
            );
            let mut said = String::new();
            let ended = watch.child.wait()?;
            watch.child.stderr.take().context("a pipe was asked for")?.read_to_string(&mut said)?;
            ensure!(ended.success() && said.is_empty(), "{command}: {ended}, {said}");
        }
        Ok(())
    });
}

#[test]
fn without_privileges_the_needed_ones_are_named() {
    unless_unable("without_privileges_the_needed_ones_are_named", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let node = &cluster.topology.nodes[0];
        // The build's folder may be closed to others.
        let copy = cluster.topology.folder("binary")?.join("vmlb");
        fs::copy(agent::binary()?, &copy)?;
        for command in COMMANDS {
            // The pins are the same in every network namespace; entering one takes privileges.
            let mut unprivileged = Command::new(&copy);
            unprivileged.arg(command).arg("--pin-root").arg(&node.pin_root).uid(65_534).gid(65_534);
            let output = unprivileged.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(4), "{command}: {output:?}");
            ensure!(
                said.contains("CAP_BPF") && said.contains("CAP_SYS_ADMIN") && said.lines().count() == 1,
                "{command}: {said}"
            );
        }
        Ok(())
    });
}

#[test]
fn with_nothing_installed_commands_say_so_and_what_to_do() -> Result<()> {
    let binary = match agent::binary() {
        Ok(binary) => binary,
        Err(error) => {
            vmlb_tests::skip::announce(
                "with_nothing_installed_commands_say_so_and_what_to_do",
                &error.to_string(),
            );
            return Ok(());
        }
    };
    let absent = Path::new("/sys/fs/bpf").join(format!("vmlb-absent-{}", std::process::id()));
    let mut messages = BTreeSet::new();
    for command in COMMANDS {
        let output = Command::new(&binary).arg(command).arg("--pin-root").arg(&absent).output()?;
        ensure!(output.status.code() == Some(3) && output.stdout.is_empty(), "{command}: {output:?}");
        messages.insert(String::from_utf8(output.stderr)?);
        let help = Command::new(&binary).args([command, "--help"]).output()?;
        let help = String::from_utf8(help.stdout)?;
        for word in ["Exit codes: 0", "3 nothing", "4 not permitted", "--watch", "wide"] {
            ensure!(help.contains(word), "{command} --help does not say {word:?}:\n{help}");
        }
    }
    let message = messages.first().context("a message")?;
    ensure!(
        messages.len() == 1 && message.contains("vmlb agent") && message.contains("--pin-root"),
        "{messages:?}"
    );
    for wrong in
        [&["flows", "--client", "web"][..], &["drops", "--watch", "0"], &["status", "--output", "yaml"]]
    {
        let output = Command::new(&binary).args(wrong).output()?;
        ensure!(output.status.code() == Some(2), "{wrong:?}: {output:?}");
    }
    Ok(())
}
