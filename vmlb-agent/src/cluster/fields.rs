//! The README's table of Service fields against the types that Kubernetes has.

use std::collections::BTreeMap;

use clap::Args;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, ServicePort, ServiceSpec};
use serde::de::value::Error;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

use crate::serving::Serving;

/// Asks a type for the names of its fields, and gives it nothing to read.
#[derive(Default)]
struct Names(&'static [&'static str]);

impl<'de> Deserializer<'de> for &mut Names {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0 = fields;
        Err(Error::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: for<'de> Deserialize<'de>>(path: &str) -> Vec<String> {
    let mut names = Names::default();
    assert!(T::deserialize(&mut names).is_err() && !names.0.is_empty());
    names.0.iter().map(|name| format!("{path}{name}")).collect()
}

/// Field and status by the table's rows.
fn table() -> BTreeMap<String, String> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let section = readme.split("\n### Service fields\n").nth(1).and_then(|rest| rest.split("\n### ").next());
    let rows = section.unwrap_or_default().lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut table = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        let [field, status, _] = cells[..] else { panic!("{row}") };
        assert!(
            table.insert(field.trim_matches('`').to_owned(), status.to_owned()).is_none(),
            "twice: {row}"
        );
    }
    table
}

#[test]
fn every_field_of_a_service_has_a_status_in_the_readme() {
    let table = table();
    let mut known = fields::<ServiceSpec>("spec.");
    known.retain(|field| field != "spec.ports");
    known.extend(fields::<ServicePort>("spec.ports[]."));
    known.extend(fields::<LoadBalancerIngress>("status.loadBalancer.ingress[]."));
    assert!(known.iter().any(|field| field == "spec.sessionAffinity"), "{known:?}");
    let missing: Vec<_> = known.iter().filter(|field| !table.contains_key(*field)).collect();
    assert!(missing.is_empty(), "no status: {missing:?}");
    let is_path = |field: &&String| field.starts_with("spec.") || field.starts_with("status.");
    let unknown: Vec<_> = table.keys().filter(is_path).filter(|field| !known.contains(field)).collect();
    assert!(unknown.is_empty(), "no such fields: {unknown:?}");
}

#[test]
fn every_status_is_one_that_is_explained_and_names_a_flag_that_there_is() {
    let command = Serving::augment_args(clap::Command::new("agent"));
    let flags: Vec<String> = command
        .get_arguments()
        .filter_map(|flag| flag.get_long())
        .map(|name| format!("`--{name}`"))
        .collect();
    for (field, status) in table() {
        let is_known = ["served", "served by annotation", "left to kube-proxy"].contains(&&*status)
            || status
                .strip_prefix("served with ")
                .is_some_and(|flag| flags.iter().any(|known| known == flag));
        assert!(is_known, "{field}: {status}");
    }
}
