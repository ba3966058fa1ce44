//! What a test host runs, and how it reports: programs handed in with the initramfs, and lines on a serial port.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::archive::Archive;
use crate::kernel::Kernel;
use crate::modules;

/// The tag under which the machine's root is exported to the guest.
pub const HOST: &str = "host";

/// The variable that jobs find set: what a guest's kernel is there for must not be skipped.
pub const IN_GUEST: &str = "VMLB_IN_GUEST";

/// Where the archive keeps jobs.
pub const FOLDER: &str = "jobs";

/// Where the archive keeps the path of the kernel's tree, for `modprobe -d`.
pub const TREE: &str = "tree";

/// What it takes to see the host's files: virtio over PCI, 9P, and a layer to write to above it.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// A program to run in a test host, with the paths of the machine outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The folder it starts in.
    pub folder: String,
    /// Its environment beyond what the guest sets: `NAME=value`.
    pub variables: Vec<String>,
    /// The program and its arguments.
    pub words: Vec<String>,
}

impl Job {
    /// The file that carries it: words that end with a zero octet each, the variables with an empty one behind them.
    fn encode(&self) -> Vec<u8> {
        let variables = self.variables.iter().map(String::as_str);
        let words = [self.folder.as_str()].into_iter().chain(variables).chain([""]);
        words
            .chain(self.words.iter().map(String::as_str))
            .flat_map(|word| [word.as_bytes(), &[0]].concat())
            .collect()
    }

    /// The command that [`Job::encode`] wrote down.
    ///
    /// # Errors
    /// The file names no program.
    pub fn decode(file: &[u8]) -> Result<Command> {
        let mut words =
            file.strip_suffix(&[0]).unwrap_or(file).split(|&octet| octet == 0).map(OsStr::from_bytes);
        let folder = words.next().context("a job has a folder")?;
        let variables: Vec<&OsStr> = words.by_ref().take_while(|word| !word.is_empty()).collect();
        let mut command = Command::new(words.next().context("a job has a program")?);
        command.args(words).current_dir(folder);
        for variable in variables {
            let (name, value) = split(variable).context("a variable has a name")?;
            command.env(name, value);
        }
        Ok(command)
    }
}

fn split(variable: &OsStr) -> Option<(&OsStr, &OsStr)> {
    let octets = variable.as_bytes();
    let at = octets.iter().position(|&octet| octet == b'=')?;
    Some((OsStr::from_bytes(&octets[..at]), OsStr::from_bytes(&octets[at + 1..])))
}

/// The initramfs of a test host: `init` is the program `guest-init`.
///
/// # Errors
/// A module is missing.
pub fn initramfs(kernel: &Kernel, init: &[u8], jobs: &[Job]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", HOST, "upper", "root"] {
        archive.folder(folder);
    }
    archive.program("init", init);
    archive.file(TREE, path(&kernel.tree)?.as_bytes());
    modules::add(&mut archive, kernel, &MODULES)?;
    archive.folder(FOLDER);
    for (number, job) in jobs.iter().enumerate() {
        archive.file(&format!("{FOLDER}/{number:04}"), &job.encode());
    }
    Ok(archive.finish())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not written in UTF-8", path.display()))
}

/// A line of a test host's report. What a program prints carries a prefix, so that it cannot be taken for one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The guest has found its jobs; the kernel's release.
    Ready(String),
    /// A job starts.
    Begin(usize),
    /// A job printed this to its standard output.
    Output(String),
    /// A job printed this to its standard error.
    Error(String),
    /// A job ended: well, or not.
    End(usize, bool),
    /// The guest cannot go on.
    Broken(String),
}

impl Line {
    /// The line, without a line feed.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Ready(release) => format!("ready {release}"),
            Self::Begin(job) => format!("begin {job}"),
            Self::Output(text) => format!("out {text}"),
            Self::Error(text) => format!("err {text}"),
            Self::End(job, success) => format!("end {job} {success}"),
            Self::Broken(why) => format!("broken {why}"),
        }
    }

    /// The line that [`Line::encode`] wrote, if it is one.
    #[must_use]
    pub fn decode(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        Some(match kind {
            "ready" => Self::Ready(rest.to_owned()),
            "begin" => Self::Begin(rest.parse().ok()?),
            "out" => Self::Output(rest.to_owned()),
            "err" => Self::Error(rest.to_owned()),
            "end" => {
                let (job, success) = rest.split_once(' ')?;
                Self::End(job.parse().ok()?, success.parse().ok()?)
            }
            "broken" => Self::Broken(rest.to_owned()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_comes_out_as_it_went_in() {
        let job = Job {
            folder: "/src/tests".to_owned(),
            variables: vec!["A=b=c".to_owned(), "EMPTY=".to_owned()],
            words: ["/bin/echo", "", "two words"].map(str::to_owned).to_vec(),
        };
        let command = Job::decode(&job.encode()).expect("a job");
        assert_eq!(command.get_current_dir(), Some(Path::new("/src/tests")));
        assert_eq!(command.get_program(), "/bin/echo");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["", "two words"]);
        let variables: Vec<_> = command.get_envs().collect();
        assert_eq!(variables, [("A".as_ref(), Some("b=c".as_ref())), ("EMPTY".as_ref(), Some("".as_ref()))]);
    }

    #[test]
    fn a_job_without_variables_has_none() {
        let job = Job { folder: "/".to_owned(), variables: Vec::new(), words: vec!["/bin/true".to_owned()] };
        assert_eq!(Job::decode(&job.encode()).expect("a job").get_envs().count(), 0);
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        for line in [
            Line::Ready("6.1.0-56-amd64".to_owned()),
            Line::Begin(3),
            Line::Output("end 3 true".to_owned()),
            Line::Output(String::new()),
            Line::Error("test result: ok".to_owned()),
            Line::End(3, false),
            Line::Broken("no 9P".to_owned()),
        ] {
            assert_eq!(Line::decode(&line.encode()), Some(line));
        }
    }

    #[test]
    fn what_the_firmware_prints_is_no_line() {
        assert_eq!(Line::decode("SeaBIOS (version 1.16)"), None);
        assert_eq!(Line::decode(""), None);
    }
}
