//! An initramfs: an archive in cpio's "newc" form, which the kernel unpacks into its first file system.
//!
//! The form is told by the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: a header of hexadecimal
//! numbers, the name, the contents, each padded to four octets; a file named `TRAILER!!!` ends it.

/// The kind of a file in `st_mode`.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    octets: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an empty folder. Folders come before what is in them.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, &[]);
    }

    /// Adds a file that anybody may read.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, FILE | 0o644, contents);
    }

    /// Adds a program.
    pub fn program(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, FILE | 0o755, contents);
    }

    /// The archive, complete.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.octets
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("no file of an initramfs has 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("no path has 4 GiB");
        // inode, mode, uid, gid, links, mtime, size, four device numbers, length of the name, checksum (unused).
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.octets.extend_from_slice(b"070701");
        for number in numbers {
            self.octets.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.octets.extend_from_slice(path.as_bytes());
        self.octets.push(0);
        self.pad();
        self.octets.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn every_part_begins_at_a_multiple_of_four() {
        let mut archive = Archive::default();
        archive.folder("a");
        archive.file("a/b", b"five!");
        let octets = archive.finish();
        assert_eq!(octets.len() % 4, 0);
        let headers: Vec<usize> =
            (0..octets.len() - 5).filter(|&at| octets[at..].starts_with(b"070701")).collect();
        assert_eq!(headers, [0, 112, 236]);
    }

    #[test]
    fn cpio_lists_what_was_put_in() {
        let mut archive = Archive::default();
        archive.folder("modules");
        archive.file("modules/order", b"virtio.ko\n");
        archive.program("init", &[0; 4097]);
        let reader =
            Command::new("cpio").args(["-t", "--quiet"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut reader) = reader else {
            println!("SKIPPED: cpio_lists_what_was_put_in: the program `cpio` is not installed");
            return;
        };
        reader.stdin.take().expect("a pipe").write_all(&archive.finish()).expect("cpio reads");
        let output = reader.wait_with_output().expect("cpio ends");
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "modules\nmodules/order\ninit\n");
    }
}
