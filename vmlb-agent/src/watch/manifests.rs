//! A directory of Kubernetes manifests as a watch stream, read again when files change.
//!
//! Files are looked at five times a second rather than subscribed to: editors rename, ConfigMaps swap a symlink, network
//! file systems tell nothing, and all of these change what `stat` says. A file that cannot be read, or of which a document
//! cannot be read, loses nothing that worked: what it held before stays until the file is in order or gone.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tokio::sync::mpsc;

use super::document::{self, Contents};
use super::{Event, Object};
use crate::object::{Kind, ObjectRef};
use crate::warning::Warning;

/// Between two looks at the directory.
pub const INTERVAL: Duration = Duration::from_millis(200);
/// A file that was written to more recently than this may still be being written.
const SETTLE: Duration = Duration::from_millis(50);
/// For a writer that never pauses: looks after which the file is read as it is.
const PATIENCE: u32 = 20;
/// Larger files are refused; 5,000 Services with their endpoints take about 10 MB.
const MAX_OCTETS: u64 = 256 << 20;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Debug, Default)]
struct File {
    fingerprint: Option<Fingerprint>,
    unsettled: u32,
    objects: BTreeMap<ObjectRef, Object>,
    warnings: Vec<Warning>,
}

/// The directory `--manifests`: its files `*.yaml`, `*.yml` and `*.json`, not those of directories within. Names that
/// begin with a dot are passed over.
pub struct Manifests {
    directory: PathBuf,
    files: BTreeMap<PathBuf, File>,
    sent: HashMap<ObjectRef, (Arc<str>, Object)>,
    twins: Vec<Warning>,
    warned: BTreeMap<Arc<str>, Vec<Warning>>,
    listed: bool,
}

impl Manifests {
    /// A source that has read nothing yet.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            files: BTreeMap::new(),
            sent: HashMap::new(),
            twins: Vec::new(),
            warned: BTreeMap::new(),
            listed: false,
        }
    }

    /// Looks at the directory once and returns what has changed since the last call, deletions first. Errors become
    /// [`Event::Warnings`]. Once every file has been read the events end with [`Event::Listed`] for every kind.
    pub fn poll(&mut self) -> Vec<Event> {
        let mut warnings: BTreeMap<Arc<str>, Vec<Warning>> = BTreeMap::new();
        let scanned = self.scan();
        if let Err(error) = &scanned {
            let source: Arc<str> = self.directory.display().to_string().into();
            let message = format!("cannot be read ({error}); what it held before stays");
            warnings.insert(source.clone(), vec![about(&source, message, "make the directory readable")]);
        }
        let mut events = Vec::new();
        if matches!(scanned, Ok(true)) {
            self.twins = self.differences(&mut events);
        }
        for warning in self.files.values().flat_map(|file| &file.warnings).chain(&self.twins) {
            warnings.entry(warning.source.as_str().into()).or_default().push(warning.clone());
        }
        self.announce(warnings, &mut events);
        let complete = self.files.values().all(|file| file.fingerprint.is_some());
        if scanned.is_ok() && complete && !self.listed {
            self.listed = true;
            events.extend(Kind::EVERY.map(Event::Listed));
        }
        events
    }

    /// Runs the source on a thread of its own; every batch belongs together. The thread ends when the receiver is
    /// dropped.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn watch(mut self) -> anyhow::Result<mpsc::Receiver<Vec<Event>>> {
        let (sender, receiver) = mpsc::channel(16);
        let run = move || {
            while !sender.is_closed() {
                let events = self.poll();
                if !events.is_empty() && sender.blocking_send(events).is_err() {
                    return;
                }
                let settling = self.files.values().any(|file| file.unsettled > 0);
                std::thread::sleep(if settling { SETTLE } else { INTERVAL });
            }
        };
        let thread = std::thread::Builder::new().name("manifests".to_owned());
        thread.spawn(run).context("starting the thread that watches manifests")?;
        Ok(receiver)
    }
}

impl Manifests {
    /// Reads the files that have changed; tells whether any objects may have.
    fn scan(&mut self) -> std::io::Result<bool> {
        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if is_manifest(&path) {
                // Follows symlinks: what a ConfigMap mounts is one. A link to nowhere is a file that is gone.
                match fs::metadata(&path) {
                    Ok(metadata) if metadata.is_file() => drop(present.insert(path, metadata)),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let known = self.files.len();
        self.files.retain(|path, _| present.contains_key(path));
        let mut changed = self.files.len() != known;
        for (path, metadata) in present {
            let source = self.name(&path);
            changed |= self.files.entry(path.clone()).or_default().refresh(&path, &source, &metadata);
        }
        Ok(changed)
    }

    /// The name a file has in warnings: short, and the same wherever the directory stands.
    fn name(&self, path: &Path) -> Arc<str> {
        let name = path.strip_prefix(&self.directory).unwrap_or(path);
        name.to_string_lossy().into()
    }

    /// Compares all files with what was sent. Of an object that stands in several files the first by name counts;
    /// returned are warnings about the others.
    fn differences(&mut self, events: &mut Vec<Event>) -> Vec<Warning> {
        let mut current: HashMap<ObjectRef, (Arc<str>, &Object)> = HashMap::new();
        let mut twins = Vec::new();
        for (path, file) in &self.files {
            let source = self.name(path);
            for (reference, object) in &file.objects {
                if let Some((first, _)) = current.get(reference) {
                    twins.push(twin(&source, reference, first));
                } else {
                    current.insert(reference.clone(), (source.clone(), object));
                }
            }
        }
        let gone = self.sent.keys().filter(|reference| !current.contains_key(*reference));
        let mut gone: Vec<ObjectRef> = gone.cloned().collect();
        gone.sort_unstable();
        for reference in gone {
            self.sent.remove(&reference);
            events.push(Event::Delete(reference));
        }
        let mut fresh: Vec<(ObjectRef, Arc<str>, Object)> = Vec::new();
        for (reference, (source, object)) in current {
            let same = self.sent.get(&reference).is_some_and(|(from, old)| *from == source && old == object);
            if !same {
                fresh.push((reference, source, object.clone()));
            }
        }
        fresh.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (reference, source, object) in fresh {
            self.sent.insert(reference, (source.clone(), object.clone()));
            events.push(Event::Apply { source, object });
        }
        twins
    }

    fn announce(&mut self, warnings: BTreeMap<Arc<str>, Vec<Warning>>, events: &mut Vec<Event>) {
        for source in self.warned.keys().filter(|source| !warnings.contains_key(*source)) {
            events.push(Event::Warnings { source: source.clone(), warnings: Vec::new() });
        }
        for (source, now) in &warnings {
            if self.warned.get(source) != Some(now) {
                events.push(Event::Warnings { source: source.clone(), warnings: now.clone() });
            }
        }
        self.warned = warnings;
    }
}

impl File {
    /// Reads the file if it has changed and is not being written to; tells whether its objects may have changed.
    fn refresh(&mut self, path: &Path, source: &str, metadata: &Metadata) -> bool {
        let fingerprint = Fingerprint::of(metadata);
        if self.fingerprint == Some(fingerprint) {
            return false;
        }
        let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        let settled = age.is_none_or(|age| age >= SETTLE) || self.unsettled >= PATIENCE;
        if !settled {
            self.unsettled += 1;
            return false;
        }
        self.unsettled = 0;
        self.fingerprint = Some(fingerprint);
        let contents = match read(path, metadata.size()) {
            Ok(octets) => document::read(source, &octets),
            Err(error) => Contents {
                warnings: vec![about(
                    source,
                    format!("{error:#}; its objects stay as they were"),
                    "correct that",
                )],
                broken: true,
                ..Contents::default()
            },
        };
        self.take(source, contents);
        true
    }

    fn take(&mut self, source: &str, contents: Contents) {
        let mut objects = if contents.broken { std::mem::take(&mut self.objects) } else { BTreeMap::new() };
        let mut seen = std::collections::HashSet::new();
        self.warnings = contents.warnings;
        for object in contents.objects {
            let reference = object.reference();
            if seen.insert(reference.clone()) {
                objects.insert(reference, object);
            } else {
                self.warnings.push(twin(source, &reference, source));
            }
        }
        self.objects = objects;
    }
}

fn read(path: &Path, size: u64) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(size <= MAX_OCTETS, "has {size} octets, more than {MAX_OCTETS}");
    fs::read(path).context("cannot be read")
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn about(source: &str, message: String, remedy: &str) -> Warning {
    Warning { source: source.to_owned(), message, remedy: remedy.to_owned(), ..Warning::default() }
}

fn twin(source: &str, object: &ObjectRef, first: &str) -> Warning {
    let message = format!("is already in {first}; this one is ignored");
    Warning::new(object, "metadata.name", message, "remove one of the two").from_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> std::io::Result<Self> {
            let path = std::env::temp_dir().join(format!("vmlb-manifests-{name}-{}", std::process::id()));
            fs::create_dir_all(&path)?;
            Ok(Self(path))
        }

        fn write(&self, file: &str, text: &str) -> std::io::Result<()> {
            fs::write(self.0.join(file), text)?;
            std::thread::sleep(SETTLE + Duration::from_millis(10));
            Ok(())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap_or_default();
        }
    }

    fn nodes(names: &[&str]) -> String {
        let node = |name: &&str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
        names.iter().map(node).collect()
    }

    fn words(events: &[Event]) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Apply { source, object } => format!("{source} {}", object.reference()),
            Event::Judged(judged) => format!(" {}", judged.object),
            Event::Keep(object) => format!("keep {object}"),
            Event::Delete(object) => format!("delete {object}"),
            Event::Listed(kind) => format!("listed {}", kind.name()),
            Event::Listing(kind) => format!("listing {}", kind.name()),
            Event::Warnings { source, warnings } => format!("{} warnings of {source}", warnings.len()),
        };
        events.iter().map(word).collect()
    }

    #[test]
    fn only_what_has_changed_is_sent_again() -> anyhow::Result<()> {
        let folder = Folder::new("changed")?;
        folder.write("a.yaml", &nodes(&["x", "y"]))?;
        let mut manifests = Manifests::new(folder.0.clone());
        let first = words(&manifests.poll());
        assert_eq!(first[..3], ["a.yaml Node x", "a.yaml Node y", "listed Service"]);
        assert!(manifests.poll().is_empty());
        folder.write("a.yaml", &nodes(&["y", "z"]))?;
        assert_eq!(words(&manifests.poll()), ["delete Node x", "a.yaml Node z"]);
        Ok(())
    }

    #[test]
    fn a_renamed_file_and_a_swapped_symlink_are_followed() -> anyhow::Result<()> {
        let folder = Folder::new("renamed")?;
        folder.write(".one", &nodes(&["x"]))?;
        folder.write(".two", &nodes(&["y"]))?;
        std::os::unix::fs::symlink(".one", folder.0.join("a.yaml"))?;
        let mut manifests = Manifests::new(folder.0.clone());
        assert_eq!(words(&manifests.poll())[0], "a.yaml Node x");
        std::os::unix::fs::symlink(".two", folder.0.join(".link"))?;
        fs::rename(folder.0.join(".link"), folder.0.join("a.yaml"))?;
        assert_eq!(words(&manifests.poll()), ["delete Node x", "a.yaml Node y"]);
        fs::rename(folder.0.join("a.yaml"), folder.0.join("b.yaml"))?;
        assert_eq!(words(&manifests.poll()), ["b.yaml Node y"]);
        Ok(())
    }

    #[test]
    fn a_broken_document_keeps_what_the_file_held_until_it_is_mended() -> anyhow::Result<()> {
        let folder = Folder::new("broken")?;
        folder.write("a.yaml", &nodes(&["x", "y"]))?;
        let mut manifests = Manifests::new(folder.0.clone());
        manifests.poll();
        folder.write("a.yaml", &(nodes(&["z"]) + "---\n{"))?;
        assert_eq!(words(&manifests.poll()), ["a.yaml Node z", "1 warnings of a.yaml"]);
        folder.write("a.yaml", &nodes(&["z"]))?;
        assert_eq!(words(&manifests.poll()), ["delete Node x", "delete Node y", "0 warnings of a.yaml"]);
        Ok(())
    }

    #[test]
    fn a_directory_that_vanishes_takes_nothing_with_it() -> anyhow::Result<()> {
        let folder = Folder::new("vanished")?;
        folder.write("a.yaml", &nodes(&["x"]))?;
        let mut manifests = Manifests::new(folder.0.clone());
        manifests.poll();
        let away = folder.0.with_extension("away");
        fs::rename(&folder.0, &away)?;
        assert_eq!(words(&manifests.poll()), [format!("1 warnings of {}", folder.0.display())]);
        fs::rename(&away, &folder.0)?;
        assert_eq!(words(&manifests.poll()), [format!("0 warnings of {}", folder.0.display())]);
        Ok(())
    }

    #[test]
    fn nothing_is_listed_before_every_file_has_come_to_rest() -> anyhow::Result<()> {
        let folder = Folder::new("rest")?;
        let mut manifests = Manifests::new(folder.0.clone());
        fs::write(folder.0.join("a.yaml"), nodes(&["x"]))?;
        assert_eq!(words(&manifests.poll()), Vec::<String>::new());
        std::thread::sleep(SETTLE + Duration::from_millis(10));
        assert_eq!(words(&manifests.poll())[..2], ["a.yaml Node x", "listed Service"]);
        Ok(())
    }
}
