//! The verifier budget: how many instructions the kernel may look at for each program. It rises only on purpose.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::command;

/// Head of the file.
const HEAD: &str = "\
# Instructions that the kernel's verifier may walk through for each program, one line a program.
# `cargo xtask build-ebpf --verify` fails above these; `cargo xtask build-ebpf --raise-budget` sets them to what the
# running kernel measures plus a tenth. Kernels differ: take the highest of those that are tested.
";

/// Program name → verified instructions.
pub type Figures = BTreeMap<String, u64>;

/// Where the budget is.
pub fn path() -> PathBuf {
    command::workspace().join("vmlb-ebpf/verifier-budget.toml")
}

/// Compares measured figures with the budget; one sentence for each line that does not hold.
///
/// # Errors
/// The file cannot be read.
pub fn compare(measured: &Figures) -> Result<Vec<String>> {
    Ok(differences(measured, &read()?))
}

/// The budget; empty if there is no file yet.
///
/// # Errors
/// The file cannot be read, or a line is not `name = number`.
pub fn read() -> Result<Figures> {
    let path = path();
    if !path.exists() {
        return Ok(Figures::new());
    }
    parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())
}

/// Writes a budget with a tenth of room above what was measured.
///
/// # Errors
/// The file cannot be written.
pub fn raise(measured: &Figures) -> Result<()> {
    let lines = measured.iter().map(|(name, &count)| format!("{name} = {}\n", with_room(count)));
    let path = path();
    fs::write(&path, HEAD.to_owned() + &lines.collect::<String>()).with_context(|| path.display().to_string())
}

/// A tenth more, rounded up to hundreds: small changes and other kernels fit, a doubled path does not.
fn with_room(count: u64) -> u64 {
    (count + count / 10).next_multiple_of(100)
}

/// Lines `name = number`.
fn parse(text: &str) -> Result<Figures> {
    let mut figures = Figures::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if line.is_empty() {
            continue;
        }
        let (name, count) =
            line.split_once('=').with_context(|| format!("`{line}`: expected `name = number`"))?;
        let count = count.trim().parse().with_context(|| format!("`{line}`: not a number"))?;
        if figures.insert(name.trim().to_owned(), count).is_some() {
            bail!("`{line}`: second line for this program");
        }
    }
    Ok(figures)
}

/// What is above the budget, without a budget, or budgeted but gone.
fn differences(measured: &Figures, budget: &Figures) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, count) in measured {
        match budget.get(name) {
            Some(limit) if count > limit => {
                differences.push(format!("{name}: {count} instructions, budget {limit}"))
            }
            Some(_) => {}
            None => differences.push(format!("{name}: {count} instructions, no budget")),
        }
    }
    let gone = budget.keys().filter(|name| !measured.contains_key(*name));
    differences.extend(gone.map(|name| format!("{name}: budgeted, but not in the object")));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(lines: &[(&str, u64)]) -> Figures {
        lines.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn a_budget_is_read_line_by_line() {
        let text = "# head\n\nvmlb_xdp = 4000 # since then\nvmlb_pod=100\n";
        assert_eq!(parse(text).ok(), Some(figures(&[("vmlb_pod", 100), ("vmlb_xdp", 4000)])));
        assert!(parse("vmlb_xdp = many").is_err());
        assert!(parse("a = 1\na = 2").is_err());
    }

    #[test]
    fn above_without_and_gone_are_told_and_within_is_not() {
        let measured = figures(&[("above", 101), ("new", 5), ("within", 100)]);
        let budget = figures(&[("above", 100), ("gone", 1), ("within", 100)]);
        let told = differences(&measured, &budget);
        assert_eq!(told.len(), 3);
        assert!(told[0].starts_with("above") && told[1].starts_with("new") && told[2].starts_with("gone"));
    }

    #[test]
    fn room_is_a_tenth_in_whole_hundreds() {
        assert_eq!((with_room(1000), with_room(1001), with_room(3)), (1100, 1200, 100));
    }
}
