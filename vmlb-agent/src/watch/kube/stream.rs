//! Answers of the API server as octets: a whole list, or a watch line by line, neither waited for without end.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::{Body, Client};
use serde::Deserialize;
use tokio::time::timeout;

use super::failure::Failure;
use crate::cluster::shorten;

/// No object of the API server's is as large as this, and no page of a list of them.
const MAX_LINE: usize = 16 << 20;
const MAX_LIST: usize = 256 << 20;
const MAX_STATUS: usize = 64 << 10;

/// An answer that has begun well.
pub(super) struct Answer {
    body: Body,
    /// Octets that have come and are not yet handed on.
    held: Vec<u8>,
}

/// Asks, and waits for an answer to begin.
///
/// # Errors
/// When none comes, or it is not 200.
pub(super) async fn ask(client: &Client, path: &str, patience: Duration) -> Result<Answer, Failure> {
    let request = Request::get(path)
        // A compressed watch holds events back until a block is full.
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|error| Failure::Broken(error.to_string()))?;
    let late = || Failure::Broken(format!("no answer in {patience:?}"));
    let response = timeout(patience, client.send(request)).await.map_err(|_| late())?;
    let response = response.map_err(|error| Failure::of_error(&error))?;
    let (head, body) = response.into_parts();
    let mut answer = Answer { body, held: Vec::new() };
    if head.status == StatusCode::OK {
        return Ok(answer);
    }
    let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let said = answer.whole(MAX_STATUS, patience).await.unwrap_or_default();
    let status: Status = serde_json::from_slice(&said).unwrap_or_default();
    let message = match status.message.as_str() {
        "" => shorten(String::from_utf8_lossy(&said).trim()),
        message => message.chars().take(300).collect(),
    };
    Err(Failure::of_status(head.status.as_u16(), &status.reason, message, after.map(Duration::from_secs)))
}

/// The parts of a `meta/v1` Status that are used; also the object of a watch's `ERROR`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
}

impl Answer {
    /// The whole body of a list.
    ///
    /// # Errors
    /// When it is cut or stops coming.
    pub async fn list(&mut self, patience: Duration) -> Result<Vec<u8>, Failure> {
        self.whole(MAX_LIST, patience).await
    }

    async fn whole(&mut self, limit: usize, patience: Duration) -> Result<Vec<u8>, Failure> {
        while self.piece(patience).await? {
            if self.held.len() > limit {
                return Err(Failure::Broken(format!("an answer of more than {limit} octets")));
            }
        }
        Ok(std::mem::take(&mut self.held))
    }

    /// All whole lines of a watch that have come, at least one; `None`: the API server has ended the watch.
    ///
    /// # Errors
    /// When the stream is cut, also in mid-line, or silent for too long.
    pub async fn lines(&mut self, silence: Duration) -> Result<Option<Vec<u8>>, Failure> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.held[seen..].iter().rposition(|octet| *octet == b'\n') {
                let rest = self.held.split_off(seen + end + 1);
                return Ok(Some(std::mem::replace(&mut self.held, rest)));
            }
            seen = self.held.len();
            if seen > MAX_LINE {
                return Err(Failure::Broken(format!("a line of more than {MAX_LINE} octets")));
            }
            if !self.piece(silence).await? {
                return match self.held.is_empty() {
                    true => Ok(None),
                    false => Err(Failure::Broken("the watch ended in the middle of a line".into())),
                };
            }
        }
    }

    /// Waits for another piece; `false`: there are no more.
    async fn piece(&mut self, patience: Duration) -> Result<bool, Failure> {
        loop {
            let silent = |_| Failure::Broken(format!("not an octet in {patience:?}"));
            match timeout(patience, self.body.frame()).await.map_err(silent)? {
                None => return Ok(false),
                Some(Err(error)) => return Err(Failure::Broken(format!("the stream was cut: {error}"))),
                Some(Ok(frame)) => {
                    if let Ok(octets) = frame.into_data() {
                        self.held.extend_from_slice(&octets);
                        return Ok(true);
                    }
                }
            }
        }
    }
}
