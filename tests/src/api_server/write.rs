//! Single objects: read, created, patched and deleted, with the checks of the real API server that the operator's commands
//! meet. A rehearsal (`dryRun=All`) goes through all of them and keeps nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Shared;
use super::resource::Route;
use super::store::Store;

/// The API server's default.
const NODE_PORTS: std::ops::RangeInclusive<u64> = 30_000..=32_767;

/// Whether a write stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    Everything,
    Nothing,
}

/// Why not.
#[derive(Debug)]
pub(super) struct Refusal {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

type Answer = Result<(u16, Value), Refusal>;

/// Does what is asked of one object.
pub(super) fn carry_out(shared: &Shared, route: &Route, body: &[u8], keeps: Keeps) -> Answer {
    if route.verb != "get" && keeps == Keeps::Everything && fails_now(shared) {
        return Err(Refusal { code: 500, reason: "InternalError", message: "it is scripted so".into() });
    }
    let read = || {
        serde_json::from_slice::<Value>(body).map_err(|error| invalid(400, "BadRequest", error.to_string()))
    };
    match route.verb {
        "get" => Ok((200, present(&shared.store(), route)?)),
        "create" => create(shared, route, read()?, keeps),
        "patch" => {
            let mut object = present(&shared.store(), route)?;
            merge(&mut object, &read()?);
            keep(shared, object, keeps).map(|object| (200, object))
        }
        _ => delete(shared, route, &read().unwrap_or_default(), keeps),
    }
}

fn fails_now(shared: &Shared) -> bool {
    let mut faults = shared.faults();
    match &mut faults.failing_writes {
        Some((0, 0)) | None => false,
        Some((0, left)) => {
            *left -= 1;
            true
        }
        Some((before, _)) => {
            *before -= 1;
            false
        }
    }
}

fn invalid(code: u16, reason: &'static str, message: String) -> Refusal {
    Refusal { code, reason, message }
}

fn present(store: &Store, route: &Route) -> Result<Value, Refusal> {
    let namespace = route.namespace.as_deref().unwrap_or_default();
    let stored = store.find(route.resource.kind, namespace, &route.name);
    let missing =
        || invalid(404, "NotFound", format!("{} {:?} not found", route.resource.qualified(), route.name));
    serde_json::from_str(&stored.ok_or_else(missing)?.text)
        .map_err(|error| invalid(500, "InternalError", error.to_string()))
}

fn create(shared: &Shared, route: &Route, mut object: Value, keeps: Keeps) -> Answer {
    let namespace = route.namespace.as_deref().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if shared.store().find(route.resource.kind, namespace, &name).is_some() {
        let message = format!("{} {name:?} already exists", route.resource.qualified());
        return Err(invalid(409, "AlreadyExists", message));
    }
    object["metadata"]["namespace"] = namespace.into();
    keep(shared, object, keeps).map(|object| (201, object))
}

/// Completes and checks an object, and puts it in.
fn keep(shared: &Shared, mut object: Value, keeps: Keeps) -> Result<Value, Refusal> {
    if object["kind"] == "Service" {
        complete_service(&shared.store(), &mut object)?;
    }
    if keeps == Keeps::Nothing {
        return Ok(object);
    }
    let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (name("namespace"), name("name"));
    let kind =
        super::resource::of_kind(object["kind"].as_str().unwrap_or_default()).map(|resource| resource.kind);
    let put = shared.store().put(object);
    put.map_err(|error| invalid(400, "BadRequest", format!("{error:#}")))?;
    shared.changed();
    let stored = kind.and_then(|kind| shared.store().find(kind, &namespace, &name));
    Ok(stored.and_then(|stored| serde_json::from_str(&stored.text).ok()).unwrap_or_default())
}

/// Cluster address, defaults and node ports, as the API server gives them.
fn complete_service(store: &Store, service: &mut Value) -> Result<(), Refusal> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let own = (service["metadata"]["namespace"].clone(), service["metadata"]["name"].clone());
    let others: Vec<Value> = store
        .objects()
        .into_iter()
        .filter(|one| {
            one["kind"] == "Service"
                && (&one["metadata"]["namespace"], &one["metadata"]["name"]) != (&own.0, &own.1)
        })
        .collect();
    let mut taken: BTreeSet<u64> = others
        .iter()
        .flat_map(|one| one["spec"]["ports"].as_array().into_iter().flatten())
        .filter_map(|port| port["nodePort"].as_u64())
        .collect();
    let spec = &mut service["spec"];
    for (field, default) in
        [("clusterIP", "10.96.0.9"), ("externalTrafficPolicy", "Cluster"), ("sessionAffinity", "None")]
    {
        if spec[field].is_null() {
            spec[field] = default.into();
        }
    }
    for (place, port) in spec["ports"].as_array_mut().into_iter().flatten().enumerate() {
        let wrong = |number: u64, why: &str| {
            let field = format!("spec.ports[{place}].nodePort");
            let message = format!("Service {name:?} is invalid: {field}: Invalid value: {number}: {why}");
            Err(invalid(422, "Invalid", message))
        };
        match port["nodePort"].as_u64() {
            Some(number) if !NODE_PORTS.contains(&number) => {
                return wrong(
                    number,
                    "provided port is not in the valid range. The range of valid ports is 30000-32767",
                );
            }
            Some(number) if taken.contains(&number) => {
                return wrong(number, "provided port is already allocated");
            }
            Some(_) => {}
            None => {
                let free = NODE_PORTS.clone().find(|number| !taken.contains(number)).unwrap_or_default();
                taken.insert(free);
                port["nodePort"] = free.into();
            }
        }
    }
    Ok(())
}

fn delete(shared: &Shared, route: &Route, options: &Value, keeps: Keeps) -> Answer {
    let object = present(&shared.store(), route)?;
    let asked = options["preconditions"]["uid"].as_str();
    if asked.is_some_and(|uid| object["metadata"]["uid"] != uid) {
        let message = format!("Precondition failed: UID in precondition: {asked:?}");
        return Err(invalid(409, "Conflict", message));
    }
    if keeps == Keeps::Everything {
        let namespace = route.namespace.as_deref().unwrap_or_default();
        shared.store().remove(route.resource.kind, namespace, &route.name);
        shared.changed();
    }
    Ok((200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in patch {
        match (value, target.as_object_mut()) {
            (Value::Null, Some(target)) => drop(target.remove(field)),
            (value, Some(target)) => merge(target.entry(field).or_insert(Value::Null), value),
            (_, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_removes_by_null_and_replaces_arrays_whole() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "d": [1, 2]});
        merge(&mut target, &json!({"a": {"b": null, "x": {"y": null, "z": 1}}, "d": [3]}));
        assert_eq!(target, json!({"a": {"c": 2, "x": {"z": 1}}, "d": [3]}));
    }
}
