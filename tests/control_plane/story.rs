//! A golden story: steps and what is in the maps after them, in one file.
//!
//! A line `-- word arguments --` begins a section. Sections that do something: `node NAME [flag...]`, `capacity
//! KEY=N...`, `addresses A...` (a star marks a main one), `device INDEX A...` (a device with SNAT addresses), `snat
//! A-B`, `write FILE` (its body is the file; `@MEGABYTE@` in it stands for a million letters), `octets FILE HEX...`,
//! `remove FILE`, `flows NAME...` (what flows name), `wait SECONDS`, `fail N` (the N+1st change from now on fails), `mend`, `restart`.
//! Sections whose body is compared, and rewritten when `UPDATE_GOLDEN` is set: `dump`, `warnings`, `services`, `writes`
//! (changes since the last such section).

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use vmlb_agent::desired::Frontend;
use vmlb_agent::facts::{NodeAddress, NodeFacts};
use vmlb_agent::serving::Serving;
use vmlb_agent::sync::Sync;
use vmlb_agent::tables::memory::Memory;
use vmlb_agent::tables::{Capacity, InFlows, address4, address6};
use vmlb_agent::watch::manifests::Manifests;
use vmlb_common::abi::{Device, DeviceFlags, PortRange, TargetKey};
use vmlb_common::wire::Protocol;

/// The agent's flags that a story can give.
#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    serving: Serving,
}

/// A section of the file.
struct Section {
    head: String,
    body: String,
}

/// Runs the story in `path`.
///
/// # Errors
/// When a section cannot be understood, or does not hold what the maps show.
pub fn run(path: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(path)?;
    let (prose, mut sections) = sections(&text);
    let directory = Directory::new(path)?;
    let mut stage = Stage::new(&directory.0)?;
    let mut differences = String::new();
    for section in &mut sections {
        let shown = stage.play(&section.head, &section.body);
        let Some(shown) = shown.with_context(|| format!("-- {} --", section.head))? else { continue };
        if shown != section.body {
            writeln!(differences, "-- {} --\nexpected:\n{}shown:\n{shown}", section.head, section.body)?;
            section.body = shown;
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let sections = sections.iter().map(|section| format!("-- {} --\n{}", section.head, section.body));
        fs::write(path, prose + &sections.collect::<String>())?;
        return Ok(());
    }
    ensure!(differences.is_empty(), "{differences}UPDATE_GOLDEN=1 writes what is shown");
    Ok(())
}

fn sections(text: &str) -> (String, Vec<Section>) {
    let mut prose = String::new();
    let mut sections: Vec<Section> = Vec::new();
    for line in text.split_inclusive('\n') {
        let head = line.trim_end().strip_prefix("-- ").and_then(|line| line.strip_suffix(" --"));
        match (head, sections.last_mut()) {
            (Some(head), _) => sections.push(Section { head: head.to_owned(), body: String::new() }),
            (None, Some(section)) => section.body.push_str(line),
            (None, None) => prose.push_str(line),
        }
    }
    (prose, sections)
}

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(story: &Path) -> anyhow::Result<Self> {
        let name = story.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let path = std::env::temp_dir().join(format!("vmlb-golden-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

struct Stage<'a> {
    directory: &'a Path,
    node: (String, Serving),
    manifests: Manifests,
    sync: Sync,
    facts: NodeFacts,
    tables: Memory,
    now: Instant,
    written: usize,
    errors: Vec<String>,
}

impl<'a> Stage<'a> {
    fn new(directory: &'a Path) -> anyhow::Result<Self> {
        let node = ("n1".to_owned(), Serving::default());
        let address = NodeAddress { address: "192.0.2.1".parse()?, ifindex: 2, primary: true };
        Ok(Self {
            directory,
            manifests: Manifests::new(directory.to_owned()),
            sync: Sync::new(&node.0, node.1.clone()),
            node,
            facts: NodeFacts { addresses: vec![address], ..NodeFacts::default() },
            tables: Memory::default(),
            now: Instant::now(),
            written: 0,
            errors: Vec::new(),
        })
    }

    fn play(&mut self, head: &str, body: &str) -> anyhow::Result<Option<String>> {
        let words: Vec<&str> = head.split_whitespace().collect();
        match words[..] {
            ["node", name, ref flags @ ..] => {
                self.node =
                    (name.to_owned(), Flags::try_parse_from(["vmlb"].iter().chain(flags).copied())?.serving);
                self.restart();
            }
            ["capacity", ref sizes @ ..] => self.tables = Memory::new(capacity(sizes)?),
            ["addresses", ref addresses @ ..] => self.set_addresses(addresses)?,
            ["device", index, ref addresses @ ..] => self.set_device(index, addresses)?,
            ["snat", range] => {
                let (first, last) = range.split_once('-').context("A-B")?;
                self.facts.snat_ports = vec![PortRange { first: first.parse()?, last: last.parse()? }];
            }
            ["write", file] => {
                fs::write(self.directory.join(file), body.replace("@MEGABYTE@", &"m".repeat(1_000_000)))?;
            }
            ["octets", file, ref octets @ ..] => {
                let octets: Result<Vec<u8>, _> =
                    octets.iter().map(|octet| u8::from_str_radix(octet, 16)).collect();
                fs::write(self.directory.join(file), octets?)?;
            }
            ["remove", file] => fs::remove_file(self.directory.join(file))?,
            ["flows", ref names @ ..] => {
                self.tables.set_flows(in_flows(names)?);
            }
            ["wait", seconds] => self.now += Duration::from_secs(seconds.parse()?),
            ["fail", changes] => self.tables.fail_after(Some(changes.parse()?)),
            ["mend"] => self.tables.fail_after(None),
            ["restart"] => self.restart(),
            ["dump" | "warnings" | "services" | "writes"] => {
                self.settle();
                return Ok(Some(self.show(words[0])?));
            }
            _ => bail!("no such section"),
        }
        Ok(None)
    }

    fn restart(&mut self) {
        self.sync = Sync::new(&self.node.0, self.node.1.clone());
        self.manifests = Manifests::new(self.directory.to_owned());
    }

    fn set_addresses(&mut self, addresses: &[&str]) -> anyhow::Result<()> {
        self.facts.addresses.clear();
        for address in addresses {
            let primary = address.ends_with('*');
            let address = address.trim_end_matches('*').parse()?;
            self.facts.addresses.push(NodeAddress { address, ifindex: 2, primary });
        }
        Ok(())
    }

    fn set_device(&mut self, index: &str, addresses: &[&str]) -> anyhow::Result<()> {
        let mut device = Device { flags: DeviceFlags::UPLINK, ..Device::default() };
        for address in addresses {
            match address.parse()? {
                IpAddr::V4(address) => device.snat_v4 = address4(address),
                IpAddr::V6(address) => device.snat_v6 = address6(address),
            }
        }
        self.facts.devices.insert(index.parse()?, device);
        Ok(())
    }

    /// Lets everything happen that files, facts and time call for.
    fn settle(&mut self) {
        // Files that have just been written are read only when they have come to rest.
        std::thread::sleep(Duration::from_millis(60));
        for event in self.manifests.poll() {
            self.sync.apply(event);
        }
        self.sync.facts(self.facts.clone());
        for _ in 0..4 {
            let report = self.sync.sync(&mut self.tables, self.now);
            self.errors.extend(report.error.map(|error| format!("{error:#}")));
            self.now += Duration::from_millis(100);
        }
    }

    fn show(&mut self, what: &str) -> anyhow::Result<String> {
        let mut shown = String::new();
        match what {
            "dump" => {
                ensure!(self.tables.fault().is_none(), "{:?}", self.tables.fault());
                return Ok(self.tables.dump());
            }
            "warnings" => {
                for warning in self.sync.warnings() {
                    writeln!(shown, "{warning}")?;
                }
                for error in self.errors.drain(..).take(1) {
                    writeln!(shown, "error: {error}")?;
                }
            }
            "services" => {
                for service in self.sync.services() {
                    let frontends: Vec<String> =
                        service.frontends.iter().map(|of| format!(" {} {}", of.address, of.port)).collect();
                    let reason = service.reason.map(|reason| format!(" left to the stack: {reason}"));
                    writeln!(
                        shown,
                        "{}/{} {}/{} ids {:?} usable {} of {}{}{}",
                        service.namespace,
                        service.name,
                        service.port,
                        service.protocol,
                        service.ids,
                        service.usable,
                        service.listed,
                        frontends.concat(),
                        reason.unwrap_or_default()
                    )?;
                }
            }
            _ => {
                let total = self.tables.writes();
                writeln!(shown, "{}", total - self.written)?;
                self.written = total;
            }
        }
        Ok(shown)
    }
}

/// What flows name: a backend's id, a frontend as in `192.0.2.1:80/TCP`, a target as in `1:8080/TCP`.
fn in_flows(names: &[&str]) -> anyhow::Result<InFlows> {
    let mut in_flows = InFlows::default();
    for name in names {
        let Some((name, protocol)) = name.split_once('/') else {
            in_flows.backends.insert(name.parse()?);
            continue;
        };
        let protocol = if protocol == "UDP" { Protocol::UDP } else { Protocol::TCP };
        if let Ok(socket) = name.parse::<SocketAddr>() {
            let frontend = Frontend { address: socket.ip(), port: socket.port(), protocol };
            in_flows.frontends.insert(frontend);
        } else {
            let (backend, port) = name.split_once(':').context("ID:PORT/PROTOCOL")?;
            let (backend, port) = (backend.parse()?, port.parse()?);
            in_flows.targets.insert(TargetKey { backend, port, protocol: protocol.number(), pad: 0 });
        }
    }
    Ok(in_flows)
}

fn capacity(sizes: &[&str]) -> anyhow::Result<Capacity> {
    let mut capacity = Capacity {
        services: 64,
        slots: 1 << 16,
        backends: 64,
        frontends: 64,
        pods: 128,
        targets: 256,
        eligible: 256,
        ranges: 64,
        tags: 256,
        nodes: 64,
    };
    for size in sizes {
        let (key, number) = size.split_once('=').context("KEY=N")?;
        let number = number.parse()?;
        match key {
            "services" => capacity.services = number,
            "slots" => capacity.slots = number,
            "backends" => capacity.backends = number,
            "frontends" => capacity.frontends = number,
            "pods" => capacity.pods = number,
            "targets" => capacity.targets = number,
            "eligible" => capacity.eligible = number,
            "ranges" => capacity.ranges = number,
            "tags" => capacity.tags = number,
            "nodes" => capacity.nodes = number,
            _ => bail!("no such size"),
        }
    }
    Ok(capacity)
}
