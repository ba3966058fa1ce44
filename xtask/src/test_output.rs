//! Reads what a test binary prints: counts, and which lines a person wants to see.
//!
//! A test that cannot run on this machine prints `SKIPPED: name: why` and returns; libtest calls that passed, we do
//! not.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that held.
    pub passed: u32,
    /// Tests that did not, and binaries that died.
    pub failed: u32,
    /// Tests that could not run here, or are marked as ignored.
    pub skipped: u32,
}

impl Tally {
    /// One test that held.
    pub const fn one_passed() -> Self {
        Self { passed: 1, failed: 0, skipped: 0 }
    }

    /// One test that could not run here.
    pub const fn one_skipped() -> Self {
        Self { passed: 0, failed: 0, skipped: 1 }
    }

    /// One test that did not hold.
    pub const fn one_failed() -> Self {
        Self { passed: 0, failed: 1, skipped: 0 }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// How a test ended; of several the last here counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It could not run here, or is marked as ignored.
    Skipped,
    /// It did not hold.
    Failed,
}

/// How the tests ended, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes(BTreeMap<String, Outcome>);

impl Outcomes {
    /// How the tests of that name ended: in whatever modules, or by a path.
    pub fn of(&self, name: &str) -> Option<Outcome> {
        let is_meant =
            |path: &str| path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with("::"));
        self.0.iter().filter(|(path, _)| is_meant(path)).map(|(_, outcome)| *outcome).max()
    }

    fn note(&mut self, name: &str, outcome: Outcome) {
        let known = self.0.entry(name.to_owned()).or_insert(outcome);
        *known = (*known).max(outcome);
    }
}

impl FromIterator<(String, Outcome)> for Outcomes {
    fn from_iter<I: IntoIterator<Item = (String, Outcome)>>(outcomes: I) -> Self {
        let mut all = Self::default();
        all.extend(outcomes);
        all
    }
}

impl Extend<(String, Outcome)> for Outcomes {
    fn extend<I: IntoIterator<Item = (String, Outcome)>>(&mut self, outcomes: I) {
        outcomes.into_iter().for_each(|(name, outcome)| self.note(&name, outcome));
    }
}

impl IntoIterator for Outcomes {
    type Item = (String, Outcome);
    type IntoIter = std::collections::btree_map::IntoIter<String, Outcome>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Where in libtest's output we are.
#[derive(Default, PartialEq, Eq)]
enum Part {
    #[default]
    Tests,
    /// What passing tests printed; only skips are of interest.
    Successes,
    Failures,
}

/// Reads one binary's output line by line.
#[derive(Default)]
pub struct Reader {
    part: Part,
    skips: u32,
    result: Option<Tally>,
    outcomes: Outcomes,
}

impl Reader {
    /// Takes a line; returns what to show of it.
    pub fn read<'line>(&mut self, line: &'line str) -> Option<&'line str> {
        if self.part != Part::Failures && is_skip(line) {
            self.skips += 1;
            self.note_skip(line);
            return Some(line);
        }
        if let Some((name, outcome)) = parse_outcome(line) {
            self.outcomes.note(name, outcome);
        }
        match line {
            "successes:" => self.part = Part::Successes,
            "failures:" => self.part = Part::Failures,
            _ => {}
        }
        if let Some(result) = parse_result(line) {
            self.part = Part::Tests;
            self.result = Some(result);
            return Some(line);
        }
        (self.part != Part::Successes).then_some(line)
    }

    /// A test says its name with the reason; libtest will call it passed, by its path.
    fn note_skip(&mut self, line: &str) {
        let said = line.to_ascii_lowercase().find("skipped:").and_then(|start| line.get(start + 8..));
        if let Some(name) = said.and_then(|said| said.trim_start().split(':').next()) {
            self.outcomes.note(name, Outcome::Skipped);
        }
    }

    /// How each test ended so far.
    pub fn outcomes(&self) -> Outcomes {
        self.outcomes.clone()
    }

    /// The counts, given whether the binary ended well. A binary without a result died, or has a harness of its own
    /// and counts as one test.
    pub fn finish(self, success: bool) -> Tally {
        let mut tally = match (self.result, success) {
            (Some(tally), _) => tally,
            (None, true) => Tally { passed: self.skips.max(1), ..Tally::default() },
            (None, false) => Tally::one_failed(),
        };
        if !success && tally.failed == 0 {
            tally.failed = 1;
        }
        let skips = self.skips.min(tally.passed);
        tally.passed -= skips;
        tally.skipped += skips;
        tally
    }
}

/// Whether a test says that it cannot run here.
fn is_skip(line: &str) -> bool {
    // With one thread and no capture the line follows libtest's `test name ... `.
    let line = line.rsplit_once(" ... ").map_or(line, |(_, said)| said);
    line.trim_start().get(..8).is_some_and(|start| start.eq_ignore_ascii_case("skipped:"))
}

/// Name and outcome in `test name ... ok`; ` - should panic` and an ignored test's reason do not belong to them.
fn parse_outcome(line: &str) -> Option<(&str, Outcome)> {
    let (name, word) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let outcome = match word.split([',', ' ']).next()? {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        "ignored" => Outcome::Skipped,
        _ => return None,
    };
    Some((name.split(" - ").next()?, outcome))
}

/// The counts in `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse_result(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| {
        let part = counts.split(';').map(str::trim).find(|part| part.ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, success: bool) -> (Vec<&str>, Tally) {
        let mut reader = Reader::default();
        let shown = output.lines().filter_map(|line| reader.read(line)).collect();
        (shown, reader.finish(success))
    }

    const PASSING: &str = "\
test a ... ok
test b ... ok
test c ... ignored

successes:

---- a stdout ----
a says much

---- b stdout ----
SKIPPED: b: no SCTP in this kernel

successes:
    a
    b

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";

    #[test]
    fn a_test_that_skips_itself_is_not_passed() {
        assert_eq!(read(PASSING, true).1, Tally { passed: 1, failed: 0, skipped: 2 });
    }

    #[test]
    fn the_outcome_of_each_test_is_known_by_its_path_and_by_its_name() {
        let mut reader = Reader::default();
        let output = "test a::one ... ok\ntest b::two ... FAILED\ntest c::three ... ignored, a measurement\n\
                      test four - should panic ... ok\n\nSKIPPED: five: no SCTP: at all\ntest d::five ... ok\n";
        for line in output.lines() {
            reader.read(line);
        }
        let outcomes = reader.outcomes();
        let known = ["a::one", "one", "two", "three", "four", "five", "six"].map(|name| outcomes.of(name));
        use Outcome::{Failed, Passed, Skipped};
        let wanted =
            [Some(Passed), Some(Passed), Some(Failed), Some(Skipped), Some(Passed), Some(Skipped), None];
        assert_eq!(known, wanted);
    }

    #[test]
    fn what_passing_tests_print_is_not_shown_but_their_skips_are() {
        let (shown, _) = read(PASSING, true);
        assert!(!shown.iter().any(|line| line.contains("says much")));
        assert!(shown.iter().any(|line| line.contains("no SCTP")));
    }

    #[test]
    fn what_failing_tests_print_is_shown() {
        let output = "test a ... FAILED\n\nsuccesses:\n\nsuccesses:\n\nfailures:\n\n---- a stdout ----\nwhy\n\n\
                      test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let (shown, tally) = read(output, false);
        assert!(shown.contains(&"why"));
        assert_eq!(tally, Tally { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_binary_that_dies_is_a_failure() {
        assert_eq!(read("test a ... ok\n", false).1, Tally::one_failed());
        assert_eq!(read("test result: ok. 1 passed; 0 failed; 0 ignored", false).1.failed, 1);
    }

    #[test]
    fn a_harness_of_its_own_counts_as_one_test() {
        assert_eq!(read("all golden\n", true).1, Tally::one_passed());
        assert_eq!(read("SKIPPED: kernels: no qemu\n", true).1, Tally { passed: 0, failed: 0, skipped: 1 });
    }

    #[test]
    fn the_sum_reads_as_promised() {
        let mut sum = Tally::one_passed();
        sum += Tally { passed: 2, failed: 3, skipped: 4 };
        assert_eq!(sum.to_string(), "3 passed, 3 failed, 4 skipped");
    }
}
