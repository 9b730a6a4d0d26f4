//! Routes that read the audit log and its checkpoints.
//!
//! Streaming is in [`super::audit_stream`], export in [`super::audit_export`].

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiResult;
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

/// A page of audit events.
#[derive(Serialize, ToSchema)]
pub struct EventsBody {
    events: Vec<Event<'static>>,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List audit events
///
/// Newest first. Changes are listed at once, other requests within a second.
///
/// A search for rare events ends after 20,000 searched events: the page then has fewer events than
/// the limit, or none, and its `next_cursor` continues the search.
#[utoipa::path(get, path = "/v1/audit-log", tag = "Audit log",
    params(crate::http::dto::parameters::PageParams, crate::http::dto::parameters::EventFilterParams),
    responses((status = 200, body = EventsBody)))]
pub async fn list(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<EventsBody>> {
    let filter = query.event_filter()?;
    let page = app.audit_log.list(&caller, &filter, query.page()?).await?;
    let next_cursor = page.next_cursor(|event| event.id.uuid());
    Ok(Json(EventsBody { events: page.items, next_cursor }))
}

/// Get a checkpoint
///
/// A checkpoint is a signed statement of the current end of the workspace's hash chain. Store
/// checkpoints outside of this service: any later change, removal or insertion of an event before
/// the checkpoint changes the hash. The JSON Web Key Set keeps the keys that sign checkpoints
/// forever.
#[utoipa::path(get, path = "/v1/audit-log/checkpoint", tag = "Audit log",
    responses((status = 200, body = SignedCheckpoint)))]
pub async fn checkpoint(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> ApiResult<Json<SignedCheckpoint>> {
    Ok(Json(app.auth.checkpoints.create(&caller).await?))
}
