//! Which offloads of a device are on: generic netlink family `ethtool` (Linux 5.7), message FEATURES_GET.

use std::collections::BTreeSet;

use anyhow::Context;
use netlink_packet_generic::{GenlFamily, GenlHeader};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, Nla, NlasIterator, ParseableParametrized,
};

use super::generic::Generic;

const FEATURES_GET: u8 = 11;
const FEATURES_HEADER: u16 = 1;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_INDEX: u16 = 1;
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;

/// The names of the features that are on, as `ethtool --show-features` has them in the kernel's words (`rx-lro`).
///
/// # Errors
/// When the kernel does not tell.
pub fn active(ifindex: u32) -> anyhow::Result<BTreeSet<String>> {
    let ethtool = Generic::open(Ethtool::family_name())?;
    let index = DefaultNla::new(HEADER_INDEX, ifindex.to_ne_bytes().to_vec());
    let mut header = vec![0; index.buffer_len()];
    index.emit(&mut header);
    let attributes = vec![DefaultNla::new(FEATURES_HEADER | NLA_F_NESTED, header)];
    let answer = ethtool.ask(Ethtool { attributes })?;
    let bitset = answer.attributes.iter().find(|attribute| attribute.kind() == FEATURES_ACTIVE);
    let mut octets = vec![0; bitset.map_or(0, Nla::value_len)];
    bitset.context("the kernel does not tell this device's features")?.emit_value(&mut octets);
    Ok(names(&octets))
}

/// The names in a bitset that is written out: only bits that are set are listed where all are values.
fn names(bitset: &[u8]) -> BTreeSet<String> {
    let bits = children(bitset).into_iter().filter(|(kind, _)| *kind == BITSET_BITS);
    let bits = bits.flat_map(|(_, bits)| children(&bits)).flat_map(|(_, bit)| children(&bit));
    let names = bits.filter(|(kind, _)| *kind == BIT_NAME);
    names.map(|(_, name)| String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()).collect()
}

fn children(octets: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let attributes = NlasIterator::new(octets).filter_map(Result::ok);
    attributes.map(|attribute| (attribute.kind(), attribute.value().to_vec())).collect()
}

/// A message of family `ethtool`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ethtool {
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Ethtool {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        FEATURES_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Ethtool {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Ethtool {
    fn parse_with_param(octets: &[u8], _header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = children(octets).into_iter().map(|(kind, value)| DefaultNla::new(kind, value));
        Ok(Self { attributes: attributes.collect() })
    }
}
