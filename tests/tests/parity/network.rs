//! The world of the stories as a network namespace: devices by their numbers, routes, neighbours.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use vmlb_tests::address::Family;
use vmlb_tests::bpffs;
use vmlb_tests::leftovers::Prefix;
use vmlb_tests::namespace::Namespace;
use vmlb_tests::packets::world::{DEVICES, ETH0, ETH1, ETH2, Net, World, mtu, own};

/// The namespaces of one test; gone when dropped.
pub(crate) struct Network {
    /// The node.
    pub(crate) node: Namespace,
    /// Where its maps are pinned.
    pub(crate) pin_root: PathBuf,
    _far: Namespace,
    _prefix: Prefix,
}

impl Network {
    pub(crate) fn build() -> Result<Self> {
        let prefix = Prefix::unique();
        let node = Namespace::create(&prefix.name("parity"))?;
        let far = Namespace::create(&prefix.name("parity-far"))?;
        // Nobody speaks there, and nobody shall begin to.
        far.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.set_sysctl(key, "1")?;
        }
        for (name, index) in DEVICES {
            let [a, b, c, d, e, f] = own(index);
            node.ip(&format!(
                "link add name {name} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} index {index} \
                 mtu {} type veth peer name {name} netns {}\n\
                 link set {name} up\n",
                mtu(index),
                far.name()
            ))?;
            far.ip(&format!("link set {name} up\n"))?;
        }
        let pin_root = bpffs::pin_root(&prefix.name("parity"))?;
        let network = Self { node, pin_root, _far: far, _prefix: prefix };
        Family::ALL.into_iter().try_for_each(|family| network.add_routes(Net(family)))?;
        let world = World::new(1);
        let neighbours = world.neighbours.iter();
        let lines = neighbours.map(|((device, address), mac)| learn(*device, *address, *mac));
        network.node.ip(&lines.collect::<Result<String>>()?)?;
        Ok(network)
    }

    fn add_routes(&self, net: Net) -> Result<()> {
        let host = if net.0 == Family::V4 { 32 } else { 128 };
        let addresses = [(ETH0, net.node(0)), (ETH1, net.node_on_eth1(0)), (ETH2, net.node_on_eth2(0))];
        for (device, address) in addresses {
            self.node.ip(&format!("addr add {}/{host} dev {}\n", address.ip(), name(device)?))?;
        }
        let mut routes = net.routes();
        // What a router is reached by comes before what is reached by a router.
        routes.sort_by_key(|route| route.2.is_some());
        for (network, bits, router, device) in routes {
            let via = router.map_or_else(String::new, |router| format!("via {router}"));
            self.node.ip(&format!("route add {network}/{bits} {via} dev {}\n", name(device)?))?;
        }
        Ok(())
    }

    /// Brings neighbours and forwarding from what `old` says to what `new` says; at first they are those of
    /// [`World::new`].
    pub(crate) fn follow(&self, old: &World, new: &World) -> Result<()> {
        for (&(device, address), mac) in &new.neighbours {
            if old.neighbours.get(&(device, address)) != Some(mac) {
                self.node.ip(&learn(device, address, *mac)?)?;
            }
        }
        for (device, address) in old.neighbours.keys().filter(|key| !new.neighbours.contains_key(key)) {
            self.node.ip(&format!("neigh del {address} dev {}\n", name(*device)?))?;
        }
        for (device, index) in DEVICES {
            let (was, is) = (old.silent.contains(&index), new.silent.contains(&index));
            if was != is {
                for family in ["ipv4", "ipv6"] {
                    let value = if is { "0" } else { "1" };
                    self.node.set_sysctl(&format!("net/{family}/conf/{device}/forwarding"), value)?;
                }
            }
        }
        Ok(())
    }
}

/// The line that makes a neighbour known for good.
fn learn(device: u32, address: IpAddr, mac: [u8; 6]) -> Result<String> {
    let [a, b, c, d, e, f] = mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    Ok(format!("neigh replace {address} lladdr {mac} dev {} nud permanent\n", name(device)?))
}

fn name(device: u32) -> Result<&'static str> {
    DEVICES
        .into_iter()
        .find_map(|(name, index)| (index == device).then_some(name))
        .with_context(|| format!("no device {device} in the world"))
}
