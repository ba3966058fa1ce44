//! Tests that this machine cannot run say so in a line that `cargo xtask test` counts: `SKIPPED: name: why`.

use std::io::Write;
use std::path::Path;

/// Programs the rig calls.
const PROGRAMS: [&str; 4] = ["ip", "ethtool", "nft", "bpftool"];

/// Why the rig cannot run on this machine, if it cannot.
pub fn reason() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let absent = |program: &&str| !std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    if let Some(program) = PROGRAMS.into_iter().find(absent) {
        return Some(format!("the program `{program}` is not installed"));
    }
    (!Path::new("/sys/fs/bpf").exists()).then(|| "this kernel has no bpffs".to_owned())
}

/// Prints the line that counts test `name` as skipped.
pub fn announce(name: &str, why: &str) {
    show(&format!("SKIPPED: {name}: {why}"));
}

/// Prints something that a person wants to see of a test that passes, past libtest's capture of standard output.
pub fn show(text: &str) {
    // libtest may have left `test name ... ` on the current line.
    let _closed = writeln!(std::io::stdout().lock(), "\n{text}");
}

/// Runs the test `name` unless this machine lacks what every test with the rig needs.
///
/// # Panics
/// With the error of the test.
pub fn unless_unable(name: &str, test: impl FnOnce() -> anyhow::Result<()>) {
    match reason() {
        Some(why) => announce(name, &why),
        None => {
            if let Err(error) = test() {
                panic!("{error:#}");
            }
        }
    }
}
