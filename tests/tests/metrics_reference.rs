//! `docs/metrics.md` is what the code says of its metrics; alerts and the dashboard name only metrics and labels that are
//! there. `VMLB_WRITE_DOCS=1` writes the page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_agent::health::Health;
use vmlb_agent::metrics::Metrics;
use vmlb_agent::pins::PinRoot;
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::watch::kube::Patience;
use vmlb_common::verdict::Reason;
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::api_server::ApiServer;
use vmlb_tests::api_server::follower::Follower;
use vmlb_tests::api_server::objects::{NODE, node};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::deploy::{folder, read};
use vmlb_tests::probe::{get, wait};
use vmlb_tests::skip::{announce, unless_unable};
use vmlb_tests::topology::Attachment;
use vmlb_tests::{requests, servers};

/// A metric as a scrape shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Described {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

type Catalogue = BTreeMap<String, Described>;

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")
}

/// Adds what a scrape shows.
fn describe(catalogue: &mut Catalogue, scrape: &str) {
    for line in scrape.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => catalogue.entry(name.to_owned()).or_default().help = help.to_owned(),
            ["#", "TYPE", name, kind] => catalogue.entry(name.to_owned()).or_default().kind = kind.to_owned(),
            _ => {
                let Some((name, labels)) = line.split_once('{') else { continue };
                let family = name.trim_end_matches("_bucket");
                let Some(described) = catalogue.get_mut(family) else { continue };
                let labels = labels.split("\",").filter_map(|label| label.split_once("=\""));
                described.labels.extend(labels.map(|(label, _)| label.to_owned()));
            }
        }
    }
}

/// What an agent shows that follows an API server; its maps are not there.
fn of_the_loop() -> Result<String> {
    let folder = std::env::temp_dir().join(format!("vmlb-metrics-{}", std::process::id()));
    let server = ApiServer::start(&folder)?;
    server.put(node(NODE, "192.0.2.1"))?;
    let mut follower = Follower::start(&server.kubeconfig(), Patience::default(), Memory::default())?;
    follower.until(Duration::from_secs(5), "six watches", |_| server.watches() == 6)?;
    let root = PinRoot::new(Path::new("/sys/fs/bpf/vmlb-not-there"));
    let metrics = Metrics::new(&root, NODE, 1, Arc::new(Health::new(Duration::from_secs(60))))?;
    metrics.show_watches(follower.board.clone());
    fs::remove_dir_all(folder)?;
    metrics.text()
}

/// What an agent shows with traffic.
fn of_the_maps() -> Result<String> {
    let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
    let frontend = cluster.frontend("first", servers::HTTP, 0, Family::V4)?;
    cluster.client().run(|| requests::http(frontend, "/"))?;
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, 9475));
    let mut text = String::new();
    wait("flows are counted", Duration::from_secs(10), || {
        text = cluster.topology.nodes[0].namespace.run(|| get(server, "/metrics"))?.body;
        Ok(["vmlb_service_flows{", "vmlb_backend_flows{", "vmlb_flows{"]
            .iter()
            .all(|name| text.contains(name)))
    })?;
    Ok(text)
}

fn render(catalogue: &Catalogue) -> Result<String> {
    let mut text = String::from(
        "# Metrics\n\n<!-- Written by the tests from what the agent shows: VMLB_WRITE_DOCS=1 cargo xtask test page -->\n\n\
         At `--metrics-address` (the manifests: port 9475 of every node), in Prometheus' text format. Services, and VMs and\n\
         pods beyond the first `--metrics-detail` (1000) of each are added up as `(others)`, so that the number of series is\n\
         bounded. Map entries and flows are counted at most every five seconds. Those of live migration do not name VMs:\n\
         `vmlb migrations` and Events on the VirtualMachineInstance do.\n\n\
         Packets, octets and new flows are counted by VM or pod, not by Service: the datapath counts each packet once, at the\n\
         backend, and a second count for the Service would cost every packet another lookup. Where a VM is behind one Service\n\
         its figures are the Service's; `vmlb_service_flows` is counted from the flow tables, which know the Service.\n\n\
         Alerts are in [deploy/prometheus/rules.yaml](../deploy/prometheus/rules.yaml), a dashboard is\n\
         [deploy/grafana/vmlb.json](../deploy/grafana/vmlb.json).\n\n| metric | type | labels | is |\n|---|---|---|---|\n",
    );
    for (name, Described { kind, help, labels }) in catalogue {
        let labels: Vec<String> =
            labels.iter().filter(|label| *label != "le").map(|label| format!("`{label}`")).collect();
        writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", "))?;
    }
    text.push_str("\n## Reasons\n\nLabel `reason` of `vmlb_reason_packets_total`, and what `vmlb drops` shows:\n\n| reason | is |\n|---|---|\n");
    for reason in Reason::ALL.iter().skip(1) {
        writeln!(text, "| `{}` | {} |", reason.name(), reason.explanation())?;
    }
    Ok(text)
}

#[test]
fn the_reference_page_is_what_the_code_says_of_its_metrics() {
    const NAME: &str = "the_reference_page_is_what_the_code_says_of_its_metrics";
    unless_unable(NAME, || {
        let mut catalogue = Catalogue::new();
        describe(&mut catalogue, &of_the_loop()?);
        describe(&mut catalogue, &of_the_maps()?);
        for (name, described) in &catalogue {
            ensure!(!described.help.is_empty() && !described.kind.is_empty(), "{name}: {described:?}");
        }
        let text = render(&catalogue)?;
        if std::env::var_os("VMLB_WRITE_DOCS").is_some() {
            fs::write(page(), &text)?;
        }
        let found = fs::read_to_string(page())?;
        for (number, (found, wanted)) in found.lines().zip(text.lines()).enumerate() {
            ensure!(found == wanted, "docs/metrics.md:{}:\n{found}\nis now\n{wanted}", number + 1);
        }
        ensure!(found == text, "docs/metrics.md has another length than what the code says");
        Ok(())
    });
}

/// The page as a catalogue.
fn documented() -> Result<Catalogue> {
    let text = fs::read_to_string(page()).context("docs/metrics.md")?;
    let mut catalogue = Catalogue::new();
    for line in text.lines().filter(|line| line.starts_with("| `vmlb_")) {
        let cells: Vec<&str> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [name, kind, labels, help] = cells[..] else { anyhow::bail!("{line:?}") };
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        catalogue.insert(name.to_owned(), Described { kind: kind.to_owned(), help: help.to_owned(), labels });
    }
    ensure!(catalogue.len() > 15, "{catalogue:?}");
    Ok(catalogue)
}

/// Words of a query that look like names: metrics, and labels in braces and after `by` and `on`.
fn check_query(catalogue: &Catalogue, query: &str) -> Result<()> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut labels: BTreeSet<&str> = ["instance", "job", "le"].into();
    let mut count = 0;
    for word in query.split(|letter: char| !is_word(letter)).filter(|word| word.starts_with("vmlb_")) {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let base = word.strip_suffix(end)?;
            catalogue.get(base).filter(|described| described.kind == "histogram").map(|_| base)
        });
        let name = base.unwrap_or(word);
        let described = catalogue.get(name).with_context(|| format!("{query}: there is no metric {name}"))?;
        ensure!(
            base.is_some() == (described.kind == "histogram"),
            "{query}: {name} is a {}, asked for as {word}",
            described.kind
        );
        labels.extend(described.labels.iter().map(String::as_str));
        count += 1;
    }
    ensure!(count > 0 || query.contains("up{"), "{query}: names no metric of vmlb");
    for (opening, closing, separator) in [("{", '}', ","), (" by (", ')', ","), (" on (", ')', ",")] {
        for part in query.split(opening).skip(1) {
            let inside = part.split(closing).next().unwrap_or_default();
            for label in inside.split(separator) {
                let label: &str = label.trim().split(['=', '!']).next().unwrap_or_default().trim();
                ensure!(
                    label.is_empty() || labels.contains(label),
                    "{query}: there is no label {label:?} here"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_query_for_what_is_not_there_is_noticed() -> Result<()> {
    let catalogue = documented()?;
    check_query(&catalogue, "sum by (kind) (vmlb_watch_failures{kind=\"Pod\"})")?;
    for wrong in [
        "vmlb_watch_fails",
        "vmlb_watch_failures{node=\"a\"}",
        "sum by (pod) (vmlb_watch_failures)",
        "vmlb_sync_duration_seconds > 1",
        "rate(vmlb_sync_errors_total_bucket[5m])",
        "node_load1",
    ] {
        ensure!(check_query(&catalogue, wrong).is_err(), "{wrong}");
    }
    Ok(())
}

#[test]
fn alerts_and_dashboard_name_only_metrics_and_labels_that_are_there() -> Result<()> {
    let catalogue = documented()?;
    let rules = read("prometheus/rules.yaml")?;
    let mut queries: Vec<String> = Vec::new();
    for rule in rules[0]["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|group| group["rules"].as_array())
        .flatten()
    {
        queries.push(rule["expr"].as_str().context("expr")?.replace('\n', " "));
    }
    ensure!(queries.len() >= 8, "{queries:?}");
    let text = fs::read_to_string(folder().join("grafana/vmlb.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    for panel in dashboard["panels"].as_array().context("panels")? {
        for target in panel["targets"].as_array().context("targets")? {
            queries.push(target["expr"].as_str().context("expr")?.to_owned());
        }
    }
    for query in &queries {
        check_query(&catalogue, query)?;
    }
    let used = |name: &String| queries.iter().any(|query| query.contains(name.as_str()));
    let unused: Vec<&String> = catalogue.keys().filter(|name| !used(name)).collect();
    // Shown by no panel on purpose.
    ensure!(unused == ["vmlb_scrape_errors_total", "vmlb_watch_lists_total"], "{unused:?}");
    // Reasons in queries are reasons of the datapath.
    for query in queries.iter().filter(|query| query.contains("reason")) {
        for part in query
            .split("reason")
            .skip(1)
            .filter_map(|part| part.split('"').nth(1).filter(|_| part.starts_with(['=', '!'])))
        {
            for reason in part.split('|') {
                ensure!(
                    Reason::ALL.iter().any(|known| known.name() == reason),
                    "{query}: no reason {reason}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn promtool_takes_the_rules_and_their_tests_pass() -> Result<()> {
    const NAME: &str = "promtool_takes_the_rules_and_their_tests_pass";
    let run = |arguments: &[&str]| {
        let mut command = Command::new("promtool");
        command.args(arguments).current_dir(folder().join("prometheus")).stdin(Stdio::null()).output()
    };
    if run(&["--version"]).is_err() {
        announce(NAME, "the program `promtool` is not installed");
        return Ok(());
    }
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"]] {
        let output = run(&arguments)?;
        ensure!(output.status.success(), "promtool {arguments:?}: {output:?}");
    }
    Ok(())
}
