//! The store: objects by kind and name, a version that counts every change, and a log of changes back to the last
//! compaction.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vmlb_agent::object::ObjectRef;

use super::resource;
use super::selector::Selector;

/// An object in one form.
#[derive(Debug)]
pub struct Stored {
    /// Its JSON.
    pub text: String,
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
}

impl Stored {
    fn is_wanted(&self, selector: &Selector) -> bool {
        selector.admits(&self.namespace, &self.name, &self.labels)
    }
}

/// A change.
#[derive(Clone, Debug)]
struct Entry {
    version: u64,
    kind: &'static str,
    before: Option<Arc<Stored>>,
    after: Option<Arc<Stored>>,
}

/// A change as a watch shows it: the type of event, and the object.
#[derive(Clone, Debug)]
pub struct Shown {
    /// `ADDED`, `MODIFIED`, `DELETED`.
    pub event: &'static str,
    /// The object's JSON, of the change's version.
    pub text: String,
}

/// Why a watch or page cannot be had: HTTP 410.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone(pub String);

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// The list's version.
    pub version: u64,
    /// Objects in the order of their names.
    pub items: Vec<Arc<Stored>>,
    /// What to continue with.
    pub token: Option<String>,
}

/// Everything there is.
#[derive(Debug, Default)]
pub struct Store {
    version: u64,
    compacted: u64,
    /// How many stores there were before this one; part of every UID.
    age: u64,
    objects: BTreeMap<&'static str, BTreeMap<String, Arc<Stored>>>,
    log: VecDeque<Entry>,
    /// What lists that are not read to their end go on with, by kind, version and selector.
    snapshots: BTreeMap<(&'static str, u64), Vec<Arc<Stored>>>,
}

impl Store {
    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// An empty store whose objects will have other UIDs. It counts from a low version on, and not from that of any
    /// store before, so that an object which is put in again has another version, as a new revision of etcd's has.
    pub fn successor(&self) -> Self {
        Self { age: self.age + 1, version: self.age + 1, ..Self::default() }
    }

    /// Puts an object in; a new one gets a UID and a time of creation where it has none.
    pub fn put(&mut self, mut object: Value) -> Result<u64> {
        let word =
            |object: &Value, field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let kind = object["kind"].as_str().and_then(resource::of_kind).context("a kind that is served")?.kind;
        let (namespace, name) = (word(&object, "namespace"), word(&object, "name"));
        let key = format!("{namespace}/{name}");
        self.version += 1;
        let before = self.objects.entry(kind).or_default().get(&key).cloned();
        let old: Value = before.as_ref().map_or(Ok(Value::Null), |old| serde_json::from_str(&old.text))?;
        let metadata = object["metadata"].as_object_mut().context("metadata")?;
        let fresh = format!("{:08x}-0000-4000-8000-{:012x}", self.age, self.version);
        for (field, fresh) in [("uid", fresh), ("creationTimestamp", "2026-11-20T10:00:00Z".to_owned())] {
            let kept = old["metadata"][field].as_str().map_or(fresh, str::to_owned);
            metadata.entry(field).or_insert_with(|| kept.into());
        }
        metadata.insert("resourceVersion".to_owned(), self.version.to_string().into());
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let labels =
            labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
        let after = Arc::new(Stored { text: object.to_string(), namespace, name, labels });
        self.objects.entry(kind).or_default().insert(key, after.clone());
        self.log.push_back(Entry { version: self.version, kind, before, after: Some(after) });
        Ok(self.version)
    }

    /// Takes an object out; one that is not there changes nothing.
    pub fn delete(&mut self, object: &ObjectRef) -> u64 {
        self.remove(object.kind.name(), &object.name.namespace, &object.name.name)
    }

    /// Takes an object of any kind out; one that is not there changes nothing.
    pub fn remove(&mut self, kind: &'static str, namespace: &str, name: &str) -> u64 {
        let key = format!("{namespace}/{name}");
        if let Some(before) = self.objects.entry(kind).or_default().remove(&key) {
            self.version += 1;
            let entry = Entry { version: self.version, kind, before: Some(before), after: None };
            self.log.push_back(entry);
        }
        self.version
    }

    /// Forgets the past.
    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
        self.snapshots.clear();
    }

    /// Every object.
    pub fn objects(&self) -> Vec<Value> {
        let all = self.objects.values().flat_map(BTreeMap::values);
        all.filter_map(|stored| serde_json::from_str(&stored.text).ok()).collect()
    }

    /// An object by name.
    pub fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.objects.get(kind)?.get(&format!("{namespace}/{name}")).cloned()
    }

    /// A page of at most `limit` objects (0: all), the first or that which `token` continues with.
    ///
    /// # Errors
    /// When a compaction came between the pages.
    pub fn page(
        &mut self,
        kind: &'static str,
        selector: &Selector,
        limit: usize,
        token: &str,
    ) -> Result<Page, Gone> {
        let expired =
            || Gone("The provided continue parameter is too old to display a consistent list".into());
        let (version, start) = match token.split_once('.') {
            None => (self.version, 0),
            Some((version, start)) => {
                (version.parse().map_err(|_| expired())?, start.parse().map_err(|_| expired())?)
            }
        };
        let all = if token.is_empty() {
            let all = self.objects.entry(kind).or_default().values();
            all.filter(|stored| stored.is_wanted(selector)).cloned().collect()
        } else {
            self.snapshots.get(&(kind, version)).cloned().ok_or_else(expired)?
        };
        let limit = if limit == 0 { all.len() } else { limit };
        let end = (start + limit).min(all.len());
        let items = all[start.min(end)..end].to_vec();
        let token = (end < all.len()).then(|| format!("{version}.{end}"));
        if token.is_some() {
            self.snapshots.insert((kind, version), all);
        }
        Ok(Page { version, items, token })
    }

    /// What has happened to wanted objects of a kind since `version`, and the version it brings a watch to.
    ///
    /// # Errors
    /// When that is from before the last compaction.
    pub fn since(
        &self,
        kind: &'static str,
        selector: &Selector,
        version: u64,
    ) -> Result<(u64, Vec<Shown>), Gone> {
        if version < self.compacted {
            return Err(Gone(format!("too old resource version: {version} ({})", self.compacted)));
        }
        // Versions in the log rise; the new entries are at its end.
        let new = self.log.iter().rev().take_while(|entry| entry.version > version);
        let mut shown: Vec<Shown> =
            new.filter(|entry| entry.kind == kind).filter_map(|entry| show(entry, selector)).collect();
        shown.reverse();
        Ok((version.max(self.version), shown))
    }
}

/// An object that stops being wanted is shown as deleted, one that starts to be as added.
fn show(entry: &Entry, selector: &Selector) -> Option<Shown> {
    let wanted = |stored: &Option<Arc<Stored>>| stored.clone().filter(|stored| stored.is_wanted(selector));
    match (wanted(&entry.before), wanted(&entry.after)) {
        (None, None) => None,
        (None, Some(after)) => Some(Shown { event: "ADDED", text: after.text.clone() }),
        (Some(_), Some(after)) => Some(Shown { event: "MODIFIED", text: after.text.clone() }),
        (Some(before), None) => {
            let mut object: Value = serde_json::from_str(&before.text).unwrap_or_default();
            object["metadata"]["resourceVersion"] = json!(entry.version.to_string());
            Some(Shown { event: "DELETED", text: object.to_string() })
        }
    }
}
