//! Metrics as a scraper sees them, checked against what was asked of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::Flags;
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace;
use vmlb_tests::probe::{get, wait};
use vmlb_tests::requests;
use vmlb_tests::servers;
use vmlb_tests::skip::{announce, unless_unable};
use vmlb_tests::topology::Attachment;

const METRICS: u16 = 9475;
/// Flows are counted again after five seconds at the earliest.
const RECOUNT: Duration = Duration::from_secs(10);

/// One scrape.
struct Scrape {
    text: String,
    /// Values by name and labels, as they stand.
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn of(cluster: &Cluster, node: usize) -> Result<Self> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS));
        let reply = cluster.topology.nodes[node].namespace.run(|| get(server, "/metrics"))?;
        ensure!(reply.status == 200, "{reply:?}");
        let kind = reply.headers.get("content-type").cloned().unwrap_or_default();
        ensure!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        let mut samples = BTreeMap::new();
        for line in reply.body.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("a sample: {line:?}"))?;
            ensure!(samples.insert(name.to_owned(), value.parse()?).is_none(), "{name} is there twice");
        }
        Ok(Self { text: reply.body, samples })
    }

    fn value(&self, name: &str) -> Result<f64> {
        self.samples.get(name).copied().with_context(|| format!("no {name} in\n{}", self.text))
    }

    /// The sum of all series of a metric whose labels hold `part`.
    fn sum(&self, metric: &str, part: &str) -> f64 {
        let of_metric = self.samples.iter().filter(|(name, _)| name.split('{').next() == Some(metric));
        of_metric.filter(|(name, _)| name.contains(part)).map(|(_, value)| value).sum()
    }
}

#[test]
fn metrics_count_what_was_asked_of_the_node() {
    unless_unable("metrics_count_what_was_asked_of_the_node", || {
        const REQUESTS: u32 = 30;
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let before = Scrape::of(&cluster, 0)?;
        let frontend = cluster.frontend("both", servers::HTTP, 0, Family::V4)?;
        let mut answers: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..REQUESTS {
            let answer = cluster.client().run(|| requests::http(frontend, "/"))?;
            *answers.entry(answer.pod().to_owned()).or_insert(0) += 1;
        }
        let after = Scrape::of(&cluster, 0)?;
        for (pod, count) in &answers {
            let labels = format!("{{backend=\"{pod}\",kind=\"vm\",namespace=\"default\"}}");
            let name = format!("vmlb_backend_new_flows_total{labels}");
            let grown = after.value(&name)? - before.samples.get(&name).copied().unwrap_or(0.0);
            ensure!(grown == f64::from(*count), "{name} has grown by {grown}, {count} were asked");
            for direction in ["request", "reply"] {
                let labels = format!(
                    "{{backend=\"{pod}\",direction=\"{direction}\",kind=\"vm\",namespace=\"default\"}}"
                );
                let packets = after.value(&format!("vmlb_backend_packets_total{labels}"))?;
                let octets = after.value(&format!("vmlb_backend_bytes_total{labels}"))?;
                // A handshake, a question or an answer, and an end: at least three packets of 40 octets and more.
                ensure!(
                    packets >= f64::from(3 * count) && octets >= 40.0 * packets,
                    "{pod} {direction}: {packets}, {octets}"
                );
            }
        }
        wait("the flows are counted anew", RECOUNT, || {
            let now = Scrape::of(&cluster, 0)?;
            let flows = now.sum("vmlb_flows", "protocol=\"tcp\"");
            let of_service = now.value("vmlb_service_flows{namespace=\"default\",service=\"both\"}")?;
            Ok(flows >= f64::from(REQUESTS)
                && of_service >= f64::from(REQUESTS)
                && now.sum("vmlb_backend_flows", "") >= flows)
        })?;
        // A packet in mid-flow that nobody knows.
        let punted = "vmlb_reason_packets_total{outcome=\"punted\",reason=\"mid_flow\"}";
        ensure!(after.value(punted)? >= 0.0);
        for map in
            ["service_names", "slots", "backend_names", "targets", "frontends_v4", "frontends_v6", "pods_v4"]
        {
            let entries = after.value(&format!("vmlb_map_entries{{map=\"{map}\"}}"))?;
            let capacity = after.value(&format!("vmlb_map_capacity_entries{{map=\"{map}\"}}"))?;
            ensure!(entries > 0.0 && entries < capacity, "{map}: {entries} of {capacity}");
        }
        // 3 Services of 6 ports.
        ensure!(after.value("vmlb_map_entries{map=\"service_names\"}")? == 18.0);
        ensure!(
            after.value("vmlb_sync_map_writes_total")? > 0.0 && after.value("vmlb_sync_errors_total")? == 0.0
        );
        ensure!(
            after.value("vmlb_sync_queued_changes")? == 0.0
                && after.value("vmlb_scrape_errors_total")? == 0.0
        );
        let age = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64()
            - after.value("vmlb_sync_last_success_timestamp_seconds")?;
        ensure!((0.0..120.0).contains(&age), "the last sync was {age} s ago");
        is_well_formed(&after)
    });
}

/// Every sample belongs to a metric that is described, by Prometheus' conventions.
fn is_well_formed(scrape: &Scrape) -> Result<()> {
    let described = |word: &str| -> BTreeMap<&str, &str> {
        let lines = scrape.text.lines().filter_map(|line| line.strip_prefix(word)?.split_once(' '));
        lines.collect()
    };
    let (helps, types) = (described("# HELP "), described("# TYPE "));
    ensure!(!helps.is_empty() && helps.keys().eq(types.keys()), "{helps:?} {types:?}");
    let mut seen = BTreeSet::new();
    for sample in scrape.samples.keys() {
        let name = sample.split('{').next().unwrap_or_default();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end).filter(|family| types.get(family) == Some(&"histogram")));
        let family = family.unwrap_or(name);
        ensure!(types.contains_key(family) && family.starts_with("vmlb_"), "{sample} is not described");
        seen.insert(family);
    }
    for (family, kind) in &types {
        ensure!((*kind == "counter") == family.ends_with("_total"), "{family} is a {kind}");
        ensure!(seen.contains(family), "{family} has no sample");
    }
    Ok(())
}

#[test]
fn the_latency_of_network_programming_is_measured_from_the_trigger_time() {
    unless_unable("the_latency_of_network_programming_is_measured_from_the_trigger_time", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let count = "vmlb_network_programming_duration_seconds_count";
        ensure!(Scrape::of(&cluster, 0)?.value(count)? == 0.0, "nothing has changed yet");
        let slice = |pod: &str, ago: Duration| -> Result<()> {
            let pod = cluster.find(pod)?;
            let time = SystemTime::now() - ago;
            let stamp = format!("@{}", time.duration_since(UNIX_EPOCH)?.as_secs_f64());
            let stamp =
                namespace::run(Command::new("date").args(["--utc", "--iso-8601=ns", "--date", &stamp]))?;
            let text = format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: more\n  namespace: default\n\
                 \x20 labels: {{kubernetes.io/service-name: first}}\n\
                 \x20 annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{}\"}}\n\
                 addressType: IPv4\nports: [{{name: http, protocol: TCP, port: {}}}]\n\
                 endpoints:\n- addresses: [\"{}\"]\n  nodeName: {}\n",
                stamp.trim().replace(',', ".").replace("+00:00", "Z"),
                servers::HTTP,
                pod.addresses.v4,
                pod.node
            );
            cluster.manifests.write("slice-more.yaml", text.as_bytes())
        };
        slice("vm02", Duration::ZERO)?;
        wait("the change is counted", Duration::from_secs(5), || {
            Ok(Scrape::of(&cluster, 0)?.value(count)? == 1.0)
        })?;
        let sum = "vmlb_network_programming_duration_seconds_sum";
        let first = Scrape::of(&cluster, 0)?.value(sum)?;
        ensure!(first > 0.0 && first < 5.0, "it took {first} s");
        slice("vm01", Duration::from_secs(100))?;
        wait("the change is counted", Duration::from_secs(5), || {
            Ok(Scrape::of(&cluster, 0)?.value(count)? == 2.0)
        })?;
        let second = Scrape::of(&cluster, 0)?.value(sum)? - first;
        ensure!((100.0..105.0).contains(&second), "a change of 100 s ago took {second} s");
        Ok(())
    });
}

#[test]
fn services_and_backends_beyond_the_limit_have_no_series_of_their_own() {
    unless_unable("services_and_backends_beyond_the_limit_have_no_series_of_their_own", || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::with(&["--metrics-detail", "1"]))?;
        for service in ["first", "second", "both"] {
            let frontend = cluster.frontend(service, servers::HTTP, 0, Family::V4)?;
            cluster.client().run(|| requests::http(frontend, "/"))?;
        }
        let scrape = Scrape::of(&cluster, 0)?;
        for (metric, label) in
            [("vmlb_service_flows", "service"), ("vmlb_backend_new_flows_total", "backend")]
        {
            let series = scrape.samples.keys().filter(|name| name.starts_with(metric)).count();
            let others = scrape.samples.keys().any(|name| name.contains(&format!("{label}=\"(others)\"")));
            ensure!(series == 2 && others, "{metric}: {}", scrape.text);
        }
        ensure!(scrape.sum("vmlb_backend_new_flows_total", "") == 3.0, "{}", scrape.text);
        Ok(())
    });
}

#[test]
fn promtool_finds_nothing_to_say() {
    const NAME: &str = "promtool_finds_nothing_to_say";
    if Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    {
        return announce(NAME, "the program `promtool` is not installed");
    }
    unless_unable(NAME, || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let text = Scrape::of(&cluster, 0)?.text;
        cluster.topology.nodes[0].namespace.feed("promtool", &["check", "metrics"], &text)
    });
}
