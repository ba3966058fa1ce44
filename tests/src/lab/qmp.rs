//! QEMU's machine protocol: JSON lines over a socket; commands are answered in order, events come in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Limit of every wait for an answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session with one QEMU.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// Octets of a line that was not complete when a wait ended.
    partial: Vec<u8>,
    events: Vec<Event>,
}

/// Something that happened to the guest.
#[derive(Clone, Debug)]
pub struct Event {
    /// What, e.g. `STOP`.
    pub name: String,
    /// When, by QEMU's own clock, which is the machine's.
    pub at: SystemTime,
}

impl Qmp {
    /// Opens the session at `path`, which QEMU may not have made yet.
    pub fn open(path: &Path) -> Result<Self> {
        let start = Instant::now();
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(error).with_context(|| format!("connecting to {}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut qmp = Self { reader: BufReader::new(socket), partial: Vec::new(), events: Vec::new() };
        qmp.message(PATIENCE)?.context("QEMU does not greet")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Carries out a command and returns its answer.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.reader.get_mut().write_all(format!("{request}\n").as_bytes()).context("QEMU is gone")?;
        loop {
            let message = self.message(PATIENCE)?.with_context(|| format!("no answer to {command}"))?;
            if let Some(refused) = message.get("error") {
                bail!("QEMU refuses {command}: {}", refused["desc"]);
            }
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            self.note(&message);
        }
    }

    /// Waits for the event `name`, which may have come already; it is handed out once.
    ///
    /// # Errors
    /// It does not come in time, or QEMU is gone.
    pub fn wait(&mut self, name: &str, patience: Duration) -> Result<Event> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.events.iter().position(|event| event.name == name) {
                return Ok(self.events.remove(at));
            }
            let left = patience.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            match self.message(left)? {
                Some(message) => self.note(&message),
                None if start.elapsed() >= patience => bail!("no {name} within {patience:?}"),
                None => {}
            }
        }
    }

    fn note(&mut self, message: &Value) {
        if let Some(event) = event(message) {
            self.events.push(event);
        }
    }

    /// The next message, or nothing if none is complete in time.
    fn message(&mut self, patience: Duration) -> Result<Option<Value>> {
        self.reader.get_ref().set_read_timeout(Some(patience))?;
        match self.reader.read_until(b'\n', &mut self.partial) {
            Ok(0) => bail!("QEMU ended the session"),
            Ok(_) => {
                let line = std::mem::take(&mut self.partial);
                Ok(Some(serde_json::from_slice(&line).context("QEMU's message is not JSON")?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("reading from QEMU"),
        }
    }
}

/// The event in a message, if it is one.
fn event(message: &Value) -> Option<Event> {
    let name = message.get("event")?.as_str()?.to_owned();
    let timestamp = message.get("timestamp")?;
    let seconds = Duration::from_secs(timestamp.get("seconds")?.as_u64()?);
    let micros = Duration::from_micros(timestamp.get("microseconds")?.as_u64()?);
    Some(Event { name, at: SystemTime::UNIX_EPOCH + seconds + micros })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn events_between_a_command_and_its_answer_are_kept_for_whoever_waits() {
        let path = std::env::temp_dir().join(format!("vmlb-qmp-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a session");
            let mut requests = BufReader::new(socket.try_clone().expect("a copy"));
            socket.write_all(b"{\"QMP\": {}}\n").expect("written");
            let stop = b"{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 7, \"microseconds\": 5}}\n{\"return\": 1}\n";
            for answer in [&b"{\"return\": {}}\n"[..], stop, b"{\"error\": {\"desc\": \"no\"}}\n"] {
                requests.read_line(&mut String::new()).expect("a request");
                socket.write_all(answer).expect("written");
            }
        });
        let mut qmp = Qmp::open(&path).expect("a session");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(qmp.execute("stop", &json!({})).expect("an answer"), 1);
        let stop = qmp.wait("STOP", PATIENCE).expect("the event");
        assert_eq!(stop.at, SystemTime::UNIX_EPOCH + Duration::new(7, 5_000));
        assert!(qmp.execute("cont", &json!({})).is_err());
        assert!(qmp.wait("STOP", Duration::from_millis(10)).is_err());
        server.join().expect("no panic");
    }
}
