//! The promises of `docs/contract.md` against the tests of a full run: each has tests, and they have passed.
//!
//! A promise is a row of a table whose last column holds names of tests in backticks. A name that ends with `.txt` is a
//! story of the control plane, one with spaces the title of a story of packets: both pass with the test that plays them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::command;
use crate::test_output::{Outcome, Outcomes, Tally};

/// Where the promises are.
const DOCUMENT: &str = "docs/contract.md";
/// Where the control plane's stories are, and the test that plays them.
const STORIES: (&str, &str) = ("tests/control_plane/golden", "every_story_ends_with_the_maps_it_tells_of");
/// Where the packets' stories are told, and the test that plays them.
const TITLES: (&str, &str) = ("tests/src/packets/stories", "every_story_comes_out_as_it_says");

/// A row of the document.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    text: String,
    tests: Vec<String>,
}

/// Judges the promises by what the tests of this run did, says what is wrong, and counts as one test.
pub fn tally(outcomes: &Outcomes) -> Tally {
    let (complaints, doubts) = match judge(outcomes) {
        Ok(judged) => judged,
        Err(error) => (vec![format!("{error:#}")], Vec::new()),
    };
    let (word, tally) = match (complaints.is_empty(), doubts.is_empty()) {
        (false, _) => ("FAILED", Tally::one_failed()),
        (true, false) => ("ignored", Tally::one_skipped()),
        (true, true) => ("ok", Tally::one_passed()),
    };
    println!("test every_promise_of_the_contract_has_tests_that_passed ... {word}");
    for line in complaints.iter().chain(&doubts) {
        println!("{DOCUMENT}: {line}");
    }
    tally
}

/// What is wrong, and what could not be shown on this machine.
fn judge(outcomes: &Outcomes) -> Result<(Vec<String>, Vec<String>)> {
    let path = command::workspace().join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let stories = Stories::open(&command::workspace())?;
    let (mut complaints, mut doubts) = (Vec::new(), Vec::new());
    let promises = promises(&text);
    if promises.is_empty() {
        complaints.push("holds no promise".to_owned());
    }
    for promise in promises {
        if promise.tests.is_empty() {
            complaints.push(format!("no test: {}", promise.text));
        }
        for test in &promise.tests {
            match outcome(test, outcomes, &stories) {
                Some(Outcome::Passed) => {}
                Some(Outcome::Skipped) => doubts.push(format!("skipped: {test}: {}", promise.text)),
                Some(Outcome::Failed) => complaints.push(format!("failed: {test}: {}", promise.text)),
                None => complaints.push(format!("there is no such test: {test}: {}", promise.text)),
            }
        }
    }
    Ok((complaints, doubts))
}

/// The stories that there are.
struct Stories {
    folder: PathBuf,
    /// The sources of all that tell of packets.
    packets: String,
}

impl Stories {
    fn open(workspace: &Path) -> Result<Self> {
        let mut packets = String::new();
        for entry in fs::read_dir(workspace.join(TITLES.0)).with_context(|| format!("no {}", TITLES.0))? {
            packets.push_str(&fs::read_to_string(entry?.path())?);
        }
        Ok(Self { folder: workspace.join(STORIES.0), packets })
    }

    /// Whether there is a story of that name, if it is the name of one; and who plays it.
    fn player(&self, test: &str) -> Option<(bool, &'static str)> {
        if test.ends_with(".txt") {
            return Some((self.folder.join(test).is_file(), STORIES.1));
        }
        test.contains(' ').then(|| (self.packets.contains(&format!("Story::new(\"{test}\")")), TITLES.1))
    }
}

fn outcome(test: &str, outcomes: &Outcomes, stories: &Stories) -> Option<Outcome> {
    match stories.player(test) {
        Some((is_there, player)) => outcomes.of(player).filter(|_| is_there),
        None => outcomes.of(test),
    }
}

/// The rows of all tables that have a column `tests`.
fn promises(text: &str) -> Vec<Promise> {
    let mut promises = Vec::new();
    let mut is_table = false;
    for line in text.lines() {
        let Some(row) = line.trim().strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            is_table = false;
            continue;
        };
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        let [first, .., last] = cells[..] else { continue };
        if last == "tests" {
            is_table = true;
        } else if is_table && !first.starts_with("---") {
            let tests = last.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            promises.push(Promise { text: first.to_owned(), tests });
        }
    }
    promises
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_the_rows_of_tables_with_tests() {
        let text = "# Contract\n| a | b |\n|---|---|\n| none | `x` |\n\n| promise | tests |\n|---|---|\n\
                    | first | `one`, `two.txt` |\n| second | |\n\nmore\n| promise | note | tests |\n|---|---|---|\n| third | n | `three` |\n";
        let promise = |text: &str, tests: &[&str]| Promise {
            text: text.to_owned(),
            tests: tests.iter().map(|&test| test.to_owned()).collect(),
        };
        assert_eq!(
            promises(text),
            [promise("first", &["one", "two.txt"]), promise("second", &[]), promise("third", &["three"])]
        );
    }

    #[test]
    fn the_contract_of_this_workspace_is_read_and_its_stories_are_there() {
        let text = fs::read_to_string(command::workspace().join(DOCUMENT)).unwrap();
        let promises = promises(&text);
        assert!(promises.len() > 40, "{} promises", promises.len());
        let stories = Stories::open(&command::workspace()).unwrap();
        for test in promises.iter().flat_map(|promise| &promise.tests) {
            assert!(stories.player(test).is_none_or(|(is_there, _)| is_there), "no such story: {test}");
        }
    }

    #[test]
    fn a_story_is_as_good_as_the_test_that_plays_it() {
        let stories = Stories::open(&command::workspace()).unwrap();
        let outcomes =
            Outcomes::from_iter([STORIES, TITLES].map(|(_, player)| (player.to_owned(), Outcome::Passed)));
        for (story, none) in
            [("node_port.txt", "no_such_story.txt"), ("services without backends", "services without a name")]
        {
            assert_eq!(outcome(story, &outcomes, &stories), Some(Outcome::Passed));
            assert_eq!(outcome(none, &outcomes, &stories), None);
            assert_eq!(outcome(story, &Outcomes::default(), &stories), None);
        }
    }

    #[test]
    fn every_test_of_a_name_must_have_passed() {
        let all =
            [("a::name", Outcome::Passed), ("b::name", Outcome::Failed), ("c::other", Outcome::Skipped)];
        let outcomes = Outcomes::from_iter(all.map(|(name, outcome)| (name.to_owned(), outcome)));
        let stories = Stories { folder: PathBuf::new(), packets: String::new() };
        let of = |name: &str| outcome(name, &outcomes, &stories);
        assert_eq!((of("name"), of("a::name")), (Some(Outcome::Failed), Some(Outcome::Passed)));
        assert_eq!((of("other"), of("ame")), (Some(Outcome::Skipped), None));
    }
}
