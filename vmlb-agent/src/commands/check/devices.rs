//! The uplinks: whether XDP works there, and what it costs those who have nothing to do with vmlb.

use std::collections::BTreeSet;
use std::fs;

use crate::interface::features::Features;
use crate::interface::flag::DeviceFlag;
use crate::interface::footing::{Footing, hidden_tags};
use crate::interface::uplinks::{WithoutMetadata, choose};
use crate::interface::watch::Netlink;
use crate::interface::{Interfaces, Link, offloads};
use crate::loader::attach::Mode;

use super::{Finding, Weight};

const BASIC: u64 = 1;
const TRANSMIT: u64 = 4;
const SCATTER: u64 = 32;
/// A frame of XDP and its headroom fit a page of 4096 octets.
const ONE_PAGE: u32 = 3498;

/// An uplink as it would be used.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    pub link: Link,
    pub mode: Mode,
    /// Why it is not XDP.
    reason: Option<&'static str>,
    /// What carries it and would get its XDP program, for people; `None`: itself.
    on: Option<String>,
    /// Why XDP would not see its tags there.
    hidden: Option<String>,
    /// `NETDEV_XDP_ACT_*`; `None`: the kernel does not tell.
    xdp: Option<u64>,
    /// Offloads that are on.
    offloads: BTreeSet<String>,
    /// The driver; empty for what is no hardware.
    driver: String,
}

/// The uplinks that the agent would choose, or those named.
///
/// # Errors
/// When the node's devices cannot be listed.
pub(super) async fn uplinks(flags: &[DeviceFlag]) -> anyhow::Result<Vec<Uplink>> {
    let netlink = Netlink::connect()?;
    let interfaces = netlink.dump().await?;
    let routes = netlink.default_routes().await?;
    let features = Features::open();
    let routes = routes.iter().map(|route| route.ifindex).collect();
    let chosen = choose(flags, &interfaces, &routes, &[], &WithoutMetadata::new());
    Ok(chosen
        .into_iter()
        .map(|choice| {
            let footing = choice.footing.as_ref();
            let carrier = footing.and_then(|footing| interfaces.link(footing.on));
            let place = carrier.unwrap_or(choice.link);
            let named = footing.filter(|footing| footing.on != choice.link.ifindex);
            let own = features.xdp(place.ifindex);
            let members = footing.map(|footing| stand_ins(&interfaces, &features, footing, own));
            let members = members.filter(|(names, _)| !names.is_empty());
            Uplink {
                xdp: members.as_ref().map(|(_, xdp)| *xdp).or(own),
                offloads: offloads::active(place.ifindex).unwrap_or_default(),
                driver: driver(&place.name),
                on: match (footing, members) {
                    (Some(footing), Some((names, _))) => Some(footing.describe(&names.join(" and "))),
                    _ => named.map(|footing| footing.describe(&place.name)),
                },
                hidden: footing.and_then(|footing| hidden_tags(&interfaces, footing)),
                link: choice.link.clone(),
                mode: choice.mode,
                reason: choice.reason,
            }
        })
        .collect())
}

/// The members that have XDP where the bond, whose features are `own`, has none; out of it XDP cannot send.
fn stand_ins(
    interfaces: &Interfaces,
    features: &Features,
    footing: &Footing,
    own: Option<u64>,
) -> (Vec<String>, u64) {
    let lacks = own.is_some_and(|own| own & BASIC == 0);
    let members = footing.members.iter().filter(|_| lacks);
    let members = members.filter(|member| features.xdp(**member).is_some_and(|xdp| xdp & BASIC != 0));
    let names = members.filter_map(|member| Some(interfaces.link(*member)?.name.clone()));
    (names.collect(), BASIC)
}

fn driver(name: &str) -> String {
    let link = fs::read_link(format!("/sys/class/net/{name}/device/driver")).unwrap_or_default();
    link.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(super) fn look(uplinks: &[Uplink]) -> Vec<Finding> {
    if uplinks.is_empty() {
        return vec![Finding::new(
            Weight::Problem,
            "devices",
            "no device has a default route, so that the agent would find none by which clients come",
            "name it: --device NAME; with an API server the device of the node's InternalIP is found too",
        )];
    }
    uplinks.iter().flat_map(about).collect()
}

fn about(uplink: &Uplink) -> Vec<Finding> {
    let subject = format!("device {}", uplink.link.name);
    let say = |weight, message: String, remedy: &str| Finding::new(weight, &subject, message, remedy);
    let by_tc = format!("--device {}=tc", uplink.link.name);
    let mut findings = Vec::new();
    if !uplink.link.up {
        findings.push(say(Weight::Warning, "is down, or has no carrier".into(), "bring it up"));
    }
    if uplink.mode == Mode::Tc {
        let message = format!("gets TC: {}", uplink.reason.unwrap_or("that is all there is"));
        findings.push(say(Weight::Ok, message, ""));
        return findings;
    }
    if let Some(hidden) = &uplink.hidden {
        let (why, remedy) = hidden.split_once("; ").unwrap_or((hidden, ""));
        findings.push(say(Weight::Warning, format!("gets TC: {why}"), remedy));
        return findings;
    }
    match uplink.xdp {
        Some(features) if features & BASIC == 0 => findings.push(say(
            Weight::Warning,
            format!(
                "has no native XDP (driver {}): it gets TC, at several times the cost a packet",
                shown(uplink)
            ),
            "none needed; a newer kernel or driver may have it",
        )),
        Some(features) => {
            findings.extend(native(uplink, features, &by_tc, &say));
            findings.extend(costs(uplink, &by_tc, &say));
        }
        None => {
            findings.push(say(
                Weight::Note,
                format!("the kernel does not tell whether driver {} has XDP; the agent tries", shown(uplink)),
                "",
            ));
            findings.extend(costs(uplink, &by_tc, &say));
        }
    }
    findings
}

fn shown(uplink: &Uplink) -> &str {
    [uplink.driver.as_str(), uplink.link.kind.as_str()]
        .into_iter()
        .find(|word| !word.is_empty())
        .unwrap_or("unknown")
}

fn native(
    uplink: &Uplink,
    features: u64,
    by_tc: &str,
    say: &dyn Fn(Weight, String, &str) -> Finding,
) -> Vec<Finding> {
    let on = uplink.on.as_ref().map(|on| format!(" on {on}")).unwrap_or_default();
    let mut findings = vec![say(Weight::Ok, format!("has native XDP{on} (driver {})", shown(uplink)), "")];
    if features & TRANSMIT == 0 {
        let far = if uplink.link.kind == "veth" { "; its peer has no XDP program" } else { "" };
        findings.push(say(
            Weight::Note,
            format!("XDP cannot send out of it{far}: such packets leave by TC"),
            "",
        ));
    }
    if uplink.link.mtu > ONE_PAGE && features & SCATTER == 0 {
        findings.push(say(
            Weight::Warning,
            format!(
                "MTU {} is more than XDP can take on this driver: it will refuse the program",
                uplink.link.mtu
            ),
            &format!("an MTU of {ONE_PAGE} or less, or {by_tc}"),
        ));
    }
    findings
}

/// What XDP costs those who have nothing to do with vmlb.
fn costs(uplink: &Uplink, by_tc: &str, say: &dyn Fn(Weight, String, &str) -> Finding) -> Vec<Finding> {
    let mut findings = Vec::new();
    let costs: Vec<&str> = [("rx-lro", "LRO"), ("rx-gro-hw", "GRO in hardware")]
        .into_iter()
        .filter(|(feature, _)| uplink.offloads.contains(*feature))
        .map(|(_, name)| name)
        .collect();
    if !costs.is_empty() {
        findings.push(say(
            Weight::Warning,
            format!(
                "{} is on and goes off under XDP: bulk TCP to this node costs more CPU",
                costs.join(" and ")
            ),
            by_tc,
        ));
    }
    if uplink.link.kind == "veth" {
        findings.push(say(
            Weight::Warning,
            "is a veth: XDP takes segmentation offload from its peer, also for traffic that has nothing to do with vmlb \
             (one TCP stream fell from 11.9 to 2.9 Gb/s)"
                .into(),
            by_tc,
        ));
    }
    if uplink.driver == "virtio_net" {
        findings.push(say(
            Weight::Warning,
            "virtio loses guest offloads under XDP: bulk TCP to this node costs more CPU".into(),
            by_tc,
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(kind: &str, driver: &str, mode: Mode, xdp: Option<u64>) -> Uplink {
        let link = Link { name: "eth0".into(), kind: kind.into(), up: true, mtu: 1500, ..Link::default() };
        Uplink {
            link,
            mode,
            reason: None,
            on: None,
            hidden: None,
            xdp,
            offloads: BTreeSet::new(),
            driver: driver.into(),
        }
    }

    fn warnings(uplink: &Uplink) -> Vec<String> {
        let worse = about(uplink).into_iter().filter(|finding| finding.weight <= Weight::Warning);
        worse.map(|finding| format!("{} -> {}", finding.message, finding.remedy)).collect()
    }

    #[test]
    fn what_xdp_costs_bystanders_is_told_with_the_way_out() {
        let plain = uplink("", "mlx5_core", Mode::Xdp, Some(BASIC | TRANSMIT));
        assert!(warnings(&plain).is_empty());
        let with_lro = Uplink { offloads: BTreeSet::from(["rx-lro".to_owned()]), ..plain.clone() };
        assert!(
            warnings(&with_lro)[0].contains("LRO is on")
                && warnings(&with_lro)[0].ends_with("--device eth0=tc")
        );
        assert_eq!(warnings(&uplink("veth", "", Mode::Xdp, Some(BASIC))).len(), 1);
        assert!(warnings(&uplink("veth", "", Mode::Tc, Some(BASIC))).is_empty());
        assert_eq!(warnings(&uplink("", "virtio_net", Mode::Xdp, Some(BASIC | TRANSMIT))).len(), 1);
    }

    #[test]
    fn an_old_kernel_that_tells_nothing_of_xdp_hides_no_costs() {
        assert_eq!(warnings(&uplink("veth", "", Mode::Xdp, None)).len(), 1);
        assert_eq!(warnings(&uplink("", "virtio_net", Mode::Xdp, None)).len(), 1);
    }

    #[test]
    fn tags_that_hardware_takes_out_are_told_with_the_switch() {
        let hidden = Some("eth0 takes VLAN tags out; ethtool -K eth0 rxvlan off leaves them in".to_owned());
        let vlan = Uplink { hidden, ..uplink("vlan", "ice", Mode::Xdp, Some(BASIC | TRANSMIT)) };
        let expected = "gets TC: eth0 takes VLAN tags out -> ethtool -K eth0 rxvlan off leaves them in";
        assert_eq!(warnings(&vlan), [expected]);
    }

    #[test]
    fn large_frames_take_a_driver_that_scatters() {
        let jumbo = |features| {
            let mut uplink = uplink("", "ice", Mode::Xdp, Some(features));
            uplink.link.mtu = 9000;
            uplink
        };
        assert_eq!(warnings(&jumbo(BASIC | TRANSMIT)).len(), 1);
        assert!(warnings(&jumbo(BASIC | TRANSMIT | SCATTER)).is_empty());
    }

    #[test]
    fn without_an_uplink_there_is_nothing_to_serve() {
        assert_eq!(look(&[])[0].weight, Weight::Problem);
    }
}
