//! Reads a JSON array of Kubernetes objects, takes each through its type of one Kubernetes version, and prints what comes
//! back, or the error in an object's place. A field that the version does not know is missing from the answer.

use std::error::Error;
use std::io::{stdin, stdout};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn through<T: DeserializeOwned + Serialize>(object: Value) -> Value {
    let read = serde_json::from_value::<T>(object).and_then(serde_json::to_value);
    read.unwrap_or_else(|error| json!({"error": error.to_string()}))
}

fn round_trip(object: Value) -> Value {
    match object["kind"].as_str().unwrap_or_default() {
        "ClusterRole" => through::<ClusterRole>(object),
        "ClusterRoleBinding" => through::<ClusterRoleBinding>(object),
        "DaemonSet" => through::<DaemonSet>(object),
        "Namespace" => through::<Namespace>(object),
        "Service" => through::<Service>(object),
        "ServiceAccount" => through::<ServiceAccount>(object),
        kind => json!({"error": format!("{kind} is no kind of Kubernetes' own")}),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let objects: Vec<Value> = serde_json::from_reader(stdin().lock())?;
    let answers: Vec<Value> = objects.into_iter().map(round_trip).collect();
    Ok(serde_json::to_writer(stdout().lock(), &answers)?)
}
