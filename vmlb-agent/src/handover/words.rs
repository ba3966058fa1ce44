//! Stages and signs in a word each, as in JSON: for people, and for metrics.

use crate::migration::{Sign, Stage};

impl Stage {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Primed => "primed",
            Self::Turned => "turned",
            Self::Settled => "settled",
            Self::Aborted => "aborted",
            Self::TimedOut => "timed-out",
        }
    }
}

impl Sign {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TargetPod => "target-pod",
            Self::Started => "started",
            Self::Primed => "primed",
            Self::Flow => "flow",
            Self::Probe => "probe",
            Self::Annotation => "annotation",
            Self::DomainReady => "domain-ready",
            Self::NodeName => "node-name",
            Self::Completed => "completed",
            Self::AbortRequested => "abort-requested",
            Self::Failed => "failed",
            Self::TargetGone => "target-gone",
            Self::SourceGone => "source-gone",
            Self::Expired => "expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_json() -> serde_json::Result<()> {
        for stage in
            [Stage::Known, Stage::Primed, Stage::Turned, Stage::Settled, Stage::Aborted, Stage::TimedOut]
        {
            assert_eq!(serde_json::to_string(&stage)?, format!("\"{}\"", stage.name()));
        }
        for sign in [
            Sign::TargetPod,
            Sign::Started,
            Sign::Primed,
            Sign::Flow,
            Sign::Probe,
            Sign::Annotation,
            Sign::DomainReady,
            Sign::NodeName,
            Sign::Completed,
            Sign::AbortRequested,
            Sign::Failed,
            Sign::TargetGone,
            Sign::SourceGone,
            Sign::Expired,
        ] {
            assert_eq!(serde_json::to_string(&sign)?, format!("\"{}\"", sign.name()));
        }
        Ok(())
    }
}
