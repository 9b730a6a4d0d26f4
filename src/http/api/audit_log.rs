//! The audit log.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Answer;
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, Query, ReadOnly},
    },
    model::{
        audit::{Event, EventFilter, SignedCheckpoint},
        id::{self, ApiKeyId, ClientId, Id, UserId},
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
    let filter = filter_of(&query)?;
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

/// Which events are wanted.
pub(super) fn filter_of(query: &Query) -> Result<EventFilter, ApiError> {
    let status = query.parse_as::<u16>("status", "an HTTP status")?;
    if status.is_some_and(|status| !(100..=599).contains(&status)) {
        return Err(ApiError::invalid("status", "status must be an HTTP status"));
    }
    Ok(EventFilter {
        key_id: query.parse_as("key_id", "the id of a key")?,
        actor_id: query.text("actor_id")?.map(actor_id).transpose()?,
        action: query.text("action")?.map(action).transpose()?,
        method: query.text("method")?.map(method).transpose()?,
        status,
        ip: query.parse_as("ip", "an IP address")?,
        since: query.timestamp("since")?,
        until: query.timestamp("until")?,
        request_id: query.parse_as("request_id", "the id of a request")?,
    })
}

fn actor_id(text: &str) -> Result<Uuid, ApiError> {
    [ApiKeyId::PREFIX, UserId::PREFIX, ClientId::PREFIX]
        .into_iter()
        .find_map(|prefix| id::parse(prefix, text).ok())
        .ok_or_else(|| {
            ApiError::invalid("actor_id", "actor_id must be the id of a key, person or client")
        })
}

fn action(text: &str) -> Result<String, ApiError> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'_' | b'.'));
    fits.then(|| text.to_owned()).ok_or_else(|| {
        ApiError::invalid("action", "action must be the name of one, such as request")
    })
}

fn method(text: &str) -> Result<String, ApiError> {
    axum::http::Method::from_bytes(text.to_ascii_uppercase().as_bytes())
        .map(|method| method.to_string())
        .map_err(|_| ApiError::invalid("method", "method must be an HTTP method, such as GET"))
}
