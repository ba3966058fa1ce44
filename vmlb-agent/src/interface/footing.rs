//! On which device XDP meets the frames of an uplink: a VLAN's on its parent, with tags; a bond's on its members, to which
//! the kernel itself brings the bond's program, or the agent where the kernel refuses to; a bridge's on its only port.

use vmlb_common::abi::{Carried, CarriedKey, Carrier};

use super::{Interfaces, Link, offloads};

/// How deep devices may stand on one another.
const DEPTH: usize = 6;

/// What an uplink stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footing {
    /// The device that gets the program.
    pub on: u32,
    /// The devices by which the program sees frames come: `on`, or its members.
    pub wires: Vec<u32>,
    /// The devices that get the program where `on` refuses it: members of a bond that uses all of them.
    pub members: Vec<u32>,
    /// Tags of the frames, the outer one first; as in [`CarriedKey`].
    pub tags: Vec<u32>,
}

/// Which devices of a footing have the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// The one it is on.
    On,
    /// The members in its stead.
    Members,
}

impl Footing {
    /// A device that gets the program itself, because it carries others.
    #[must_use]
    pub fn of(ifindex: u32) -> Self {
        Self { on: ifindex, wires: vec![ifindex], members: Vec::new(), tags: Vec::new() }
    }

    /// Entries of map `carried` for the uplink `link`.
    pub fn carried<'a>(
        &'a self,
        interfaces: &'a Interfaces,
        link: &'a Link,
        seat: Seat,
    ) -> impl Iterator<Item = (CarriedKey, Carried)> + 'a {
        let (outer, inner) = self.tags();
        self.wires.iter().map(move |wire| {
            let address = self.address(interfaces, link, *wire, seat);
            let mac = address.try_into().unwrap_or_default();
            let carried = Carried { ifindex: link.ifindex, mac, pad: 0 };
            (CarriedKey { carrier: *wire, outer, inner }, carried)
        })
    }

    /// The MAC address of frames for `link` that come by a wire. A bond that gives its members addresses of their own
    /// (balance-tlb, balance-alb) takes from each what is for that member's.
    fn address<'a>(&self, interfaces: &'a Interfaces, link: &'a Link, wire: u32, seat: Seat) -> &'a [u8] {
        let is_bonds = interfaces.link(self.on).is_some_and(|on| on.address == link.address);
        let own = interfaces.link(wire).filter(|_| seat == Seat::Members && is_bonds);
        own.map_or(&link.address, |wire| &wire.address)
    }

    /// Its entry of map `carriers`.
    #[must_use]
    pub fn carrier(&self) -> Carrier {
        let (outer, inner) = self.tags();
        Carrier { ifindex: self.on, outer, inner }
    }

    fn tags(&self) -> (u32, u32) {
        let tag = |number| self.tags.get(number).copied().unwrap_or(0);
        (tag(0), tag(1))
    }

    /// For people: `eth0, VLAN 100`.
    #[must_use]
    pub fn describe(&self, name: &str) -> String {
        let mut words = vec![name.to_owned()];
        words.extend(self.tags.iter().map(|tag| match tag >> 16 {
            0x8100 => format!("VLAN {}", tag & 0xfff),
            _ => format!("service VLAN {}", tag & 0xfff),
        }));
        words.join(", ")
    }
}

/// What a device stands on; `None`: on itself.
///
/// # Errors
/// Why XDP cannot serve it.
pub fn footing(interfaces: &Interfaces, link: &Link) -> Result<Option<Footing>, &'static str> {
    let found = stand(interfaces, link, DEPTH)?;
    let is_itself = found.on == link.ifindex && found.wires == [link.ifindex] && found.tags.is_empty();
    Ok((!is_itself).then_some(found))
}

fn stand(interfaces: &Interfaces, link: &Link, depth: usize) -> Result<Footing, &'static str> {
    let Some(depth) = depth.checked_sub(1) else { return Err("devices stand too deep on one another") };
    let members = || interfaces.links().filter(|member| member.controller == Some(link.ifindex));
    match link.kind.as_str() {
        "vlan" => {
            let parent = link.parent.and_then(|parent| interfaces.link(parent));
            let (Some(parent), Some(tag)) = (parent, link.tag) else {
                return Err("its parent is not in this network namespace");
            };
            let mut found = stand(interfaces, parent, depth)?;
            found.tags.push(tag);
            if found.tags.len() > 2 {
                return Err("XDP takes no more than two tags");
            }
            Ok(found)
        }
        "bond" => {
            let wires: Vec<u32> = members().map(|member| member.ifindex).collect();
            if wires.is_empty() {
                return Err("the bond has no member");
            }
            let members = if link.has_reserve { Vec::new() } else { wires.clone() };
            Ok(Footing { on: link.ifindex, wires, members, tags: Vec::new() })
        }
        "bridge" if link.is_choosy => Err("the bridge runs STP or filters VLANs, of which XDP knows nothing"),
        "bridge" => {
            let ports: Vec<&Link> = members().collect();
            match ports.as_slice() {
                [] => Err("the bridge has no port"),
                [port] => stand(interfaces, port, depth),
                _ => Err("the bridge has several ports, and XDP cannot tell behind which a next hop is"),
            }
        }
        _ => Ok(Footing::of(link.ifindex)),
    }
}

/// Why XDP would not see the tags of such frames, and what to do about it; `None`: it sees them.
#[must_use]
pub fn hidden_tags(interfaces: &Interfaces, footing: &Footing) -> Option<String> {
    let (offload, switch) = match footing.tags.first()? >> 16 {
        0x8100 => ("rx-vlan-hw-parse", "rxvlan"),
        _ => ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse"),
    };
    let hides = |wire: &&Link| offloads::active(wire.ifindex).unwrap_or_default().contains(offload);
    let Link { name, .. } = footing.wires.iter().filter_map(|wire| interfaces.link(*wire)).find(hides)?;
    Some(format!(
        "{name} takes VLAN tags out of frames before XDP sees them; ethtool -K {name} {switch} off leaves them in"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(links: &[Link]) -> Interfaces {
        let mut interfaces = Interfaces::default();
        interfaces.links.extend(links.iter().map(|link| (link.ifindex, link.clone())));
        interfaces
    }

    fn link(ifindex: u32, kind: &str) -> Link {
        Link { ifindex, name: format!("dev{ifindex}"), kind: kind.to_owned(), ..Link::default() }
    }

    fn vlan(ifindex: u32, parent: u32, tag: u32) -> Link {
        Link { parent: Some(parent), tag: Some(tag), ..link(ifindex, "vlan") }
    }

    fn member(ifindex: u32, of: u32) -> Link {
        Link { controller: Some(of), ..link(ifindex, "") }
    }

    const V100: u32 = 0x8100 << 16 | 100;
    const S7: u32 = 0x88a8 << 16 | 7;

    fn stands(interfaces: &Interfaces, ifindex: u32) -> Result<Option<Footing>, &'static str> {
        footing(interfaces, interfaces.link(ifindex).ok_or("no such link")?)
    }

    #[test]
    fn a_plain_device_stands_on_itself() {
        assert_eq!(stands(&node(&[link(2, "")]), 2), Ok(None));
    }

    #[test]
    fn vlans_bonds_and_bridges_stand_on_what_is_on_the_wire() {
        let devices = [
            member(2, 5),
            member(3, 5),
            link(5, "bond"),
            vlan(6, 5, S7),
            vlan(7, 6, V100),
            Link { controller: Some(9), ..vlan(8, 5, V100) },
            link(9, "bridge"),
        ];
        let node = node(&devices);
        let both = || vec![2, 3];
        let on =
            |tags: &[u32]| Ok(Some(Footing { on: 5, wires: both(), members: both(), tags: tags.to_vec() }));
        assert_eq!(stands(&node, 5), on(&[]));
        assert_eq!(stands(&node, 6), on(&[S7]));
        assert_eq!(stands(&node, 7), on(&[S7, V100]));
        assert_eq!(stands(&node, 9), on(&[V100]));
        let seven = stands(&node, 7).ok().flatten().expect("it stands");
        assert_eq!(seven.describe("bond0"), "bond0, service VLAN 7, VLAN 100");
        let keys = seven.carried(&node, &devices[4], Seat::On);
        let keys: Vec<_> = keys.map(|(key, to)| (key.carrier, to.ifindex)).collect();
        assert_eq!(keys, [(2, 7), (3, 7)]);
    }

    #[test]
    fn members_stand_in_for_a_bond_that_uses_them_all_each_by_its_address() {
        let with = |address: u8, link: Link| Link { address: vec![address; 6], ..link };
        let devices = [
            with(2, member(2, 5)),
            with(3, member(3, 5)),
            with(3, link(5, "bond")),
            with(3, vlan(6, 5, V100)),
            with(7, vlan(7, 5, S7)),
        ];
        let seen = |ifindex: u32, seat| {
            let node = node(&devices);
            let link = node.link(ifindex).expect("a link");
            let footing = footing(&node, link).ok().flatten().expect("it stands");
            assert_eq!(footing.members, [2, 3]);
            let macs = footing.carried(&node, link, seat).map(|(key, to)| (key.carrier, to.mac[0]));
            macs.collect::<Vec<_>>()
        };
        assert_eq!(seen(5, Seat::On), [(2, 3), (3, 3)]);
        for ifindex in [5, 6] {
            assert_eq!(seen(ifindex, Seat::Members), [(2, 2), (3, 3)]);
        }
        // An address of its own is the same on every wire.
        assert_eq!(seen(7, Seat::Members), [(2, 7), (3, 7)]);
        let reserve = node(&[member(2, 5), Link { has_reserve: true, ..link(5, "bond") }]);
        let alone = stands(&reserve, 5).ok().flatten().expect("it stands");
        assert!(alone.wires == [2] && alone.members.is_empty());
    }

    #[test]
    fn what_xdp_cannot_tell_is_refused_with_the_reason() {
        let two = node(&[member(2, 5), member(3, 5), link(5, "bridge")]);
        assert!(stands(&two, 5).is_err_and(|why| why.contains("several ports")));
        let choosy = node(&[member(2, 5), Link { is_choosy: true, ..link(5, "bridge") }]);
        assert!(stands(&choosy, 5).is_err_and(|why| why.contains("STP")));
        assert!(stands(&node(&[vlan(6, 5, V100)]), 6).is_err_and(|why| why.contains("namespace")));
        assert!(stands(&node(&[link(5, "bond")]), 5).is_err_and(|why| why.contains("no member")));
        let deep = node(&[link(2, ""), vlan(3, 2, V100), vlan(4, 3, V100), vlan(5, 4, V100)]);
        assert!(stands(&deep, 5).is_err_and(|why| why.contains("two tags")));
        // What stands on itself by way of others, as no kernel would have it.
        assert!(stands(&node(&[vlan(2, 3, V100), vlan(3, 2, V100)]), 2).is_err());
    }
}
