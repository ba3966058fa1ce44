//! Everything a rig makes outside its own memory carries the rig's prefix, so that one function removes it all: when
//! the rig is dropped, when the test panics, and, for processes that were killed, when the next one starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::{bpffs, namespace};

/// Where rigs keep manifests and logs.
const SCRATCH: &str = "/tmp";

/// The prefix of one rig's names. Dropping it removes what carries it.
#[derive(Debug)]
pub struct Prefix {
    text: String,
    keep: bool,
}

impl Prefix {
    /// A prefix no other rig has: `vmlb-<pid>-<number>-`. The first call in a process removes what dead processes
    /// left.
    pub fn unique() -> Self {
        static FIRST: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        FIRST.call_once(clean_stale);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { text: format!("vmlb-{}-{number}-", std::process::id()), keep: false }
    }

    /// A prefix of the caller's choice; what already carries it is removed. It must not look like a process's.
    pub fn named(text: &str) -> Self {
        clean(text);
        Self { text: text.to_owned(), keep: false }
    }

    /// A name under this prefix.
    pub fn name(&self, role: &str) -> String {
        format!("{}{role}", self.text)
    }

    /// A new folder for files of this rig.
    pub fn folder(&self, role: &str) -> Result<PathBuf> {
        let path = Path::new(SCRATCH).join(self.name(role));
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// Leaves everything up when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        if !self.keep {
            clean(&self.text);
            bpffs::release();
        }
    }
}

/// Removes namespaces, pins and folders whose names begin with `prefix`.
pub fn clean(prefix: &str) {
    for name in names(Path::new(namespace::FOLDER), prefix) {
        namespace::remove(&name);
    }
    for name in names(Path::new(bpffs::ROOT), prefix) {
        forget_agent(&Path::new(bpffs::ROOT).join(&name));
        let _absent = fs::remove_dir_all(Path::new(bpffs::ROOT).join(name));
    }
    for name in names(Path::new(SCRATCH), prefix) {
        let _absent = fs::remove_dir_all(Path::new(SCRATCH).join(name));
    }
}

/// Lets the agent's own command take down what stands outside the pins (its state file), as far as there is a binary.
fn forget_agent(pin_root: &Path) {
    if let Ok(binary) = crate::agent::binary() {
        let _best_effort =
            Command::new(binary).args(["detach", "--force", "--pin-root"]).arg(pin_root).output();
    }
}

/// Removes what rigs of dead processes left, and of an earlier process with this one's id.
pub fn clean_stale() {
    let folders = [namespace::FOLDER, bpffs::ROOT, SCRATCH];
    let mut prefixes: Vec<String> = folders
        .iter()
        .flat_map(|folder| names(Path::new(folder), "vmlb-"))
        .filter_map(|name| stale(&name))
        .collect();
    prefixes.sort();
    prefixes.dedup();
    for prefix in prefixes {
        clean(&prefix);
    }
}

/// The prefix `vmlb-<pid>-` of `name`, if no other process with that id lives.
fn stale(name: &str) -> Option<String> {
    let pid: u32 = name.strip_prefix("vmlb-")?.split_once('-')?.0.parse().ok()?;
    let dead = pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists();
    dead.then(|| format!("vmlb-{pid}-"))
}

/// Names in `folder` that begin with `prefix`.
fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_living_process_are_not_stale() {
        assert_eq!(stale("vmlb-1-0-node1"), None);
    }

    #[test]
    fn names_of_a_dead_process_are_stale_and_the_demo_is_not() {
        // Above the kernel's largest process id, so that nobody has it.
        assert_eq!(stale("vmlb-4999999-3-node1"), Some("vmlb-4999999-".to_owned()));
        assert_eq!(stale("vmlb-demo-node1"), None);
    }
}
