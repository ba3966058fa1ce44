//! The operator's commands. They read the pinned maps and work with the agent down.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use vmlb_common::abi::{BackendName, Settings, names};

use crate::bpf::PinnedMap;
use crate::pins::{DEFAULT_ROOT, PinRoot};
use crate::settings::{SettingsMap, text};

mod api;
pub mod backends;
pub mod check;
pub mod detach;
mod drain;
pub mod drops;
pub mod expose;
pub mod flows;
pub mod log_level;
pub mod migrations;
mod print;
mod reach;
pub mod services;
mod shares;
pub mod status;
mod table;
pub mod unexpose;
mod ways;

/// What `--help` says about how commands end.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 nothing of vmlb is installed under the pin root; 4 not permitted.";

/// The end of a command's help.
fn help(about: &str) -> String {
    format!("{about}\n\n{EXIT_CODES}")
}

/// How a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns for people.
    Table,
    /// More columns.
    Wide,
    /// JSON for programs.
    Json,
}

/// What every reading command takes.
#[derive(Args, Clone, Debug)]
pub struct Reading {
    /// Folder of pins, as given to the agent
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub pin_root: PathBuf,
    /// Form of the answer; lists are JSON arrays with a row a line
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Answer again and again, every 2 s unless said otherwise, until interrupted; with JSON a document a line
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    pub watch: Option<Duration>,
}

/// A pause in seconds, from a tenth of one to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err("between 0.1 and 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Why a command has nothing to answer from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are no maps.
    NothingInstalled(String),
    /// They may not be read.
    NotPermitted(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingInstalled(folder) => write!(
                out,
                "nothing of vmlb is installed under {folder}; start `vmlb agent` on this node, name another folder by \
                 --pin-root DIR if the agent has one, and in a container mount the node's /sys/fs/bpf"
            ),
            Self::NotPermitted(folder) => write!(
                out,
                "{folder} may not be read; this needs root, or CAP_BPF (before Linux 5.8 CAP_SYS_ADMIN) and the right to \
                 read the pins (CAP_DAC_OVERRIDE)"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// The exit code of a command that ended with this error.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let refusal = error.chain().find_map(|cause| match cause.downcast_ref::<Refusal>() {
        Some(Refusal::NothingInstalled(_)) => Some(3),
        Some(Refusal::NotPermitted(_)) => Some(4),
        None => cause.downcast_ref::<api::Refused>().filter(|refused| refused.is_forbidden()).map(|_| 4),
    });
    refusal.unwrap_or(1)
}

impl Reading {
    /// The folder of pins.
    ///
    /// # Errors
    /// When there is none, or this user may not look.
    fn root(&self) -> anyhow::Result<PinRoot> {
        let root = PinRoot::new(&self.pin_root);
        let path = self.pin_root.display().to_string();
        // Whoever may look at the file need not be allowed to open the map.
        let found = fs::metadata(root.map(names::SETTINGS)).map_err(anyhow::Error::from);
        match found.and_then(|_| SettingsMap::open(&root)) {
            Ok(_) => Ok(root),
            Err(error) => match io_error_kind(&error) {
                Some(ErrorKind::PermissionDenied) => Err(Refusal::NotPermitted(path).into()),
                Some(ErrorKind::NotFound) => Err(Refusal::NothingInstalled(path).into()),
                _ => Err(error.context(format!("cannot read {path}"))),
            },
        }
    }
}

fn io_error_kind(error: &anyhow::Error) -> Option<ErrorKind> {
    error.chain().find_map(|cause| cause.downcast_ref::<io::Error>().map(io::Error::kind))
}

/// The settings in force.
fn settings(root: &PinRoot) -> anyhow::Result<Settings> {
    SettingsMap::open(root)?
        .current()
        .copied()
        .context("map settings is empty: the agent was stopped while it started")
}

/// Whose the backend ids are.
fn backend_names(root: &PinRoot) -> anyhow::Result<BTreeMap<u32, BackendName>> {
    let map: PinnedMap<u32, BackendName> = PinnedMap::open(root, names::BACKEND_NAMES)?;
    Ok(map.all()?.into_iter().collect())
}

/// A backend's name for people; its id where nothing else is known.
fn backend_label(names: &BTreeMap<u32, BackendName>, id: u32) -> String {
    names
        .get(&id)
        .map_or_else(|| format!("#{id}"), |name| format!("{}/{}", text(&name.namespace), text(&name.name)))
}

/// Where the backends are now, by id: at most one address a family, IPv4 first.
fn backend_addresses(root: &PinRoot) -> anyhow::Result<HashMap<u32, Vec<IpAddr>>> {
    let places = ways::places(root)?.into_iter();
    Ok(places.map(|(id, places)| (id, places.into_iter().map(|place| place.address).collect())).collect())
}

/// Cells of a list: the first few, and how many more there are.
fn few(items: &[String], most: usize) -> String {
    let mut text = items[..items.len().min(most)].join(",");
    if items.len() > most {
        text.push_str(&format!(",+{}", items.len() - most));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_number_of_seconds_within_reason() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "x", "0", "-1", "nan", "inf", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_long_list_says_how_long_it_is() {
        let items = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(
            (few(&items, 2), few(&items, 3), few(&[], 3)),
            ("a,b,+1".into(), "a,b,c".into(), String::new())
        );
    }

    #[test]
    fn scripts_can_tell_why_there_is_no_answer() {
        let nothing = anyhow::Error::from(Refusal::NothingInstalled("x".into())).context("more");
        assert_eq!(exit_code(&nothing), 3);
        assert_eq!(exit_code(&Refusal::NotPermitted("x".into()).into()), 4);
        assert_eq!(exit_code(&anyhow::anyhow!("else")), 1);
    }
}
