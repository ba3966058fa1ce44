//! What goes wrong, by script.

use std::time::Duration;

use vmlb_agent::object::Kind;

/// How requests are answered until the test says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The only token that is accepted; empty: any.
    pub token: String,
    /// Every request gets this status.
    pub refuse: Option<u16>,
    /// So many more lists get 410.
    pub gone_lists: usize,
    /// So many more pages of lists end in the middle, as if that were all.
    pub truncated_lists: usize,
    /// So many more pages of lists are cut in the middle.
    pub cut_lists: usize,
    /// The next watch of each of these kinds is answered 410, by status and not by an event.
    pub gone_watches: Vec<Kind>,
    /// Requests are taken and never answered.
    pub holds: bool,
    /// Watches say nothing, also not that anything happens.
    pub is_silent: bool,
    /// Octets come in pieces of 64, with this pause between two.
    pub slow: Option<Duration>,
    /// Time between two bookmarks.
    pub bookmarks: Option<Duration>,
    /// Every event comes twice.
    pub doubles: bool,
    /// Events of this kind come so much later than those of others.
    pub late: Option<(Kind, Duration)>,
    /// After every page of a list the store is compacted.
    pub compacts_between_pages: bool,
    /// Verbs and resources (plural) that are forbidden; `*` as a verb: all.
    pub forbidden: Vec<(&'static str, &'static str)>,
    /// API groups that are not served.
    pub absent: Vec<&'static str>,
    /// After so many writes so many fail with 500. Rehearsals (`dryRun`) do not count.
    pub failing_writes: Option<(usize, usize)>,
    /// Services with selectors get EndpointSlices of the pods that they select.
    pub makes_endpoints: bool,
}

/// What happens at once to every watch that is open.
#[derive(Clone, Debug)]
pub enum Blow {
    /// The connection is cut.
    Cut,
    /// The watch ends as if its time were over.
    End,
    /// Half a line comes, then the connection is cut.
    CutLine,
    /// Half a line comes, and more lines after it.
    BrokenLine,
    /// An `ERROR` event with this code and reason, then the end.
    Error(u16, &'static str),
    /// A line as it stands, to the watches of this kind.
    Line(Kind, String),
}
