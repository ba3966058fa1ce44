//! One VM's state machine. What goes in: its live pods, KubeVirt's word, the datapath's, the time. What comes out: in which
//! pod the VM is, which other pod counts, and how its migration goes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Moment, Sign, Signal, Stage};
use crate::index::pod::Pod;
use crate::index::vm::{self, Vmi};
use crate::index::{Other, Placement};
use crate::object::Name;

/// How long after the turn the source's address is known, where nobody says that its pod has ended.
pub const REMEMBERED: Duration = Duration::from_secs(60);
/// How long after the turn the VM counts as ready if no slice says it by then (post-copy takes minutes).
pub const HELD: Duration = Duration::from_secs(300);
/// How long a target is expected of which KubeVirt says nothing.
pub const EXPECTED: Duration = Duration::from_secs(3600);

/// What is known of a VM at one time.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Its pods that have not ended, the oldest first.
    pub pods: &'a [&'a Pod],
    /// What KubeVirt says of it.
    pub vmi: Option<&'a Vmi>,
    /// Whether KubeVirt says that a migration (by UID) has failed.
    pub has_failed: &'a dyn Fn(&str) -> bool,
    /// Whether a slice lists a pod as ready.
    pub is_ready: &'a dyn Fn(&Name) -> bool,
}

impl<'a> Seen<'a> {
    fn pod(&self, key: &Key) -> Option<&'a Pod> {
        self.pods.iter().copied().find(|pod| Key::of(pod) == *key)
    }

    /// What KubeVirt says of the migration to `target`.
    fn word(&self, target: &Key, pod: Option<&Pod>) -> Option<&'a vm::Migration> {
        let state = self.vmi?.migration.as_ref()?;
        let same = |one: &Option<Arc<str>>, other: Option<&Arc<str>>| Some(one.as_ref()? == other?);
        let is_meant = same(&state.target_pod, Some(&target.name.name))
            .or_else(|| same(&state.job, pod.and_then(|pod| pod.job.as_ref())))
            .or_else(|| same(&state.target_node, pod.and_then(|pod| pod.node.as_ref())));
        is_meant.unwrap_or(false).then_some(state)
    }
}

/// A pod, and not another of its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its name.
    pub name: Name,
    uid: Arc<str>,
}

impl Key {
    /// The key of a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self { name: pod.name.clone(), uid: pod.uid.clone() }
    }

    /// The pod's UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }
}

/// Where a pod is, as it was last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Spot {
    fn look(&mut self, pod: Option<&Pod>) {
        let Some(pod) = pod else { return };
        if self.node != pod.node || self.addresses != pod.addresses {
            *self = Self { node: pod.node.clone(), addresses: pod.addresses.clone() };
        }
    }
}

/// A migration as the machine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tells it from others.
    pub number: u64,
    /// Where the source is, or was.
    pub source_at: Spot,
    /// Where the target is, or was.
    pub target_at: Spot,
    /// The pod the VM comes from.
    pub source: Key,
    /// The pod it goes to.
    pub target: Key,
    /// How far it has come.
    pub stage: Stage,
    /// Everything that was seen, in order.
    pub signals: Vec<Signal>,
    /// What turned the flows.
    pub turned_by: Option<Sign>,
    /// When the target became known.
    pub known: Moment,
    /// When the flows were turned.
    pub turned: Option<Moment>,
    /// When the stage last changed.
    pub changed: Moment,
    /// When the source last answered.
    pub replied: Option<Moment>,
    /// The VM took new flows when it began; of what was not seen to begin, that is believed.
    was_usable: bool,
    /// A slice has listed the target as ready since the VM is there.
    is_steady: bool,
    /// KubeVirt has said since it began that the VM runs on another node than the target's: should it say that it runs
    /// there, that is news.
    was_elsewhere: bool,
}

impl Progress {
    pub(super) fn note(&mut self, sign: Sign, at: Moment, stated: Option<u64>) {
        if self.signals.iter().all(|signal| signal.sign != sign) {
            self.signals.push(Signal { sign, at, stated });
        }
    }

    pub(super) fn enter(&mut self, stage: Stage, at: Moment) {
        if self.stage != stage {
            self.stage = stage;
            self.changed = at;
        }
    }

    fn turn(&mut self, sign: Sign, at: Moment) {
        self.turned = Some(at);
        self.turned_by = Some(sign);
        self.enter(Stage::Turned, at);
    }

    /// Since when the target is to be asked whether the VM is there.
    #[must_use]
    pub fn probe(&self, vmi_is_known: bool) -> Option<Moment> {
        if !matches!(self.stage, Stage::Known | Stage::Primed) {
            return None;
        }
        let started = self.signals.iter().find(|signal| signal.sign == Sign::Started);
        started.map(|signal| signal.at).or((!vmi_is_known).then_some(self.known))
    }
}

/// The machine of one VM that has, or had a moment ago, more than one pod.
#[derive(Clone, Debug)]
pub struct Machine {
    present: Key,
    progress: Option<Progress>,
    /// Pods that the VM has left, or that it was expected at in vain.
    done: BTreeSet<Key>,
}

impl Machine {
    /// A machine for a VM of which nothing was known before. `installed` is the pod that an earlier agent, or the
    /// datapath since, took for the present one. `None`: the VM has no pod.
    #[must_use]
    pub fn new(seen: &Seen<'_>, installed: Option<&Name>, number: &mut u64, now: Moment) -> Option<Self> {
        let by_precedence = seen.pods.iter().copied().max_by_key(|pod| pod.precedence())?;
        let present = installed.and_then(|name| seen.pods.iter().copied().find(|pod| pod.name == *name));
        let present = present.unwrap_or(by_precedence);
        let age = |pod: &Pod| (pod.created, pod.name.clone());
        let before = seen.pods.iter().copied().filter(|pod| age(pod) < age(present));
        let mut machine =
            Self { present: Key::of(present), progress: None, done: before.clone().map(Key::of).collect() };
        // Pods before the present one: the VM has come from the last of them, and its last answers are under way.
        if let Some(source) = before.max_by_key(|pod| age(pod)) {
            let mut progress = begun(number, Key::of(source), machine.present.clone(), now);
            let sign = if present.arrived.is_some() { Sign::Annotation } else { Sign::TargetPod };
            progress.note(sign, now, None);
            progress.turned = Some(now);
            progress.turned_by = present.arrived.is_some().then_some(Sign::Annotation);
            progress.enter(Stage::Turned, now);
            machine.progress = Some(progress);
        }
        Some(machine)
    }

    /// The present or last migration.
    #[must_use]
    pub fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }

    /// The pod that the VM is in.
    #[must_use]
    pub fn present(&self) -> &Key {
        &self.present
    }

    /// Takes in what is known now. Returns migrations that were over, or are superseded, where another begins.
    /// `is_usable`: the VM takes new flows at present. `number`: the last that was given to a migration.
    pub fn observe(
        &mut self,
        seen: &Seen<'_>,
        is_usable: bool,
        number: &mut u64,
        now: Moment,
    ) -> Vec<Progress> {
        let mut over = Vec::new();
        // Each round takes one step; a second one sees what the first has made.
        for _ in 0..4 {
            self.follow(seen, now);
            self.settle_down(seen, now);
            let Some(target) = self.candidate(seen) else { break };
            over.extend(self.begin(&target, is_usable, number, now));
        }
        over
    }

    /// The datapath has turned the VM to its other side.
    pub fn arrived(&mut self, sign: Sign, at: Moment, replied: Option<Moment>) {
        let Some(progress) = &mut self.progress else { return };
        // To a target that is gone the VM cannot have gone.
        if progress.signals.iter().any(|signal| signal.sign == Sign::TargetGone) {
            return;
        }
        if !matches!(progress.stage, Stage::Turned | Stage::Settled) {
            progress.note(sign, at, None);
            progress.replied = replied;
            progress.turn(sign, at);
            self.done.remove(&progress.target);
            self.done.insert(progress.source.clone());
            self.present = progress.target.clone();
        }
        self.explain(sign, at, replied);
    }

    /// The datapath tells of a turn that is known: it saw the VM before anybody else did.
    pub fn explain(&mut self, sign: Sign, at: Moment, replied: Option<Moment>) {
        let Some(progress) = &mut self.progress else { return };
        if !matches!(progress.stage, Stage::Turned | Stage::Settled) || at < progress.known {
            return;
        }
        progress.note(sign, at, None);
        if progress.turned.is_none_or(|turned| at.monotonic <= turned.monotonic) {
            (progress.turned, progress.turned_by) = (Some(at), Some(sign));
            progress.replied = replied.or(progress.replied);
        }
    }

    /// The target has been told of all flows.
    pub fn primed(&mut self, now: Moment) {
        if let Some(progress) = &mut self.progress {
            progress.note(Sign::Primed, now, None);
            if progress.stage == Stage::Known {
                progress.enter(Stage::Primed, now);
            }
        }
    }

    /// Where the VM is and which other pod counts.
    #[must_use]
    pub fn placement(&self) -> Placement {
        let other = self.progress.as_ref().and_then(|progress| match progress.stage {
            Stage::Known | Stage::Primed => Some((progress.target.name.clone(), Other::Expected)),
            Stage::Turned => Some((progress.source.name.clone(), Other::Known)),
            Stage::Settled | Stage::Aborted | Stage::TimedOut => None,
        });
        Placement { present: self.present.name.clone(), other, is_held: self.is_held() }
    }

    /// Whether the VM counts as ready although readiness gates hide it.
    fn is_held(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| {
            progress.was_usable
                && match progress.stage {
                    Stage::Known | Stage::Primed | Stage::Turned => true,
                    Stage::Settled => !progress.is_steady,
                    Stage::Aborted | Stage::TimedOut => false,
                }
        })
    }

    /// Whether nothing is to be remembered: the VM is in its only pod, and nothing is under way.
    #[must_use]
    pub fn is_idle(&self, seen: &Seen<'_>) -> bool {
        let is_over = self.progress.as_ref().is_none_or(|progress| progress.stage.is_over());
        is_over && !self.is_held() && seen.pods.len() <= 1
    }

    /// When time alone changes something, in nanoseconds of the monotonic clock.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        let progress = self.progress.as_ref()?;
        let after = |moment: Moment, time: Duration| moment.monotonic.saturating_add(nanoseconds(time));
        match (progress.stage, progress.turned) {
            (Stage::Known | Stage::Primed, _) => Some(after(progress.known, EXPECTED)),
            (Stage::Turned, Some(turned)) => Some(after(turned, REMEMBERED)),
            (Stage::Settled, Some(turned)) if self.is_held() => Some(after(turned, HELD)),
            _ => None,
        }
    }

    /// One step of the migration that is under way.
    fn follow(&mut self, seen: &Seen<'_>, now: Moment) {
        let Some(progress) = &mut self.progress else { return };
        let (source, target) = (seen.pod(&progress.source), seen.pod(&progress.target));
        let word = seen.word(&progress.target, target);
        progress.source_at.look(source);
        progress.target_at.look(target);
        note_words(progress, seen, (source, target), word, now);
        match progress.stage {
            Stage::Known | Stage::Primed | Stage::TimedOut => {
                let sign = arrival(progress).or_else(|| (source.is_none()).then_some(Sign::SourceGone));
                match (target, sign) {
                    (Some(_), Some(sign)) => {
                        progress.note(sign, now, None);
                        progress.turn(sign, now);
                        self.present = progress.target.clone();
                        self.done.remove(&progress.target);
                        self.done.insert(progress.source.clone());
                    }
                    (None, _) => {
                        progress.note(Sign::TargetGone, now, None);
                        progress.enter(Stage::Aborted, now);
                        self.done.insert(progress.target.clone());
                    }
                    (Some(_), None) if progress.signals.iter().any(|signal| signal.sign == Sign::Failed) => {
                        progress.enter(Stage::Aborted, now);
                        self.done.insert(progress.target.clone());
                    }
                    (Some(_), None) => {
                        let is_running = word.is_some_and(|word| word.started.is_some() && !word.completed);
                        let waits = now.since(progress.known) >= nanoseconds(EXPECTED);
                        if waits && !is_running && progress.stage != Stage::TimedOut {
                            progress.note(Sign::Expired, now, None);
                            progress.enter(Stage::TimedOut, now);
                            self.done.insert(progress.target.clone());
                        }
                    }
                }
            }
            Stage::Turned => {
                let turned = *progress.turned.get_or_insert(now);
                if source.is_none() {
                    progress.note(Sign::SourceGone, now, None);
                    progress.enter(Stage::Settled, now);
                } else if now.since(turned) >= nanoseconds(REMEMBERED) {
                    progress.note(Sign::Expired, now, None);
                    progress.enter(Stage::Settled, now);
                }
            }
            Stage::Settled | Stage::Aborted => {}
        }
        if let Some(turned) = progress.turned {
            let held_enough = now.since(turned) >= nanoseconds(HELD);
            progress.is_steady |= held_enough || (seen.is_ready)(&progress.target.name);
        }
    }

    /// The present pod is gone, and no migration explains it.
    fn settle_down(&mut self, seen: &Seen<'_>, now: Moment) {
        self.done.retain(|key| seen.pod(key).is_some());
        if seen.pod(&self.present).is_some() {
            return;
        }
        let left = seen.pods.iter().copied();
        let fresh = left.clone().filter(|pod| !self.done.contains(&Key::of(pod)));
        let next = fresh.max_by_key(|pod| pod.precedence()).or(left.max_by_key(|pod| pod.precedence()));
        let Some(next) = next else { return };
        self.present = Key::of(next);
        self.done.remove(&self.present);
        if let Some(progress) = &mut self.progress
            && !progress.stage.is_over()
        {
            progress.note(Sign::TargetGone, now, None);
            progress.enter(Stage::Settled, now);
        }
    }

    /// The pod to which a new migration goes: the one that KubeVirt names, else the youngest.
    fn candidate(&self, seen: &Seen<'_>) -> Option<Key> {
        let is_waiting = self
            .progress
            .as_ref()
            .is_some_and(|progress| matches!(progress.stage, Stage::Known | Stage::Primed));
        let is_new = |pod: &&Pod| {
            let key = Key::of(pod);
            key != self.present && !self.done.contains(&key) && !pod.addresses.is_empty()
        };
        let new = seen.pods.iter().copied().filter(is_new);
        if is_waiting {
            return None;
        }
        let named =
            seen.vmi.and_then(|vmi| vmi.migration.as_ref()).and_then(|state| state.target_pod.as_ref());
        let by_name = new.clone().find(|pod| Some(&pod.name.name) == named);
        by_name.or_else(|| new.max_by_key(|pod| (pod.created, pod.name.clone()))).map(Key::of)
    }

    fn begin(&mut self, target: &Key, is_usable: bool, number: &mut u64, now: Moment) -> Option<Progress> {
        let was_held = self.is_held();
        let mut progress = begun(number, self.present.clone(), target.clone(), now);
        progress.was_usable = is_usable || was_held;
        progress.note(Sign::TargetPod, now, None);
        let mut old = self.progress.replace(progress)?;
        self.done.insert(old.source.clone());
        self.done.remove(&self.present);
        if !old.stage.is_over() {
            old.enter(Stage::Settled, now);
        }
        Some(old)
    }
}

fn begun(number: &mut u64, source: Key, target: Key, now: Moment) -> Progress {
    *number += 1;
    Progress {
        number: *number,
        source_at: Spot::default(),
        target_at: Spot::default(),
        source,
        target,
        stage: Stage::Known,
        signals: Vec::new(),
        turned_by: None,
        known: now,
        turned: None,
        changed: now,
        replied: None,
        was_usable: true,
        is_steady: false,
        was_elsewhere: false,
    }
}

/// Takes down what KubeVirt and the pods say.
fn note_words(
    progress: &mut Progress,
    seen: &Seen<'_>,
    (source, target): (Option<&Pod>, Option<&Pod>),
    word: Option<&vm::Migration>,
    now: Moment,
) {
    if progress.stage.is_over() && progress.stage != Stage::TimedOut {
        return;
    }
    if let Some(word) = word {
        for (sign, stated) in [(Sign::Started, word.started), (Sign::DomainReady, word.domain_ready)] {
            if stated.is_some() {
                progress.note(sign, now, stated);
            }
        }
        if word.abort_requested {
            progress.note(Sign::AbortRequested, now, None);
        }
        if word.failed {
            progress.note(Sign::Failed, now, None);
        } else if word.completed {
            progress.note(Sign::Completed, now, None);
        }
    }
    let Some(target) = target else { return };
    if target.job.as_deref().is_some_and(|job| (seen.has_failed)(job)) {
        progress.note(Sign::Failed, now, None);
    }
    if let Some(stated) = &target.arrived {
        let stated = stated.parse::<k8s_openapi::jiff::Timestamp>().ok();
        let stated = stated.and_then(|time| u64::try_from(time.as_millisecond()).ok());
        progress.note(Sign::Annotation, now, stated);
    }
    let node = seen.vmi.and_then(|vmi| vmi.node.as_ref());
    let is_there = node.is_some() && node == target.node.as_ref();
    progress.was_elsewhere |= node.is_some() && !is_there;
    // After a move there and back, an old word of the first node may still stand.
    let is_news = progress.was_elsewhere || word.is_some_and(|word| word.started.is_some());
    if is_there && is_news && source.is_none_or(|source| node != source.node.as_ref()) {
        progress.note(Sign::NodeName, now, None);
    }
}

/// What says that the VM is at the target; nothing does after a failure.
fn arrival(progress: &Progress) -> Option<Sign> {
    let is_said = |sign: &Sign| progress.signals.iter().any(|signal| signal.sign == *sign);
    if is_said(&Sign::Failed) {
        return None;
    }
    [Sign::Annotation, Sign::DomainReady, Sign::NodeName, Sign::Completed].into_iter().find(is_said)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
