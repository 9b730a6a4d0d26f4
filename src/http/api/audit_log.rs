//! The audit log.

use std::net::IpAddr;

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Answer;
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, Query, ReadOnly},
    },
    model::{
        audit::{ActorType, Event, EventFilter, Target},
        id::{self, ApiKeyId, ClientId, EventId, Id, RequestId, UserId},
    },
};

/// Who did it, under the name of that time.
#[derive(Serialize, ToSchema)]
pub struct ActorBody {
    /// `api_key`, `user`, `oauth_client`, `anonymous` or `system`.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    kind: String,
    #[schema(required = true, example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    id: Option<String>,
    #[schema(required = true, example = "prod-2026-q2")]
    name: Option<String>,
}

/// What it was done to.
#[derive(Serialize, ToSchema)]
pub struct TargetBody {
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    kind: String,
    #[schema(example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    id: String,
    #[schema(required = true, example = "prod-2026-q2")]
    name: Option<String>,
}

/// The request that it happened in.
#[derive(Serialize, ToSchema)]
pub struct RequestBody {
    #[schema(required = true)]
    id: Option<RequestId>,
    #[schema(required = true, example = "GET")]
    method: Option<String>,
    /// Without the query string.
    #[schema(required = true, example = "/v1/agents")]
    path: Option<String>,
    #[schema(required = true, example = 200)]
    status: Option<u16>,
    #[schema(required = true, value_type = Option<String>, example = "203.0.113.9")]
    ip: Option<IpAddr>,
    #[schema(required = true, example = "curl/8.5.0")]
    user_agent: Option<String>,
    /// Microseconds from the request's head to its answer.
    #[schema(required = true, example = 412)]
    latency_us: Option<i64>,
}

/// An event.
#[derive(Serialize, ToSchema)]
pub struct EventBody {
    id: EventId,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    at: OffsetDateTime,
    /// `request` for a call of the API, else what happened.
    #[schema(example = "request")]
    action: String,
    actor: ActorBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<TargetBody>,
    /// All null for what the operator does on the command line.
    request: RequestBody,
    #[schema(value_type = Object)]
    metadata: Value,
}

impl From<Event> for EventBody {
    fn from(event: Event) -> Self {
        let prefix = ActorType::id_prefix(&event.actor_type);
        let target = event.target_type.zip(event.target_id).map(|(prefix, id)| TargetBody {
            kind: Target::type_name(&prefix).to_owned(),
            id: id::format(&prefix, id),
            name: event.target_name,
        });
        let request = RequestBody {
            id: event.request_id,
            method: event.method,
            path: event.path,
            status: event.status,
            ip: event.ip,
            user_agent: event.user_agent,
            latency_us: event.latency_us,
        };
        Self {
            id: event.id,
            at: event.at,
            action: event.action,
            actor: ActorBody {
                id: prefix.zip(event.actor_id).map(|(prefix, id)| id::format(prefix, id)),
                kind: event.actor_type,
                name: event.actor_name,
            },
            target,
            request,
            metadata: event.metadata,
        }
    }
}

/// A page of events.
#[derive(Serialize, ToSchema)]
pub struct EventsBody {
    events: Vec<EventBody>,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// Read the audit log
///
/// Newest first. Calls of the API are there within a second, changes at once.
#[utoipa::path(get, path = "/v1/audit-log", tag = "Audit log",
    params(crate::http::openapi::PageParams,
        ("key_id" = Option<ApiKeyId>, Query, description = "Only what this key did"),
        ("actor_id" = Option<String>, Query, description = "Only what this key, person or OAuth client did"),
        ("action" = Option<String>, Query, description = "Only this action"),
        ("method" = Option<String>, Query, description = "Only requests with this method"),
        ("status" = Option<u16>, Query, minimum = 100, maximum = 599,
         description = "Only requests answered with this status"),
        ("ip" = Option<String>, Query, description = "Only requests from this address"),
        ("since" = Option<String>, Query, format = DateTime, description = "From then on"),
        ("until" = Option<String>, Query, format = DateTime, description = "Before then"),
        ("request_id" = Option<RequestId>, Query, description = "Only events of this request")),
    responses((status = 200, body = EventsBody)))]
pub async fn list(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
) -> Answer<Json<EventsBody>> {
    let filter = filter(&query)?;
    let page = app.audit_log.list(&caller, &filter, query.page()?).await?;
    let next_cursor = page.next_cursor(|event| event.id.uuid());
    Ok(Json(EventsBody {
        events: page.items.into_iter().map(EventBody::from).collect(),
        next_cursor,
    }))
}

fn filter(query: &Query) -> Result<EventFilter, ApiError> {
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
