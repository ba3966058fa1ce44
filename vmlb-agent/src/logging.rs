//! The agent's log: text or JSON on standard error, its level changed while it runs, and a line that says the same again and
//! again said only a few times a minute. Nothing is logged per packet but by `--trace`.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::pins::PinRoot;

mod repeats;

use repeats::Repeats;

/// Between two looks for another level.
const LOOK: Duration = Duration::from_secs(1);

/// Flags about the log.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Log")]
pub struct LogFlags {
    /// Form of the lines
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub log_format: Form,
    /// What is logged: error, warn, info, debug or trace, also for parts alone, as in info,vmlb_agent::watch=debug.
    /// `vmlb log-level` changes it while the agent runs
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "VMLB_LOG")]
    pub log_level: Level,
    /// How often the same line is logged a minute, then only how often it came; 0: always
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub log_repeats: u32,
}

/// Form of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// What is logged, as it was written, and as it is applied.
#[derive(Clone, Debug)]
pub struct Level {
    text: String,
    targets: Targets,
}

impl FromStr for Level {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let targets: Result<Targets, _> = text.parse();
        // A word that is no level would be taken for the name of a part, and silence everything else.
        let first = text.split(',').next().unwrap_or_default();
        if text.is_empty() || (!first.contains('=') && first.parse::<LevelFilter>().is_err()) {
            bail!("{text:?} is no level: error, warn, info, debug or trace, and PART=LEVEL after it");
        }
        let mut targets = targets.with_context(|| format!("{text:?} is no level"))?;
        if !text.contains("kube_client") {
            // The client reports every failed try; the watches say what lasts.
            targets = targets.with_target("kube_client", LevelFilter::OFF);
        }
        Ok(Self { text: text.to_owned(), targets })
    }
}

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();
static REPEATS: OnceLock<Repeats> = OnceLock::new();

/// Logs of commands: text, nothing left out.
///
/// # Panics
/// When a log has been started before.
pub fn start_plain() {
    let targets = Targets::new().with_default(LevelFilter::INFO).with_target("kube_client", LevelFilter::OFF);
    tracing_subscriber::registry().with(text().with_filter(targets)).init();
}

/// Logs of the agent.
///
/// # Panics
/// When a log has been started before.
pub fn start(flags: &LogFlags) {
    let (filter, handle) = reload::Layer::new(flags.log_level.targets.clone());
    let repeats = REPEATS.get_or_init(|| Repeats::new(flags.log_repeats));
    let lines: Box<dyn Layer<_> + Send + Sync> = match flags.log_format {
        Form::Text => Box::new(text().with_filter(repeats)),
        Form::Json => Box::new(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_writer(std::io::stderr)
                .with_timer(SystemTime)
                .with_filter(repeats),
        ),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    // The first one stays, as the log itself does.
    let _handle = FILTER.set(handle);
}

fn text<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_timer(SystemTime)
}

/// Where another level is asked for.
#[must_use]
pub fn level_file(root: &PinRoot) -> PathBuf {
    root.runtime().join("log-level")
}

/// Follows what `vmlb log-level` asks for, and tells how often lines came that were left out. Must be called within a
/// tokio runtime. A level that an earlier agent was asked for does not count.
pub fn follow(root: &PinRoot) {
    let file = level_file(root);
    fs::remove_file(&file).unwrap_or_default();
    tokio::spawn(async move {
        let mut timer = tokio::time::interval(LOOK);
        let mut applied = String::new();
        loop {
            timer.tick().await;
            apply(&file, &mut applied);
            for line in REPEATS.get().map(Repeats::take_left_out).unwrap_or_default() {
                tracing::info!("{line}");
            }
        }
    });
}

fn apply(file: &Path, applied: &mut String) {
    let Ok(asked) = fs::read_to_string(file) else { return };
    if asked == *applied {
        return;
    }
    asked.clone_into(applied);
    let level: Level = match asked.parse() {
        Ok(level) => level,
        Err(error) => return tracing::warn!("the log stays as it is: {error:#}"),
    };
    match FILTER.get().map(|filter| filter.reload(level.targets)) {
        Some(Ok(())) => tracing::warn!("from now on the log has {}", level.text),
        Some(Err(error)) => tracing::warn!("the log stays as it is: {error}"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_and_parts_may_have_their_own() {
        for text in ["info", "DEBUG", "warn,vmlb_agent::watch=trace", "vmlb_agent=debug", "off"] {
            assert!(text.parse::<Level>().is_ok(), "{text}");
        }
        for text in ["", "loud", "inf", "info,vmlb=loud"] {
            assert!(text.parse::<Level>().is_err(), "{text}");
        }
    }
}
