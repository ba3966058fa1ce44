//! Packets straight to pods' devices, past the node's stack: which devices may have that.

use std::collections::BTreeMap;

use clap::ValueEnum;
use vmlb_common::abi::DeviceFlags;

use super::uplinks::Crossing;
use super::watch::Netlink;
use super::{Interfaces, hooks, policy};

/// Values of `--local-delivery`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LocalDelivery {
    /// By the node's stack.
    #[default]
    Stack,
    /// Straight, where nobody's rules or programs are passed by.
    Peer,
    /// Straight, whoever's rules and programs are passed by.
    PeerForced,
}

/// What was asked for, and which devices do not get it.
#[derive(Debug)]
pub struct Straight {
    wanted: LocalDelivery,
    refused: BTreeMap<u32, String>,
}

impl Straight {
    /// Nothing looked at yet.
    #[must_use]
    pub const fn new(wanted: LocalDelivery) -> Self {
        Self { wanted, refused: BTreeMap::new() }
    }

    /// Marks the devices that packets go straight to, and the uplinks by which such packets come.
    pub async fn judge(
        &mut self,
        netlink: &Netlink,
        interfaces: &Interfaces,
        crossings: &mut BTreeMap<u32, Crossing>,
    ) {
        if self.wanted == LocalDelivery::Stack {
            return;
        }
        let mut refused = BTreeMap::new();
        let rules = if self.wanted == LocalDelivery::Peer { policy::found() } else { None };
        for (ifindex, crossing) in crossings {
            let is_guarded =
                self.wanted == LocalDelivery::Peer && crossing.flags & DeviceFlags::POD_SIDE != 0;
            let reason = match &rules {
                _ if !is_guarded => None,
                Some(rules) => Some(rules.clone()),
                None => hooks::of_others(netlink, interfaces, *ifindex).await,
            };
            match reason {
                None => crossing.flags |= DeviceFlags::DIRECT,
                Some(reason) => drop(refused.insert(*ifindex, format!("by the stack: {reason}"))),
            }
        }
        for (ifindex, reason) in &refused {
            if self.refused.get(ifindex) != Some(reason) {
                let name = interfaces.link(*ifindex).map(|link| link.name.as_str()).unwrap_or_default();
                tracing::warn!(
                    "{name}: new flows to its pods go {reason} (--local-delivery peer-forced passes it by)"
                );
            }
        }
        self.refused = refused;
    }

    /// Why a device does not have it.
    #[must_use]
    pub fn refusal(&self, ifindex: u32) -> Option<&str> {
        self.refused.get(&ifindex).map(String::as_str)
    }
}
