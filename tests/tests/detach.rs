//! `vmlb detach` leaves a node as it was found.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Agent, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::namespace::{self, Namespace};
use vmlb_tests::skip::unless_unable;
use vmlb_tests::topology::{Attachment, Node};
use vmlb_tests::{maps, requests, servers};

#[test]
fn detach_leaves_no_program_map_link_pin_rule_sysctl_or_managed_neighbour() {
    unless_unable("detach_leaves_no_program_map_link_pin_rule_sysctl_or_managed_neighbour", || {
        for device in ["eth0=xdp", "eth0=tc"] {
            detach_leaves_nothing(&Flags { device: device.to_owned(), ..Flags::default() })
                .context(device)?;
        }
        Ok(())
    });
}

fn detach_leaves_nothing(flags: &Flags) -> Result<()> {
    let mut cluster = Cluster::build(Attachment::Routed)?;
    let before = cluster.topology.nodes.iter().map(Surroundings::take).collect::<Result<Vec<_>>>()?;
    cluster.start_agents(flags)?;
    for family in Family::ALL {
        for service in ["first", "second"] {
            let frontend = cluster.frontend(service, servers::HTTP, 0, family)?;
            cluster.client().run(|| requests::http(frontend, "/"))?;
        }
    }
    for (index, node) in cluster.topology.nodes.iter().enumerate() {
        let managed = managed_neighbours(&node.namespace)?;
        let kept = maps::dump(node, "neighbours")?.len();
        // The gateway and the other node, in both families.
        ensure!(
            managed.len() == kept && kept >= 4,
            "{kept} next hops are kept, the kernel manages {managed:?}"
        );
        let ids = Ids::take(node)?;
        ensure!(
            ids.count() > 20,
            "only {} programs, maps and links were found before detaching",
            ids.count()
        );
        cluster.agents[index].take().map(Agent::stop).transpose()?;
        agent::detach(node).context("detach")?;
        // It may be called again, and changes nothing then.
        agent::detach(node).context("detach of what is detached")?;
        ids.wait_until_gone()?;
        let managed = managed_neighbours(&node.namespace)?;
        ensure!(managed.is_empty(), "the kernel still manages {managed:?}");
        before[index].compare(&Surroundings::take(node)?).with_context(|| node.name.clone())?;
        let pins = maps::pins(node);
        ensure!(pins.is_empty(), "pins are left: {pins:?}");
        ensure!(
            !attached(&node.namespace)?,
            "a program is attached: {}",
            node.namespace.output("bpftool", &["net"])?
        );
    }
    for family in Family::ALL {
        let frontend = cluster.frontend("first", servers::HTTP, 0, family)?;
        let refused =
            cluster.client().run(|| std::net::TcpStream::connect_timeout(&frontend, Duration::from_secs(2)));
        ensure!(refused.is_err(), "{frontend} is still served");
    }
    Ok(())
}

/// Whether any program is attached to any device of the namespace.
fn attached(host: &Namespace) -> Result<bool> {
    let listing: Value = serde_json::from_str(&host.output("bpftool", &["--json", "net"])?)?;
    let kinds = listing.as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
    Ok(kinds.filter_map(|(_, programs)| programs.as_array()).any(|programs| !programs.is_empty()))
}

/// What a node looks like apart from vmlb.
struct Surroundings(BTreeMap<String, String>);

impl Surroundings {
    fn take(node: &Node) -> Result<Self> {
        let host = &node.namespace;
        let mut seen: BTreeMap<String, String> = host.run(|| {
            let mut values = BTreeMap::new();
            read_tree(Path::new("/proc/sys/net"), &mut values);
            values
        });
        ensure!(seen.len() > 100, "only {} sysctls were found", seen.len());
        for (title, program, arguments) in [
            ("links", "ip", &["-details", "-oneline", "link"][..]),
            ("addresses", "ip", &["-oneline", "address"]),
            ("IPv4 routes", "ip", &["-4", "route", "show", "table", "all"]),
            ("IPv6 routes", "ip", &["-6", "route", "show", "table", "all"]),
            ("policy rules", "ip", &["rule"]),
            ("queueing disciplines", "tc", &["qdisc"]),
            ("netfilter", "nft", &["list", "ruleset"]),
        ] {
            seen.insert(title.to_owned(), host.output(program, arguments)?);
        }
        seen.insert("managed neighbours".to_owned(), managed_neighbours(host)?.concat());
        Ok(Self(seen))
    }

    fn compare(&self, after: &Self) -> Result<()> {
        for (title, was) in &self.0 {
            let is = after.0.get(title);
            ensure!(is == Some(was), "{title} was\n{was}\nis\n{}", is.map_or("gone", String::as_str));
        }
        Ok(())
    }
}

/// Neighbours that the kernel keeps fresh by itself (`NTF_EXT_MANAGED`), as iproute2 shows them.
fn managed_neighbours(host: &Namespace) -> Result<Vec<String>> {
    let neighbours = host.output("ip", &["-details", "neigh"])?;
    let managed = neighbours.lines().filter(|line| line.split_whitespace().any(|word| word == "managed"));
    Ok(managed.map(str::to_owned).collect())
}

/// Reads every file of a folder of sysctls that can be read.
fn read_tree(folder: &Path, values: &mut BTreeMap<String, String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            read_tree(&path, values);
        } else if let Ok(value) = fs::read_to_string(&path) {
            values.insert(path.display().to_string(), value);
        }
    }
}

/// Kernel objects that the pins of a node hold, by kind and id.
struct Ids(Vec<(&'static str, u64)>);

impl Ids {
    fn take(node: &Node) -> Result<Self> {
        let mut found = Vec::new();
        for pin in maps::pins(node) {
            let (kind, id) = identify(&pin)?;
            found.push((kind, id));
            if kind == "link" {
                let link = show(&["link", "show", "id", &id.to_string()]).context("a link's program")?;
                found.extend(link["prog_id"].as_u64().map(|program| ("prog", program)));
            }
        }
        Ok(Self(found))
    }

    fn count(&self) -> usize {
        self.0.len()
    }

    /// The kernel frees objects after a grace period.
    fn wait_until_gone(&self) -> Result<()> {
        let start = Instant::now();
        for (kind, id) in &self.0 {
            while show(&[kind, "show", "id", &id.to_string()]).is_ok() {
                ensure!(start.elapsed() < Duration::from_secs(5), "{kind} {id} is still in the kernel");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

/// What a pin holds.
fn identify(pin: &Path) -> Result<(&'static str, u64)> {
    let path = pin.to_str().context("pins have plain names")?;
    for kind in ["map", "link", "prog"] {
        if let Ok(shown) = show(&[kind, "show", "pinned", path]) {
            return Ok((kind, shown["id"].as_u64().context("objects have ids")?));
        }
    }
    anyhow::bail!("bpftool knows no map, link or program at {path}")
}

fn show(arguments: &[&str]) -> Result<Value> {
    let text = namespace::run(Command::new("bpftool").arg("--json").args(arguments))?;
    Ok(serde_json::from_str(&text)?)
}
