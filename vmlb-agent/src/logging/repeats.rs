//! Lines that say the same: the first few of a minute are logged, of the others only how many there were.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// For how long lines are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Lines that are remembered; beyond that, new ones are logged as they come.
const REMEMBERED: usize = 1024;

/// A filter. Lines of other crates, and what is asked for by level debug or trace, pass it.
#[derive(Clone, Debug)]
pub(super) struct Repeats {
    most: u32,
    lines: Arc<Mutex<HashMap<String, Seen>>>,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    count: u32,
}

impl Repeats {
    /// At most `most` times a minute; 0: always.
    pub fn new(most: u32) -> Self {
        Self { most, lines: Arc::default() }
    }

    /// Whether this line is to be logged at `now`.
    fn admit(&self, line: String, now: Instant) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= REMEMBERED && !lines.contains_key(&line) {
            return true;
        }
        let seen = lines.entry(line).or_insert(Seen { since: now, count: 0 });
        seen.count = seen.count.saturating_add(1);
        seen.count <= self.most
    }

    /// Forgets lines whose minute is over; says of which how many were left out.
    pub fn take_left_out(&self) -> Vec<String> {
        self.take_before(Instant::now())
    }

    fn take_before(&self, now: Instant) -> Vec<String> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let over = lines.extract_if(|_, seen| now.saturating_duration_since(seen.since) >= WINDOW);
        let over = over.filter(|(_, seen)| seen.count > self.most);
        let mut left: Vec<String> = over
            .map(|(line, seen)| format!("{} more times within a minute: {line}", seen.count - self.most))
            .collect();
        left.sort();
        left
    }
}

impl<S: Subscriber> Filter<S> for &'static Repeats {
    fn enabled(&self, _metadata: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _context: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if self.most == 0 || *metadata.level() > Level::INFO || !metadata.target().starts_with("vmlb_agent") {
            return true;
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        self.admit(line.0, Instant::now())
    }
}

/// The text of an event.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _written = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_a_few_times_a_minute_and_then_counted() {
        let (repeats, start) = (Repeats::new(3), Instant::now());
        let say = |line: &str, after: u64| repeats.admit(line.to_owned(), start + Duration::from_secs(after));
        let said: Vec<bool> = (0..5).map(|second| say("a", second)).collect();
        assert_eq!(said, [true, true, true, false, false]);
        assert!(say("b", 5));
        assert!(repeats.take_before(start + Duration::from_secs(59)).is_empty());
        let left = repeats.take_before(start + Duration::from_secs(60));
        assert_eq!(left, ["2 more times within a minute: a"]);
        assert!(say("a", 61));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (repeats, now) = (Repeats::new(1), Instant::now());
        for number in 0..2 * REMEMBERED {
            assert!(repeats.admit(number.to_string(), now));
        }
        assert_eq!(repeats.lines.lock().map(|lines| lines.len()).unwrap_or(0), REMEMBERED);
    }
}
