//! The machines of all VMs that move, and what is remembered of those that have moved.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::machine::{Key, Machine, Progress, Seen, Spot};
use super::{End, Migration, Moment, Sign, Stage};
use crate::identity::Identity;
use crate::index::Index;
use crate::index::pod::Pod;
use crate::object::Name;

/// How many migrations that are over are remembered.
const REMEMBERED: usize = 256;

/// Whose migration it is.
#[derive(Clone, Debug)]
struct Vm {
    identity: Identity,
    namespace: Arc<str>,
    name: Arc<str>,
}

/// All machines. Costs nothing for VMs that stay where they are.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    machines: HashMap<Identity, (Vm, Machine)>,
    over: VecDeque<(Vm, Progress)>,
    number: u64,
}

/// What tells the fleet of the rest of the world.
pub struct Circumstances<'a> {
    /// The pod of a VM that is installed as the present one.
    pub installed: &'a dyn Fn(&Index, &Identity) -> Option<Name>,
    /// Whether a VM takes new flows.
    pub is_usable: &'a dyn Fn(&Index, &Identity) -> bool,
    /// The time.
    pub now: Moment,
}

impl Fleet {
    /// The VMs that have a machine.
    #[must_use]
    pub fn identities(&self) -> Vec<Identity> {
        self.machines.keys().cloned().collect()
    }

    /// Looks at a VM again, and says in the index where it is.
    pub fn observe(&mut self, index: &mut Index, identity: &Identity, around: &Circumstances<'_>) {
        let mut pods: Vec<&Pod> = index.live_pods(identity);
        pods.retain(|pod| pod.vm.is_some());
        pods.sort_by(|one, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
        if pods.len() < 2 && !self.machines.contains_key(identity) {
            return;
        }
        let has_failed = |job: &str| index.has_failed(job);
        let is_ready = |pod: &Name| index.is_listed_ready(pod);
        let seen =
            Seen { pods: &pods, vmi: index.vmi(identity), has_failed: &has_failed, is_ready: &is_ready };
        let Some(first) = pods.first() else {
            self.lose(identity, around.now);
            index.place(identity, None);
            return;
        };
        if !self.machines.contains_key(identity) {
            let installed = (around.installed)(index, identity);
            let machine = Machine::new(&seen, installed.as_ref(), &mut self.number, around.now);
            let Some(machine) = machine else { return };
            let name = first.vm.clone().unwrap_or_default();
            let vm = Vm { identity: identity.clone(), namespace: first.name.namespace.clone(), name };
            self.machines.insert(identity.clone(), (vm, machine));
        }
        let Some((vm, machine)) = self.machines.get_mut(identity) else { return };
        let over = machine.observe(&seen, (around.is_usable)(index, identity), &mut self.number, around.now);
        let vm = vm.clone();
        let mut placement = Some(machine.placement());
        if machine.is_idle(&seen) {
            placement = None;
            let gone = self.machines.remove(identity);
            let last = gone.and_then(|(_, machine)| machine.progress().cloned());
            self.remember(&vm, over.into_iter().chain(last));
        } else {
            self.remember(&vm, over);
        }
        index.place(identity, placement);
    }

    /// The VM has no pod any more.
    fn lose(&mut self, identity: &Identity, now: Moment) {
        let Some((vm, machine)) = self.machines.remove(identity) else { return };
        let last = machine.progress().cloned().map(|mut progress| {
            progress.end(now);
            progress
        });
        self.remember(&vm, last);
    }

    fn remember(&mut self, vm: &Vm, over: impl IntoIterator<Item = Progress>) {
        self.over.extend(over.into_iter().map(|progress| (vm.clone(), progress)));
        while self.over.len() > REMEMBERED {
            self.over.pop_front();
        }
    }

    /// The machine of a VM, to tell it something.
    pub fn machine(&mut self, identity: &Identity) -> Option<&mut Machine> {
        self.machines.get_mut(identity).map(|(_, machine)| machine)
    }

    /// A migration's target has been told of all flows.
    pub fn primed(&mut self, number: u64, now: Moment) {
        for (_, machine) in self.machines.values_mut() {
            if machine.progress().is_some_and(|progress| progress.number == number) {
                machine.primed(now);
            }
        }
    }

    /// When time alone changes something, in nanoseconds of the monotonic clock.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.machines.values().filter_map(|(_, machine)| machine.due()).min()
    }

    /// VMs that move, with how that goes.
    pub fn under_way(&self) -> impl Iterator<Item = (&Identity, &Progress)> {
        let moving =
            self.machines.values().filter_map(|(vm, machine)| Some((&vm.identity, machine.progress()?)));
        moving.filter(|(_, progress)| !progress.stage.is_over())
    }

    /// Everything that is remembered, sorted by number. `backend` gives ids.
    #[must_use]
    pub fn migrations(&self, node: &str, backend: impl Fn(&Identity) -> u32) -> Vec<Migration> {
        let present = self.machines.values().filter_map(|(vm, machine)| Some((vm, machine.progress()?)));
        let over = self.over.iter().map(|(vm, progress)| (vm, progress));
        let mut all: Vec<Migration> = over
            .chain(present)
            .map(|(vm, progress)| migration(vm, progress, node, backend(&vm.identity)))
            .collect();
        all.sort_unstable_by_key(|migration| migration.number);
        all
    }
}

fn migration(vm: &Vm, progress: &Progress, node: &str, backend: u32) -> Migration {
    Migration {
        number: progress.number,
        backend,
        identity: vm.identity.to_string(),
        namespace: vm.namespace.to_string(),
        name: vm.name.to_string(),
        stage: progress.stage,
        source: end(&progress.source, &progress.source_at, node),
        target: end(&progress.target, &progress.target_at, node),
        signals: progress.signals.clone(),
        turned_by: progress.turned_by,
        known: progress.known,
        turned: progress.turned,
        changed: progress.changed,
        replied: progress.replied,
    }
}

fn end(key: &Key, spot: &Spot, node: &str) -> End {
    End {
        pod: key.name.name.to_string(),
        uid: key.uid().to_owned(),
        node: spot.node.as_deref().unwrap_or_default().to_owned(),
        is_local: spot.node.as_deref() == Some(node),
        addresses: spot.addresses.clone(),
    }
}

impl Progress {
    /// The VM itself has ended.
    fn end(&mut self, now: Moment) {
        if !self.stage.is_over() {
            let stage = if self.stage == Stage::Turned { Stage::Settled } else { Stage::Aborted };
            self.note(Sign::TargetGone, now, None);
            self.enter(stage, now);
        }
    }
}
