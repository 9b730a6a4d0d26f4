//! The audit log.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::Answer;
use crate::{
    http::{
        App,
        extract::{Authorized, Query, ReadOnly},
    },
    model::{
        audit::{Event, SignedCheckpoint},
        id::Id,
    },
};

/// A page of events.
#[derive(Serialize, ToSchema)]
pub struct EventsBody {
    events: Vec<Event<'static>>,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Read the audit log
///
/// Newest first. Calls of the API are there within a second, changes at once.
#[utoipa::path(get, path = "/v1/audit-log", tag = "Audit log",
    params(crate::http::openapi::PageParams, crate::http::openapi::EventFilterParams),
    responses((status = 200, body = EventsBody)))]
pub async fn list(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
) -> Answer<Json<EventsBody>> {
    let filter = query.event_filter()?;
    let page = app.audit_log.list(&caller, &filter, query.page()?).await?;
    let next_cursor = page.next_cursor(|event| event.id.uuid());
    Ok(Json(EventsBody { events: page.items, next_cursor }))
}

/// Get a checkpoint
///
/// What the workspace's hash chain is at the moment, signed, to be kept elsewhere: events up to there cannot be
/// changed, removed or added any more without the chain having another hash there. Keys that sign checkpoints stay in the
/// JWKS for good.
#[utoipa::path(get, path = "/v1/audit-log/checkpoint", tag = "Audit log",
    responses((status = 200, body = SignedCheckpoint)))]
pub async fn checkpoint(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> Answer<Json<SignedCheckpoint>> {
    Ok(Json(app.auth.checkpoint(&caller).await?))
}
