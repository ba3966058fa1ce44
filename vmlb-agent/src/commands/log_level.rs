//! `vmlb log-level`: changes what the running agent logs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use crate::logging::{Level, level_file};
use crate::pins::{DEFAULT_ROOT, PinRoot};

/// Options of `vmlb log-level`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  vmlb log-level debug
  vmlb log-level info,vmlb_agent::watch=trace
  kubectl -n vmlb-system exec POD -- /vmlb log-level debug

Within a second the agent logs so; its next start begins with its own flags again.")]
pub struct Options {
    /// error, warn, info, debug, trace or off, also for parts alone
    pub level: String,
    /// Folder of pins, as given to the agent
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub pin_root: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When that is no level, or no agent runs.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let _checked: Level = options.level.parse()?;
    let root = PinRoot::new(&options.pin_root);
    if root.running_agent().is_none() {
        bail!("no agent runs with pin root {}", options.pin_root.display());
    }
    let (file, next) = (level_file(&root), level_file(&root).with_extension("new"));
    fs::write(&next, &options.level)
        .and_then(|()| fs::rename(&next, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}
