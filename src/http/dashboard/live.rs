//! Parts of pages that go on living, as Server-Sent Events: each `data` is what stands there now.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use futures_util::stream;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    audit::Follower,
    http::{
        ApiError, App,
        api::audit_stream::event_stream,
        extract::{Access, Query, Standing},
    },
    model::{id::WorkspaceId, principal::Caller},
};

/// How often there is a look whether the session lives and the log has grown.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks after which the part is made anew in any case: some of what it tells is how long ago something was.
const LOOKS: u32 = 3;
/// In how many seconds there may be room for another page.
const FULL_FOR: u64 = 10;

/// Whether a page was made for another workspace than the session has been taken to since: to go on there would mix
/// them up. Its script asks no more when it is answered 204 (HTML, section 9.2.3), and loads the page again.
///
/// # Errors
/// When `workspace` is no id.
pub(super) fn is_elsewhere(caller: &Caller, query: &Query) -> Result<bool, ApiError> {
    let workspace: Option<WorkspaceId> = query.parse_as("workspace", "the id of a workspace")?;
    Ok(workspace.is_some_and(|workspace| workspace != caller.workspace()))
}

/// What stands in a part of a page.
pub(super) trait Part: Send + 'static {
    /// What stands there now; none: it is over, and the page is to be loaded again.
    fn now(
        &self,
        app: &App,
        caller: &Caller,
    ) -> impl Future<Output = Result<Option<String>, ApiError>> + Send;
}

/// Tells what stands in a part whenever something in the workspace has happened. There is room for as many as for
/// those who follow the log.
///
/// # Errors
/// When there is no room.
pub(super) async fn part<A: Access, P: Part>(
    app: App,
    caller: &Caller,
    standing: Standing<A>,
    part: P,
) -> Result<Response, ApiError> {
    let end = app.audit_log.end(caller).await?;
    let follower = app.audit_log.followers().join(caller, end);
    let follower = follower.ok_or_else(|| ApiError::rate_limited(FULL_FOR))?;
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let living = Living {
        caller: caller.clone(),
        standing,
        part,
        follower,
        end,
        stopping: app.stopping.subscribe(),
        looks,
        until: 0,
        is_over: false,
        app,
    };
    let texts = stream::unfold(living, async |mut living| {
        let text = living.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), living))
    });
    Ok(event_stream(Body::from_stream(texts)))
}

struct Living<A, P> {
    app: App,
    caller: Caller,
    standing: Standing<A>,
    part: P,
    follower: Follower,
    /// Where the workspace's chain ended when last looked at.
    end: i64,
    stopping: watch::Receiver<bool>,
    looks: Interval,
    /// Looks until the part is made anew in any case.
    until: u32,
    is_over: bool,
}

impl<A: Access, P: Part> Living<A, P> {
    async fn next(&mut self) -> Option<String> {
        while !self.is_over {
            tokio::select! {
                biased;
                _ = self.stopping.wait_for(|stopping| *stopping) => return None,
                _ = self.looks.tick() => {}
            }
            if !self.standing.holds().await {
                return None;
            }
            let end = self.follower.end();
            if end == self.end && self.until > 0 {
                self.until -= 1;
                continue;
            }
            (self.end, self.until) = (end, LOOKS);
            // What it takes of the database takes its turn with all that reads the log.
            let place = self.app.audit_log.place().await.ok()?;
            let now = self.part.now(&self.app, &self.caller).await;
            drop(place);
            let text = match now {
                Ok(Some(text)) => text,
                Ok(None) => {
                    self.is_over = true;
                    return Some("event: over\ndata:\n\n".to_owned());
                }
                // The browser comes back.
                Err(_) => return None,
            };
            let lines = text.split(['\r', '\n']);
            let lines: Vec<_> = lines.map(|line| format!("data: {line}\n")).collect();
            return Some(format!("{}\n", lines.concat()));
        }
        None
    }
}
