//! The documentation: commands in `console` blocks are run on a node of the rig and must still say what the page shows, those
//! in `sh` blocks must be commands that the program knows, and links lead somewhere. `VMLB_WRITE_DOCS=1` writes what
//! commands say into the pages.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use vmlb_tests::address::Family;
use vmlb_tests::agent::{self, Flags};
use vmlb_tests::cluster::Cluster;
use vmlb_tests::requests::Conversation;
use vmlb_tests::servers;
use vmlb_tests::skip::{announce, unless_unable};
use vmlb_tests::topology::Attachment;

#[path = "docs/page.rs"]
mod page;

use page::{Block, Page};

/// Where the pages say that pins are.
const ROOT: &str = "/sys/fs/bpf/vmlb";
/// Lines of an answer that a page shows.
const SHOWN: usize = 14;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn pages() -> Result<Vec<Page>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(workspace().join("docs"))?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.push(workspace().join("README.md"));
    files.sort();
    files.into_iter().map(Page::read).collect()
}

/// A folder with a `vmlb` that finds the rig's pins.
struct Tools(PathBuf);

impl Tools {
    fn make(pin_root: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("vmlb-docs-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let binary = agent::binary()?.canonicalize()?;
        let text = format!(
            "#!/bin/sh\ncase \"$1\" in\nstatus|services|backends|flows|drops) exec {} \"$@\" --pin-root {} ;;\n*) exec {} \"$@\" ;;\nesac\n",
            binary.display(),
            pin_root.display(),
            binary.display()
        );
        let script = folder.join("vmlb");
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(Self(folder))
    }

    fn path(&self) -> std::ffi::OsString {
        let old = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths([self.0.clone()].into_iter().chain(std::env::split_paths(&old))).unwrap_or(old)
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// What an answer is made of and not what it says: names of fields, and heads of columns.
fn shape(answer: &[String]) -> BTreeSet<String> {
    let mut parts = BTreeSet::new();
    for line in answer {
        let fields = line.split('"').skip(1).step_by(2).zip(line.split('"').skip(2).step_by(2));
        parts.extend(fields.filter(|(_, after)| after.starts_with(':')).map(|(field, _)| field.to_owned()));
        let is_head = line.split_whitespace().all(|word| {
            word.len() > 1 && word.chars().all(|letter| letter.is_ascii_uppercase() || letter == '-')
        });
        if is_head {
            parts.extend(line.split_whitespace().map(str::to_owned));
        }
    }
    parts
}

fn has(program: &str) -> bool {
    Command::new(program).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[test]
fn commands_of_the_pages_say_what_the_pages_show() {
    const NAME: &str = "commands_of_the_pages_say_what_the_pages_show";
    unless_unable(NAME, || {
        let cluster = Cluster::serving(Attachment::Routed, &Flags::default())?;
        let frontend = cluster.frontend("second", servers::LINES, 0, Family::V4)?;
        let mut conversation = cluster.client().run(|| Conversation::open(frontend))?;
        conversation.ask("hello")?;
        let node = &cluster.topology.nodes[0];
        let root = node.pin_root.display().to_string();
        let tools = Tools::make(&node.pin_root)?;
        let writes = std::env::var_os("VMLB_WRITE_DOCS").is_some();
        let mut count = 0;
        for mut page in pages()? {
            let name = page.name();
            for block in page.blocks.iter_mut().filter(|block| block.kind == "console") {
                for step in block.steps()? {
                    if step.command.starts_with("kubectl") && !has("kubectl") {
                        announce(NAME, "some commands: the program `kubectl` is not installed");
                        continue;
                    }
                    let mut command = node.namespace.command("sh");
                    command.arg("-c").arg(step.command.replace(ROOT, &root)).env("PATH", tools.path());
                    let output = command.current_dir(workspace()).stdin(Stdio::null()).output()?;
                    let said = String::from_utf8_lossy(&output.stdout).replace(&root, ROOT);
                    let place = format!("{name}: {}", step.command);
                    ensure!(output.status.success(), "{place}: {output:?}");
                    let said: Vec<String> = said.lines().map(|line| line.trim_end().to_owned()).collect();
                    count += 1;
                    if writes {
                        block.answer(&step.command, &said, SHOWN.max(step.length()));
                        continue;
                    }
                    ensure!(step.answer.is_empty() == said.is_empty(), "{place}: {said:#?}");
                    let cut = &said[..said.len().min(step.answer.len())];
                    ensure!(shape(cut) == shape(&step.answer), "{place} says now:\n{}", said.join("\n"));
                }
            }
            if writes {
                page.write()?;
            }
        }
        ensure!(count >= 15, "only {count} commands were run");
        Ok(())
    });
}

/// Commands of `sh` blocks, and of the README's indented ones, without what the shell makes of them.
fn vmlb_commands(page: &Page) -> Vec<Vec<String>> {
    let of_blocks =
        page.blocks.iter().filter(|block| block.kind == "sh").flat_map(|block| block.lines.iter());
    let all = of_blocks.chain(page.indented.iter()).map(|line| {
        let line = line.split(" #").next().unwrap_or_default().replace(['"', '\''], "");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    });
    all.filter_map(|words| {
        let skip = match words.first().map(String::as_str) {
            Some("vmlb") => 1,
            Some("kubectl") if words.get(1).is_some_and(|word| word == "vmlb") => 2,
            _ => words.iter().position(|word| word == "/vmlb")? + 1,
        };
        Some(words[skip..].to_vec())
    })
    .collect()
}

#[test]
fn every_command_of_vmlb_in_the_pages_is_one_that_it_knows() -> Result<()> {
    let mut count = 0;
    for page in pages()? {
        for words in vmlb_commands(&page) {
            // Usage is judged before anything is done.
            let output = Command::new(agent::binary()?).args(&words).arg("--help").output()?;
            ensure!(
                output.status.success(),
                "{}: vmlb {}: {}",
                page.name(),
                words.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
            count += 1;
        }
    }
    ensure!(count >= 12, "only {count} commands were found");
    Ok(())
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut count = 0;
    for page in pages()? {
        for link in page.links() {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.file.clone() } else { page.folder().join(path) };
            ensure!(target.exists(), "{}: {link} leads nowhere", page.name());
            if !anchor.is_empty() {
                let heads = Page::read(target)?.anchors();
                ensure!(heads.contains(anchor), "{}: no #{anchor} in {heads:?}", page.name());
            }
            count += 1;
        }
    }
    ensure!(count >= 15, "only {count} links were found");
    Ok(())
}

#[test]
fn the_shape_of_an_answer_is_its_fields_and_heads() -> Result<()> {
    let lines = ["NAME  PORT-NAME", "web  http TCP", "\"key\": {", "  \"port\": 80, \"word\": \"TCP\""];
    let parts = shape(&lines.map(str::to_owned));
    let wanted = ["NAME", "PORT-NAME", "key", "port", "word"].map(str::to_owned);
    ensure!(parts == BTreeSet::from(wanted), "{parts:?}");
    let block = Block::new("console", &["$ a", "x", "$ b"]);
    ensure!(block.steps()?.len() == 2 && Block::new("console", &["x"]).steps().is_err());
    Ok(())
}
