//! How backends are reached from this node, each and in sum.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::reach::{Ground, Reach, Reaches};
use super::super::ways::places;
use super::super::{backend_label, backend_names};
use crate::pins::PinRoot;
use crate::state::State;

/// Backends of a way that are named.
const EXAMPLES: usize = 3;

/// A backend.
#[derive(Serialize)]
pub(super) struct BackendStatus {
    pub id: u32,
    pub name: String,
    /// How each of its addresses is reached.
    pub ways: Vec<Reach>,
}

/// Backends that are reached by the same way for the same reason.
#[derive(Serialize)]
pub(super) struct WayStatus {
    /// `stack`, `device`, `uplink`, `overlay` or `none`.
    pub way: &'static str,
    /// The device; absent: each has its own, or there is none.
    pub device: Option<String>,
    pub backends: usize,
    /// Names of some.
    pub examples: Vec<String>,
    pub why: String,
}

/// Each backend that is anywhere, by id.
pub(super) fn read(root: &PinRoot, state: Option<&State>) -> anyhow::Result<Vec<BackendStatus>> {
    let (reaches, names) = (Reaches::open(root, state)?, backend_names(root)?);
    let places: BTreeMap<_, _> = places(root)?.into_iter().collect();
    let backend = |(id, places): (u32, Vec<_>)| {
        let ways = places.iter().map(|place| reaches.of(place)).collect::<anyhow::Result<_>>()?;
        Ok(BackendStatus { id, name: backend_label(&names, id), ways })
    };
    places.into_iter().map(backend).collect()
}

/// The ways, that of most backends first.
pub(super) fn sum(backends: &[BackendStatus]) -> Vec<WayStatus> {
    let mut ways: BTreeMap<&Ground, Vec<&str>> = BTreeMap::new();
    for BackendStatus { name, ways: reaches, .. } in backends {
        for (place, reach) in reaches.iter().enumerate() {
            // A backend of two families is often reached by both for one reason.
            if reaches.iter().take(place).all(|before| before.ground != reach.ground) {
                ways.entry(&reach.ground).or_default().push(name);
            }
        }
    }
    let mut ways: Vec<WayStatus> = ways
        .into_iter()
        .map(|(ground, names)| WayStatus {
            way: ground.way,
            device: ground.device.clone(),
            backends: names.len(),
            examples: names.iter().take(EXAMPLES).map(|name| (*name).to_owned()).collect(),
            why: ground.why.clone(),
        })
        .collect();
    ways.sort_by_key(|way| std::cmp::Reverse(way.backends));
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(way: &'static str, why: &str) -> Reach {
        let ground = Ground { way, device: None, why: why.to_owned() };
        Reach { address: [10, 0, 0, 1].into(), way, device: None, why: why.to_owned(), ground }
    }

    #[test]
    fn ten_thousand_backends_are_as_many_lines_as_there_are_reasons() {
        let mut backends: Vec<_> = (0..10_000)
            .map(|id| {
                let ways = vec![reach("uplink", "a route"), reach("uplink", "a route")];
                BackendStatus { id, name: format!("vm{id}"), ways }
            })
            .collect();
        let ways = vec![reach("stack", "here"), reach("none", "no route")];
        backends.push(BackendStatus { id: 10_000, name: "last".to_owned(), ways });
        let ways = sum(&backends);
        let told: Vec<_> = ways.iter().map(|way| (way.way, way.backends, way.examples.len())).collect();
        assert_eq!(told, [("uplink", 10_000, 3), ("none", 1, 1), ("stack", 1, 1)]);
    }
}
