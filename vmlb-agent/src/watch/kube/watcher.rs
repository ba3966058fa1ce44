//! One kind's list and watch, over and over: list, watch from there, and after a fault go on from where it stopped if the
//! API server is still the same store, else list again.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use form_urlencoded::Serializer;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::Resource;
use super::access::Access;
use super::board::{Board, Phase};
use super::decode::{self, Incarnation, Item, Line, Page};
use super::failure::Failure;
use super::patience::Patience;
use super::stream::ask;
use crate::cluster::Judged;
use crate::object::{Kind, ObjectRef};
use crate::warning::Warning;
use crate::watch::{Event, Object};

/// A watch that has lasted this long works.
const PROOF: Duration = Duration::from_millis(250);
/// A watch that ends by itself this much before it should was ended by a server that goes away.
const EARLY: Duration = Duration::from_secs(5);
/// Tries between two looks for new credentials where nothing says that they are at fault.
const RENEWAL: u32 = 4;

/// Where a watch goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    version: String,
    /// The first object of the last list, as it was last seen. In a store that was emptied and filled anew it is another.
    first: Option<Incarnation>,
}

/// What is wrong with what comes, or does not come.
#[derive(Debug, Default, PartialEq, Eq)]
struct Trouble {
    unreadable: BTreeMap<ObjectRef, String>,
    odd: Option<String>,
    outage: Option<(String, String)>,
    /// This node's own object is missing.
    lost: bool,
}

/// Failures since it last worked, by what they ask for.
#[derive(Debug, Default)]
struct Failures {
    /// Nobody there, cut or silent. An answer in between says that somebody is there again.
    breaks: u32,
    /// Answers that refuse.
    refusals: u32,
    /// Calls for a list.
    losses: u32,
}

impl Failures {
    /// The API server has answered: the next try after a cut comes soon, though never without a pause.
    fn answered(&mut self) {
        self.breaks = self.breaks.min(2);
    }

    /// Counts a failure in; returns the pause that it asks for.
    fn count(&mut self, failure: &Failure, patience: &Patience) -> Duration {
        match failure {
            Failure::Gone(_) | Failure::Garbled(_) => {
                self.losses = self.losses.saturating_add(1);
                // The list that cures it is not to wait; one that cures nothing is.
                if self.losses == 1 { Duration::ZERO } else { patience.pause(self.losses, patience.errors) }
            }
            Failure::Refused { after, .. } => {
                self.refusals = self.refusals.saturating_add(1);
                let asked = after.unwrap_or_default().min(patience.errors);
                patience.pause(self.refusals, patience.errors).max(asked)
            }
            Failure::Away(_) | Failure::Broken(_) | Failure::Stopped => {
                self.breaks = self.breaks.saturating_add(1);
                let is_away = matches!(failure, Failure::Away(_));
                patience.pause(self.breaks, if is_away { patience.away } else { patience.errors })
            }
        }
    }

    /// Whether it is time to look for new credentials.
    fn ask_for_renewal(&self, failure: &Failure) -> bool {
        let is_refused = matches!(failure, Failure::Refused { code: 401, .. });
        is_refused || (self.breaks + self.refusals).is_multiple_of(RENEWAL)
    }
}

pub(super) struct Watcher {
    resource: Resource,
    access: Arc<Access>,
    patience: Patience,
    board: Board,
    sender: mpsc::Sender<Vec<Event>>,
    position: Option<Position>,
    /// Nothing speaks against the position being one of the store that is asked.
    is_same_store: bool,
    failures: Failures,
    generation: u64,
    trouble: Trouble,
    told: Vec<Warning>,
}

impl Watcher {
    pub fn new(
        resource: Resource,
        access: Arc<Access>,
        patience: Patience,
        board: Board,
        sender: mpsc::Sender<Vec<Event>>,
    ) -> Self {
        board.enter(resource.kind, Phase::Listing);
        Self {
            resource,
            access,
            patience,
            board,
            sender,
            position: None,
            is_same_store: true,
            failures: Failures::default(),
            generation: 0,
            trouble: Trouble::default(),
            told: Vec::new(),
        }
    }

    /// Runs until nobody listens.
    pub async fn run(mut self) {
        let listener = self.sender.clone();
        loop {
            let followed = tokio::select! {
                followed = self.follow() => followed,
                // A watch without changes would not notice.
                () = listener.closed() => return,
            };
            let Err(failure) = followed else { continue };
            if failure == Failure::Stopped || self.fail(&failure).await.is_err() {
                return;
            }
        }
    }

    async fn follow(&mut self) -> Result<(), Failure> {
        match self.position.clone() {
            None => self.list().await,
            Some(position) if !self.is_same_store => self.compare(&position).await,
            Some(position) => self.watch(&position.version).await,
        }
    }

    /// Lists everything. Objects are handed on page by page; what the list no longer holds goes only when it is whole.
    async fn list(&mut self) -> Result<(), Failure> {
        let kind = self.resource.kind;
        // Until it is there, a kind that may be missing is.
        if self.board.state(kind).phase != Phase::Absent {
            self.board.enter(kind, Phase::Listing);
        }
        let mut unreadable = BTreeMap::new();
        let mut position: Option<Position> = None;
        let (mut token, mut is_own_there) = (None, false);
        loop {
            let octets = self.page(self.patience.page, token.as_deref()).await?;
            let page = Page::read(kind, &octets)?;
            let mut events = Vec::with_capacity(page.items().count() + 1);
            let start = position.get_or_insert_with(|| {
                events.push(Event::Listing(kind));
                Position { version: String::new(), first: page.first() }
            });
            if start.version.is_empty() {
                page.version().clone_into(&mut start.version);
            }
            for json in page.items() {
                events.push(match decode::item(kind, json) {
                    Item::Sound(object) => {
                        is_own_there |= self.is_own(&object.reference());
                        Event::Judged(Judged::of(&object))
                    }
                    Item::Unreadable(reference, why) => {
                        is_own_there |= self.is_own(&reference);
                        unreadable.insert(reference.clone(), why);
                        Event::Keep(reference)
                    }
                    Item::Foreign(what) => {
                        self.trouble.odd = Some(format!("an object of kind {what:?} in a list"));
                        continue;
                    }
                });
            }
            self.send(events).await?;
            token = page.next().map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        self.trouble.unreadable = unreadable;
        self.trouble.lost = self.resource.own.is_some() && !is_own_there;
        self.position = position;
        self.is_same_store = true;
        self.board.list(kind);
        self.send(vec![Event::Listed(kind)]).await?;
        self.announce().await
    }

    /// A page of a list.
    async fn page(&mut self, limit: u32, token: Option<&str>) -> Result<Vec<u8>, Failure> {
        let limit = limit.to_string();
        let token = token.map(|token| ("continue", token));
        let path = self.query([("limit", limit.as_str())].into_iter().chain(token));
        let (generation, client) = self.access.client();
        self.generation = generation;
        let mut answer = ask(&client, &path, self.patience.answer).await?;
        self.board.hear(self.resource.kind);
        let octets = answer.list(self.patience.answer).await?;
        self.board.hear(self.resource.kind);
        self.failures.answered();
        Ok(octets)
    }

    fn query<'a>(&'a self, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let target = format!("{}?", self.resource.path);
        let start = target.len();
        let labels = self.resource.labels.map(|labels| ("labelSelector", labels));
        Serializer::for_suffix(target, start).extend_pairs(labels.into_iter().chain(parameters)).finish()
    }

    /// Finds out whether the store is still the one that was listed: a watch from a version that is ahead of the store
    /// is silent for good, and one from before it was filled misses what was put in.
    async fn compare(&mut self, position: &Position) -> Result<(), Failure> {
        let octets = self.page(1, None).await?;
        let page = Page::read(self.resource.kind, &octets)?;
        // Nothing tells one empty store from another, and what was known may have gone with the old one.
        let is_told_apart = page.first().is_some() && page.first() == position.first;
        if is_older(page.version(), &position.version) || !is_told_apart {
            tracing::debug!("{} are listed again: the store has changed", self.resource.plural);
            self.position = None;
        }
        self.is_same_store = true;
        Ok(())
    }

    /// Follows changes until the watch ends.
    async fn watch(&mut self, version: &str) -> Result<(), Failure> {
        let seconds = self.patience.lasting_seconds();
        let path = self.query([
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", seconds.to_string().as_str()),
            ("resourceVersion", version),
        ]);
        let (generation, client) = self.access.client();
        self.generation = generation;
        let mut answer = ask(&client, &path, self.patience.answer).await?;
        self.board.hear(self.resource.kind);
        self.failures.answered();
        self.board.enter(self.resource.kind, Phase::Watching);
        let begun = Instant::now();
        let mut proof = pin!(sleep(PROOF));
        let mut is_proved = false;
        loop {
            let lines = tokio::select! {
                lines = answer.lines(self.patience.silence) => lines?,
                () = &mut proof, if !is_proved => {
                    is_proved = true;
                    self.failures = Failures::default();
                    self.recover().await?;
                    continue;
                }
            };
            self.board.hear(self.resource.kind);
            let Some(lines) = lines else { break };
            self.take(&lines).await?;
            self.recover().await?;
        }
        self.is_same_store = begun.elapsed() + EARLY >= Duration::from_secs(seconds);
        // A server that ends every watch at once is not to be asked without a pause.
        if is_proved { Ok(()) } else { Err(Failure::Broken("the watch ended as soon as it began".into())) }
    }

    /// Hands on what the lines say.
    async fn take(&mut self, lines: &[u8]) -> Result<(), Failure> {
        let kind = self.resource.kind;
        let mut events = Vec::new();
        let mut end = Ok(());
        for line in lines.split(|octet| *octet == b'\n').filter(|line| !line.is_empty()) {
            match decode::line(kind, line).and_then(|line| self.event(line)) {
                Ok(event) => events.extend(event),
                Err(failure) => {
                    end = Err(failure);
                    break;
                }
            }
        }
        if !events.is_empty() {
            self.send(events).await?;
        }
        self.announce().await?;
        end
    }

    /// Whether it is the object without which something is wrong.
    fn is_own(&self, object: &ObjectRef) -> bool {
        self.resource.own.as_deref() == Some(&*object.name.name)
    }

    fn event(&mut self, line: Line) -> Result<Option<Event>, Failure> {
        match line {
            Line::Apply(item, version) => {
                self.advance(version);
                Ok(match item {
                    Item::Sound(object) => {
                        self.trouble.lost &= !self.is_own(&object.reference());
                        self.remember(&object);
                        if !self.trouble.unreadable.is_empty() {
                            self.trouble.unreadable.remove(&object.reference());
                        }
                        Some(Event::Judged(Judged::of(&object)))
                    }
                    Item::Unreadable(reference, why) => {
                        self.trouble.unreadable.insert(reference.clone(), why);
                        Some(Event::Keep(reference))
                    }
                    Item::Foreign(what) => {
                        self.trouble.odd = Some(format!("an object of kind {what:?} in a watch"));
                        None
                    }
                })
            }
            Line::Delete(reference, version) => {
                self.advance(version);
                self.trouble.lost |= self.is_own(&reference);
                self.trouble.unreadable.remove(&reference);
                Ok(Some(Event::Delete(reference)))
            }
            Line::Bookmark(version) => {
                let known = self.position.as_ref().map(|position| position.version.as_str());
                if known.is_some_and(|known| is_older(&version, known)) {
                    return Err(Failure::Gone("the API server's version went back".into()));
                }
                self.advance(version);
                Ok(None)
            }
            Line::Error(failure) => Err(failure),
            Line::Unknown(what) => {
                self.trouble.odd = Some(what);
                Ok(None)
            }
        }
    }

    /// The watch has come to `version`.
    fn advance(&mut self, version: String) {
        if let Some(position) = self.position.as_mut().filter(|_| !version.is_empty())
            && !is_older(&version, &position.version)
        {
            position.version = version;
        }
    }

    /// Keeps the first object up to date.
    fn remember(&mut self, object: &Object) {
        let metadata = object.metadata();
        let first = self.position.as_mut().and_then(|position| position.first.as_mut());
        if let (Some(first), Some(version)) = (first, &metadata.resource_version)
            && metadata.uid.as_ref() == Some(&first.uid)
        {
            first.version.clone_from(version);
        }
    }

    /// Takes a failure in, and waits as long as it asks for.
    async fn fail(&mut self, failure: &Failure) -> Result<(), Failure> {
        self.is_same_store = false;
        if let (true, Failure::Refused { code: code @ (403 | 404), .. }) =
            (self.resource.kind.is_optional(), failure)
        {
            return self.miss(*code, failure).await;
        }
        if matches!(failure, Failure::Gone(_) | Failure::Garbled(_)) {
            self.position = None;
        }
        let pause = self.failures.count(failure, &self.patience);
        let state = self.board.fail(self.resource.kind);
        tracing::debug!("{} (try {}): {failure}", self.resource.plural, state.failures);
        if state.outage().is_some_and(|outage| outage >= self.patience.quiet) {
            self.tell(failure).await?;
        }
        if self.failures.ask_for_renewal(failure) {
            self.access.renew(self.generation).await;
        }
        tokio::select! {
            () = sleep(pause) => Ok(()),
            () = self.sender.closed() => Err(Failure::Stopped),
        }
    }

    /// Does without the kind until it comes, or may be read. What was known of it is gone: nobody would tell of changes.
    async fn miss(&mut self, code: u16, failure: &Failure) -> Result<(), Failure> {
        let (kind, plural) = (self.resource.kind, self.resource.plural);
        let cost = match kind {
            Kind::Vmi => "migrations are followed by pods and packets alone",
            _ => "an aborted migration shows by its pod's end",
        };
        let why = if code == 404 { "not in this cluster" } else { "may not be read" };
        let cost = format!("{why}; {cost}");
        if self.board.state(kind).phase != Phase::Absent {
            tracing::info!("{plural}: {cost}");
            self.send(vec![Event::Listing(kind), Event::Listed(kind)]).await?;
        }
        self.position = None;
        self.failures = Failures::default();
        self.trouble = Trouble::default();
        if code == 403 {
            self.trouble.outage = Some((format!("{failure}; {cost}"), failure.remedy(plural)));
        }
        self.board.miss(kind, &cost);
        self.announce().await?;
        tokio::select! {
            () = sleep(self.patience.absent) => Ok(()),
            () = self.sender.closed() => Err(Failure::Stopped),
        }
    }

    /// Says that it has been failing for a while.
    async fn tell(&mut self, failure: &Failure) -> Result<(), Failure> {
        let (plural, text) = (self.resource.plural, failure.to_string());
        if self.trouble.outage.is_none() {
            tracing::warn!("the watch of {plural} fails: {failure}; what is installed stays");
        }
        self.board.tell(self.resource.kind, &text);
        let message = format!("{text}; what is known of {plural} stays as it was");
        self.trouble.outage = Some((message, failure.remedy(plural)));
        self.announce().await
    }

    async fn recover(&mut self) -> Result<(), Failure> {
        self.board.recover(self.resource.kind);
        if self.trouble.outage.take().is_some() {
            tracing::info!("the watch of {} works again", self.resource.plural);
            self.announce().await?;
        }
        Ok(())
    }

    /// Hands on what is wrong, if that has changed.
    async fn announce(&mut self) -> Result<(), Failure> {
        let warnings = self.warnings();
        if warnings == self.told {
            return Ok(());
        }
        self.told.clone_from(&warnings);
        let source = format!("watch of {}", self.resource.plural).into();
        self.send(vec![Event::Warnings { source, warnings }]).await
    }

    fn warnings(&self) -> Vec<Warning> {
        let Trouble { unreadable, odd, outage, lost } = &self.trouble;
        let source = format!("watch of {}", self.resource.plural);
        let about = |message: String, remedy: &str| Warning {
            source: source.clone(),
            message,
            remedy: remedy.to_owned(),
            ..Warning::default()
        };
        let mut warnings = Vec::new();
        if let Some((message, remedy)) = outage {
            warnings.push(about(message.clone(), remedy));
        }
        if *lost {
            let name = self.resource.own.as_deref().unwrap_or_default();
            let message = format!(
                "{} has no node {name:?}; the addresses and the zone of this one are unknown",
                self.access.server()
            );
            warnings.push(about(message, "give the node's name by --node-name or NODE_NAME"));
        }
        if let Some(what) = odd {
            warnings
                .push(about(format!("{what}; ignored"), "see what stands between here and the API server"));
        }
        for (reference, why) in unreadable {
            let message = format!("cannot be read ({why}); the object stays as it was");
            let warning = Warning::new(reference, "", message, "correct the object");
            warnings.push(warning.from_source(&source));
        }
        warnings
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), Failure> {
        self.sender.send(events).await.map_err(|_| Failure::Stopped)
    }
}

/// Whether version `one` is from before version `other`; versions that are not numbers cannot be compared.
fn is_older(one: &str, other: &str) -> bool {
    let number = |version: &str| version.parse::<u64>().ok();
    number(one).zip(number(other)).is_some_and(|(one, other)| one < other)
}
