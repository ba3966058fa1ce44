//! Which flows are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use clap::{Args, ValueEnum};
use vmlb_common::abi::{BackendName, Flow, FlowKey, Seen, ServiceName};
use vmlb_common::wire::Protocol;

use super::service_label;
use crate::commands::backend_label;
use crate::counts::{Family, Stage};
use crate::facts::Cidr;

/// Which flows are asked for: those that are all that is said.
#[derive(Args, Clone, Debug)]
pub struct Filter {
    /// Only flows of this Service
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub service: Option<String>,
    /// Only flows to this VM or pod
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub backend: Option<String>,
    /// Only flows of this client, or of clients in this block
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = client)]
    pub client: Option<Cidr>,
    /// Only flows in this state
    #[arg(long, value_enum)]
    pub state: Option<FlowState>,
    /// Only flows of this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<FlowProtocol>,
}

fn client(text: &str) -> anyhow::Result<Cidr> {
    match text.parse::<IpAddr>() {
        Ok(address) => format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }).parse(),
        Err(_) => text.parse(),
    }
}

/// Where a flow is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowState {
    /// Not proved by packets of both directions.
    Opening,
    /// Proved.
    Established,
    /// One side has ended it.
    Closing,
    /// Both sides have, or one has reset it.
    Closed,
}

impl FlowState {
    pub(super) fn of(stage: Stage, seen: u32) -> Self {
        if Seen::is_closed(seen) {
            Self::Closed
        } else if seen & (Seen::CLIENT_FIN | Seen::BACKEND_FIN) != 0 {
            Self::Closing
        } else if stage == Stage::Opening {
            Self::Opening
        } else {
            Self::Established
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// A protocol of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl FlowProtocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => Protocol::TCP.number(),
            Self::Udp => Protocol::UDP.number(),
        }
    }
}

/// The filter with names turned into ids.
pub(super) struct Wanted<'a> {
    filter: &'a Filter,
    services: Option<BTreeSet<u32>>,
    backends: Option<BTreeSet<u32>>,
}

impl<'a> Wanted<'a> {
    pub fn new(
        filter: &'a Filter,
        services: &BTreeMap<u32, ServiceName>,
        backends: &BTreeMap<u32, BackendName>,
    ) -> Self {
        let of_services = services.iter().map(|(id, name)| (*id, service_label(name)));
        let of_backends = backends.keys().map(|id| (*id, backend_label(backends, *id)));
        Self {
            filter,
            services: filter.service.as_deref().map(|asked| named(asked, of_services)),
            backends: filter.backend.as_deref().map(|asked| named(asked, of_backends)),
        }
    }

    pub fn admits<F: Family>(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        self.services.as_ref().is_none_or(|ids| ids.contains(&flow.service))
            && self.backends.as_ref().is_none_or(|ids| ids.contains(&flow.backend))
            && self.filter.protocol.is_none_or(|protocol| protocol.number() == key.protocol)
            && self.filter.client.is_none_or(|block| block.contains(key.client.ip()))
    }

    /// Told apart from the rest because it takes a look at the flow's other direction.
    pub fn admits_state(&self, state: FlowState) -> bool {
        self.filter.state.is_none_or(|asked| asked == state)
    }
}

/// The ids of what is called so: by namespace and name, or by the name alone; an id without a name by `#` and the id.
fn named(asked: &str, labels: impl Iterator<Item = (u32, String)>) -> BTreeSet<u32> {
    let is_meant =
        |label: &str| label == asked || label.split_once('/').is_some_and(|(_, name)| name == asked);
    let unnamed = asked.strip_prefix('#').and_then(|id| id.parse().ok());
    labels.filter(|(_, label)| is_meant(label)).map(|(id, _)| id).chain(unnamed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flows_state_is_told_by_what_was_seen() {
        assert_eq!(FlowState::of(Stage::Opening, Seen::ANSWERED), FlowState::Opening);
        assert_eq!(FlowState::of(Stage::Established, Seen::ANSWERED), FlowState::Established);
        assert_eq!(FlowState::of(Stage::Established, Seen::CLIENT_FIN), FlowState::Closing);
        let both = Seen::CLIENT_FIN | Seen::BACKEND_FIN;
        assert_eq!(FlowState::of(Stage::Established, both), FlowState::Closed);
        assert_eq!(FlowState::of(Stage::Opening, Seen::RST), FlowState::Closed);
    }

    #[test]
    fn a_client_is_an_address_or_a_block() -> anyhow::Result<()> {
        assert!(client("192.0.2.7")?.contains("192.0.2.7".parse()?));
        assert!(!client("192.0.2.7")?.contains("192.0.2.6".parse()?));
        assert!(client("2001:db8::1")?.contains("2001:db8::1".parse()?));
        assert!(client("192.0.2.0/24")?.contains("192.0.2.6".parse()?));
        assert!(client("web").is_err());
        Ok(())
    }

    #[test]
    fn names_are_asked_for_with_and_without_their_namespace() {
        let labels = || {
            [(1, "a/web"), (2, "b/web"), (3, "a/other")].map(|(id, label)| (id, label.to_owned())).into_iter()
        };
        assert_eq!(named("web", labels()), BTreeSet::from([1, 2]));
        assert_eq!(named("b/web", labels()), BTreeSet::from([2]));
        assert_eq!(named("#7", labels()), BTreeSet::from([7]));
        assert!(named("we", labels()).is_empty());
    }
}
