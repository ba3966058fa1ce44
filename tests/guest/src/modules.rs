//! Modules that a guest loads before it has a file system with `modprobe` in it.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::archive::Archive;
use crate::kernel::Kernel;

/// Where the archive keeps modules; their names begin with their place in the order of loading, and their suffixes tell whether
/// they are compressed.
pub const FOLDER: &str = "modules";

/// Puts the modules `names` and what they need into `archive`, in the order in which they can be loaded. What the kernel
/// has built in is left out.
pub fn add(archive: &mut Archive, kernel: &Kernel, names: &[&str]) -> Result<()> {
    let folder = kernel.modules();
    let read = |list: &str| {
        let path = folder.join(list);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let order = order(&read("modules.dep")?, &read("modules.builtin")?, names)?;
    archive.folder(FOLDER);
    for (number, path) in order.iter().enumerate() {
        let module = fs::read(folder.join(path)).with_context(|| format!("reading module {path}"))?;
        archive.file(&format!("{FOLDER}/{number:02}-{}", file_name(path)), &module);
    }
    Ok(())
}

/// The modules to load, first those that others need. `dependencies` is `modules.dep`: a module, a colon, and everything it
/// needs, each module before those it needs itself.
fn order(dependencies: &str, builtin: &str, names: &[&str]) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        let line = dependencies
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(module, _)| is_called(module, name)));
        let Some((module, needs)) = line.and_then(|line| line.split_once(':')) else {
            if builtin.lines().any(|path| is_called(path, name)) {
                continue;
            }
            bail!("the kernel has no module {name}");
        };
        for path in needs.split_whitespace().rev().chain([module]) {
            if seen.insert(path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The file's name without folders and suffixes.
fn stem(path: &str) -> &str {
    file_name(path).split('.').next().unwrap_or(path)
}

/// Whether the module at `path` has that name; files write `-` where names have `_`, or not.
fn is_called(path: &str, name: &str) -> bool {
    stem(path).replace('-', "_") == name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/net/9p/9pnet.ko:
kernel/fs/9p/9p.ko: kernel/fs/netfs.ko kernel/net/9p/9pnet.ko
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
kernel/crypto/af-alg.ko.xz:
";

    #[test]
    fn what_others_need_is_loaded_first_and_once() {
        let order = order(DEPENDENCIES, "", &["9pnet_virtio", "9p"]).expect("all there");
        let names: Vec<&str> = order.iter().map(|path| stem(path)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "9pnet", "9pnet_virtio", "netfs", "9p"]);
    }

    #[test]
    fn what_is_built_in_is_left_out() {
        assert_eq!(order(DEPENDENCIES, "kernel/fs/ext4.ko", &["ext4"]).expect("built in"), [""; 0]);
    }

    #[test]
    fn dashes_and_compression_do_not_hide_a_module() {
        assert_eq!(order(DEPENDENCIES, "", &["af_alg"]).expect("there"), ["kernel/crypto/af-alg.ko.xz"]);
    }

    #[test]
    fn a_module_that_is_missing_is_named() {
        let error = order(DEPENDENCIES, "", &["bonding"]).expect_err("missing");
        assert!(error.to_string().contains("bonding"));
    }
}
