//! A live stream of the audit log as Server-Sent Events (HTML Standard, section 9.2).
//!
//! The id of an event is its sequence number in the workspace's hash chain. Sequence numbers have
//! no gaps and never change. So a client that reconnects with its last id, to any node, misses no
//! event and gets none twice. New events come from [`crate::audit::StreamSubscription`].

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
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
        usage::RouteUse,
    },
    store::audit_chains::SealedEvent,
};

/// Interval of the comments that keep the connection open.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// Interval of the checks that the credential is still valid.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Delay in milliseconds before a client reconnects.
const RECONNECT_MS: u32 = 1000;
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
        shutdown: app.shutdown.clone(),
        heartbeat: interval(HEARTBEAT_INTERVAL),
        check: interval(CHECK_INTERVAL),
        app,
    };
    // Send the id at once: a client that loses the connection before the first event can resume.
    let start = format!(": from {sequence}\nretry: {RECONNECT_MS}\nid: {sequence}\n\n");
    let start = stream::iter([Ok::<_, Infallible>(Bytes::from(start))]);
    let rest = stream::unfold(tail, async |mut tail| {
        let text = tail.next().await?;
        Some((Ok(Bytes::from(text)), tail))
    });
    Ok(sse_response(Body::from_stream(stream::StreamExt::chain(start, rest))))
}

/// Builds a response of Server-Sent Events.
pub(in crate::http) fn sse_response(body: Body) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    ([content_type, UNBUFFERED], body).into_response()
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
    /// Sequence number of the last event that was sent or skipped.
    sequence: i64,
    shutdown: CancellationToken,
    heartbeat: Interval,
    check: Interval,
}

impl Tail {
    /// Returns the next text to send, or `None` to end the stream. Polled only when the client can
    /// take more (back-pressure).
    async fn next(&mut self) -> Option<String> {
        loop {
            let wake = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                _ = self.heartbeat.tick() => Wake::Heartbeat,
                _ = self.check.tick() => Wake::Check,
                end = self.follower.wait_for_events_after(self.sequence) => Wake::NewEvents(end),
            };
            let end = match wake {
                Wake::NewEvents(end) => end,
                Wake::Heartbeat | Wake::Check if !self.authorization.is_valid().await => {
                    return None;
                }
                Wake::Heartbeat => {
                    self.record_stream_usage().await;
                    return Some(": \n\n".to_owned());
                }
                Wake::Check => continue,
            };
            let Ok(sealed) =
                self.app.audit_log.list_sealed_events(&self.caller, self.sequence, end).await
            else {
                // The client reconnects and resumes after its last id.
                return None;
            };
            // Check after the read: events sealed after the credential ended must not be sent.
            if !self.authorization.is_valid().await {
                return None;
            }
            self.sequence = sealed.last().map_or(end, |last| last.sequence);
            let text = self.format_events(&sealed);
            if !text.is_empty() {
                return Some(text);
            }
        }
    }

    /// Records that the key is in use, without counting a request. Otherwise a key with an open
    /// stream would look idle, and safe to revoke.
    async fn record_stream_usage(&self) {
        let Some(permit) = self.app.audit.reserve().await else { return };
        let mut event = audit::event(&self.app.env, &self.caller, Action::Request, 200);
        event.route = Some(RouteUse { group: "audit-log", scope: Scope::ReadOnly });
        event.is_usage_only = true;
        permit.send(event);
    }

    /// Formats the events that match the filter.
    fn format_events(&self, sealed: &[SealedEvent]) -> String {
        let mut text = String::new();
        for SealedEvent { sequence, event, .. } in sealed {
            let Some(event) = event.as_ref().filter(|event| self.filter.matches(event)) else {
                continue;
            };
            if let Some(data) = (self.format)(event) {
                writeln!(text, "id: {sequence}").ok();
                // JSON is one line; HTML may have several.
                for line in data.split(['\r', '\n']) {
                    writeln!(text, "data: {line}").ok();
                }
                text.push('\n');
            }
        }
        text
    }
}
