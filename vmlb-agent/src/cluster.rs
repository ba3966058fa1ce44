//! From Kubernetes' objects to the index's: decoding and judging, one file a kind. This is the only part besides the
//! sources that knows Kubernetes' types. Nothing in an object is trusted; what is wrong costs the field, the port, the
//! endpoint or the object it is in, and a warning.

use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use vmlb_common::wire::Protocol;

use crate::index::Entry;
use crate::object::ObjectRef;
use crate::warning::Warning;
use crate::watch::Object;

#[cfg(test)]
mod fields;
mod kubevirt;
mod node;
mod pod;
mod service;
mod slice;

pub use pod::WEIGHT_ANNOTATION;
pub use service::ALGORITHM;

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// It is of use in this form.
    Use(Box<Entry>),
    /// It is sound and none of ours.
    Skip,
    /// It is broken: what was known of it before stays.
    Refuse,
}

impl Decoded {
    fn used(entry: Entry) -> Self {
        Self::Use(Box::new(entry))
    }
}

/// An object that has been judged. What it was made of, a hundred small pieces of memory, is of no more use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Which object.
    pub object: ObjectRef,
    /// What became of it.
    pub decoded: Decoded,
    /// What is wrong with it.
    pub warnings: Vec<Warning>,
    /// When the change that it tells of was called for.
    pub triggered: Option<SystemTime>,
}

impl Judged {
    /// Judges an object.
    #[must_use]
    pub fn of(object: &Object) -> Self {
        let reference = object.reference();
        let (decoded, warnings) = judge(object, reference.clone());
        Self { object: reference, decoded, warnings, triggered: triggered(object) }
    }
}

/// Judges an object.
#[must_use]
pub fn decode(object: &Object) -> (Decoded, Vec<Warning>) {
    judge(object, object.reference())
}

fn judge(object: &Object, reference: ObjectRef) -> (Decoded, Vec<Warning>) {
    let mut findings = Findings { object: reference, warnings: Vec::new() };
    let metadata = match object {
        Object::Service(object) => &object.metadata,
        Object::EndpointSlice(object) => &object.metadata,
        Object::Node(object) => &object.metadata,
        Object::Pod(object) => &object.metadata,
        Object::Vmi(object) => &object.metadata,
        Object::Migration(object) => &object.metadata,
    };
    if !findings.accept_metadata(metadata) {
        return (Decoded::Refuse, findings.warnings);
    }
    let decoded = match object {
        Object::Service(object) => service::decode(object, &mut findings),
        Object::EndpointSlice(object) => slice::decode(object, &mut findings),
        Object::Node(object) => node::decode(object, &mut findings),
        Object::Pod(object) => pod::decode(object, &mut findings),
        Object::Vmi(object) => kubevirt::instance(object, &mut findings),
        Object::Migration(object) => kubevirt::migration(object, &mut findings),
    };
    (decoded, findings.warnings)
}

/// When the change that an object tells of was called for; only slices of the endpoint slice controller say so.
#[must_use]
pub fn triggered(object: &Object) -> Option<SystemTime> {
    match object {
        Object::EndpointSlice(object) => slice::triggered(object),
        _ => None,
    }
}

/// What is found while an object is judged.
struct Findings {
    object: ObjectRef,
    warnings: Vec<Warning>,
}

impl Findings {
    fn warn(&mut self, field: &str, message: String, remedy: &str) {
        self.warnings.push(Warning::new(&self.object, field, message, remedy));
    }

    /// Names and label values within the API server's limits; the maps hold 64 octets of a name.
    fn accept_metadata(&mut self, metadata: &ObjectMeta) -> bool {
        let name = self.object.name.clone();
        if name.name.is_empty() {
            self.warn("metadata.name", "has no name and is ignored".into(), "give it one");
            return false;
        }
        if name.namespace.len() > 63 || name.name.len() > 253 {
            let octets = (name.namespace.len(), name.name.len());
            let message = format!(
                "namespace and name have {} and {} octets; the object is ignored",
                octets.0, octets.1
            );
            // The name itself is what is too long: the warning must not repeat it.
            self.object.name = crate::object::Name::new(&shorten(&name.namespace), &shorten(&name.name));
            self.warn("metadata", message, "use at most 63 and 253");
            return false;
        }
        for (key, value) in metadata.labels.iter().flatten() {
            if value.len() > 63 || key.len() > 317 {
                let field = format!("metadata.labels[{}]", shorten(key));
                let message = format!("the value has {} octets; the object is ignored", value.len());
                self.warn(&field, message, "Kubernetes allows 63; shorten it or use an annotation");
                return false;
            }
        }
        true
    }

    /// A port number; 0 where the field is absent.
    fn port(&mut self, field: &str, number: Option<i32>) -> Option<u16> {
        let number = number.unwrap_or(0);
        let port = u16::try_from(number).ok();
        if port.is_none() {
            self.warn(field, format!("{number} is not a port; ignored"), "use 1 to 65535");
        }
        port
    }

    fn protocol(&mut self, field: &str, name: Option<&str>) -> Option<Protocol> {
        let protocol = match name.unwrap_or("TCP") {
            "TCP" => Some(Protocol::TCP),
            "UDP" => Some(Protocol::UDP),
            "SCTP" => Some(Protocol::SCTP),
            _ => None,
        };
        if protocol.is_none() {
            let name = shorten(name.unwrap_or_default());
            self.warn(
                field,
                format!("{name:?} is not a protocol; the port is ignored"),
                "use TCP, UDP or SCTP",
            );
        }
        protocol
    }

    /// An address that packets can be sent to.
    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let Ok(address) = text.parse::<IpAddr>() else {
            self.warn(
                field,
                format!("{:?} is not an IP address; ignored", shorten(text)),
                "write it as 192.0.2.1 or 2001:db8::1",
            );
            return None;
        };
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
            IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
        };
        if link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            let message = format!("{address} is not an address that is served; ignored");
            self.warn(field, message, "use a global unicast address");
            return None;
        }
        Some(address)
    }
}

/// Text for a warning: the first octets of what may be a megabyte.
pub(crate) fn shorten(text: &str) -> String {
    const MAX: usize = 63;
    if text.len() <= MAX {
        return text.to_owned();
    }
    let end = (0..=MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}
