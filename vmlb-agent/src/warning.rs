//! What is wrong with an object and what to do about it. A warning costs the object it names and nothing else; it stays
//! for as long as its cause does, so that `vmlb status` can show it at any time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::object::{Name, ObjectRef};

/// One thing that is wrong, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Warning {
    /// Where the object came from: a file, or empty for the API server.
    pub source: String,
    /// Kind, namespace and name, as far as they are known.
    pub object: String,
    /// Path of the field, as in `spec.ports[0].nodePort`; empty: the object as a whole.
    pub field: String,
    /// What is wrong, and what that costs.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Warning {
    /// A warning about a field of an object.
    #[must_use]
    pub fn new(object: &ObjectRef, field: &str, message: String, remedy: &str) -> Self {
        Self {
            source: String::new(),
            object: object.to_string(),
            field: field.to_owned(),
            message,
            remedy: remedy.to_owned(),
        }
    }

    /// The same with its source named.
    #[must_use]
    pub fn from_source(mut self, source: &str) -> Self {
        source.clone_into(&mut self.source);
        self
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.source, &self.object, &self.field] {
            if !part.is_empty() {
                write!(out, "{part}: ")?;
            }
        }
        out.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(out, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// What a set of warnings is about; a new set replaces the old one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A file or a watch.
    Source(String),
    /// An object on its own.
    Object(ObjectRef),
    /// A Service together with what belongs to it.
    Service(Name),
    /// A frontend that several Services claim.
    Frontend(IpAddr, u16, u8),
    /// An address that several backends claim.
    Address(IpAddr),
    /// What did not fit into the maps.
    Capacity(Name),
    /// The node itself.
    Node,
}

/// All warnings whose cause is still there.
#[derive(Clone, Debug, Default)]
pub struct Warnings {
    by_subject: BTreeMap<Subject, Vec<Warning>>,
    counts: BTreeMap<Warning, usize>,
    fresh: BTreeSet<Warning>,
    sources: HashMap<String, Arc<str>>,
    revision: u64,
}

impl Warnings {
    /// Remembers where an object came from; `None`: it is gone. Warnings that name no source get that of their object.
    pub fn locate(&mut self, object: &ObjectRef, source: Option<Arc<str>>) {
        match source {
            Some(source) if !source.is_empty() => self.sources.insert(object.to_string(), source),
            _ => self.sources.remove(&object.to_string()),
        };
    }

    /// Replaces what is known about `subject`.
    pub fn set(&mut self, subject: Subject, mut warnings: Vec<Warning>) {
        for warning in &mut warnings {
            if let (true, Some(source)) = (warning.source.is_empty(), self.sources.get(&warning.object)) {
                (**source).clone_into(&mut warning.source);
            }
            let count = self.counts.entry(warning.clone()).or_insert(0);
            *count += 1;
            if *count == 1 {
                self.fresh.insert(warning.clone());
                self.revision += 1;
            }
        }
        let old = if warnings.is_empty() {
            self.by_subject.remove(&subject)
        } else {
            self.by_subject.insert(subject, warnings)
        };
        for warning in old.unwrap_or_default() {
            self.release(&warning);
        }
    }

    fn release(&mut self, warning: &Warning) {
        let Some(count) = self.counts.get_mut(warning) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(warning);
            self.fresh.remove(warning);
            self.revision += 1;
        }
    }

    /// Every warning once, sorted by source and object.
    #[must_use]
    pub fn list(&self) -> Vec<Warning> {
        self.counts.keys().cloned().collect()
    }

    /// Raised whenever [`Self::list`] changes.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Those that appeared since the last call: what belongs into the log.
    pub fn take_fresh(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.fresh).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Kind;

    fn warning(message: &str) -> Warning {
        Warning::new(&ObjectRef::new(Kind::Service, "a", "b"), "spec", message.to_owned(), "mend it")
            .from_source("x.yaml")
    }

    #[test]
    fn a_warning_names_file_object_field_and_remedy() {
        assert_eq!(warning("is bad").to_string(), "x.yaml: Service a/b: spec: is bad; mend it");
    }

    #[test]
    fn the_same_warning_of_two_subjects_is_listed_once_and_lasts_until_both_are_gone() {
        let mut warnings = Warnings::default();
        warnings.set(Subject::Node, vec![warning("w")]);
        warnings.set(Subject::Source("x".into()), vec![warning("w")]);
        assert_eq!(warnings.list().len(), 1);
        assert_eq!(warnings.take_fresh().len(), 1);
        warnings.set(Subject::Node, Vec::new());
        assert_eq!(warnings.list().len(), 1);
        warnings.set(Subject::Source("x".into()), Vec::new());
        assert!(warnings.list().is_empty());
    }

    #[test]
    fn a_warning_that_persists_is_fresh_only_once() {
        let mut warnings = Warnings::default();
        warnings.set(Subject::Node, vec![warning("w")]);
        assert_eq!(warnings.take_fresh().len(), 1);
        warnings.set(Subject::Node, vec![warning("w"), warning("x")]);
        assert_eq!(warnings.take_fresh(), vec![warning("x")]);
    }
}
