//! Live fragments of pages as Server-Sent Events: the data of each event is the new HTML of the
//! fragment.
//!
//! A stream polls the audit log of its workspace and renders the fragment when the log has grown.
//! It ends when the session ends, the session switches to another workspace, or the node shuts
//! down.

use std::time::Duration;

use axum::response::{Response, sse};
use futures_util::stream;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::StreamSubscription,
    http::{
        ApiError, App,
        api::audit_stream::sse_response,
        extract::{LiveAuthorization, ProtectedAccess, Query},
    },
    model::{id::WorkspaceId, principal::Caller},
};

/// The interval at which a stream checks the session and the audit log.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The number of polls after which a fragment is rendered even without new events: it contains
/// relative times.
const POLLS_PER_RENDER: u32 = 3;
/// The `Retry-After` of a node that has no capacity for another stream, in seconds.
const RETRY_AFTER_SECONDS: u64 = 10;

/// Returns true if a page belongs to another workspace than the session, which has switched since.
///
/// The caller must then answer 204: it stops the browser from reconnecting (HTML, section 9.2.3),
/// and the script reloads the page. Otherwise data of two workspaces would mix on one page.
///
/// # Errors
/// `validation_failed` if `workspace` is not a workspace id.
pub(super) fn is_other_workspace(caller: &Caller, query: &Query) -> Result<bool, ApiError> {
    let workspace: Option<WorkspaceId> = query.parse_as("workspace", "the id of a workspace")?;
    Ok(workspace.is_some_and(|workspace| workspace != caller.workspace()))
}

/// A part of a page that is updated while the page is open.
pub(super) trait LiveFragment: Send + 'static {
    /// Renders the current HTML. `None` ends the stream, and the browser reloads the page.
    fn render(
        &self,
        app: &App,
        caller: &Caller,
    ) -> impl Future<Output = Result<Option<String>, ApiError>> + Send;
}

/// Streams a fragment: renders it whenever the audit log of the workspace grows.
///
/// The streams share the limits of the audit log streams.
///
/// # Errors
/// `rate_limited` if too many streams are open.
pub(super) async fn stream_fragment<A: ProtectedAccess, P: LiveFragment>(
    app: App,
    caller: &Caller,
    authorization: LiveAuthorization<A>,
    fragment: P,
) -> Result<Response, ApiError> {
    let end = app.audit_log.chain_end(caller).await?;
    let follower = app.audit_log.subscriptions().subscribe(caller, end);
    let follower = follower.ok_or_else(|| ApiError::rate_limited(RETRY_AFTER_SECONDS))?;
    let mut poll_interval = interval(POLL_INTERVAL);
    poll_interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let fragment_stream = FragmentStream {
        caller: caller.clone(),
        authorization,
        fragment,
        follower,
        end,
        shutdown: app.shutdown.clone(),
        poll_interval,
        polls_until_render: 0,
        is_over: false,
        app,
    };
    let events = stream::unfold(fragment_stream, async |mut fragment_stream| {
        Some((fragment_stream.next_event().await?, fragment_stream))
    });
    Ok(sse_response(events))
}

struct FragmentStream<A, P> {
    app: App,
    caller: Caller,
    authorization: LiveAuthorization<A>,
    fragment: P,
    follower: StreamSubscription,
    /// The end of the workspace's hash chain at the last poll.
    end: i64,
    shutdown: CancellationToken,
    poll_interval: Interval,
    /// The number of polls until the fragment is rendered even without new events.
    polls_until_render: u32,
    is_over: bool,
}

impl<A: ProtectedAccess, P: LiveFragment> FragmentStream<A, P> {
    /// Returns the next event; `None` ends the stream.
    async fn next_event(&mut self) -> Option<sse::Event> {
        while !self.is_over {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                _ = self.poll_interval.tick() => {}
            }
            if !self.authorization.is_valid().await {
                return None;
            }
            let end = self.follower.chain_end();
            if end == self.end && self.polls_until_render > 0 {
                self.polls_until_render -= 1;
                continue;
            }
            (self.end, self.polls_until_render) = (end, POLLS_PER_RENDER);
            // Fragments share the concurrency limit of all queries on the audit log.
            let permit =
                self.app.audit_log.acquire_query_permit(self.caller.workspace()).await.ok()?;
            let rendered = self.fragment.render(&self.app, &self.caller).await;
            drop(permit);
            return match rendered {
                Ok(Some(html)) => Some(sse::Event::default().data(html)),
                Ok(None) => {
                    self.is_over = true;
                    // Browsers ignore an event without data.
                    Some(sse::Event::default().event("over").data("over"))
                }
                // The browser reconnects.
                Err(_) => None,
            };
        }
        None
    }
}
