//! What there is to tell of migrations since the last look: Events, and what metrics count. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Tally;
use crate::migration::{Migration, Sign, Stage};
use crate::watch::kube::Notice;

/// What metrics count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Migrations that have ended.
    pub ended: Vec<Stage>,
    /// What turned VMs.
    pub turned: Vec<Sign>,
    /// Blackouts measured.
    pub blackouts: Vec<Duration>,
    /// Flows that went over.
    pub carried: u64,
    /// Flows that nothing was heard on afterwards.
    pub silent: u64,
    /// Packets of the primer.
    pub packets: u64,
    /// Probes.
    pub probes: u64,
    /// Migrations that are under way.
    pub under_way: u64,
}

/// What has been told of a migration.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    has_ended: bool,
    has_turned: bool,
    carried: Option<u64>,
    silent: Option<u64>,
    packets: u64,
    probes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Account {
    told: BTreeMap<u64, Told>,
}

impl Account {
    /// What is new.
    pub fn take(&mut self, migrations: &[Migration], tally: impl Fn(u64) -> Tally) -> (Counts, Vec<Notice>) {
        let (mut counts, mut notices) = (Counts::default(), Vec::new());
        self.told.retain(|number, _| migrations.iter().any(|migration| migration.number == *number));
        for migration in migrations {
            let told = self.told.entry(migration.number).or_default();
            let tally = tally(migration.number);
            counts.under_way += u64::from(!migration.stage.is_over());
            if migration.stage.is_over() && !told.has_ended {
                told.has_ended = true;
                counts.ended.push(migration.stage);
            }
            if migration.turned.is_some() && !told.has_turned {
                told.has_turned = true;
                counts.turned.extend(migration.turned_by);
                counts.blackouts.extend(migration.blackout().map(Duration::from_nanos));
            }
            if let (None, Some(carried)) = (told.carried, tally.carried) {
                told.carried = tally.carried;
                counts.carried += carried;
                notices.extend(of_carried(migration, carried));
            }
            if let (None, Some(silent)) = (told.silent, tally.silent) {
                told.silent = tally.silent;
                counts.silent += silent;
                notices.extend(of_silent(migration, silent, tally.carried.unwrap_or(0)));
            }
            counts.packets += tally.packets.saturating_sub(told.packets);
            counts.probes += tally.probes.saturating_sub(told.probes);
            (told.packets, told.probes) = (tally.packets.max(told.packets), tally.probes.max(told.probes));
        }
        (counts, notices)
    }
}

fn notice(migration: &Migration, is_warning: bool, reason: &'static str, note: String) -> Notice {
    Notice {
        namespace: migration.namespace.clone(),
        name: migration.name.clone(),
        uid: migration.identity.clone(),
        occasion: migration.target.uid.clone(),
        is_warning,
        reason,
        note,
    }
}

/// Nodes without flows of the VM have nothing to say.
fn of_carried(migration: &Migration, carried: u64) -> Option<Notice> {
    let flows = match carried {
        0 => return None,
        1 => "1 flow".to_owned(),
        more => format!("{more} flows"),
    };
    let blackout = migration.blackout().map(|blackout| format!(", blackout {} ms", blackout / 1_000_000));
    let note = format!("Carried {flows}{}", blackout.unwrap_or_default());
    Some(notice(migration, false, "MigrationCarried", note))
}

fn of_silent(migration: &Migration, silent: u64, carried: u64) -> Option<Notice> {
    let note = format!(
        "{silent} of {carried} flows got no answer since the VM moved; if that stays so, look at \
         net.netfilter.nf_conntrack_tcp_loose in pod {}: it has to be 1, the kernel's default",
        migration.target.pod
    );
    (silent > 0).then(|| notice(migration, true, "MigrationFlowsSilent", note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::{End, Moment};

    const SECOND: u64 = 1_000_000_000;

    fn migration(stage: Stage, turned: bool) -> Migration {
        let end = |pod: &str| End { pod: pod.into(), uid: format!("{pod}-uid"), ..End::default() };
        let moment = |monotonic| Moment { monotonic, wall: 0 };
        Migration {
            number: 1,
            backend: 7,
            identity: "u".into(),
            namespace: "a".into(),
            name: "vm".into(),
            stage,
            source: end("one"),
            target: end("two"),
            signals: Vec::new(),
            turned_by: turned.then_some(Sign::Flow),
            known: moment(SECOND),
            turned: turned.then_some(moment(10 * SECOND + 48_500_000)),
            changed: moment(SECOND),
            replied: turned.then_some(moment(10 * SECOND)),
        }
    }

    #[test]
    fn what_has_been_told_is_not_told_again() {
        let mut account = Account::default();
        let before = Tally { flows: 37, packets: 37, probes: 5, ..Tally::default() };
        let (counts, notices) = account.take(&[migration(Stage::Primed, false)], |_| before);
        assert_eq!((counts.packets, counts.probes, counts.under_way, notices.len()), (37, 5, 1, 0));
        let after = Tally { carried: Some(37), packets: 74, ..before };
        let (counts, notices) = account.take(&[migration(Stage::Turned, true)], |_| after);
        assert_eq!(
            notices.iter().map(|one| one.note.as_str()).collect::<Vec<_>>(),
            ["Carried 37 flows, blackout 48 ms"]
        );
        assert_eq!((counts.turned, counts.carried, counts.packets), (vec![Sign::Flow], 37, 37));
        assert_eq!(counts.blackouts, [Duration::from_micros(48_500)]);
        let (counts, notices) = account.take(&[migration(Stage::Settled, true)], |_| after);
        assert_eq!((counts.ended.as_slice(), notices.len()), ([Stage::Settled].as_slice(), 0));
        let (counts, notices) = account.take(&[migration(Stage::Settled, true)], |_| after);
        assert_eq!((counts, notices), (Counts::default(), Vec::new()));
    }

    #[test]
    fn flows_that_fell_silent_are_a_warning_and_a_node_without_flows_says_nothing() {
        let mut account = Account::default();
        let none = Tally { carried: Some(0), silent: Some(0), ..Tally::default() };
        assert!(account.take(&[migration(Stage::Turned, true)], |_| none).1.is_empty());
        let mut account = Account::default();
        let some = Tally { carried: Some(1), silent: Some(1), ..Tally::default() };
        let (counts, notices) = account.take(&[migration(Stage::Turned, true)], |_| some);
        assert_eq!(counts.silent, 1);
        let said: Vec<_> = notices.iter().map(|one| (one.reason, one.is_warning)).collect();
        assert_eq!(said, [("MigrationCarried", false), ("MigrationFlowsSilent", true)]);
    }
}
