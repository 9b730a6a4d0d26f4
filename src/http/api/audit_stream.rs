//! A live stream of the audit log as Server-Sent Events (HTML Standard, section 9.2).
//!
//! The id of an event is its sequence number in the workspace's hash chain. Sequence numbers have
//! no gaps and never change. So a client that reconnects with its last id, to any node, misses no
//! event and gets none twice. New events come from [`crate::audit::StreamSubscription`].

use std::{convert::Infallible, future::ready, time::Duration, vec};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{self, Sse},
    },
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::ApiResult;
use crate::{
    audit::{self, StreamSubscription},
    http::{
        ApiError, App,
        extract::{Authorized, LiveAuthorization, Query, ReadOnly},
    },
    model::{
        audit::{Action, Event, EventFilter},
        principal::Caller,
        scope::Scope,
        usage::{KeyUse, RouteUse},
    },
    store::audit_chains::SealedEvent,
};

/// Maximum number of events that wait for the client. Streams live long and have many clients.
const MAX_UNSENT: usize = 100;
/// Interval of the comments that keep the connection open.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// Interval of the checks that the credential is still valid.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before a client reconnects.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// `Retry-After` in seconds while the limit of concurrent streams is reached.
const RETRY_AFTER_SECONDS: u64 = 10;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Makes nginx forward events at once instead of buffering them.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Stream audit events
///
/// Server-Sent Events. `data` is an audit event, `id` its sequence number in the workspace's hash
/// chain. A client that reconnects with the last id as `Last-Event-ID` misses no event and gets
/// none twice; browsers do so automatically. Without `Last-Event-ID`, the stream starts with the
/// next event. A comment every 15 seconds keeps the connection open. The stream ends when the
/// credential expires or is revoked.
#[utoipa::path(get, path = "/v1/audit-log/stream", tag = "Audit log",
    params(crate::http::dto::parameters::EventFilterParams,
        ("Last-Event-ID" = Option<i64>, Header, minimum = 0,
         description = "The id of the last event that the client received")),
    responses((status = 200, body = String, content_type = "text/event-stream")))]
pub async fn stream(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
    authorization: LiveAuthorization<ReadOnly>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    stream_events(caller, app, &query, authorization, &headers, |event| {
        serde_json::to_string(event).ok()
    })
    .await
}

/// Formats an event as the data of a Server-Sent Event. `None` skips the event.
pub(in crate::http) type EventFormatter = fn(&Event<'static>) -> Option<String>;

/// Streams the events that match the filter of the query.
pub(in crate::http) async fn stream_events(
    caller: Authorized<ReadOnly>,
    app: App,
    query: &Query,
    authorization: LiveAuthorization<ReadOnly>,
    headers: &HeaderMap,
    format: EventFormatter,
) -> ApiResult<Response> {
    let filter = query.event_filter()?;
    let end = app.audit_log.chain_end(&caller).await?;
    // An id beyond the end is from another deployment, or from before a backup was restored.
    let sequence = last_event_id(headers)?.unwrap_or(end).min(end);
    let follower = app.audit_log.subscriptions().subscribe(&caller, end);
    let follower = follower.ok_or_else(|| ApiError::rate_limited(RETRY_AFTER_SECONDS))?;
    let tail = Tail {
        caller: Caller::clone(&caller),
        authorization,
        filter,
        format,
        follower,
        sequence,
        unsent: Vec::new().into_iter(),
        shutdown: app.shutdown.clone(),
        heartbeat: interval(HEARTBEAT_INTERVAL),
        check: interval(CHECK_INTERVAL),
        app,
    };
    // Send the id at once: a client that loses the connection before the first event can resume.
    let start = sse::Event::default()
        .comment(format!("from {sequence}"))
        .retry(RECONNECT_DELAY)
        .id(sequence.to_string());
    let rest = stream::unfold(tail, async |mut tail| Some((tail.next().await?, tail)));
    Ok(sse_response(stream::once(ready(start)).chain(rest)))
}

/// Builds a response of Server-Sent Events.
pub(in crate::http) fn sse_response(
    events: impl Stream<Item = sse::Event> + Send + 'static,
) -> Response {
    ([UNBUFFERED], Sse::new(events.map(Ok::<_, Infallible>))).into_response()
}

fn last_event_id(headers: &HeaderMap) -> ApiResult<Option<i64>> {
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

fn interval(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The reason to wake up a stream.
enum Wake {
    /// Send a comment that keeps the connection open.
    Heartbeat,
    /// Check the credential.
    Check,
    /// Send the next event that was read.
    Unsent,
    /// Read new events up to this sequence number.
    NewEvents(i64),
}

/// The stream of one client.
struct Tail {
    app: App,
    caller: Caller,
    authorization: LiveAuthorization<ReadOnly>,
    filter: EventFilter,
    format: EventFormatter,
    follower: StreamSubscription,
    /// Sequence number of the last event that was read.
    sequence: i64,
    /// Events that were read and not sent yet: at most [`MAX_UNSENT`].
    unsent: vec::IntoIter<SealedEvent>,
    shutdown: CancellationToken,
    heartbeat: Interval,
    check: Interval,
}

impl Tail {
    /// Returns the next event to send, or `None` to end the stream. Polled only when the client can
    /// take more (back-pressure).
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            match self.wait().await? {
                Wake::Heartbeat | Wake::Check if !self.authorization.is_valid().await => {
                    return None;
                }
                // Not axum's `KeepAlive`, which sends a comment only if there are no events.
                Wake::Heartbeat => {
                    self.record_stream_usage().await;
                    return Some(sse::Event::DEFAULT_KEEP_ALIVE);
                }
                Wake::Check => {}
                Wake::Unsent => {
                    if let Some(event) = self.next_unsent() {
                        return Some(event);
                    }
                }
                Wake::NewEvents(end) => self.read_events(end).await?,
            }
        }
    }

    /// Waits for a reason to wake up; `None` if the service stops.
    async fn wait(&mut self) -> Option<Wake> {
        let has_unsent = !self.unsent.as_slice().is_empty();
        Some(tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return None,
            _ = self.heartbeat.tick() => Wake::Heartbeat,
            _ = self.check.tick() => Wake::Check,
            () = ready(()), if has_unsent => Wake::Unsent,
            end = self.follower.wait_for_events_after(self.sequence) => Wake::NewEvents(end),
        })
    }

    /// Reads the events after the last one, up to `end`. `None` ends the stream.
    async fn read_events(&mut self, end: i64) -> Option<()> {
        let (log, last) = (&self.app.audit_log, self.sequence);
        // After an error the client reconnects and resumes after its last id.
        let sealed = log.list_sealed_events(&self.caller, last, end, MAX_UNSENT).await.ok()?;
        // Check after the read: events sealed after the credential ended must not be sent.
        if !self.authorization.is_valid().await {
            return None;
        }
        self.sequence = sealed.last().map_or(end, |last| last.sequence);
        self.unsent = sealed.into_iter();
        Some(())
    }

    /// Takes the unsent events up to the next one that matches the filter.
    fn next_unsent(&mut self) -> Option<sse::Event> {
        let Self { unsent, filter, format, .. } = self;
        unsent.find_map(|SealedEvent { sequence, event, .. }| {
            let event = event.filter(|event| filter.matches(event))?;
            Some(sse::Event::default().id(sequence.to_string()).data(format(&event)?))
        })
    }

    /// Records that the key is in use, without counting a request. Otherwise a key with an open
    /// stream would look idle, and safe to revoke.
    async fn record_stream_usage(&self) {
        let Some(permit) = self.app.audit.reserve().await else { return };
        let mut event = audit::event(&self.app.env, &self.caller, Action::Request, 200);
        let route = RouteUse { group: "audit-log", scope: Scope::ReadOnly };
        event.key_use = KeyUse::OpenStream(route);
        permit.send(event);
    }
}
