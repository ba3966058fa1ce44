//! What a kernel may lack. Tests that take it run in guests (test binaries named `guest_…`, see `cargo xtask test guest`),
//! whose kernel has all of it.

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use vmlb_guest::job;

use crate::leftovers::Prefix;
use crate::namespace::Namespace;
use crate::skip;

/// Something that is a module or an option of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// 802.1Q and 802.1ad devices.
    Vlan,
    /// Bonding.
    Bond,
    /// IPv4 in IPv4, protocol 4.
    Ipip,
    /// IPv6 in IPv6 and IPv4 in IPv6, protocols 41 and 4.
    Ip6Tunnel,
    /// GRE, also with Ethernet inside.
    Gre,
    /// WireGuard.
    WireGuard,
    /// Geneve.
    Geneve,
    /// VXLAN.
    Vxlan,
    /// The qdisc that delays, loses and shuffles.
    Netem,
    /// SCTP sockets.
    Sctp,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Vlan,
        Self::Bond,
        Self::Ipip,
        Self::Ip6Tunnel,
        Self::Gre,
        Self::WireGuard,
        Self::Geneve,
        Self::Vxlan,
        Self::Netem,
        Self::Sctp,
    ];

    /// Uses it once in `host`, which has nothing but its loopback.
    ///
    /// # Errors
    /// The kernel lacks it.
    pub fn probe(self, host: &Namespace) -> Result<()> {
        let lines = match self {
            Self::Vlan => {
                "link add eth0 type veth peer name eth1\n\
                 link add link eth0 name probe type vlan id 7\n\
                 link add link eth0 name probe-ad type vlan protocol 802.1ad id 7\n"
            }
            Self::Bond => "link add probe type bond mode active-backup\n",
            Self::Ipip => "link add probe type ipip local 127.0.0.1 remote 127.0.0.2\n",
            Self::Ip6Tunnel => "link add probe type ip6tnl mode any local ::1 remote ::2\n",
            Self::Gre => "link add probe type gretap local 127.0.0.1 remote 127.0.0.2\n",
            Self::WireGuard => "link add probe type wireguard\n",
            Self::Geneve => "link add probe type geneve id 7 remote 127.0.0.2\n",
            Self::Vxlan => "link add probe type vxlan id 7 dstport 4789 remote 127.0.0.2\n",
            Self::Netem => {
                return host
                    .output("tc", &["qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
                    .map(drop);
            }
            Self::Sctp => {
                return host.run(|| {
                    socket(AddressFamily::Inet6, SockType::Stream, SockFlag::empty(), SockProtocol::Sctp)
                        .map(drop)
                        .context("asking for an SCTP socket")
                });
            }
        };
        host.ip(lines)
    }
}

/// Runs the test `name` where the kernel has `features`. In a guest all are there, or the test fails; elsewhere it is
/// skipped.
///
/// # Panics
/// With the error of the test.
pub fn unless_lacking(name: &str, features: &[Feature], test: impl FnOnce() -> Result<()>) {
    skip::unless_unable(name, || match missing(features)? {
        Some(why) if std::env::var_os(job::IN_GUEST).is_none() => {
            skip::announce(name, &format!("{why}; `cargo xtask test guest` has it"));
            Ok(())
        }
        Some(why) => anyhow::bail!("the guest's kernel: {why}"),
        None => test(),
    });
}

/// The first of `features` that is missing, and the kernel's word on it.
fn missing(features: &[Feature]) -> Result<Option<String>> {
    let prefix = Prefix::unique();
    for feature in features {
        let host = Namespace::create(&prefix.name("probe"))?;
        if let Err(error) = feature.probe(&host) {
            return Ok(Some(format!("no {feature:?} ({})", first_line(&error))));
        }
    }
    Ok(None)
}

fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
