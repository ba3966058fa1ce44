//! How the watches are: for `vmlb status`, health and metrics. One retry changes nothing that anybody sees; how long ago
//! the API server was last heard does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::object::Kind;

/// What a watch is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Asks for all objects; what was known stays until all have come.
    #[default]
    Listing,
    /// Follows changes.
    Watching,
    /// Waits before another try; what was known stays.
    Retrying,
    /// The API server does not have this kind, or does not let it be read; it is looked for now and then. Only of kinds
    /// that are not needed.
    Absent,
}

/// One kind's watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchState {
    /// The kind of object.
    pub kind: String,
    /// What it is doing.
    pub phase: Phase,
    /// When an octet last came from the API server, milliseconds since 1970; 0: never. While all is well this is at most
    /// some 60 s ago (bookmarks).
    pub contact: u64,
    /// When the objects were last listed in full, milliseconds since 1970; 0: never.
    pub listed: u64,
    /// Complete lists so far.
    pub lists: u64,
    /// Tries that have failed since the last success.
    pub failures: u32,
    /// Since when it has been failing, milliseconds since 1970; 0: it is not.
    pub failing: u64,
    /// Why the last try failed; stays empty for failures that pass within a few seconds.
    pub error: Option<String>,
}

impl WatchState {
    /// How old what is known of this kind may be: the time since the API server was last heard; `None`: never heard.
    #[must_use]
    pub fn staleness(&self) -> Option<Duration> {
        (self.contact != 0).then(|| Duration::from_millis(now().saturating_sub(self.contact)))
    }

    /// For how long it has been failing.
    #[must_use]
    pub fn outage(&self) -> Option<Duration> {
        (self.failing != 0).then(|| Duration::from_millis(now().saturating_sub(self.failing)))
    }
}

/// The state of every watch, shared between the watches and those who ask.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    states: Mutex<BTreeMap<Kind, WatchState>>,
    changed: Notify,
}

impl Board {
    /// All watches, in the order of [`Kind::EVERY`].
    #[must_use]
    pub fn states(&self) -> Vec<WatchState> {
        self.lock().values().cloned().collect()
    }

    /// The watch of a kind.
    #[must_use]
    pub fn state(&self, kind: Kind) -> WatchState {
        self.lock().get(&kind).cloned().unwrap_or_default()
    }

    /// The longest [`WatchState::staleness`]; `None` while a kind has never been heard of.
    #[must_use]
    pub fn staleness(&self) -> Option<Duration> {
        let states = self.lock();
        let ages: Option<Vec<Duration>> =
            Kind::ALL.iter().map(|kind| states.get(kind)?.staleness()).collect();
        ages?.into_iter().max()
    }

    /// Waits until a watch does something else, fails or works again; being heard of is no change. For one waiter.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    pub(super) fn enter(&self, kind: Kind, phase: Phase) {
        self.change(kind, |state| state.phase = phase);
    }

    /// Octets have come.
    pub(super) fn hear(&self, kind: Kind) {
        self.change(kind, |state| state.contact = now());
    }

    pub(super) fn list(&self, kind: Kind) {
        self.change(kind, |state| {
            state.listed = now();
            state.lists += 1;
        });
    }

    /// There is no such kind here; says what that costs.
    pub(super) fn miss(&self, kind: Kind, cost: &str) {
        self.change(kind, |state| {
            let kind = std::mem::take(&mut state.kind);
            *state = WatchState { kind, phase: Phase::Absent, ..WatchState::default() };
            state.error = Some(cost.to_owned());
        });
    }

    /// A try has failed; returns the state after it.
    pub(super) fn fail(&self, kind: Kind) -> WatchState {
        self.change(kind, |state| {
            state.phase = Phase::Retrying;
            state.failures = state.failures.saturating_add(1);
            if state.failing == 0 {
                state.failing = now();
            }
        })
    }

    pub(super) fn tell(&self, kind: Kind, error: &str) {
        self.change(kind, |state| state.error = Some(error.to_owned()));
    }

    /// It works again.
    pub(super) fn recover(&self, kind: Kind) {
        self.change(kind, |state| {
            state.failures = 0;
            state.failing = 0;
            state.error = None;
        });
    }

    fn change(&self, kind: Kind, change: impl FnOnce(&mut WatchState)) -> WatchState {
        let mut states = self.lock();
        let state = states
            .entry(kind)
            .or_insert_with(|| WatchState { kind: kind.name().to_owned(), ..WatchState::default() });
        let before = (state.phase, state.error.clone(), state.failures == 0);
        change(state);
        if before != (state.phase, state.error.clone(), state.failures == 0) {
            self.0.changed.notify_one();
        }
        state.clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, WatchState>> {
        // What a panicking holder leaves is still a state of the watch.
        self.0.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staleness_is_known_once_every_kind_has_been_heard() {
        let board = Board::default();
        for kind in Kind::ALL {
            assert_eq!(board.staleness(), None);
            board.hear(kind);
        }
        assert!(board.staleness().is_some_and(|age| age < Duration::from_secs(10)));
    }

    #[test]
    fn whoever_waits_learns_of_failures_and_not_of_every_octet() {
        let board = Board::default();
        let is_told = || futures_util::FutureExt::now_or_never(board.changed()).is_some();
        board.enter(Kind::Pod, Phase::Watching);
        assert!(is_told());
        board.hear(Kind::Pod);
        board.enter(Kind::Pod, Phase::Watching);
        assert!(!is_told());
        board.fail(Kind::Pod);
        assert!(is_told());
        board.recover(Kind::Pod);
        assert!(is_told());
    }

    #[test]
    fn a_failure_keeps_its_beginning_until_it_is_over() {
        let board = Board::default();
        assert_eq!(board.fail(Kind::Pod).failures, 1);
        let began = board.state(Kind::Pod).failing;
        assert_eq!((board.fail(Kind::Pod).failures, board.state(Kind::Pod).failing), (2, began));
        board.recover(Kind::Pod);
        assert_eq!((board.state(Kind::Pod).failures, board.state(Kind::Pod).outage()), (0, None));
    }
}
