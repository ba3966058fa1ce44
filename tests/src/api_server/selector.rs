//! Label and field selectors, in the forms that vmlb uses: `a=b`, `a`, `!a`, and `metadata.name=b`.

use std::collections::BTreeMap;

/// Which objects a request wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Term>,
    name: Option<String>,
    namespace: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Equal(String, String),
    Present(String),
    Absent(String),
}

impl Selector {
    /// Reads the values of `labelSelector` and `fieldSelector`; `None`: a form that is not known here.
    pub fn read(labels: &str, fields: &str) -> Option<Self> {
        let term = |text: &str| match (text.split_once('='), text.strip_prefix('!')) {
            (_, Some(key)) => Term::Absent(key.to_owned()),
            (Some((key, value)), None) => {
                Term::Equal(key.to_owned(), value.trim_start_matches('=').to_owned())
            }
            (None, None) => Term::Present(text.to_owned()),
        };
        let labels = labels.split(',').filter(|text| !text.is_empty()).map(term).collect();
        let name = match fields {
            "" => None,
            fields => Some(fields.strip_prefix("metadata.name=")?.to_owned()),
        };
        Some(Self { labels, name, namespace: None })
    }

    /// The same, in one namespace only.
    #[must_use]
    pub fn within(self, namespace: Option<&str>) -> Self {
        Self { namespace: namespace.map(str::to_owned), ..self }
    }

    /// Whether an object of that name with those labels is wanted.
    pub fn admits(&self, namespace: &str, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let holds = |term: &Term| match term {
            Term::Equal(key, value) => labels.get(key) == Some(value),
            Term::Present(key) => labels.contains_key(key),
            Term::Absent(key) => !labels.contains_key(key),
        };
        let is_named = self.name.as_deref().is_none_or(|wanted| wanted == name);
        let is_there = self.namespace.as_deref().is_none_or(|wanted| wanted == namespace);
        is_named && is_there && self.labels.iter().all(holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_selects_what_it_says() -> anyhow::Result<()> {
        let labels = |text: &str| -> BTreeMap<String, String> {
            text.split(' ')
                .filter_map(|pair| pair.split_once('='))
                .map(|(a, b)| (a.into(), b.into()))
                .collect()
        };
        let selector = Selector::read("!headless,kind=vm,on", "metadata.name=x").unwrap_or_default();
        assert!(selector.admits("a", "x", &labels("kind=vm on=")));
        assert!(!selector.admits("a", "y", &labels("kind=vm on=")));
        assert!(!selector.admits("a", "x", &labels("kind=vm on= headless=")));
        assert!(!selector.admits("a", "x", &labels("kind=pod on=")));
        assert!(!selector.admits("a", "x", &labels("kind=vm")));
        assert!(!selector.within(Some("b")).admits("a", "x", &labels("kind=vm on=")));
        assert_eq!(Selector::read("", "spec.nodeName=x"), None);
        Ok(())
    }
}
