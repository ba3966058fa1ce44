//! Whether this node should get clients: what load balancers and probes ask (`/healthz`, `/livez`, and for each Service
//! of policy Local its `healthCheckNodePort`). Answered from a few words that the agent's loop leaves here, so that the
//! answer comes also when the loop does not, and says so.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::desired::health::HealthCheck;
use crate::object::Name;

/// What the agent's loop says of itself, and the answers made of it. Shared with whoever answers.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    checks: Mutex<BTreeMap<Name, HealthCheck>>,
    checks_changed: Notify,
    patience: Duration,
}

#[derive(Debug)]
struct State {
    /// When the loop last came round.
    seen: Instant,
    /// When the maps last followed the objects.
    synced: Option<SystemTime>,
    /// Since when a change waits for the maps.
    waiting: Option<Instant>,
    /// Changes that wait.
    queued: u64,
    is_node_eligible: bool,
}

/// An answer to a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whether all is well: 200, else 503.
    pub is_well: bool,
    /// The body.
    pub body: Value,
    /// Header `X-Load-Balancing-Endpoint-Weight`.
    pub weight: Option<usize>,
}

impl Health {
    /// Nothing has been synced yet. A change may wait for the maps for `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let state =
            State { seen: Instant::now(), synced: None, waiting: None, queued: 0, is_node_eligible: true };
        Self { state: Mutex::new(state), checks: Mutex::default(), checks_changed: Notify::new(), patience }
    }

    /// The loop has come round.
    pub fn come_round(&self, now: Instant) {
        self.lock().seen = now;
    }

    /// So many changes wait from now on, besides those that wait already.
    pub fn queue(&self, changes: u64, now: Instant) {
        let mut state = self.lock();
        state.waiting.get_or_insert(now);
        state.queued = state.queued.saturating_add(changes);
    }

    /// The maps follow the objects; nothing waits.
    pub fn synced(&self, at: SystemTime) {
        let mut state = self.lock();
        state.synced = Some(at);
        state.waiting = None;
        state.queued = 0;
    }

    /// The maps could not be written; what is missing waits.
    pub fn failed(&self, now: Instant) {
        self.queue(0, now);
    }

    /// Whether the node should get new clients, as its object says.
    pub fn set_node_eligible(&self, is_eligible: bool) {
        self.lock().is_node_eligible = is_eligible;
    }

    /// What to answer at the Services' ports from now on; `None`: nothing any more.
    pub fn set_checks(&self, changes: Vec<(Name, Option<HealthCheck>)>) {
        if changes.is_empty() {
            return;
        }
        let mut checks = self.lock_checks();
        for (name, check) in changes {
            match check {
                Some(check) => checks.insert(name, check),
                None => checks.remove(&name),
            };
        }
        drop(checks);
        self.checks_changed.notify_one();
    }

    /// Waits until the answers at the Services' ports may have changed. For one waiter.
    pub async fn checks_changed(&self) {
        self.checks_changed.notified().await;
    }

    /// The ports to listen on, and whose they are; of two Services with one port the first by name has it.
    #[must_use]
    pub fn check_ports(&self) -> BTreeMap<u16, Name> {
        let checks = self.lock_checks();
        checks.iter().rev().map(|(name, check)| (check.port, name.clone())).collect()
    }

    /// Services that get no answers at their port, and who has it in their place.
    #[must_use]
    pub fn shadowed_checks(&self) -> BTreeMap<Name, (u16, Name)> {
        let owners = self.check_ports();
        let checks = self.lock_checks();
        let others = checks.iter().filter_map(|(name, check)| {
            let owner = owners.get(&check.port).filter(|owner| *owner != name)?;
            Some((name.clone(), (check.port, owner.clone())))
        });
        others.collect()
    }

    /// Changes that wait for the maps.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.lock().queued
    }

    /// When the maps last followed the objects.
    #[must_use]
    pub fn last_sync(&self) -> Option<SystemTime> {
        self.lock().synced
    }

    /// Whether the maps follow the objects, or have not failed to for long.
    fn is_well(&self, state: &State, now: Instant) -> bool {
        let recent = |since: Instant| now.saturating_duration_since(since) <= self.patience;
        state.synced.is_some() && recent(state.seen) && state.waiting.is_none_or(recent)
    }

    /// The answer at `/livez`: about the agent alone.
    #[must_use]
    pub fn livez(&self, now: Instant, clock: SystemTime) -> Answer {
        let state = self.lock();
        let body = json!({"lastUpdated": stamp(state.synced), "currentTime": stamp(Some(clock))});
        Answer { is_well: self.is_well(&state, now), body, weight: None }
    }

    /// The answer at `/healthz`: about the agent and the node.
    #[must_use]
    pub fn healthz(&self, now: Instant, clock: SystemTime) -> Answer {
        let mut answer = self.livez(now, clock);
        let is_eligible = self.lock().is_node_eligible;
        answer.is_well &= is_eligible;
        answer.body["nodeEligible"] = is_eligible.into();
        answer
    }

    /// The answer at a Service's port; `None`: it has none any more.
    #[must_use]
    pub fn service(&self, name: &Name, now: Instant) -> Option<Answer> {
        let check = *self.lock_checks().get(name)?;
        let is_well = self.is_well(&self.lock(), now);
        let body = json!({
            "service": {"namespace": &*name.namespace, "name": &*name.name},
            "localEndpoints": check.local_ready,
            "serviceProxyHealthy": is_well,
        });
        Some(Answer { is_well: is_well && check.local_ready > 0, body, weight: Some(check.local_ready) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panicking holder leaves is still a state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_checks(&self) -> MutexGuard<'_, BTreeMap<Name, HealthCheck>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RFC 3339; the zero of Go's clock, which kube-proxy answers too, for never.
fn stamp(time: Option<SystemTime>) -> String {
    let time = time.and_then(|time| Timestamp::try_from(time).ok());
    time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn synced() -> (Health, Instant) {
        let health = Health::new(PATIENCE);
        health.synced(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
        (health, Instant::now())
    }

    #[test]
    fn a_node_is_not_well_before_its_first_sync() {
        let health = Health::new(PATIENCE);
        let answer = health.healthz(Instant::now(), SystemTime::UNIX_EPOCH);
        assert!(!answer.is_well);
        assert_eq!(
            answer.body,
            json!({"lastUpdated": "0001-01-01T00:00:00Z", "currentTime": "1970-01-01T00:00:00Z", "nodeEligible": true})
        );
        assert!(synced().0.healthz(Instant::now(), SystemTime::UNIX_EPOCH).is_well);
    }

    #[test]
    fn old_syncs_are_fine_and_changes_that_wait_too_long_are_not() {
        let (health, now) = synced();
        let well = |after: u64| {
            let later = now + Duration::from_secs(after);
            health.come_round(later);
            health.livez(later, SystemTime::now()).is_well
        };
        assert!(well(3600));
        health.queue(3, now + Duration::from_secs(3600));
        assert_eq!(health.queued(), 3);
        assert!(well(3660));
        assert!(!well(3661));
        // A retry that fails as well does not make it younger.
        health.failed(now + Duration::from_secs(3662));
        assert!(!well(3662));
        health.synced(SystemTime::now());
        assert!(well(3663));
        assert_eq!(health.queued(), 0);
    }

    #[test]
    fn a_loop_that_stands_still_is_not_well() {
        let (health, now) = synced();
        health.come_round(now);
        assert!(health.livez(now + PATIENCE, SystemTime::now()).is_well);
        assert!(!health.livez(now + PATIENCE + Duration::from_millis(1), SystemTime::now()).is_well);
    }

    #[test]
    fn a_node_on_its_way_out_is_alive_but_not_well() {
        let (health, now) = synced();
        health.set_node_eligible(false);
        let answer = health.healthz(now, SystemTime::UNIX_EPOCH);
        assert!(!answer.is_well && health.livez(now, SystemTime::UNIX_EPOCH).is_well);
        assert_eq!(answer.body["nodeEligible"], false);
        assert_eq!(answer.body["lastUpdated"], "1970-01-01T00:00:05Z");
    }

    #[test]
    fn a_service_is_well_with_local_backends_on_a_healthy_node() {
        let (health, now) = synced();
        let name = Name::new("a", "web");
        assert_eq!(health.service(&name, now), None);
        for (local_ready, is_well) in [(0, false), (2, true)] {
            health.set_checks(vec![(name.clone(), Some(HealthCheck { port: 32001, local_ready }))]);
            let body = json!({
                "service": {"namespace": "a", "name": "web"}, "localEndpoints": local_ready, "serviceProxyHealthy": true,
            });
            assert_eq!(health.service(&name, now), Some(Answer { is_well, body, weight: Some(local_ready) }));
        }
        let later = now + PATIENCE * 2;
        assert!(health.service(&name, later).is_some_and(|answer| !answer.is_well));
        health.set_checks(vec![(name.clone(), None)]);
        assert_eq!(health.service(&name, now), None);
    }

    #[test]
    fn of_two_services_with_one_port_the_first_by_name_has_it() {
        let (health, _) = synced();
        let check = |port| Some(HealthCheck { port, local_ready: 1 });
        let names = ["b", "a", "c"].map(|name| Name::new("n", name));
        let changes = names.iter().cloned().zip([check(1), check(1), check(2)]).collect();
        health.set_checks(changes);
        assert_eq!(health.check_ports(), BTreeMap::from([(1, names[1].clone()), (2, names[2].clone())]));
        let shadowed = BTreeMap::from([(names[0].clone(), (1, names[1].clone()))]);
        assert_eq!(health.shadowed_checks(), shadowed);
        health.set_checks(vec![(names[1].clone(), None)]);
        assert_eq!((health.shadowed_checks().len(), health.check_ports().get(&1)), (0, Some(&names[0])));
    }
}
