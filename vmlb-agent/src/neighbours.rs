//! Next hops in use are kept resolved: XDP sends without the kernel's knowledge, so the kernel would let them go stale.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use anyhow::Context;
use futures_util::stream::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use vmlb_common::abi::NeighbourKey;
use vmlb_common::family::Address6;

use crate::bpf::PinnedMap;
use crate::interface::Interfaces;

/// How a next hop is kept fresh: the value in map `neighbours`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upkeep(pub u32);

impl Upkeep {
    /// The kernel probes it by itself (`NTF_EXT_MANAGED`, Linux 5.16).
    pub const MANAGED: Self = Self(1);
    /// The agent asks the kernel to probe it, again and again.
    pub const PROBED: Self = Self(2);
}

/// A next hop: a device and an address there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Device.
    pub ifindex: u32,
    /// Neighbour.
    pub address: IpAddr,
}

impl NextHop {
    /// As the map's key.
    #[must_use]
    pub fn key(&self) -> NeighbourKey {
        let address = match self.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        NeighbourKey { ifindex: self.ifindex, address: Address6 { octets: address.octets() } }
    }

    /// From the map's key.
    #[must_use]
    pub fn from_key(key: &NeighbourKey) -> Self {
        let address = Ipv6Addr::from(key.address.octets);
        let address = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
        Self { ifindex: key.ifindex, address }
    }
}

/// The next hops that are kept, in the kernel and in map `neighbours`.
#[derive(Debug)]
pub struct Neighbours {
    handle: Handle,
    map: PinnedMap<NeighbourKey, u32>,
    kept: BTreeMap<NextHop, Upkeep>,
}

impl Neighbours {
    /// Takes over what an earlier agent kept.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn adopt(handle: Handle, map: PinnedMap<NeighbourKey, u32>) -> anyhow::Result<Self> {
        let kept =
            map.all()?.into_iter().map(|(key, upkeep)| (NextHop::from_key(&key), Upkeep(upkeep))).collect();
        Ok(Self { handle, map, kept })
    }

    /// How many next hops are kept.
    #[must_use]
    pub fn count(&self) -> usize {
        self.kept.len()
    }

    /// Keeps exactly `wanted`, also where the kernel has forgotten one that was kept: a device that goes down takes its
    /// neighbours along. What the kernel refuses is logged and tried again by the next call.
    pub async fn keep(&mut self, wanted: &BTreeSet<NextHop>, interfaces: &Interfaces) {
        let gone: Vec<NextHop> = self.kept.keys().filter(|hop| !wanted.contains(hop)).copied().collect();
        for hop in gone {
            if let Err(error) = self.release(hop).await {
                tracing::warn!("cannot release the next hop {}: {error:#}", hop.address);
            }
        }
        for hop in wanted {
            let is_kept = self.kept.contains_key(hop) && !interfaces.may_lack(hop.ifindex, hop.address);
            if !is_kept && let Err(error) = self.add(*hop).await {
                tracing::warn!("cannot keep the next hop {} fresh: {error:#}", hop.address);
            }
        }
    }

    /// Asks the kernel to confirm the next hops that it does not look after by itself.
    pub async fn probe(&self) {
        for (hop, upkeep) in &self.kept {
            if *upkeep == Upkeep::PROBED
                && let Err(error) = ask(&self.handle, *hop, NeighbourExtFlags::empty(), NLM_F_CREATE).await
            {
                tracing::debug!("cannot probe {}: {error:#}", hop.address);
            }
        }
    }

    /// Releases every next hop there is in the map.
    ///
    /// # Errors
    /// When one cannot be released; the others are.
    pub async fn release_all(&mut self) -> anyhow::Result<usize> {
        let all: Vec<NextHop> = self.kept.keys().copied().collect();
        let mut failed = None;
        for hop in &all {
            if let Err(error) = self.release(*hop).await {
                failed = Some(error.context(format!("cannot release the next hop {}", hop.address)));
            }
        }
        failed.map_or(Ok(all.len()), Err)
    }

    async fn add(&mut self, hop: NextHop) -> anyhow::Result<()> {
        match state(&self.handle, hop).await? {
            // Never aged by the kernel, or looked after by someone who would miss the flag when we release it.
            Some((NeighbourState::Permanent | NeighbourState::Noarp, _)) => return Ok(()),
            Some((_, flags)) if flags.contains(NeighbourExtFlags::Managed) => return Ok(()),
            _ => {}
        }
        // Recorded first: an agent that is killed here leaves a record too many, not a neighbour too many.
        self.map.put(&hop.key(), &Upkeep::MANAGED.0)?;
        ask(&self.handle, hop, NeighbourExtFlags::Managed, NLM_F_CREATE).await?;
        // Older kernels take the request and overlook the flag.
        let managed = matches!(state(&self.handle, hop).await?, Some((_, flags)) if flags.contains(NeighbourExtFlags::Managed));
        let upkeep = if managed { Upkeep::MANAGED } else { Upkeep::PROBED };
        if !managed {
            self.map.put(&hop.key(), &upkeep.0)?;
        }
        self.kept.insert(hop, upkeep);
        Ok(())
    }

    async fn release(&mut self, hop: NextHop) -> anyhow::Result<()> {
        if self.kept.get(&hop) == Some(&Upkeep::MANAGED) {
            // Replacing the entry without the flag makes it an ordinary one, which ages as others do.
            ask(&self.handle, hop, NeighbourExtFlags::empty(), 0).await?;
        }
        self.map.remove(&hop.key())?;
        self.kept.remove(&hop);
        Ok(())
    }
}

fn destination(address: IpAddr) -> (AddressFamily, NeighbourAttribute) {
    let (family, address) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    (family, NeighbourAttribute::Destination(address))
}

/// Has the kernel use the neighbour now (and so resolve or confirm it), with exactly these extended flags. Neighbours and
/// devices that are gone are no error unless the entry is to be created.
async fn ask(handle: &Handle, hop: NextHop, flags: NeighbourExtFlags, create: u16) -> anyhow::Result<()> {
    let (family, destination) = destination(hop.address);
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = hop.ifindex;
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use;
    message.attributes = vec![destination];
    if !flags.is_empty() {
        message.attributes.push(NeighbourAttribute::ExtFlags(flags));
    }
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE | create;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            let absent = [libc::ENOENT, libc::ENODEV, libc::ENXIO].contains(&-error.raw_code());
            if error.code.is_some() && !(absent && create == 0) {
                return Err(error.to_io()).context("the kernel refuses");
            }
        }
    }
    Ok(())
}

/// What the kernel has on a neighbour.
async fn state(handle: &Handle, hop: NextHop) -> anyhow::Result<Option<(NeighbourState, NeighbourExtFlags)>> {
    let (family, destination) = destination(hop.address);
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = hop.ifindex;
    message.attributes = vec![destination];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbour(message));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(found)) => {
                let flags = found.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::ExtFlags(flags) => Some(*flags),
                    _ => None,
                });
                return Ok(Some((found.header.state, flags.unwrap_or(NeighbourExtFlags::empty()))));
            }
            NetlinkPayload::Error(error) if -error.raw_code() == libc::ENOENT => return Ok(None),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(error.to_io()).context("cannot read the neighbour");
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Every neighbour with the managed flag, whoever set it.
///
/// # Errors
/// When the kernel refuses to list neighbours.
pub async fn managed(handle: &Handle) -> anyhow::Result<Vec<NextHop>> {
    let mut found = Vec::new();
    let mut neighbours = handle.neighbours().get().execute();
    while let Some(message) = neighbours.try_next().await.context("cannot list neighbours")? {
        let is_managed = message.attributes.iter().any(|attribute| {
            matches!(attribute, NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::Managed))
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        });
        if is_managed && let Some(address) = address {
            found.push(NextHop { ifindex: message.header.ifindex, address });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_hop_is_found_again_by_its_key() {
        for address in ["192.0.2.1", "2001:db8::1", "fe80::1"] {
            let address = address.parse().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
            let hop = NextHop { ifindex: 7, address };
            assert_eq!(NextHop::from_key(&hop.key()), hop);
        }
    }
}
