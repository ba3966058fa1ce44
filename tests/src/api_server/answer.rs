//! What a request gets: a page, a watch, an object, or a refusal.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::unfold;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{Request, Response};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use vmlb_agent::object::Kind;

use super::fault::Blow;
use super::resource::{Resource, Route};
use super::selector::Selector;
use super::store::Gone;
use super::{Asked, Shared, write};

type Body = BoxBody<Bytes, io::Error>;
type Pieces = mpsc::Sender<io::Result<Frame<Bytes>>>;

/// As good as never.
const FOREVER: Duration = Duration::from_secs(86_400);

/// Answers a request.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let faults = shared.faults().clone();
    if faults.holds {
        sleep(FOREVER).await;
    }
    let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if token.is_empty() || (!faults.token.is_empty() && token != faults.token) {
        return Ok(refusal(401, "Unauthorized", "Unauthorized"));
    }
    if let Some(code) = faults.refuse {
        return Ok(refusal(code, "Forbidden", "it is scripted so"));
    }
    let (parts, body) = request.into_parts();
    let query: Vec<(String, String)> =
        form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let word = |name: &str| {
        query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let is_watch = word("watch") == "true";
    let route = Route::read(&parts.method, parts.uri.path(), is_watch);
    let Some(route) = route.filter(|route| !faults.absent.contains(&route.resource.group)) else {
        return Ok(refusal(404, "NotFound", "the server could not find the requested resource"));
    };
    shared.note_right(route.right());
    let forbidden = |(verb, plural): &(&str, &str)| {
        (*verb == "*" || *verb == route.verb) && *plural == route.resource.plural
    };
    if faults.forbidden.iter().any(forbidden) {
        return Ok(refusal(403, "Forbidden", &route.forbidden()));
    }
    let Some(selector) = Selector::read(word("labelSelector"), word("fieldSelector")) else {
        return Ok(refusal(400, "BadRequest", "a selector that this server does not know"));
    };
    let selector = selector.within(route.namespace.as_deref());
    if let Some(kind) =
        Kind::from_name(route.resource.kind).filter(|_| matches!(route.verb, "list" | "watch"))
    {
        shared.note(Asked { kind, is_watch, query: query.clone() });
        if is_watch {
            let watch = Watch {
                kind,
                selector,
                version: word("resourceVersion").parse().unwrap_or(0),
                end: Instant::now() + word("timeoutSeconds").parse().map_or(FOREVER, Duration::from_secs),
                bookmarks: faults
                    .bookmarks
                    .filter(|_| word("allowWatchBookmarks") == "true")
                    .unwrap_or(FOREVER),
            };
            return Ok(begin_watch(shared.clone(), watch));
        }
    }
    Ok(match route.verb {
        "list" => {
            page(&shared, route.resource, &selector, word("limit").parse().unwrap_or(0), word("continue"))
        }
        "watch" => refusal(405, "MethodNotAllowed", "this server does not watch that"),
        _ => {
            let octets = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
            let keeps =
                if word("dryRun") == "All" { write::Keeps::Nothing } else { write::Keeps::Everything };
            match write::carry_out(&shared, &route, &octets, keeps) {
                Ok((code, object)) => respond(code, vec![Ok(object.to_string())], None),
                Err(write::Refusal { code, reason, message }) => refusal(code, reason, &message),
            }
        }
    })
}

fn status(code: u16, reason: &str, message: &str) -> serde_json::Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    respond(code, vec![Ok(status(code, reason, message).to_string())], None)
}

/// A response of these pieces; an error cuts the connection.
fn respond(code: u16, pieces: Vec<io::Result<String>>, slow: Option<Duration>) -> Response<Body> {
    let (sender, body) = body();
    tokio::spawn(async move {
        for piece in pieces {
            match piece {
                Ok(text) => {
                    if !say(&sender, text, slow).await {
                        return;
                    }
                }
                Err(error) => drop(sender.send(Err(error)).await),
            }
        }
    });
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(body).unwrap_or_default()
}

fn body() -> (Pieces, Body) {
    let (sender, receiver) = mpsc::channel(16);
    let stream =
        unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|piece| (piece, receiver)) });
    (sender, BodyExt::boxed(StreamBody::new(stream)))
}

/// Sends text; `false`: nobody reads it.
async fn say(sender: &Pieces, text: String, slow: Option<Duration>) -> bool {
    let Some(pause) = slow else { return sender.send(Ok(Frame::data(text.into()))).await.is_ok() };
    for piece in text.as_bytes().chunks(64) {
        sleep(pause).await;
        if sender.send(Ok(Frame::data(Bytes::copy_from_slice(piece)))).await.is_err() {
            return false;
        }
    }
    true
}

fn cut() -> io::Error {
    io::Error::other("cut by script")
}

/// Takes one of a counted fault.
fn spend(count: &mut usize) -> bool {
    let is_due = *count > 0;
    *count = count.saturating_sub(1);
    is_due
}

fn page(
    shared: &Shared,
    resource: &'static Resource,
    selector: &Selector,
    limit: usize,
    token: &str,
) -> Response<Body> {
    let faults = &mut *shared.faults();
    if spend(&mut faults.gone_lists) {
        return refusal(410, "Expired", "it is scripted so");
    }
    let page = match shared.store().page(resource.kind, selector, limit, token) {
        Ok(page) => page,
        Err(Gone(message)) => return refusal(410, "Expired", &message),
    };
    if faults.compacts_between_pages && page.token.is_some() {
        shared.store().compact();
    }
    if page.token.is_none() {
        shared.note_listed();
    }
    let items: Vec<&str> = page.items.iter().map(|stored| stored.text.as_str()).collect();
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some(token) = page.token {
        metadata["continue"] = token.into();
    }
    // A list without items has `null`, as from the real one.
    let items = if items.is_empty() { "null".to_owned() } else { format!("[{}]", items.join(",")) };
    let text = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":{items}}}"#,
        resource.kind,
        resource.api_version()
    );
    let half = text[..text.len() / 2].to_owned();
    if spend(&mut faults.truncated_lists) {
        return respond(200, vec![Ok(half)], faults.slow);
    }
    if spend(&mut faults.cut_lists) {
        return respond(200, vec![Ok(half), Err(cut())], faults.slow);
    }
    respond(200, vec![Ok(text)], faults.slow)
}

/// A watch.
struct Watch {
    kind: Kind,
    selector: Selector,
    version: u64,
    end: Instant,
    bookmarks: Duration,
}

fn begin_watch(shared: Arc<Shared>, watch: Watch) -> Response<Body> {
    let is_gone = shared.faults().gone_watches.extract_if(.., |kind| *kind == watch.kind).next().is_some();
    if is_gone {
        return refusal(410, "Expired", "it is scripted so");
    }
    let (sender, body) = body();
    // Before the answer goes out, so that what comes after it is seen.
    let blows = shared.blows.subscribe();
    tokio::spawn(async move { watch.run(&shared, blows, &sender).await });
    let response = Response::builder().header("content-type", "application/json");
    response.body(body).unwrap_or_default()
}

impl Watch {
    async fn run(
        mut self,
        shared: &Shared,
        mut blows: tokio::sync::broadcast::Receiver<Blow>,
        sender: &Pieces,
    ) {
        let mut changed = shared.changed.subscribe();
        let mut bookmark = Instant::now() + self.bookmarks;
        loop {
            if !self.catch_up(shared, sender).await {
                return;
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = sleep_until(bookmark) => {
                    bookmark = Instant::now() + self.bookmarks;
                    if !self.mark(shared, sender).await {
                        return;
                    }
                }
                blow = blows.recv() => match blow {
                    Ok(blow) => if !self.suffer(blow, sender).await { return },
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                () = sleep_until(self.end) => return,
                () = sender.closed() => return,
            }
        }
    }

    /// Shows what has happened; `false`: the watch is over.
    async fn catch_up(&mut self, shared: &Shared, sender: &Pieces) -> bool {
        let faults = shared.faults().clone();
        // A version of the future is waited for, as the real one does.
        let is_ahead = self.version > shared.store().version();
        if faults.is_silent || is_ahead {
            return true;
        }
        let late = faults.late.filter(|(kind, _)| *kind == self.kind);
        if let Some((_, late)) = late {
            sleep(late).await;
        }
        let since = shared.store().since(self.kind.name(), &self.selector, self.version);
        let (version, shown) = match since {
            Ok(since) => since,
            Err(Gone(message)) => {
                let error = json!({"type": "ERROR", "object": status(410, "Expired", &message)});
                say(sender, format!("{error}\n"), None).await;
                return false;
            }
        };
        self.version = version;
        for shown in shown {
            let line = format!("{{\"type\":\"{}\",\"object\":{}}}\n", shown.event, shown.text);
            let line = if faults.doubles { line.repeat(2) } else { line };
            if !say(sender, line, faults.slow).await {
                return false;
            }
        }
        true
    }

    async fn mark(&self, shared: &Shared, sender: &Pieces) -> bool {
        if shared.faults().is_silent {
            return true;
        }
        let (kind, api_version) = (self.kind.name(), self.kind.api_version());
        let version = self.version.min(shared.store().version()).to_string();
        let object =
            json!({"kind": kind, "apiVersion": api_version, "metadata": {"resourceVersion": version}});
        say(sender, format!("{}\n", json!({"type": "BOOKMARK", "object": object})), None).await
    }

    /// `false`: the watch is over.
    async fn suffer(&self, blow: Blow, sender: &Pieces) -> bool {
        const HALF: &str = "{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"Ser";
        match blow {
            Blow::Cut => drop(sender.send(Err(cut())).await),
            Blow::End => {}
            Blow::CutLine => {
                say(sender, HALF.to_owned(), None).await;
                drop(sender.send(Err(cut())).await);
            }
            Blow::BrokenLine => return say(sender, format!("{HALF}\n"), None).await,
            Blow::Error(code, reason) => {
                let error = json!({"type": "ERROR", "object": status(code, reason, "it is scripted so")});
                say(sender, format!("{error}\n"), None).await;
            }
            Blow::Line(kind, line) if kind == self.kind => {
                return say(sender, format!("{line}\n"), None).await;
            }
            Blow::Line(..) => return true,
        }
        false
    }
}
