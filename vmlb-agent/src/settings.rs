//! The one entry of map `settings`: what it is computed from, and how a restart leaves it untouched.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use nix::time::{ClockId, clock_getres};
use vmlb_common::abi::{self, ClampMss, PortRange, Settings, Timeouts, Tunnel};

use crate::bpf::PinnedMap;
use crate::pins::PinRoot;

pub mod clamp;
pub mod clock;
pub mod ports;
pub mod tunnel;

pub use clamp::ClampFlag;
pub use clock::jiffies;
pub use ports::SnatPorts;

/// Idle times given by `--timeout`: `tcp=8000s,udp=3m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutFlag(pub Timeouts);

impl Default for TimeoutFlag {
    fn default() -> Self {
        Self(Timeouts::DEFAULT)
    }
}

impl TimeoutFlag {
    const NAMES: [&'static str; 7] =
        ["tcp-opening", "tcp", "tcp-half-closed", "tcp-closed", "tcp-time-wait", "udp-opening", "udp"];

    fn field(&mut self, name: &str) -> Option<&mut u32> {
        let timeouts = &mut self.0;
        Some(match name {
            "tcp-opening" => &mut timeouts.tcp_opening,
            "tcp" => &mut timeouts.tcp,
            "tcp-half-closed" => &mut timeouts.tcp_half_closed,
            "tcp-closed" => &mut timeouts.tcp_closed,
            "tcp-time-wait" => &mut timeouts.tcp_time_wait,
            "udp-opening" => &mut timeouts.udp_opening,
            "udp" => &mut timeouts.udp,
            _ => return None,
        })
    }
}

impl FromStr for TimeoutFlag {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut flag = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .with_context(|| format!("{part:?} is not NAME=TIME, for example tcp=8000s"))?;
            let time = duration(value)?.as_secs();
            // Jiffies are compared as wrapping 32-bit numbers; at 1,000 Hz half of their range is 24 days.
            ensure!((1..=86_400 * 14).contains(&time), "{part:?}: between 1s and 14 days (336h) is possible");
            let known = Self::NAMES.join(", ");
            *flag
                .field(name)
                .with_context(|| format!("no timeout is called {name:?}; there are {known}"))? =
                u32::try_from(time)?;
        }
        Ok(flag)
    }
}

impl fmt::Display for TimeoutFlag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut copy = *self;
        for (place, name) in Self::NAMES.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            let seconds = copy.field(name).copied().unwrap_or_default();
            write!(out, "{comma}{name}={seconds}s")?;
        }
        Ok(())
    }
}

/// Reads a time such as `500ms`, `5s`, `3m` or `2h`; a bare number is seconds.
///
/// # Errors
/// When it is none of these.
pub fn duration(text: &str) -> anyhow::Result<std::time::Duration> {
    let wrong = || format!("{text:?} is not a time; write a whole number and ms, s, m or h, for example 5s");
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().with_context(wrong)?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" | "" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    Ok(std::time::Duration::from_millis(milliseconds.with_context(wrong)?))
}

/// Jiffies a second (`CONFIG_HZ`).
///
/// The coarse clocks tick once a jiffy and say so: their resolution is the kernel's `TICK_NSEC`. Needs no privilege, no
/// file and no waiting, and is exact (300 Hz reads as 3,333,333 ns).
///
/// # Errors
/// When the clock's answer is no frequency that a kernel can be built with.
pub fn hz() -> anyhow::Result<u32> {
    let tick =
        clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot read the coarse clock's resolution")?;
    hz_of_tick(u64::try_from(tick.tv_sec())?, u64::try_from(tick.tv_nsec())?)
}

fn hz_of_tick(seconds: u64, nanoseconds: u64) -> anyhow::Result<u32> {
    ensure!(seconds == 0 && nanoseconds > 0, "a kernel tick of {seconds} s {nanoseconds} ns is not possible");
    let hz = u32::try_from((1_000_000_000 + nanoseconds / 2) / nanoseconds)?;
    // The range of HZ over all architectures: Alpha's boot loader offers 32, MIPS 24, Alpha had 1,200.
    ensure!((24..=10_000).contains(&hz), "a kernel tick of {nanoseconds} ns would be {hz} jiffies a second");
    Ok(hz)
}

/// What the agent wants in the settings, besides what is kept from before (generation, secret).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Node name.
    pub node: String,
    /// SNAT ports.
    pub snat_ports: Vec<PortRange>,
    /// The port from which a migration's target is asked whether the VM is there; none of `snat_ports`. 0: none.
    pub probe_port: u16,
    /// When flows end.
    pub timeouts: Timeouts,
    /// Jiffies a second.
    pub hz: u32,
    /// Refusals that one CPU may send in a second.
    pub reject_rate: u32,
    /// The tunnel between nodes.
    pub tunnel: Tunnel,
    /// What TCP's maximum segment size is lowered to.
    pub clamp_mss: ClampMss,
}

impl Wanted {
    /// The settings, with what must not change taken from those `installed`.
    ///
    /// # Errors
    /// When the node's name is longer than Kubernetes allows, or there are more port ranges than places.
    pub fn settings(&self, installed: Option<&Settings>, secret: u32) -> anyhow::Result<Settings> {
        ensure!(self.snat_ports.len() <= 4, "at most 4 SNAT port ranges are possible");
        let mut ranges = [PortRange::default(); 4];
        for (place, range) in ranges.iter_mut().zip(&self.snat_ports) {
            *place = *range;
        }
        let mut node = [0; 64];
        for (place, octet) in node.iter_mut().take(63).zip(self.node.bytes()) {
            *place = octet;
        }
        Ok(Settings {
            tunnel: self.tunnel,
            probe_port: self.probe_port,
            clamp_mss: self.clamp_mss,
            version: abi::VERSION,
            // Zero marks an empty hop.
            generation: installed.map_or(1, |settings| settings.generation.max(1)),
            hz: self.hz,
            secret: installed.map(|settings| settings.secret).filter(|secret| *secret != 0).unwrap_or(secret),
            snat_ports: ranges,
            snat_port_count: ranges.iter().map(|range| range.count()).sum(),
            timeouts: self.timeouts,
            inherited: installed.map_or(0, |settings| settings.inherited),
            reject_rate: self.reject_rate,
            node,
        })
    }
}

/// Map `settings`, and what the agent last saw or wrote there.
#[derive(Debug)]
pub struct SettingsMap {
    map: PinnedMap<u32, Settings>,
    current: Option<Settings>,
    writes: u64,
}

impl SettingsMap {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// When it is not pinned or cannot be read.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        let map = PinnedMap::open(root, abi::names::SETTINGS)?;
        let current = map.get(&0)?.filter(|settings: &Settings| settings.version != 0);
        Ok(Self { map, current, writes: 0 })
    }

    /// The settings in force; `None`: the map is fresh.
    #[must_use]
    pub fn current(&self) -> Option<&Settings> {
        self.current.as_ref()
    }

    /// How often this process has written the entry.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Puts the settings in force; an unchanged entry is not written.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set(&mut self, settings: Settings) -> anyhow::Result<()> {
        if self.current.as_ref() != Some(&settings) {
            self.map.put(&0, &settings)?;
            self.current = Some(settings);
            self.writes += 1;
        }
        Ok(())
    }

    /// Says whether connections were inherited from the stack ([`crate::conntrack`]).
    ///
    /// # Errors
    /// When the map cannot be written, or holds nothing yet.
    pub fn set_inherited(&mut self, inherited: u32) -> anyhow::Result<()> {
        let Some(settings) = self.current else { bail!("map settings is empty") };
        self.set(Settings { inherited, ..settings })
    }

    /// Voids every cached next hop: a route, a neighbour or a link has changed.
    ///
    /// # Errors
    /// When the map cannot be written, or holds nothing yet.
    pub fn raise_generation(&mut self) -> anyhow::Result<()> {
        let Some(mut settings) = self.current else { bail!("map settings is empty") };
        settings.generation = settings.generation.wrapping_add(1).max(1);
        self.set(settings)
    }
}

/// The text of a fixed field of the ABI, without its padding.
#[must_use]
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|octet| *octet == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

/// Settings by which two agents with the same map differ, for the log; empty: none.
#[must_use]
pub fn differences(old: &Settings, new: &Settings) -> BTreeMap<&'static str, (String, String)> {
    let rows = [
        ("hz", old.hz.to_string(), new.hz.to_string()),
        ("snat ports", format!("{:?}", old.snat_ports), format!("{:?}", new.snat_ports)),
        ("timeouts", TimeoutFlag(old.timeouts).to_string(), TimeoutFlag(new.timeouts).to_string()),
        ("probe port", old.probe_port.to_string(), new.probe_port.to_string()),
        ("reject rate", old.reject_rate.to_string(), new.reject_rate.to_string()),
        ("tunnel", format!("{:?}", old.tunnel), format!("{:?}", new.tunnel)),
        ("clamp mss", ClampFlag(old.clamp_mss).to_string(), ClampFlag(new.clamp_mss).to_string()),
        ("node", text(&old.node), text(&new.node)),
    ];
    rows.into_iter().filter(|(_, old, new)| old != new).map(|(name, old, new)| (name, (old, new))).collect()
}

/// A number that nobody can foresee.
///
/// # Errors
/// When the kernel's random source cannot be read.
pub fn secret() -> anyhow::Result<u32> {
    let mut octets = [0; 4];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut octets))
        .context("cannot read /dev/urandom")?;
    // Zero means that none was chosen yet.
    Ok(u32::from_ne_bytes(octets).max(1))
}

/// The ports from which this network namespace gives sockets theirs (`net.ipv4.ip_local_port_range`).
///
/// # Errors
/// When the file is unreadable or is not two ports.
pub fn local_ports() -> anyhow::Result<PortRange> {
    let path = Path::new("/proc/sys/net/ipv4/ip_local_port_range");
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(PortRange { first, last }),
        _ => bail!("{} holds {text:?}, not two ports", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tick_of_every_usual_kernel_is_its_frequency() -> anyhow::Result<()> {
        for (tick, hz) in
            [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000), (976_563, 1024)]
        {
            assert_eq!(hz_of_tick(0, tick)?, hz);
        }
        assert!(hz_of_tick(0, 0).is_err() && hz_of_tick(1, 0).is_err() && hz_of_tick(0, 1).is_err());
        Ok(())
    }

    #[test]
    fn this_kernel_has_a_frequency() -> anyhow::Result<()> {
        assert!((24..=10_000).contains(&hz()?));
        Ok(())
    }

    #[test]
    fn times_have_units_and_anything_else_is_refused() -> anyhow::Result<()> {
        for (text, milliseconds) in
            [("5s", 5000), ("500ms", 500), ("7", 7000), ("3m", 180_000), ("2h", 7_200_000)]
        {
            assert_eq!(duration(text)?.as_millis(), milliseconds);
        }
        for text in ["", "s", "5x", "-1s", "1.5s", "99999999999999999999h", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        Ok(())
    }

    #[test]
    fn timeouts_that_are_not_named_keep_their_default() -> anyhow::Result<()> {
        let flag: TimeoutFlag = "tcp=2h,udp-opening=5s".parse()?;
        assert_eq!(flag.0, Timeouts { tcp: 7200, udp_opening: 5, ..Timeouts::DEFAULT });
        assert_eq!(flag.to_string().parse::<TimeoutFlag>()?, flag);
        for text in ["tcp", "tcp=", "sctp=5s", "tcp=0s", "tcp=999999h"] {
            assert!(text.parse::<TimeoutFlag>().is_err(), "{text}");
        }
        Ok(())
    }

    #[test]
    fn a_restart_keeps_secret_and_generation() -> anyhow::Result<()> {
        let wanted = Wanted {
            node: "node-a".into(),
            snat_ports: vec![PortRange { first: 1024, last: 29_999 }],
            probe_port: 65_535,
            timeouts: Timeouts::DEFAULT,
            hz: 250,
            reject_rate: 1000,
            tunnel: Tunnel::default(),
            clamp_mss: ClampMss::AUTO,
        };
        let mut first = wanted.settings(None, 7)?;
        assert_eq!((first.generation, first.secret, first.snat_port_count), (1, 7, 28_976));
        first.generation = 9;
        assert_eq!(wanted.settings(Some(&first), 8)?, first);
        assert_eq!(text(&first.node), "node-a");
        Ok(())
    }
}
