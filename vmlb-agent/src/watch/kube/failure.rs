//! Why a list or watch did not go on, and what that asks for.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

/// The end of a list or watch that was not asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The version is no longer there, or never was in this store: only a list helps.
    Gone(String),
    /// Nobody can be reached.
    Away(String),
    /// The API server refuses, by this HTTP status.
    Refused {
        /// HTTP status.
        code: u16,
        /// What it says.
        message: String,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// The stream ended early or fell silent.
    Broken(String),
    /// What came makes no sense, so nothing can go on from it.
    Garbled(String),
    /// Nobody listens to the events any more.
    Stopped,
}

impl Failure {
    /// What an error status asks for.
    pub fn of_status(code: u16, reason: &str, message: String, after: Option<Duration>) -> Self {
        // A version from before the store was replaced is "too large" to the new one.
        let ahead = message.contains("Too large resource version");
        match code {
            410 => Self::Gone(message),
            _ if ahead || matches!(reason, "Expired" | "Gone") => Self::Gone(message),
            _ => Self::Refused { code, message, after },
        }
    }

    /// What an error of the client before any answer means.
    pub fn of_error(error: &kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            return Self::of_status(status.code, &status.reason, status.message.clone(), None);
        }
        let text = chain(error);
        if is_away(error) { Self::Away(text) } else { Self::Broken(text) }
    }

    /// What an operator can do about it.
    pub fn remedy(&self, plural: &str) -> String {
        match self {
            Self::Refused { code: 401, .. } => "check the token or certificate that is presented".into(),
            Self::Refused { code: 403, .. } => {
                let verbs = if plural == "nodes" { "get, list and watch" } else { "list and watch" };
                format!("grant {verbs} on {plural} by a ClusterRole")
            }
            Self::Away(_) => "check that the API server runs and can be reached from this node".into(),
            Self::Refused { .. } | Self::Gone(_) | Self::Broken(_) | Self::Garbled(_) | Self::Stopped => {
                "see the API server's log".into()
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(message) => write!(out, "the version watched from is gone: {message}"),
            Self::Away(message) => write!(out, "the API server cannot be reached: {message}"),
            Self::Refused { code, message, .. } => {
                write!(out, "the API server answers {code}: {message}")
            }
            Self::Broken(message) | Self::Garbled(message) => out.write_str(message),
            Self::Stopped => out.write_str("nobody listens"),
        }
    }
}

/// An error with its causes, without repeating those that quote their own cause.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn is_away(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
            // As from a balancer with no API server behind it.
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe,
        ) = kind
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_gone_or_ahead_of_the_store_asks_for_a_list() {
        let gone = [
            Failure::of_status(410, "Expired", String::new(), None),
            Failure::of_status(410, "", String::new(), None),
            Failure::of_status(
                504,
                "Timeout",
                "Timeout: Too large resource version: 9, current: 3".into(),
                None,
            ),
        ];
        assert!(gone.iter().all(|failure| matches!(failure, Failure::Gone(_))), "{gone:?}");
        assert!(matches!(
            Failure::of_status(403, "Forbidden", String::new(), None),
            Failure::Refused { code: 403, .. }
        ));
    }
}
