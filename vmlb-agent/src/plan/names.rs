//! Names in the maps: for people, and for the next agent, which finds its ids by them.

use vmlb_common::abi::{BackendName, ServiceName};
use vmlb_common::wire::Protocol;

use crate::desired::PortKey;
use crate::desired::backend::BackendView;
use crate::identity::Identity;
use crate::object::Name;

pub(super) fn service_name(key: &PortKey, port_name: &str) -> ServiceName {
    ServiceName {
        namespace: padded(&key.service.namespace),
        name: padded(&key.service.name),
        port_name: padded(port_name),
        port: key.port,
        protocol: key.protocol.number(),
        pad: 0,
    }
}

pub(super) fn port_of(name: &ServiceName) -> PortKey {
    PortKey {
        service: Name::new(&text(&name.namespace), &text(&name.name)),
        port: name.port,
        protocol: Protocol::new(name.protocol),
    }
}

pub(super) fn backend_name(identity: &Identity, view: &BackendView) -> BackendName {
    BackendName {
        uid: whole(identity.as_str()),
        namespace: padded(&view.namespace),
        name: padded(&view.name),
        node: padded(view.present.node.as_deref().unwrap_or_default()),
        vm: u8::from(view.is_vm),
        weight: u8::try_from(view.weight).unwrap_or(u8::MAX),
        pad: 0,
    }
}

pub(super) fn identity_of(name: &BackendName) -> Identity {
    Identity::of_uid(&text(&name.uid))
}

/// Text in an array of octets, cut so that a zero always ends it.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let end = (0..N.min(text.len() + 1)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    whole(&text[..end])
}

/// Text in an array that it may fill to the end.
fn whole<const N: usize>(text: &str) -> [u8; N] {
    let mut octets = [0; N];
    octets.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    octets
}

pub(super) fn text(octets: &[u8]) -> String {
    let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
    String::from_utf8_lossy(&octets[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::backend::End;
    use crate::few::Few;

    #[test]
    fn a_name_that_is_too_long_is_cut_at_a_character_and_ends_with_a_zero() {
        assert_eq!(padded::<4>("abcd"), *b"abc\0");
        assert_eq!(padded::<4>("abc"), *b"abc\0");
        assert_eq!(padded::<4>("abß"), *b"ab\0\0");
    }

    #[test]
    fn a_port_is_found_again_by_its_name() {
        let longest = "x".repeat(63);
        let key = PortKey { service: Name::new(&longest, &longest), port: 80, protocol: Protocol::UDP };
        assert_eq!(port_of(&service_name(&key, "web")), key);
    }

    #[test]
    fn an_identity_of_forty_octets_is_found_again() {
        let identity = Identity::of_uid(&"u".repeat(40));
        let view = BackendView {
            namespace: "a".into(),
            name: "b".into(),
            is_vm: true,
            present: End::default(),
            other: None,
            claims: Few::default(),
            weight: 100,
        };
        assert_eq!(identity_of(&backend_name(&identity, &view)), identity);
    }
}
