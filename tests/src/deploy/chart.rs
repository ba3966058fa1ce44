//! The Helm chart, rendered by a library of Go's template language: Helm itself cannot be had everywhere. Our templates
//! keep to what both know: values, `if`, `range`, and nothing of Helm's own functions.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use anyhow::{Context, Result, anyhow};
use gtmpl::{Context as Scope, Template, Value as Go};
use serde_json::Value;

use super::{documents, folder, read};

const CHART: &str = "helm/vmlb";

/// The chart's objects with `overrides` over its values. A value that the chart does not have is an error.
///
/// # Errors
/// When a template cannot be rendered, or is not YAML then.
pub fn render(overrides: &[(&str, Value)]) -> Result<Vec<Value>> {
    let mut values = read(&format!("{CHART}/values.yaml"))?.pop().context("values")?;
    for (name, value) in overrides {
        let place = values.get_mut(name).with_context(|| format!("values.yaml has no {name}"))?;
        *place = value.clone();
    }
    let scope = Go::Object(HashMap::from([("Values".to_owned(), go(&values))]));
    let templates = folder().join(CHART).join("templates");
    let files = fs::read_dir(&templates).with_context(|| format!("reading {}", templates.display()))?;
    let files: BTreeSet<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    let mut objects = Vec::new();
    for file in files {
        let mut template = Template::default();
        let text = fs::read_to_string(&file)?;
        let rendered = template
            .parse(&text)
            .map_err(|error| anyhow!("{error}"))
            .and_then(|()| template.render(&Scope::from(scope.clone())).map_err(|error| anyhow!("{error}")));
        let rendered = rendered.with_context(|| file.display().to_string())?;
        if file.extension().is_some_and(|extension| extension == "yaml") {
            objects.extend(documents(&rendered).with_context(|| file.display().to_string())?);
        }
    }
    Ok(objects)
}

fn go(value: &Value) -> Go {
    match value {
        Value::Null => Go::Nil,
        Value::Bool(value) => Go::Bool(*value),
        Value::Number(number) => number.as_i64().map_or(Go::Nil, Go::from),
        Value::String(text) => Go::String(text.clone()),
        Value::Array(list) => Go::Array(list.iter().map(go).collect()),
        Value::Object(map) => Go::Object(map.iter().map(|(name, value)| (name.clone(), go(value))).collect()),
    }
}
