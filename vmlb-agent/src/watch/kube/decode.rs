//! From octets to objects. What cannot be read costs itself: the rest of a page or of a watch is used.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::failure::Failure;
use super::stream::Status;
use crate::cluster::shorten;
use crate::object::{Kind, ObjectRef};
use crate::watch::Object;

/// A page of a list; borrows the octets.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    metadata: PageMeta,
    /// `null` stands for none.
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMeta {
    resource_version: String,
    r#continue: Option<String>,
}

impl<'a> Page<'a> {
    /// Reads a page of a list of `kind`.
    ///
    /// # Errors
    /// When it is cut short, or a list of something else.
    pub fn read(kind: Kind, octets: &'a [u8]) -> Result<Self, Failure> {
        let broken = |error: serde_json::Error| Failure::Garbled(format!("a list that is not JSON: {error}"));
        let page: Self = serde_json::from_slice(octets).map_err(broken)?;
        if page.kind.strip_suffix("List") != Some(kind.name()) {
            return Err(Failure::Garbled(format!(
                "{:?} in answer to a list of {}",
                shorten(&page.kind),
                kind.name()
            )));
        }
        if page.metadata.resource_version.is_empty() {
            return Err(Failure::Garbled("a list without a resourceVersion".into()));
        }
        Ok(page)
    }

    /// The version of the whole list.
    pub fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// What to ask the next page with.
    pub fn next(&self) -> Option<&str> {
        self.metadata.r#continue.as_deref().filter(|token| !token.is_empty())
    }

    /// Its objects.
    pub fn items(&self) -> impl Iterator<Item = &'a str> {
        self.items.iter().flatten().map(|item| item.get())
    }

    /// Its first object.
    pub fn first(&self) -> Option<Incarnation> {
        let HeadMeta { uid, resource_version, .. } = Head::of(self.items().next()?).metadata;
        Some(Incarnation { uid: uid.into_owned(), version: resource_version.into_owned() })
    }
}

/// An object at some time: no other object has its UID, and no other form of it has its version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Incarnation {
    pub uid: String,
    pub version: String,
}

/// What any object has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Head<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    metadata: HeadMeta<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadMeta<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
}

impl<'a> Head<'a> {
    /// Reads what it can; an object without a readable head is one without a name.
    fn of(json: &'a str) -> Self {
        serde_json::from_str(json).unwrap_or_default()
    }

    /// Which object of `kind` this is; `None`: it says that it is of another kind, or has no name.
    fn reference(&self, kind: Kind) -> Option<ObjectRef> {
        let same = self.kind.is_empty() || self.kind == kind.name();
        let named = !self.metadata.name.is_empty();
        (same && named).then(|| ObjectRef::new(kind, &self.metadata.namespace, &self.metadata.name))
    }
}

/// An object of a page or of a watch.
#[derive(Debug)]
pub(super) enum Item {
    /// It is this.
    Sound(Object),
    /// It is there, but cannot be read.
    Unreadable(ObjectRef, String),
    /// It is not of the kind that was asked for, or nothing at all.
    Foreign(String),
}

/// Reads an object of `kind`.
pub(super) fn item(kind: Kind, json: &str) -> Item {
    let read = match kind {
        Kind::Service => parse(json).map(|object| Object::Service(Arc::new(object))),
        Kind::EndpointSlice => parse(json).map(|object| Object::EndpointSlice(Arc::new(object))),
        Kind::Node => parse(json).map(|object| Object::Node(Arc::new(object))),
        Kind::Pod => parse(json).map(|object| Object::Pod(Arc::new(object))),
        Kind::Vmi => parse(json).map(|object| Object::Vmi(Arc::new(object))),
        Kind::Migration => parse(json).map(|object| Object::Migration(Arc::new(object))),
    };
    match read {
        Ok(object) => Item::Sound(object),
        Err(error) => {
            let head = Head::of(json);
            match head.reference(kind) {
                Some(reference) => Item::Unreadable(reference, shorten_message(&error.to_string())),
                None => Item::Foreign(shorten(&head.kind)),
            }
        }
    }
}

fn parse<T: DeserializeOwned>(json: &str) -> serde_json::Result<T> {
    serde_json::from_str(&without_managed_fields(json))
}

/// An object without the record of who set which field: as long as the rest of it, many small pieces of memory when read,
/// and nothing that is looked at.
fn without_managed_fields(json: &str) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Outline<'a> {
        #[serde(borrow)]
        metadata: Metadata<'a>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata<'a> {
        #[serde(borrow)]
        managed_fields: &'a RawValue,
    }
    // What has none, or is odd in some way, is for the parser to judge as it came.
    let Ok(outline) = serde_json::from_str::<Outline<'_>>(json) else { return Cow::Borrowed(json) };
    let fields = outline.metadata.managed_fields.get();
    let start = fields.as_ptr().addr() - json.as_ptr().addr();
    Cow::Owned([&json[..start], "[]", &json[start + fields.len()..]].concat())
}

fn shorten_message(text: &str) -> String {
    text.chars().take(200).collect()
}

/// A line of a watch.
#[derive(Debug)]
pub(super) enum Line {
    /// An object is there in this form, as of this version.
    Apply(Item, String),
    /// It is gone, as of this version.
    Delete(ObjectRef, String),
    /// Nothing has happened up to this version.
    Bookmark(String),
    /// The watch cannot go on.
    Error(Failure),
    /// Not a line that is known.
    Unknown(String),
}

/// Reads a line of a watch of `kind`.
///
/// # Errors
/// When it is not JSON: then nothing after it can be trusted either.
pub(super) fn line(kind: Kind, octets: &[u8]) -> Result<Line, Failure> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let broken = |error: serde_json::Error| Failure::Garbled(format!("a line that is not JSON: {error}"));
    let Envelope { r#type, object } = serde_json::from_slice(octets).map_err(broken)?;
    let json = object.get();
    let version = |head: &Head<'_>| head.metadata.resource_version.to_string();
    Ok(match &*r#type {
        "ADDED" | "MODIFIED" => match item(kind, json) {
            Item::Sound(object) => {
                let version = object.metadata().resource_version.clone().unwrap_or_default();
                Line::Apply(Item::Sound(object), version)
            }
            item => Line::Apply(item, version(&Head::of(json))),
        },
        "DELETED" => {
            let head = Head::of(json);
            match head.reference(kind) {
                Some(reference) => Line::Delete(reference, version(&head)),
                None => Line::Unknown(format!("the deletion of a {:?}", shorten(&head.kind))),
            }
        }
        "BOOKMARK" => Line::Bookmark(version(&Head::of(json))),
        "ERROR" => {
            let status: Status = serde_json::from_str(json).unwrap_or_default();
            Line::Error(Failure::of_status(
                status.code,
                &status.reason,
                shorten_message(&status.message),
                None,
            ))
        }
        other => Line::Unknown(format!("an event of type {:?}", shorten(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_gives_its_objects_and_the_way_on() -> Result<(), Failure> {
        let text = r#"{"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": "x"},
            "items": [{"metadata": {"name": "a", "uid": "u"}}, {"metadata": {"name": 5}}, {"metadata": {"name": "b"}, "status": 1}]}"#;
        let page = Page::read(Kind::Node, text.as_bytes())?;
        assert_eq!(
            (page.version(), page.next(), page.first().map(|first| first.uid)),
            ("7", Some("x"), Some("u".into()))
        );
        let items: Vec<Item> = page.items().map(|json| item(Kind::Node, json)).collect();
        assert!(
            matches!(&items[..], [Item::Sound(_), Item::Foreign(_), Item::Unreadable(_, _)]),
            "{items:?}"
        );
        Ok(())
    }

    #[test]
    fn an_empty_list_may_be_null_and_a_list_of_something_else_is_refused() {
        let text = r#"{"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": null}"#;
        assert!(Page::read(Kind::Pod, text.as_bytes()).is_ok_and(|page| page.items().count() == 0));
        assert!(Page::read(Kind::Node, text.as_bytes()).is_err());
        assert!(Page::read(Kind::Pod, &text.as_bytes()[..40]).is_err());
    }

    #[test]
    fn who_set_which_field_is_not_read_and_all_else_is() {
        let fields = r#"[{"manager": "x", "fieldsV1": {"f:metadata": {"f:labels": {}}}}]"#;
        let with = |fields: &str| {
            format!(
                r#"{{"metadata": {{"name": "a", "managedFields": {fields}, "uid": "\u0075é"}}, "status": {{"x": "managedFields"}}}}"#
            )
        };
        assert_eq!(without_managed_fields(&with(fields)), with("[]"));
        assert!(matches!(item(Kind::Node, &with(fields)),
            Item::Sound(Object::Node(node)) if node.metadata.uid.as_deref() == Some("ué")));
        // What is not an object's usual form is as it was.
        let twice = r#"{"metadata": {"name": "a", "managedFields": [], "managedFields": []}}"#;
        for json in [&*with(fields).replace("managedFields", "fields"), twice, "{", "[]", ""] {
            assert_eq!(without_managed_fields(json), json);
        }
    }

    #[test]
    fn every_type_of_line_is_told_apart() -> Result<(), Failure> {
        let say = |kind: &str, object: &str| {
            let text = format!(r#"{{"type": "{kind}", "object": {object}}}"#);
            line(Kind::Node, text.as_bytes())
        };
        let node =
            r#"{"kind": "Node", "apiVersion": "v1", "metadata": {"name": "a", "resourceVersion": "8"}}"#;
        assert!(matches!(say("MODIFIED", node)?, Line::Apply(Item::Sound(_), version) if version == "8"));
        assert!(matches!(say("DELETED", node)?, Line::Delete(_, version) if version == "8"));
        assert!(matches!(say("BOOKMARK", node)?, Line::Bookmark(version) if version == "8"));
        assert!(matches!(say("MOVED", node)?, Line::Unknown(_)));
        let widget = r#"{"kind": "Widget", "metadata": {"name": "a", "resourceVersion": "9"}}"#;
        assert!(matches!(say("ADDED", widget)?, Line::Apply(Item::Foreign(_), version) if version == "9"));
        let gone = r#"{"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}"#;
        assert!(matches!(say("ERROR", gone)?, Line::Error(Failure::Gone(_))));
        assert!(line(Kind::Node, br#"{"type": "ADDED", "obj"#).is_err());
        Ok(())
    }
}
