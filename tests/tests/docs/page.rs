//! A Markdown page: its fenced blocks, indented commands, links and headings.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The word after the fence.
    pub kind: String,
    /// Without the page's indentation.
    pub lines: Vec<String>,
    /// Where it begins in the page, the fence not counted.
    start: usize,
    length: usize,
    indent: String,
}

/// A command of a `console` block and what it says.
#[derive(Debug)]
pub struct Step {
    pub command: String,
    pub answer: Vec<String>,
}

impl Step {
    /// How many lines the command itself asks for, by `head`.
    pub fn length(&self) -> usize {
        let asked = self.command.rsplit_once("| head -").map(|(_, number)| number);
        asked.and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}

impl Block {
    /// A block that is in no page.
    pub fn new(kind: &str, lines: &[&str]) -> Self {
        let lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        Self { kind: kind.to_owned(), length: lines.len(), lines, start: 0, indent: String::new() }
    }

    /// Its commands with their answers; a line that only says that there are more is none of the answer.
    pub fn steps(&self) -> Result<Vec<Step>> {
        let mut steps: Vec<Step> = Vec::new();
        for line in &self.lines {
            match line.strip_prefix("$ ") {
                Some(command) => steps.push(Step { command: command.to_owned(), answer: Vec::new() }),
                None if line == "…" => {}
                None => steps.last_mut().context("a block begins with a command")?.answer.push(line.clone()),
            }
        }
        Ok(steps)
    }

    /// Puts another answer after `command`, at most `most` lines of it.
    pub fn answer(&mut self, command: &str, said: &[String], most: usize) {
        let command = format!("$ {command}");
        let Some(at) = self.lines.iter().position(|line| *line == command) else { return };
        let end = self.lines[at + 1..].iter().position(|line| line.starts_with("$ "));
        let end = end.map_or(self.lines.len(), |length| at + 1 + length);
        let mut lines: Vec<String> = said.iter().take(most).cloned().collect();
        if said.len() > most {
            lines.push("…".to_owned());
        }
        self.lines.splice(at + 1..end, lines);
    }
}

/// A page.
#[derive(Debug)]
pub struct Page {
    pub file: PathBuf,
    pub blocks: Vec<Block>,
    /// Lines that are indented as code.
    pub indented: Vec<String>,
    text: Vec<String>,
}

impl Page {
    pub fn read(file: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let text: Vec<String> = text.lines().map(str::to_owned).collect();
        let (mut blocks, mut indented) = (Vec::new(), Vec::new());
        let mut open: Option<Block> = None;
        for (number, line) in text.iter().enumerate() {
            let bare = line.trim_start();
            match (&mut open, bare.strip_prefix("```")) {
                (None, Some(kind)) => {
                    let indent = line[..line.len() - bare.len()].to_owned();
                    open = Some(Block { start: number + 1, indent, ..Block::new(kind, &[]) });
                }
                (Some(_), Some(_)) => {
                    blocks.extend(open.take().map(|block| Block { length: block.lines.len(), ..block }));
                }
                (Some(block), None) => {
                    block.lines.push(line.strip_prefix(&block.indent).unwrap_or(line).to_owned())
                }
                (None, None) => indented.extend(line.strip_prefix("    ").map(str::to_owned)),
            }
        }
        Ok(Self { file, blocks, indented, text })
    }

    /// Writes it with its blocks as they are now.
    pub fn write(mut self) -> Result<()> {
        for block in self.blocks.iter().rev() {
            let lines =
                block.lines.iter().map(|line| format!("{}{line}", block.indent).trim_end().to_owned());
            self.text.splice(block.start..block.start + block.length, lines);
        }
        Ok(fs::write(&self.file, self.text.join("\n") + "\n")?)
    }

    pub fn name(&self) -> String {
        self.file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    /// Targets of links that stay in the tree.
    pub fn links(&self) -> Vec<String> {
        let text = self.text.join(" ");
        let targets = text.split("](").skip(1).filter_map(|part| part.split(')').next());
        targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
    }

    /// Anchors of its headings, as they are made of them where Markdown is shown.
    pub fn anchors(&self) -> BTreeSet<String> {
        let heads = self.text.iter().filter(|line| line.starts_with('#'));
        heads
            .map(|line| {
                let words = line.trim_start_matches('#').trim().to_lowercase();
                let kept = words.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
                kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
            })
            .collect()
    }
}
