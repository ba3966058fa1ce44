//! One manifest: from octets to [`super::Object`]s, with a warning for whatever is odd about them.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Object;
use crate::cluster::shorten;
use crate::object::{Kind, ObjectRef};
use crate::warning::Warning;

/// What a file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The objects that could be read, in the order they stand in.
    pub objects: Vec<Object>,
    /// What is wrong; all of it names the file.
    pub warnings: Vec<Warning>,
    /// Whether something could not be read at all, so that objects may be missing that the author still wants.
    pub broken: bool,
}

/// Reads a manifest of one or more YAML documents (JSON is YAML). A document that cannot be read costs itself.
#[must_use]
pub fn read(source: &str, octets: &[u8]) -> Contents {
    let mut reader = Reader { source, contents: Contents::default() };
    match std::str::from_utf8(octets) {
        Ok(text) => {
            for (line, document) in documents(text) {
                reader.document(line, document);
            }
        }
        Err(error) => {
            let message =
                format!("is not UTF-8 from octet {} on; its objects stay as they were", error.valid_up_to());
            reader.refuse("", "", message, "save it as UTF-8");
        }
    }
    reader.contents
}

/// Cuts a stream at its document markers (YAML 1.2 section 9.1.2: a line that begins with `---` ends any document, also
/// inside a block scalar), so that a fault in one document cannot spill into the next. With each goes its first line.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let rest = line.strip_prefix("---").or(line.strip_prefix("..."));
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            found.push((start_line, &text[start..at]));
            // What stands behind the marker on its own line belongs to the new document.
            (start, start_line) = (at + 3, number);
        }
        at += line.len();
    }
    found.push((start_line, &text[start..]));
    found.retain(|(_, document)| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    });
    found
}

struct Reader<'a> {
    source: &'a str,
    contents: Contents,
}

impl Reader<'_> {
    fn warn(&mut self, object: &str, field: &str, message: String, remedy: &str) {
        self.contents.warnings.push(Warning {
            source: self.source.to_owned(),
            object: object.to_owned(),
            field: field.to_owned(),
            message,
            remedy: remedy.to_owned(),
        });
    }

    fn refuse(&mut self, object: &str, field: &str, message: String, remedy: &str) {
        self.contents.broken = true;
        self.warn(object, field, message, remedy);
    }

    fn document(&mut self, line: usize, text: &str) {
        match serde_saphyr::from_str_with_options::<Value>(text, options(text.len())) {
            Ok(value) => self.value(value, line),
            Err(error) => {
                let first = error.to_string();
                let first = first.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
                let message = format!(
                    "the document that begins on line {line} is not valid YAML ({}); its objects stay as they were",
                    shorten_message(first)
                );
                self.refuse("", "", message, "correct it; the rest of the file is used");
            }
        }
    }

    fn value(&mut self, value: Value, line: usize) {
        if value.is_null() {
            return;
        }
        let word = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (kind, version) = (word("kind"), word("apiVersion"));
        let Some(known) = Kind::from_name(&kind) else {
            return self.other(value, &kind, line);
        };
        let object = reference(known, &value).to_string();
        if version != known.api_version() {
            let message = format!("{:?} is not served; the object is ignored", shorten(&version));
            let remedy = format!("use {}", known.api_version());
            return self.refuse(&object, "apiVersion", message, &remedy);
        }
        let decoded = match known {
            Kind::Service => self.decode(&object, &value).map(|object| Object::Service(Arc::new(object))),
            Kind::EndpointSlice => {
                self.decode(&object, &value).map(|object| Object::EndpointSlice(Arc::new(object)))
            }
            Kind::Node => self.decode(&object, &value).map(|object| Object::Node(Arc::new(object))),
            Kind::Pod => self.decode(&object, &value).map(|object| Object::Pod(Arc::new(object))),
            Kind::Vmi => self.decode_part(&object, &value).map(|object| Object::Vmi(Arc::new(object))),
            Kind::Migration => {
                self.decode_part(&object, &value).map(|object| Object::Migration(Arc::new(object)))
            }
        };
        self.contents.objects.extend(decoded);
    }

    /// A list, or a kind that is not watched.
    fn other(&mut self, mut value: Value, kind: &str, line: usize) {
        let items = value.get_mut("items").map(Value::take);
        let Some(item_kind) = kind.strip_suffix("List") else {
            if kind.is_empty() {
                let message = format!("the document that begins on line {line} has no kind; ignored");
                return self.refuse("", "kind", message, "make it a Kubernetes object");
            }
            let message = format!("{:?} is not a kind that vmlb reads; the object is ignored", shorten(kind));
            return self.warn(&shorten(kind), "kind", message, "move it out of the directory");
        };
        match items {
            Some(Value::Array(items)) => {
                for mut item in items {
                    // Items of a typed list may leave out what the list has said.
                    if let (Some(known), Some(fields)) = (Kind::from_name(item_kind), item.as_object_mut()) {
                        fields.entry("kind").or_insert_with(|| known.name().into());
                        fields.entry("apiVersion").or_insert_with(|| known.api_version().into());
                    }
                    self.value(item, line);
                }
            }
            None | Some(Value::Null) => {}
            Some(_) => {
                let message = format!("of the list that begins on line {line} is not a sequence; ignored");
                self.refuse(&shorten(kind), "items", message, "make it a sequence of objects");
            }
        }
    }

    /// Of kinds of which only some fields are known.
    fn decode_part<T: DeserializeOwned>(&mut self, object: &str, value: &Value) -> Option<T> {
        let mut track = serde_path_to_error::Track::new();
        let decoded = T::deserialize(serde_path_to_error::Deserializer::new(value, &mut track));
        self.accept(object, decoded, &track.path().to_string())
    }

    fn decode<T: DeserializeOwned>(&mut self, object: &str, value: &Value) -> Option<T> {
        let mut unknown = Vec::new();
        let mut track = serde_path_to_error::Track::new();
        let decoder = serde_path_to_error::Deserializer::new(value, &mut track);
        let decoded = serde_ignored::deserialize(decoder, |path| unknown.push(field_of(&path)));
        // A field that is null is as good as absent, and one or two examples are enough of any that are not known.
        for field in unknown.iter().take(8) {
            let remedy = "check its spelling and its place";
            self.warn(object, &shorten_message(field), "is not a field of this kind; ignored".into(), remedy);
        }
        self.accept(object, decoded, &track.path().to_string())
    }

    fn accept<T>(&mut self, object: &str, decoded: serde_json::Result<T>, path: &str) -> Option<T> {
        match decoded {
            Ok(decoded) => Some(decoded),
            Err(error) => {
                let message = format!("{}; the object stays as it was", shorten_message(&error.to_string()));
                self.refuse(object, &shorten_message(path), message, "correct the value");
                None
            }
        }
    }
}

/// A path as people write it: `spec.ports[0].port`.
fn field_of(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_of(parent)),
        Path::Map { parent, key } => match field_of(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            field_of(parent)
        }
    }
}

/// What a value claims to be, before it is decoded.
fn reference(kind: Kind, value: &Value) -> ObjectRef {
    let word = |field: &str| {
        let field = value.get("metadata").and_then(|metadata| metadata.get(field));
        field.and_then(Value::as_str).map(shorten)
    };
    let namespace = match kind {
        Kind::Node => String::new(),
        _ => word("namespace").unwrap_or_else(|| "default".to_owned()),
    };
    ObjectRef::new(kind, &namespace, &word("name").unwrap_or_default())
}

/// Limits that a document cannot exceed without repeating itself by aliases: its length bounds what it may become.
fn options(length: usize) -> serde_saphyr::Options {
    let events = length.saturating_add(1024);
    serde_saphyr::options! {
        // YAML 1.2: `yes`, `no`, `on`, `y` are words, not booleans.
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: events,
            max_nodes: events,
            max_total_scalar_bytes: events,
            max_aliases: 1024,
            max_depth: 64,
        },
    }
}

fn shorten_message(text: &str) -> String {
    const MAX: usize = 200;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_fault_in_one_document_does_not_reach_the_next() {
        let text = "kind: Node\napiVersion: v1\nmetadata: {name: a}\n---\nb: [\n---\nkind: Node\napiVersion: v1\nmetadata: {name: c}\n";
        let contents = read("f", text.as_bytes());
        assert_eq!((contents.objects.len(), contents.warnings.len(), contents.broken), (2, 1, true));
        assert!(contents.warnings[0].message.contains("line 4"), "{}", contents.warnings[0]);
    }

    #[test]
    fn markers_with_comments_and_windows_line_ends_separate_documents_and_a_lookalike_does_not() {
        let text = "\u{feff}--- # one\r\nkind: Node\r\napiVersion: v1\r\nmetadata: {name: a}\r\n...\r\n---\r\n# nothing\r\n";
        let contents = read("f", text.as_bytes());
        assert_eq!((contents.objects.len(), &contents.warnings[..]), (1, &[][..]));
        assert_eq!(documents("a: 1\n---b: 2\n").len(), 1);
    }

    #[test]
    fn a_list_of_a_kind_lends_its_kind_to_its_items() {
        let text = r#"{"kind": "NodeList", "apiVersion": "v1", "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}"#;
        let contents = read("f", text.as_bytes());
        assert_eq!((contents.objects.len(), &contents.warnings[..]), (2, &[][..]));
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic_and_no_warning_is_long(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            for warning in read("f", &octets).warnings {
                prop_assert!(warning.to_string().len() < 2000);
            }
        }

        #[test]
        fn no_object_makes_it_panic(word in "[a-zA-Z.\\[\\]{}:&*!|>'\"%@`,\\-? \\n]{0,80}") {
            let text = format!("kind: Service\napiVersion: v1\nmetadata: {{name: a}}\nspec: {word}\n");
            for object in read("f", text.as_bytes()).objects {
                let (_, warnings) = crate::cluster::decode(&object);
                prop_assert!(warnings.iter().all(|warning| warning.to_string().len() < 2000));
            }
        }
    }
}
