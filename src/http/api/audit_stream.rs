//! The audit log as it grows: Server-Sent Events (HTML, section 9.2).
//!
//! The id of an event is its place in the workspace's hash chain. Places have no gaps and never change, so whoever
//! comes back with the last one, to whichever node, misses nothing and gets nothing twice.

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::Answer;
use crate::{
    audit::{self, Follower},
    http::{
        ApiError, App,
        extract::{Authorized, Query, ReadOnly, Standing},
    },
    model::{
        audit::{Action, Event, EventFilter},
        principal::Caller,
        scope::Scope,
        usage::RouteUse,
    },
    store::chains::Sealed,
};

/// How often a comment shows that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often the credential is looked at while nothing happens.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How soon a client comes back after the connection broke, in milliseconds.
const RETRY_MS: u32 = 1000;
/// In how many seconds there may be room for another client.
const FULL_FOR: u64 = 10;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx to pass on what comes as it comes.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Follow the audit log
///
/// Server-Sent Events: each `data` is an event of the log, each `id` its place in the workspace's hash chain. Who comes
/// back with the last id as `Last-Event-ID`, as browsers do by themselves, misses nothing and gets nothing twice;
/// without one, the stream begins now. A comment comes every 15 seconds. The stream ends when the credential does.
#[utoipa::path(get, path = "/v1/audit-log/stream", tag = "Audit log",
    params(crate::http::openapi::EventFilterParams,
        ("Last-Event-ID" = Option<i64>, Header, minimum = 0,
         description = "The id of the last event that the client has")),
    responses((status = 200, body = String, content_type = "text/event-stream")))]
pub async fn stream(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
    standing: Standing<ReadOnly>,
    headers: HeaderMap,
) -> Answer<Response> {
    follow(caller, app, &query, standing, &headers, |event| serde_json::to_string(event).ok()).await
}

/// How an event is told: its text.
pub(in crate::http) type Tell = fn(&Event<'static>) -> Option<String>;

/// Follows the log, and tells each event that passes the query's filter.
pub(in crate::http) async fn follow(
    caller: Authorized<ReadOnly>,
    app: App,
    query: &Query,
    standing: Standing<ReadOnly>,
    headers: &HeaderMap,
    tell: Tell,
) -> Answer<Response> {
    let filter = query.event_filter()?;
    let end = app.audit_log.end(&caller).await?;
    // Whoever has seen more than there is comes from another deployment, or from before a restored backup.
    let sequence = last_event_id(headers)?.unwrap_or(end).min(end);
    let follower = app.audit_log.followers().join(&caller, end);
    let follower = follower.ok_or_else(|| ApiError::rate_limited(FULL_FOR))?;
    let tail = Tail {
        caller: Caller::clone(&caller),
        standing,
        filter,
        tell,
        follower,
        sequence,
        stopping: app.stopping.subscribe(),
        heartbeat: every(HEARTBEAT),
        check: every(CHECK_EVERY),
        app,
    };
    // The place is told at once, so that whoever is cut off before the first event misses none.
    let begin = format!(": from {sequence}\nretry: {RETRY_MS}\nid: {sequence}\n\n");
    let begin = stream::iter([Ok::<_, Infallible>(Bytes::from(begin))]);
    let rest = stream::unfold(tail, async |mut tail| {
        let text = tail.next().await?;
        Some((Ok(Bytes::from(text)), tail))
    });
    Ok(event_stream(Body::from_stream(stream::StreamExt::chain(begin, rest))))
}

/// An answer of Server-Sent Events.
pub(in crate::http) fn event_stream(body: Body) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    ([content_type, UNBUFFERED], body).into_response()
}

fn last_event_id(headers: &HeaderMap) -> Answer<Option<i64>> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse::<i64>().ok().filter(|id| *id >= 0);
    let refuse = || {
        let message = "Last-Event-ID must be the id of an event of this stream";
        ApiError::invalid("Last-Event-ID", message)
    };
    id.map(Some).ok_or_else(refuse)
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    stopping.wait_for(|stopping| *stopping).await.map(drop).ok();
}

/// What there is to do for a client.
enum Wake {
    /// To show that the connection lives.
    Heartbeat,
    /// To look at the credential.
    Check,
    /// To read on: the chain ends here now.
    Behind(i64),
}

/// A client that follows.
struct Tail {
    app: App,
    caller: Caller,
    standing: Standing<ReadOnly>,
    filter: EventFilter,
    tell: Tell,
    follower: Follower,
    /// The place up to which it has everything.
    sequence: i64,
    stopping: watch::Receiver<bool>,
    heartbeat: Interval,
    check: Interval,
}

impl Tail {
    /// What the client is sent next; none: the stream is over. Asked for only when there is room for it.
    async fn next(&mut self) -> Option<String> {
        loop {
            let wake = tokio::select! {
                biased;
                () = stopped(&mut self.stopping) => return None,
                _ = self.heartbeat.tick() => Wake::Heartbeat,
                _ = self.check.tick() => Wake::Check,
                end = self.follower.behind(self.sequence) => Wake::Behind(end),
            };
            let end = match wake {
                Wake::Behind(end) => end,
                Wake::Heartbeat | Wake::Check if !self.standing.holds().await => return None,
                Wake::Heartbeat => {
                    self.goes_on().await;
                    return Some(": \n\n".to_owned());
                }
                Wake::Check => continue,
            };
            let Ok(sealed) = self.app.audit_log.sealed(&self.caller, self.sequence, end).await
            else {
                // The client comes back, to where it was.
                return None;
            };
            // Behind the reading: nothing goes out that was sealed after the credential's end.
            if !self.standing.holds().await {
                return None;
            }
            self.sequence = sealed.last().map_or(end, |last| last.sequence);
            let text = self.told(&sealed);
            if !text.is_empty() {
                return Some(text);
            }
        }
    }

    /// Whoever follows goes on using the key, and would miss it.
    async fn goes_on(&self) {
        let Some(permit) = self.app.audit.reserve().await else { return };
        let mut event = audit::event(&self.app.env, &self.caller, Action::Request, 200);
        event.route = Some(RouteUse { group: "audit-log", scope: Scope::ReadOnly });
        event.is_use_alone = true;
        permit.send(event);
    }

    /// The events that the client wants.
    fn told(&self, sealed: &[Sealed]) -> String {
        let mut text = String::new();
        for Sealed { sequence, event, .. } in sealed {
            let Some(event) = event.as_ref().filter(|event| self.filter.passes(event)) else {
                continue;
            };
            if let Some(told) = (self.tell)(event) {
                writeln!(text, "id: {sequence}").ok();
                // JSON is one line; other texts may be many.
                for line in told.split(['\r', '\n']) {
                    writeln!(text, "data: {line}").ok();
                }
                text.push('\n');
            }
        }
        text
    }
}
