//! What balancers, probes and scrapers ask the agents: one HTTP request, and the answer as it came.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Limit of every wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Headers by their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("the answer is not JSON: {:?}", self.body))
    }

    fn parse(text: &str) -> Result<Self> {
        let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of headers")?;
        let mut lines = head.lines();
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)).context("the answer has no status")?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        Ok(Self {
            status: status.parse()?,
            headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
            body: body.to_owned(),
        })
    }
}

/// Asks `server` by `method` for `path`.
pub fn ask(server: SocketAddr, method: &str, path: &str) -> Result<Reply> {
    let mut connection =
        TcpStream::connect_timeout(&server, PATIENCE).with_context(|| format!("connecting to {server}"))?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(connection, "{method} {path} HTTP/1.1\r\nHost: vmlb\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    connection.read_to_string(&mut text).with_context(|| format!("waiting for an answer of {server}"))?;
    Reply::parse(&text)
}

/// GET.
pub fn get(server: SocketAddr, path: &str) -> Result<Reply> {
    ask(server, "GET", path)
}

/// Asks again until the answer is as `wanted` says.
pub fn wait(what: &str, patience: Duration, mut wanted: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        let answer = wanted();
        match answer {
            Ok(true) => return Ok(()),
            _ if start.elapsed() > patience => bail!("not within {patience:?}: {what}; last: {answer:?}"),
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}
