//! What `kubectl kustomize` makes of a folder, as far as ours go: resources, and JSON patches (RFC 6902) to one object.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::read;

/// The objects of `folder`, a path under `deploy/`.
///
/// # Errors
/// When it asks for something that is not known here.
pub fn build(folder: &str) -> Result<Vec<Value>> {
    let file = format!("{folder}/kustomization.yaml");
    let all = read(&file)?;
    let [kustomization] = &all[..] else { bail!("{file} is not one document") };
    for field in kustomization.as_object().context("an object")?.keys() {
        if !["apiVersion", "kind", "resources", "patches"].contains(&field.as_str()) {
            bail!("{file}: {field} is not known here");
        }
    }
    let mut objects = Vec::new();
    for resource in kustomization["resources"].as_array().into_iter().flatten() {
        let path = normal(&format!("{folder}/{}", resource.as_str().context("a path")?));
        objects.extend(if path.ends_with(".yaml") { read(&path)? } else { build(&path)? });
    }
    for patch in kustomization["patches"].as_array().into_iter().flatten() {
        let target = &patch["target"];
        let is_target = |object: &&mut Value| {
            object["kind"] == target["kind"] && object["metadata"]["name"] == target["name"]
        };
        let object = objects.iter_mut().find(is_target).with_context(|| format!("{file}: no {target}"))?;
        let path = format!("{folder}/{}", patch["path"].as_str().context("a patch's path")?);
        for operation in read(&path)?.iter().flat_map(|list| list.as_array().into_iter().flatten()) {
            apply(object, operation).with_context(|| format!("{path}: {operation}"))?;
        }
    }
    Ok(objects)
}

/// A path without `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn apply(object: &mut Value, operation: &Value) -> Result<()> {
    let path = operation["path"].as_str().context("a path")?;
    let (parent, last) = path.rsplit_once('/').context("a path from the root")?;
    let parent = object.pointer_mut(parent).context("nothing is there")?;
    let value = operation["value"].clone();
    match (operation["op"].as_str().unwrap_or_default(), parent) {
        ("add", Value::Array(list)) if last == "-" => list.push(value),
        ("add", Value::Object(map)) => drop(map.insert(last.to_owned(), value)),
        ("replace", Value::Object(map)) => {
            *map.get_mut(last).context("nothing to replace")? = value;
        }
        ("remove", Value::Object(map)) => drop(map.remove(last).context("nothing to remove")?),
        (other, _) => bail!("{other:?} is not known here"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_up_and_down() {
        assert_eq!(normal("overlays/k3s/../../base"), "base");
        assert_eq!(normal("uninstall/../base/rbac.yaml"), "base/rbac.yaml");
    }

    #[test]
    fn a_patch_that_finds_nothing_to_replace_or_remove_is_an_error() {
        let mut object = json!({"a": {"b": [1]}});
        assert!(apply(&mut object, &json!({"op": "add", "path": "/a/b/-", "value": 2})).is_ok());
        assert!(apply(&mut object, &json!({"op": "replace", "path": "/a/c", "value": 2})).is_err());
        assert!(apply(&mut object, &json!({"op": "remove", "path": "/a/b"})).is_ok());
        assert!(apply(&mut object, &json!({"op": "add", "path": "/x/y", "value": 2})).is_err());
        assert_eq!(object, json!({"a": {}}));
    }
}
