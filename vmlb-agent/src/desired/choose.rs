//! Which endpoints new flows may be given to: CONTRACT §2 as one pure function, and backends in maintenance kept out.

use std::sync::Arc;

use crate::index::slice::Endpoint;

/// The endpoints of a port, by their places in what was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// For policy Cluster.
    pub cluster: Vec<usize>,
    /// For policy Local.
    pub local: Vec<usize>,
}

/// An endpoint that is to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The weight of its backend; 0: no new flows, whatever its condition.
    pub weight: u32,
}

/// Chooses among the endpoints of one port and family for a node and its zone.
///
/// Weights come after the question whether anything is ready, so that maintenance does not bring back what is on its way
/// out, and before topology, so that a zone whose backends are all in maintenance is helped by the others.
#[must_use]
pub fn choose(offers: &[Offer<'_>], node: &str, zone: Option<&str>) -> Choice {
    let here = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(node);
    let ends = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let any_ready = offers.iter().any(|offer| offer.endpoint.ready);
    let any_local = offers.iter().any(|offer| offer.endpoint.ready && here(offer.endpoint));
    Choice {
        cluster: if any_ready {
            narrow(offers, select(offers, |endpoint| endpoint.ready), node, zone)
        } else {
            select(offers, ends)
        },
        local: if any_local {
            select(offers, |endpoint| endpoint.ready && here(endpoint))
        } else {
            select(offers, |endpoint| ends(endpoint) && here(endpoint))
        },
    }
}

fn select(offers: &[Offer<'_>], keep: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
    let kept = offers.iter().enumerate().filter(|(_, offer)| offer.weight > 0 && keep(offer.endpoint));
    kept.map(|(place, _)| place).collect()
}

/// Topology: hints count only if every ready endpoint has them and one names us; a hint that some lack may be stale.
fn narrow(offers: &[Offer<'_>], ready: Vec<usize>, node: &str, zone: Option<&str>) -> Vec<usize> {
    let by = |hints: fn(&Endpoint) -> &[Arc<str>], wanted: &str| -> Option<Vec<usize>> {
        if ready.iter().any(|place| hints(offers[*place].endpoint).is_empty()) {
            return None;
        }
        let named = |place: &usize| hints(offers[*place].endpoint).iter().any(|hint| **hint == *wanted);
        let named: Vec<usize> = ready.iter().copied().filter(named).collect();
        (!named.is_empty()).then_some(named)
    };
    let by_node = by(|endpoint| endpoint.hints.as_deref().map_or(&[], |hints| &hints.nodes), node);
    let by_zone =
        |zone: &str| by(|endpoint| endpoint.hints.as_deref().map_or(&[], |hints| &hints.zones), zone);
    by_node.or_else(|| by_zone(zone?)).unwrap_or(ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::slice::Hints;
    use proptest::prelude::*;

    fn endpoint(ready: bool, serving: bool, terminating: bool, node: &str) -> Endpoint {
        Endpoint {
            address: [10, 0, 0, 1].into(),
            ready,
            serving,
            terminating,
            node: Some(node.into()),
            hints: None,
            pod: None,
        }
    }

    fn hints(endpoint: &mut Endpoint) -> &mut Hints {
        endpoint.hints.get_or_insert_default()
    }

    fn chosen(endpoints: &[Endpoint]) -> (Vec<usize>, Vec<usize>) {
        chosen_by_weight(endpoints, &[])
    }

    /// Endpoints beyond the weights given have one.
    fn chosen_by_weight(endpoints: &[Endpoint], weights: &[u32]) -> (Vec<usize>, Vec<usize>) {
        let weights = weights.iter().copied().chain(std::iter::repeat(1));
        let offers = endpoints.iter().zip(weights).map(|(endpoint, weight)| Offer { endpoint, weight });
        let choice = choose(&offers.collect::<Vec<_>>(), "n1", Some("z1"));
        (choice.cluster, choice.local)
    }

    #[test]
    fn ready_endpoints_are_chosen_and_the_local_ones_for_policy_local() {
        let endpoints = [
            endpoint(true, true, false, "n1"),
            endpoint(true, true, false, "n2"),
            endpoint(false, false, false, "n1"),
        ];
        assert_eq!(chosen(&endpoints), (vec![0, 1], vec![0]));
    }

    #[test]
    fn without_ready_endpoints_those_serving_and_terminating_are_used_node_by_node() {
        let endpoints = [
            endpoint(false, true, true, "n1"),
            endpoint(true, true, false, "n2"),
            endpoint(false, true, false, "n1"),
        ];
        // Locally the fallback applies although another node has a ready one.
        assert_eq!(chosen(&endpoints), (vec![1], vec![0]));
        assert_eq!(chosen(&endpoints[..1]), (vec![0], vec![0]));
    }

    #[test]
    fn node_hints_come_before_zone_hints_and_count_only_if_all_ready_endpoints_have_them() {
        let mut endpoints = [endpoint(true, true, false, "n1"), endpoint(true, true, false, "n2")];
        hints(&mut endpoints[0]).zones = vec!["z1".into()];
        hints(&mut endpoints[1]).zones = vec!["z2".into()];
        assert_eq!(chosen(&endpoints).0, vec![0]);
        hints(&mut endpoints[1]).nodes = vec!["n1".into()];
        assert_eq!(chosen(&endpoints).0, vec![0], "one of two has node hints: they do not count");
        hints(&mut endpoints[0]).nodes = vec!["n2".into()];
        assert_eq!(chosen(&endpoints).0, vec![1]);
        hints(&mut endpoints[0]).zones.clear();
        hints(&mut endpoints[1]).nodes = vec!["n3".into()];
        assert_eq!(chosen(&endpoints).0, vec![0, 1], "no hint names us");
    }

    #[test]
    fn hints_do_not_narrow_the_local_set_nor_the_terminating_fallback() {
        let mut endpoints = [endpoint(true, true, false, "n1"), endpoint(true, true, false, "n1")];
        hints(&mut endpoints[0]).nodes = vec!["n1".into()];
        hints(&mut endpoints[1]).nodes = vec!["n2".into()];
        assert_eq!(chosen(&endpoints), (vec![0], vec![0, 1]));
        for endpoint in &mut endpoints {
            (endpoint.ready, endpoint.terminating) = (false, true);
        }
        assert_eq!(chosen(&endpoints).0, vec![0, 1]);
    }

    #[test]
    fn maintenance_takes_new_flows_away_and_brings_back_nothing_that_is_on_its_way_out() {
        let endpoints = [
            endpoint(true, true, false, "n1"),
            endpoint(true, true, false, "n2"),
            endpoint(false, true, true, "n1"),
        ];
        assert_eq!(chosen_by_weight(&endpoints, &[0]), (vec![1], vec![]));
        assert_eq!(chosen_by_weight(&endpoints, &[0, 0]), (vec![], vec![]));
        assert_eq!(chosen_by_weight(&endpoints[2..], &[0]), (vec![], vec![]));
    }

    #[test]
    fn a_zone_in_maintenance_is_helped_by_the_others() {
        let mut endpoints = [endpoint(true, true, false, "n1"), endpoint(true, true, false, "n2")];
        hints(&mut endpoints[0]).zones = vec!["z1".into()];
        hints(&mut endpoints[1]).zones = vec!["z2".into()];
        assert_eq!(chosen_by_weight(&endpoints, &[0]).0, vec![1]);
    }

    fn any_endpoint() -> impl Strategy<Value = Endpoint> {
        let named = || proptest::collection::vec(0u8..3, 0..3);
        (any::<(bool, bool, bool)>(), 0u8..3, named(), named()).prop_map(
            |((ready, serving, terminating), node, nodes, zones)| {
                let mut endpoint = endpoint(ready, serving || ready, terminating, &format!("n{node}"));
                hints(&mut endpoint).nodes =
                    nodes.into_iter().map(|node| format!("n{node}").as_str().into()).collect();
                hints(&mut endpoint).zones =
                    zones.into_iter().map(|zone| format!("z{zone}").as_str().into()).collect();
                endpoint
            },
        )
    }

    proptest! {
        #[test]
        fn only_usable_endpoints_are_chosen_and_never_none_while_one_is_usable(endpoints in proptest::collection::vec(any_endpoint(), 0..8)) {
            let (cluster, local) = chosen(&endpoints);
            let usable = |e: &Endpoint| e.ready || (e.serving && e.terminating);
            prop_assert!(cluster.iter().chain(&local).all(|place| usable(&endpoints[*place])));
            prop_assert_eq!(cluster.is_empty(), !endpoints.iter().any(usable));
            prop_assert!(local.iter().all(|place| endpoints[*place].node.as_deref() == Some("n1")));
            prop_assert_eq!(local.is_empty(), !endpoints.iter().any(|e| usable(e) && e.node.as_deref() == Some("n1")));
            let any_ready = endpoints.iter().any(|e| e.ready);
            prop_assert!(!any_ready || cluster.iter().all(|place| endpoints[*place].ready));
        }

        #[test]
        fn the_order_of_endpoints_does_not_matter(endpoints in proptest::collection::vec(any_endpoint(), 0..8)) {
            let (cluster, local) = chosen(&endpoints);
            let last = endpoints.len().saturating_sub(1);
            let reversed: Vec<Endpoint> = endpoints.into_iter().rev().collect();
            let turned = |places: Vec<usize>| { let mut p: Vec<usize> = places.into_iter().map(|p| last - p).collect(); p.sort_unstable(); p };
            let (other_cluster, other_local) = chosen(&reversed);
            prop_assert_eq!((cluster, local), (turned(other_cluster), turned(other_local)));
        }
    }
}
