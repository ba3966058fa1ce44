//! VirtualMachineInstances and their migrations: where a VM is, where it goes, how far it has come.

use serde_json::Value;

use super::{Decoded, Findings, shorten};
use crate::identity::Identity;
use crate::index::vm::{Job, Migration, Vmi};
use crate::index::{Entry, text};
use crate::watch::kubevirt::{MigrationState, VirtualMachineInstance, VirtualMachineInstanceMigration};

pub(super) fn instance(object: &VirtualMachineInstance, findings: &mut Findings) -> Decoded {
    let Some(uid) = object.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) else {
        let message = "is missing; what the object says of migrations is not used".into();
        findings.warn("metadata.uid", message, "set it to the UID that the launcher pods carry");
        return Decoded::Refuse;
    };
    let status = object.status.as_ref();
    let node = status.and_then(|status| findings.word("status.nodeName", &status.node_name));
    let state = status.and_then(|status| status.migration_state.as_ref());
    Decoded::used(Entry::Vmi(Vmi {
        name: findings.object.name.clone(),
        identity: Identity::of_uid(uid),
        node: node.map(text),
        migration: state.map(|state| migration_state(state, findings)),
    }))
}

fn migration_state(state: &MigrationState, findings: &mut Findings) -> Migration {
    const AT: &str = "status.migrationState";
    let mut word = |field: &str, value| findings.word(&format!("{AT}.{field}"), value).map(text);
    let job = word("migrationUid", &state.migration_uid);
    let target_pod = word("targetPod", &state.target_pod);
    let target_node = word("targetNode", &state.target_node);
    let mut time = |field: &str, value| findings.time(&format!("{AT}.{field}"), value);
    let started = time("startTimestamp", &state.start_timestamp);
    let domain_ready = time("targetNodeDomainReadyTimestamp", &state.target_node_domain_ready_timestamp);
    let mut flag = |field: &str, value| findings.flag(&format!("{AT}.{field}"), value);
    Migration {
        job,
        target_pod,
        target_node,
        started,
        domain_ready,
        completed: flag("completed", &state.completed),
        failed: flag("failed", &state.failed),
        abort_requested: flag("abortRequested", &state.abort_requested),
    }
}

pub(super) fn migration(object: &VirtualMachineInstanceMigration, findings: &mut Findings) -> Decoded {
    let spec = object.spec.as_ref();
    let vmi = spec.and_then(|spec| findings.word("spec.vmiName", &spec.vmi_name)).map(text);
    let status = object.status.as_ref();
    let phase = status.and_then(|status| findings.word("status.phase", &status.phase));
    let failed = phase == Some("Failed");
    Decoded::used(Entry::Job(Job {
        name: findings.object.name.clone(),
        uid: text(object.metadata.uid.as_deref().unwrap_or_default()),
        vmi: vmi.unwrap_or_default(),
        failed,
    }))
}

impl Findings {
    /// Text that is not empty.
    fn word<'a>(&mut self, field: &str, value: &'a Value) -> Option<&'a str> {
        match value {
            Value::Null => None,
            Value::String(word) => Some(word.as_str()).filter(|word| !word.is_empty()),
            other => {
                self.odd(field, other, "text", "write it as text");
                None
            }
        }
    }

    fn flag(&mut self, field: &str, value: &Value) -> bool {
        match value {
            Value::Null => false,
            Value::Bool(flag) => *flag,
            other => {
                self.odd(field, other, "true or false", "write true or false");
                false
            }
        }
    }

    /// Milliseconds since 1970.
    fn time(&mut self, field: &str, value: &Value) -> Option<u64> {
        let word = self.word(field, value)?;
        let time = word.parse::<k8s_openapi::jiff::Timestamp>().ok();
        let time = time.and_then(|time| u64::try_from(time.as_millisecond()).ok());
        if time.is_none() {
            self.odd(field, value, "a time", "write it as 2026-11-20T10:00:00Z");
        }
        time
    }

    fn odd(&mut self, field: &str, value: &Value, wanted: &str, remedy: &str) {
        let message = format!("{} is not {wanted}; ignored", shorten(&value.to_string()));
        self.warn(field, message, remedy);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::cluster::{Decoded, decode};
    use crate::index::Entry;
    use crate::watch::document;

    fn read(object: &serde_json::Value) -> (Option<Entry>, Vec<String>) {
        let contents = document::read("", object.to_string().as_bytes());
        assert!(contents.warnings.is_empty(), "{:?}", contents.warnings);
        let (decoded, warnings) = decode(&contents.objects[0]);
        let warnings = warnings.iter().map(ToString::to_string).collect();
        match decoded {
            Decoded::Use(entry) => (Some(*entry), warnings),
            _ => (None, warnings),
        }
    }

    #[test]
    fn an_instance_tells_where_it_is_and_where_it_goes() {
        let object = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm01", "namespace": "demo", "uid": "vmi-1"}, "spec": {"domain": {}},
            "status": {"nodeName": "n1", "phase": "Running", "migrationState": {
                "migrationUid": "job-1", "targetPod": "target", "targetNode": "n2", "mode": "PreCopy",
                "startTimestamp": "2026-11-21T10:00:00Z", "completed": true}},
        });
        let (Some(Entry::Vmi(vmi)), warnings) = read(&object) else { panic!("not a VMI") };
        assert_eq!((vmi.identity.as_str(), vmi.node.as_deref(), warnings.len()), ("vmi-1", Some("n1"), 0));
        let migration = vmi.migration.unwrap_or_default();
        assert_eq!(
            (migration.job.as_deref(), migration.target_pod.as_deref()),
            (Some("job-1"), Some("target"))
        );
        assert_eq!((migration.started, migration.domain_ready), (Some(1_795_255_200_000), None));
        assert!(migration.completed && !migration.failed && !migration.abort_requested);
    }

    #[test]
    fn a_field_of_the_wrong_type_costs_itself_and_a_warning_that_names_it() {
        let object = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm01", "namespace": "demo", "uid": "vmi-1"},
            "status": {"nodeName": 5, "migrationState": {
                "targetPod": "target", "startTimestamp": "yesterday", "completed": "yes"}},
        });
        let (Some(Entry::Vmi(vmi)), warnings) = read(&object) else { panic!("not a VMI") };
        assert_eq!(vmi.migration.and_then(|state| state.target_pod).as_deref(), Some("target"));
        for (warning, field) in warnings.iter().zip(["nodeName", "startTimestamp", "completed"]) {
            assert!(
                warning.contains("VirtualMachineInstance demo/vm01") && warning.contains(field),
                "{warning}"
            );
        }
        assert_eq!(warnings.len(), 3);
        let nameless = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": "a"}});
        assert!(matches!(read(&nameless), (None, warnings) if warnings.len() == 1));
    }

    #[test]
    fn a_migration_tells_whether_it_has_failed() {
        let object = |phase: &str| {
            json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                "metadata": {"name": "m", "namespace": "demo", "uid": "job-1"},
                "spec": {"vmiName": "vm01"}, "status": {"phase": phase},
            })
        };
        for (phase, failed) in [("Running", false), ("Failed", true), ("Succeeded", false)] {
            let (Some(Entry::Job(job)), _) = read(&object(phase)) else { panic!("not a migration") };
            assert_eq!((&*job.uid, &*job.vmi, job.failed), ("job-1", "vm01", failed));
        }
    }
}
