//! Whether a map that is pinned may be used: aya takes whatever is pinned by the right name, and a map of another layout
//! would be read wrongly by every packet.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use aya::maps::MapInfo;

use super::map_names;
use crate::bpf::MAPPABLE;
use crate::pins::PinRoot;

/// What makes two maps interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Octets of a key.
    pub key: u32,
    /// Octets of a value.
    pub value: u32,
    /// `BPF_F_*` of its making.
    pub flags: u32,
    /// Entries.
    pub max_entries: u32,
}

/// Layouts by map name.
pub type Layouts = BTreeMap<String, Layout>;

/// How a map that is pinned suits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It can be used.
    Same,
    /// It holds what is wanted, but has room for more or less, or cannot be mapped where it should.
    Resized,
    /// Another version made it; what differs, as one line.
    Foreign(String),
}

/// Checks every pinned map against what is wanted: the names of those that need another size. Maps that are not pinned yet
/// are fine.
///
/// # Errors
/// Names every map that another version made, what was found and what was wanted, and what to do.
pub fn check(root: &PinRoot, wanted: &Layouts) -> anyhow::Result<BTreeSet<&'static str>> {
    let (mut resized, mut wrong) = (BTreeSet::new(), Vec::new());
    for name in map_names() {
        let (path, wanted) = (root.map(name), wanted.get(name));
        let Some(wanted) = wanted.filter(|_| path.exists()) else { continue };
        let info =
            MapInfo::from_pin(&path).with_context(|| format!("cannot look at map {}", path.display()))?;
        let found = Layout {
            kind: info.map_type().map_or(0, |kind| kind as u32),
            key: info.key_size(),
            value: info.value_size(),
            flags: info.map_flags(),
            max_entries: info.max_entries(),
        };
        match compare(&found, wanted) {
            Fit::Same => {}
            Fit::Resized => drop(resized.insert(name)),
            Fit::Foreign(what) => wrong.push(format!("{name}: {what}")),
        }
    }
    if wrong.is_empty() {
        return Ok(resized);
    }
    let root = root.path().display();
    bail!(
        "the maps pinned under {root} are not those of this vmlb; another version made them:\n  {}\nNothing was changed. Run \
         that version, or take them down with `vmlb detach --pin-root {root}` (cuts the connections vmlb carries; with \
         --drain TIME they may end by themselves first)",
        wrong.join("\n  ")
    );
}

/// How a map found suits what is wanted.
#[must_use]
pub fn compare(found: &Layout, wanted: &Layout) -> Fit {
    if found == wanted {
        return Fit::Same;
    }
    let content = |layout: &Layout| Layout { max_entries: 0, flags: layout.flags & !MAPPABLE, ..*layout };
    if content(found) == content(wanted) {
        return Fit::Resized;
    }
    let rows = [
        ("type", found.kind, wanted.kind),
        ("key size", found.key, wanted.key),
        ("value size", found.value, wanted.value),
        ("flags", found.flags, wanted.flags),
    ];
    let rows = rows.into_iter().filter(|(_, found, wanted)| found != wanted);
    let rows: Vec<String> =
        rows.map(|(what, found, wanted)| format!("{what} is {found}, wanted {wanted}")).collect();
    Fit::Foreign(rows.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOWS: Layout = Layout { kind: 1, key: 16, value: 32, flags: 0, max_entries: 262_144 };

    #[test]
    fn a_map_of_the_same_layout_is_adopted_and_one_of_another_size_is_replaced() {
        assert_eq!(compare(&FLOWS, &FLOWS), Fit::Same);
        for max_entries in [1000, 300_000] {
            assert_eq!(compare(&Layout { max_entries, ..FLOWS }, &FLOWS), Fit::Resized);
        }
        assert_eq!(compare(&Layout { flags: MAPPABLE, ..FLOWS }, &FLOWS), Fit::Resized);
    }

    #[test]
    fn another_layout_is_refused_with_both_figures() {
        for (found, words) in [
            (Layout { kind: 9, ..FLOWS }, "type is 9, wanted 1"),
            (Layout { key: 12, ..FLOWS }, "key size is 12, wanted 16"),
            (Layout { value: 40, max_entries: 7, ..FLOWS }, "value size is 40, wanted 32"),
            (Layout { flags: 1, ..FLOWS }, "flags is 1, wanted 0"),
        ] {
            assert_eq!(compare(&found, &FLOWS), Fit::Foreign(words.to_owned()));
        }
    }
}
