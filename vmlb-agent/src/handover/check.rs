//! What has become of a VM's flows after it has moved: how many went over, and how many of those whose clients have spoken since
//! have heard nothing. A launcher with `net.netfilter.nf_conntrack_tcp_loose=0` shows by that alone: its namespace is not ours.

use std::time::{Duration, Instant};

use vmlb_common::abi::{Reply, ReplyKey, names};
use vmlb_common::family::{Address4, Address6};

use crate::bpf::PinnedMap;
use crate::migration::Moment;
use crate::pins::PinRoot;
use crate::primer::{Established, Flows, Key};
use crate::settings::{self, SettingsMap};

/// Clients have tried again by then, and so has the guest (RFC 6298: within a second, then two, then four).
const LATER: Duration = Duration::from_secs(10);
/// A check is remembered for so long that nobody begins it anew.
const KEPT: Duration = Duration::from_secs(600);

/// When replies of flows were last seen.
#[derive(Debug)]
pub struct Replies {
    root: PinRoot,
    v4: PinnedMap<ReplyKey<Address4>, Reply<Address4>>,
    v6: PinnedMap<ReplyKey<Address6>, Reply<Address6>>,
}

impl Replies {
    /// Opens the maps under `root`.
    ///
    /// # Errors
    /// When one is missing or of another layout.
    pub fn open(root: &PinRoot) -> anyhow::Result<Self> {
        let [v4, v6] = names::REPLIES;
        Ok(Self { root: root.clone(), v4: PinnedMap::open(root, v4)?, v6: PinnedMap::open(root, v6)? })
    }

    /// When the last reply of a flow passed, jiffies.
    fn seen(&self, flow: &Established) -> Option<u32> {
        let key = flow.reply_key()?;
        match key {
            ReplyOf::V4(key) => self.v4.get(&key).ok()?.map(|reply| reply.seen),
            ReplyOf::V6(key) => self.v6.get(&key).ok()?.map(|reply| reply.seen),
        }
    }

    /// The jiffies of a moment.
    fn jiffies(&self, moment: Moment) -> anyhow::Result<u32> {
        let hz = SettingsMap::open(&self.root)?.current().map_or(1, |settings| settings.hz);
        let passed = Moment::now().since(moment) / 1_000_000 * u64::from(hz) / 1000;
        Ok(settings::jiffies(hz)?.wrapping_sub(u32::try_from(passed & u64::from(u32::MAX))?))
    }
}

/// The key of a flow's other direction.
pub(crate) enum ReplyOf {
    V4(ReplyKey<Address4>),
    V6(ReplyKey<Address6>),
}

impl Established {
    fn reply_key(&self) -> Option<ReplyOf> {
        let (backend, target_port, peer_port) = (self.backend, self.target_port, self.peer.port());
        let (protocol, pad, pad2) = (self.protocol.number(), 0, 0);
        match (self.key, self.peer.ip()) {
            (Key::V4(_), std::net::IpAddr::V4(peer)) => {
                let peer = Address4 { octets: peer.octets() };
                Some(ReplyOf::V4(ReplyKey { backend, peer, target_port, peer_port, protocol, pad, pad2 }))
            }
            (Key::V6(_), std::net::IpAddr::V6(peer)) => {
                let peer = Address6 { octets: peer.octets() };
                Some(ReplyOf::V6(ReplyKey { backend, peer, target_port, peer_port, protocol, pad, pad2 }))
            }
            _ => None,
        }
    }
}

/// Looks twice: at once and later.
#[derive(Debug)]
pub struct Check {
    backend: u32,
    turned: Moment,
    begun: Instant,
    carried: Option<u64>,
    silent: Option<u64>,
}

impl Check {
    /// For a backend that has turned.
    #[must_use]
    pub fn new(backend: u32, turned: Moment, now: Instant) -> Self {
        Self { backend, turned, begun: now, carried: None, silent: None }
    }

    /// When there is something to look at; `None`: no more.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match (self.carried, self.silent) {
            (None, _) => Some(self.begun),
            (_, None) => Some(self.begun + LATER),
            _ => None,
        }
    }

    /// When it may be forgotten.
    #[must_use]
    pub fn forget(&self) -> Instant {
        self.begun + KEPT
    }

    /// Flows that went over.
    #[must_use]
    pub fn carried(&self) -> Option<u64> {
        self.carried
    }

    /// Flows that have fallen silent.
    #[must_use]
    pub fn silent(&self) -> Option<u64> {
        self.silent
    }

    /// Looks where it is time to; whether it was.
    pub fn work(&mut self, flows: &dyn Flows, replies: &Replies, now: Instant) -> bool {
        if self.due().is_none_or(|due| due > now) {
            return false;
        }
        let turned = replies.jiffies(self.turned).ok();
        let (mut open, mut silent) = (0, 0);
        let read = flows.each(&mut |flow| {
            if flow.backend != self.backend || !flow.is_open() {
                return;
            }
            open += 1;
            let asked = turned.zip(Some(flow.seen)).is_some_and(|(turned, seen)| is_after(seen, turned));
            let answered =
                turned.zip(replies.seen(flow)).is_none_or(|(turned, seen)| !is_after(turned, seen));
            silent += u64::from(asked && !answered);
        });
        if let Err(error) = read {
            tracing::debug!("flows of a VM that has moved are not counted: {error:#}");
        }
        if self.carried.is_none() {
            self.carried = Some(open);
        } else {
            self.silent = Some(silent);
        }
        true
    }
}

/// Whether jiffies `one` are later than `other`.
fn is_after(one: u32, other: u32) -> bool {
    let ahead = one.wrapping_sub(other);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_are_compared_across_their_end() {
        assert!(is_after(1, u32::MAX) && !is_after(u32::MAX, 1) && !is_after(7, 7));
    }
}
