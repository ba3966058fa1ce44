//! KubeVirt's objects, as far as they tell of migrations. Leaves are read as whatever they are: a field of the wrong type
//! is to cost itself and not the object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A VM that runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VirtualMachineInstance {
    /// Name, namespace, UID.
    pub metadata: ObjectMeta,
    /// What KubeVirt sees of it.
    pub status: Option<InstanceStatus>,
}

/// `status` of a VirtualMachineInstance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InstanceStatus {
    /// The node it runs on.
    pub node_name: Value,
    /// Its present or last migration.
    pub migration_state: Option<MigrationState>,
}

/// `status.migrationState`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MigrationState {
    /// UID of the VirtualMachineInstanceMigration.
    pub migration_uid: Value,
    /// When the VM's memory began to be copied.
    pub start_timestamp: Value,
    /// When the target had the VM running.
    pub target_node_domain_ready_timestamp: Value,
    /// The pod it goes to.
    pub target_pod: Value,
    /// The node it goes to.
    pub target_node: Value,
    /// It is over.
    pub completed: Value,
    /// It is over, and the VM never left.
    pub failed: Value,
    /// Somebody wants it to end.
    pub abort_requested: Value,
}

/// A VM's move to another node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VirtualMachineInstanceMigration {
    /// Name, namespace, UID.
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: Option<MigrationSpec>,
    /// How it goes.
    pub status: Option<MigrationStatus>,
}

/// `spec` of a VirtualMachineInstanceMigration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MigrationSpec {
    /// Name of the VirtualMachineInstance.
    pub vmi_name: Value,
}

/// `status` of a VirtualMachineInstanceMigration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MigrationStatus {
    /// `Pending` to `Succeeded` or `Failed`.
    pub phase: Value,
}
