//! Ten thousand Services: no command may take more than its share of what a thousand take, nor keep them all in memory.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vmlb_agent::facts::{NodeAddress, NodeFacts};
use vmlb_agent::loader::{Datapath, OBJECT, Sizes, Trace};
use vmlb_agent::object::Kind;
use vmlb_agent::pins::PinRoot;
use vmlb_agent::serving::Serving;
use vmlb_agent::settings::{SettingsMap, Wanted};
use vmlb_agent::sync::Sync;
use vmlb_agent::tables::pinned::PinnedTables;
use vmlb_agent::watch::{Event, document};
use vmlb_common::abi::{Timeouts, Tunnel};
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::skip::unless_unable;
use vmlb_tests::{agent, bpffs};

/// Times are compared beyond what starting a process takes.
const START: Duration = Duration::from_millis(30);
/// Ten times as much may take so many times as long: ten, and what other work on the machine adds.
const FACTOR: u32 = 20;
/// Memory, in KiB, that ten thousand Services may cost a list over a thousand. Names and addresses are kept for lookups
/// (measured: 9 MiB); rows are not, which would double it.
const GROWTH: u64 = 14 << 10;

/// Pinned maps that hold so many Services of one backend each.
pub struct Maps {
    root: PathBuf,
    _prefix: Prefix,
}

impl Maps {
    fn make(services: usize) -> Result<Self> {
        let maps = Self::empty(services)?;
        let pins = maps.pins();
        let wanted = Wanted {
            node: "n1".to_owned(),
            snat_ports: Vec::new(),
            timeouts: Timeouts::DEFAULT,
            reject_rate: 1000,
            tunnel: Tunnel::default(),
            clamp_mss: vmlb_common::abi::ClampMss::AUTO,
            probe_port: 0,
            hz: vmlb_agent::settings::hz()?,
        };
        SettingsMap::open(&pins)?.set(wanted.settings(None, 1)?)?;
        let mut sync = Sync::new("n1", Serving::default());
        let address = NodeAddress { address: [192, 0, 2, 1].into(), ifindex: 2, primary: true };
        sync.facts(NodeFacts { addresses: vec![address], ..NodeFacts::default() });
        (0..services)
            .flat_map(events)
            .chain(Kind::ALL.map(Event::Listed))
            .for_each(|event| sync.apply(event));
        let mut tables = PinnedTables::open(&pins)?;
        let report = sync.sync(&mut tables, Instant::now());
        ensure!(report.error.is_none() && report.warnings.is_empty(), "{report:?}");
        Ok(maps)
    }

    /// Maps with room for so many Services, and nothing in them.
    pub fn empty(services: usize) -> Result<Self> {
        let prefix = Prefix::unique();
        let maps = Self { root: bpffs::pin_root(&prefix.name("maps"))?, _prefix: prefix };
        let pins = maps.pins();
        pins.create()?;
        let count = u32::try_from(services)? + 16;
        let sizes = Sizes {
            flows: 1024,
            half_flows: 1024,
            backends: count,
            services: count,
            slots: 256 * count,
            // One for the node, one for tunnels from the others.
            frontends: 2 * count,
            affinity: 1024,
        };
        let _programs = Datapath::load(OBJECT, &pins, &sizes, Trace::Off)?;
        Ok(maps)
    }

    /// Where they are pinned.
    pub fn pins(&self) -> PinRoot {
        PinRoot::new(&self.root)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(agent::binary()?);
        command.args(arguments).arg("--pin-root").arg(&self.root).stdin(Stdio::null());
        Ok(command)
    }

    /// How long the command takes, the best of three, and how many octets it prints.
    fn time(&self, arguments: &[&str]) -> Result<(Duration, usize)> {
        let mut best = (Duration::MAX, 0);
        for _ in 0..3 {
            let begun = Instant::now();
            let output = self.command(arguments)?.output()?;
            let took = begun.elapsed();
            ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            best = best.min((took, output.stdout.len()));
        }
        Ok(best)
    }

    /// The most memory, in KiB, that the command has had shortly before it ends, printing `octets` in all.
    fn memory(&self, arguments: &[&str], octets: usize) -> Result<u64> {
        let mut child = self.command(arguments)?.stdout(Stdio::piped()).spawn()?;
        let mut output = child.stdout.take().context("a pipe was asked for")?;
        // What is left is more than a pipe and the command's own buffer hold, so it still runs.
        let mut most = vec![0; octets.saturating_sub(256 << 10)];
        output.read_exact(&mut most)?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        output.read_to_end(&mut most)?;
        ensure!(child.wait()?.success());
        peak.with_context(|| format!("no peak in {status}"))
    }
}

fn events(number: usize) -> impl Iterator<Item = Event> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("service-{number:05}"), "namespace": "a"},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 20_000 + number}]},
    });
    let address = format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("slice-{number:05}"), "namespace": "a",
            "labels": {"kubernetes.io/service-name": format!("service-{number:05}")},
        },
        "ports": [{"port": 8080}], "endpoints": [{"addresses": [address], "nodeName": "n2"}],
    });
    let objects = [service, slice].map(|object| document::read("", object.to_string().as_bytes()).objects);
    objects.into_iter().flatten().map(|object| Event::Apply { source: "".into(), object })
}

#[test]
fn ten_thousand_services_take_ten_times_as_long_as_a_thousand() {
    unless_unable("ten_thousand_services_take_ten_times_as_long_as_a_thousand", || {
        let (control, large) = (Maps::make(1_000)?, Maps::make(10_000)?);
        for arguments in [
            &["status"][..],
            &["services"],
            &["services", "--output", "json"],
            &["backends", "--output", "wide"],
            &["backends", "--output", "json"],
            &["flows"],
            &["drops"],
        ] {
            let ((of_control, fewer), (of_large, more)) = (control.time(arguments)?, large.time(arguments)?);
            println!(
                "vmlb {arguments:?}: {of_control:?} for 1,000 Services, {of_large:?} for 10,000, {more} octets"
            );
            ensure!(
                of_large <= START + of_control * FACTOR,
                "vmlb {arguments:?} takes {of_large:?}, with a tenth of the Services {of_control:?}"
            );
            let is_list = !matches!(arguments[0], "status" | "flows" | "drops");
            ensure!(!is_list || more > 9 * fewer, "{arguments:?} prints {more} octets, with a tenth {fewer}");
        }
        let arguments = ["services", "--output", "json"];
        let [of_control, of_large] =
            [&control, &large].map(|maps| maps.memory(&arguments, maps.time(&arguments)?.1));
        let (of_control, of_large) = (of_control?, of_large?);
        println!("vmlb {arguments:?}: {of_control} KiB for 1,000 Services, {of_large} KiB for 10,000");
        ensure!(
            of_large <= of_control + GROWTH,
            "{of_large} KiB, with a tenth of the Services {of_control} KiB"
        );
        Ok(())
    });
}
