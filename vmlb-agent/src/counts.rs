//! What the pinned maps count, for the commands and for metrics: packets by reason, traffic of backends, flows, and how
//! full the tables are. Everything is read in one pass over each map, nothing is kept of single flows.

use std::net::IpAddr;

use vmlb_common::abi::names;
use vmlb_common::family::{Address, Address4, Address6};

pub mod fill;
pub mod flows;
pub mod reasons;
pub mod traffic;
pub mod tries;

pub use fill::{Fill, fills};
pub use flows::{FlowCounts, FlowTotal, Stage};
pub use reasons::{Outcome, ReasonCount};

/// A family of addresses, as the maps are split by it.
pub trait Family: Address + Ord {
    /// Which of two maps is its own.
    const PLACE: usize;
    /// The word for people.
    const NAME: &'static str;

    /// The address as the standard library has it.
    fn ip(self) -> IpAddr;
}

impl Family for Address4 {
    const PLACE: usize = 0;
    const NAME: &'static str = "IPv4";

    fn ip(self) -> IpAddr {
        self.octets.into()
    }
}

impl Family for Address6 {
    const PLACE: usize = 1;
    const NAME: &'static str = "IPv6";

    fn ip(self) -> IpAddr {
        self.octets.into()
    }
}

/// The name of a family's map.
#[must_use]
pub fn own<F: Family>(twins: [&'static str; 2]) -> &'static str {
    let [v4, v6] = twins;
    if F::PLACE == 0 { v4 } else { v6 }
}

/// Names of the flow tables of a stage: those of flows and those of replies.
#[must_use]
pub fn flow_tables<F: Family>(stage: Stage) -> (&'static str, &'static str) {
    match stage {
        Stage::Established => (own::<F>(names::FLOWS), own::<F>(names::REPLIES)),
        Stage::Opening => (own::<F>(names::HALF_FLOWS), own::<F>(names::HALF_REPLIES)),
    }
}
