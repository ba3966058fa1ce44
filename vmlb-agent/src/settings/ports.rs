//! Which ports SNAT may use: never one that a socket of the node or a node port could own.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, ensure};
use vmlb_common::abi::PortRange;

/// Fewer ports than this are not enough to take part in.
pub const FEWEST: u32 = 4096;

/// Where SNAT ports come from unless `--snat-ports` says otherwise: everything but the well-known ports and the range
/// from which Linux gives sockets theirs.
const DEFAULT: [PortRange; 2] =
    [PortRange { first: 1024, last: 29_999 }, PortRange { first: 61_000, last: 65_535 }];

/// The value of `--snat-ports`: up to four ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatPorts(Vec<PortRange>);

impl SnatPorts {
    /// The ranges, in the order given.
    #[must_use]
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }
}

impl FromStr for SnatPorts {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let ranges = text.split(',').map(str::trim).map(range).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(ranges.len() <= 4, "{text:?}: at most 4 ranges are possible");
        for (place, one) in ranges.iter().enumerate() {
            for other in ranges.iter().skip(place + 1) {
                ensure!(one.last < other.first || other.last < one.first, "{text:?}: two ranges overlap");
            }
        }
        Ok(Self(ranges))
    }
}

impl fmt::Display for SnatPorts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&show(&self.0))
    }
}

/// Reads `A-B`.
///
/// # Errors
/// When it is no range of ports.
pub fn range(text: &str) -> anyhow::Result<PortRange> {
    let wrong = || format!("{text:?} is not a range of ports such as 1024-29999");
    let (first, last) = text.split_once('-').with_context(wrong)?;
    let range =
        PortRange { first: first.parse().with_context(wrong)?, last: last.parse().with_context(wrong)? };
    ensure!(range.count() > 0, "{text:?} holds no port; write the lower one first, from 1");
    Ok(range)
}

/// The ranges as the flag takes them.
#[must_use]
pub fn show(ranges: &[PortRange]) -> String {
    ranges.iter().map(|range| format!("{}-{}", range.first, range.last)).collect::<Vec<_>>().join(",")
}

/// `ranges` without the ports of `taken`.
#[must_use]
pub fn without(ranges: &[PortRange], taken: PortRange) -> Vec<PortRange> {
    let mut left = Vec::new();
    for range in ranges.iter().filter(|range| range.count() > 0) {
        if taken.count() == 0 || taken.last < range.first || range.last < taken.first {
            left.push(*range);
            continue;
        }
        if range.first < taken.first {
            left.push(PortRange { first: range.first, last: taken.first - 1 });
        }
        if taken.last < range.last {
            left.push(PortRange { first: taken.last + 1, last: range.last });
        }
    }
    left
}

/// Takes the highest port out of `ranges`, for probes; the gate lets it in as it does the others. 0: there are too few.
#[must_use]
pub fn reserve(ranges: &[PortRange]) -> (Vec<PortRange>, u16) {
    let count: u32 = ranges.iter().map(|range| range.count()).sum();
    let highest = ranges.iter().filter(|range| range.count() > 0).map(|range| range.last).max();
    match highest {
        Some(port) if count > 1 => (without(ranges, PortRange { first: port, last: port }), port),
        _ => (ranges.to_vec(), 0),
    }
}

/// What SNAT may use on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The ranges; empty: SNAT is refused.
    pub ranges: Vec<PortRange>,
    /// What the operator should know: why SNAT is refused, or what the chosen ports collide with.
    pub advice: Option<String>,
}

/// Chooses the ports: the operator's, or the default ones less those that sockets and node ports use.
#[must_use]
pub fn choose(asked: Option<&SnatPorts>, local: PortRange, node_ports: PortRange) -> Choice {
    if let Some(asked) = asked {
        let overlap = [local, node_ports]
            .into_iter()
            .filter(|taken| without(asked.ranges(), *taken) != asked.ranges())
            .map(|taken| show(&[taken]))
            .collect::<Vec<_>>();
        let advice = (!overlap.is_empty()).then(|| {
            format!(
                "--snat-ports {asked} overlaps ports that this node's own sockets or node ports use ({}): a connection \
                 of the node to a backend may be taken for one of ours; choose other ports, or narrow \
                 net.ipv4.ip_local_port_range",
                overlap.join(" and ")
            )
        });
        return Choice { ranges: asked.ranges().to_vec(), advice };
    }
    let ranges = without(&without(&DEFAULT, local), node_ports);
    let count: u32 = ranges.iter().map(|range| range.count()).sum();
    if count >= FEWEST {
        return Choice { ranges, advice: None };
    }
    let advice = format!(
        "SNAT is off: net.ipv4.ip_local_port_range ({}) and the node ports ({}) leave {count} ports, {FEWEST} are needed. \
         Backends on other nodes are left to the stack. Narrow the former (its default is 32768-60999), or name ports \
         that no socket uses: --snat-ports A-B",
        show(&[local]),
        show(&[node_ports]),
    );
    Choice { ranges: Vec::new(), advice: Some(advice) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: PortRange = PortRange { first: 32_768, last: 60_999 };
    const NODE_PORTS: PortRange = PortRange { first: 30_000, last: 32_767 };

    fn ranges(text: &str) -> Vec<PortRange> {
        text.parse::<SnatPorts>().map(|ports| ports.0).unwrap_or_default()
    }

    #[test]
    fn the_defaults_of_linux_and_kubernetes_leave_33512_ports() {
        let choice = choose(None, LOCAL, NODE_PORTS);
        assert_eq!(choice.ranges.iter().map(|range| range.count()).sum::<u32>(), 33_512);
        assert_eq!(choice.advice, None);
    }

    #[test]
    fn a_wide_local_range_refuses_snat_and_says_why() {
        let choice = choose(None, PortRange { first: 1024, last: 65_535 }, NODE_PORTS);
        assert!(choice.ranges.is_empty());
        assert!(choice.advice.is_some_and(|advice| advice.contains("ip_local_port_range")));
    }

    #[test]
    fn an_operators_ports_are_taken_as_they_are_and_a_collision_is_named() {
        let asked: Option<SnatPorts> = "2000-2999".parse().ok();
        assert_eq!(
            choose(asked.as_ref(), LOCAL, NODE_PORTS),
            Choice { ranges: ranges("2000-2999"), advice: None }
        );
        let asked: Option<SnatPorts> = "40000-40999".parse().ok();
        let choice = choose(asked.as_ref(), LOCAL, NODE_PORTS);
        assert_eq!(choice.ranges, ranges("40000-40999"));
        assert!(choice.advice.is_some_and(|advice| advice.contains("32768-60999")));
    }

    #[test]
    fn taking_ports_away_leaves_exactly_the_others() {
        let taken = PortRange { first: 20, last: 30 };
        for (before, after) in [
            ("10-40", "10-19,31-40"),
            ("20-30", ""),
            ("25-40", "31-40"),
            ("10-20", "10-19"),
            ("22-28", ""),
            ("1-19", "1-19"),
            ("31-65535", "31-65535"),
        ] {
            assert_eq!(show(&without(&ranges(before), taken)), after, "{before}");
        }
    }

    #[test]
    fn one_port_is_kept_for_probes_where_there_is_more_than_one() {
        for (before, after, port) in [
            ("1024-29999,61000-65535", "1024-29999,61000-65534", 65_535),
            ("40000-40001,7-7", "40000-40000,7-7", 40_001),
            ("9-9", "9-9", 0),
            ("9-9,7-8", "7-8", 9),
        ] {
            let (left, probe) = reserve(&ranges(before));
            assert_eq!((show(&left).as_str(), probe), (after, port), "{before}");
        }
        assert_eq!(reserve(&[]), (Vec::new(), 0));
    }

    #[test]
    fn at_most_four_ranges_come_out_of_the_defaults() {
        for first in (1..=65_535u16).step_by(997) {
            for last in (first..=65_535).step_by(1499) {
                assert!(choose(None, PortRange { first, last }, NODE_PORTS).ranges.len() <= 4);
            }
        }
    }

    #[test]
    fn the_flag_refuses_what_is_no_range() {
        for text in ["", "1", "0-5", "9-1", "1-2,2-3", "1-2,3-4,5-6,7-8,9-10", "1-70000", "a-b"] {
            assert!(text.parse::<SnatPorts>().is_err(), "{text}");
        }
        let flag: Result<SnatPorts, _> = "1024-2000, 3000-4000".parse();
        assert!(flag.is_ok_and(|flag| flag.to_string() == "1024-2000,3000-4000"));
    }
}
