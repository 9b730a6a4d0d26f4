//! Routes to rotate an API key without downtime.
//!
//! A rotation creates a successor. The old key stays active; the rotation report states when it is
//! safe to revoke. The rules of the report are in [`crate::model::rotation`].

use std::net::IpAddr;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    ApiResult, CreationOutcome, IdempotentCreated,
    api_keys::{CreatedKeyBody, commit_created_key},
};
use crate::{
    http::{
        App,
        extract::{Authorized, FirstPartyAdmin, IdempotentJson, PathId, ReadOnly},
    },
    model::{
        id::ApiKeyId,
        rotation::{KeyClient, KeyTraffic, RotationReport, RotationState},
    },
};

/// A rotation to start.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateKeyRequest {
    /// The name of the successor: 1 to 100 characters. The default is the name of the old key.
    #[schema(min_length = 1, max_length = 100, example = "prod-2026-q3")]
    name: Option<String>,
}

/// Rotate an API key
///
/// Creates a successor with the same scope, description and allowed networks. The old key stays
/// active until you revoke it: deploy the new key, watch `GET /v1/api-keys/{id}/rotation`, then
/// revoke the old key with `if_quiet=true`. Only this response contains the new secret.
#[utoipa::path(post, path = "/v1/api-keys/{id}/rotate", tag = "API keys",
    params(("id" = ApiKeyId, Path), crate::http::openapi::IdempotencyKeyHeader),
    request_body = RotateKeyRequest,
    responses((status = 201, body = CreatedKeyBody), (status = 404), (status = 409)))]
pub async fn rotate(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    IdempotentJson { body, attempt }: IdempotentJson<RotateKeyRequest>,
) -> ApiResult<IdempotentCreated> {
    let mut transaction = match IdempotentCreated::begin(&app, &caller, attempt).await? {
        CreationOutcome::New(transaction) => transaction,
        CreationOutcome::Replayed(response) => return Ok(response),
    };
    let created = app.auth.rotate_key(transaction.tx(), &caller, id, body.name).await?;
    commit_created_key(&app, transaction, created).await
}

/// A client, identified by address and user agent, that used the key within the last hour.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyClientBody {
    #[schema(value_type = String, example = "203.0.113.9")]
    ip: IpAddr,
    #[schema(required = true, example = "Zapier")]
    user_agent: Option<String>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    last_used_at: OffsetDateTime,
    /// The HTTP method of its last request.
    #[schema(example = "POST")]
    last_method: String,
    /// The path of its last request.
    #[schema(example = "/v1/calls")]
    last_path: String,
    /// Total number of its requests with the key.
    requests: i64,
}

impl From<&KeyClient> for KeyClientBody {
    fn from(client: &KeyClient) -> Self {
        Self {
            ip: client.ip,
            user_agent: Some(client.user_agent.clone()).filter(|text| !text.is_empty()),
            last_used_at: client.last_used_at,
            last_method: client.last_method.clone(),
            last_path: client.last_path.clone(),
            requests: client.requests,
        }
    }
}

/// The recent usage of a key.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyTrafficBody {
    id: ApiKeyId,
    #[schema(example = "prod-2026-q2")]
    name: String,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    first_used_at: Option<OffsetDateTime>,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
    requests_last_hour: i64,
    /// The addresses that used the key, most recent first.
    #[schema(value_type = Vec<String>, example = json!(["203.0.113.9"]))]
    addresses_last_hour: Vec<IpAddr>,
    /// The clients that used the key, most recent first, at most 100.
    clients_last_hour: Vec<KeyClientBody>,
}

impl From<&KeyTraffic> for KeyTrafficBody {
    fn from(traffic: &KeyTraffic) -> Self {
        Self {
            id: traffic.id,
            name: traffic.name.clone(),
            first_used_at: traffic.first_used_at,
            last_used_at: traffic.last_used_at,
            requests_last_hour: traffic.requests_last_hour,
            addresses_last_hour: traffic.addresses(),
            clients_last_hour: traffic.clients_last_hour.iter().map(KeyClientBody::from).collect(),
        }
    }
}

/// The progress of a rotation.
#[derive(Debug, Serialize, ToSchema)]
pub struct RotationBody {
    old: KeyTrafficBody,
    /// Null only in a `key_in_use` error about a key that has no successor.
    #[schema(required = true)]
    new: Option<KeyTrafficBody>,
    state: RotationState,
    /// The new key's share of the requests of the last hour with either key, from 0 to 1.
    #[schema(example = 0.97)]
    adoption: f64,
    /// True if the new key is in use and the old key has been idle for long enough, on every node.
    safe_to_revoke: bool,
    /// The reason for `safe_to_revoke`, as a text.
    #[schema(example = "the old key was last used 12 s ago; it must be idle for 900 s")]
    reason: String,
    /// Seconds for which the old key has certainly been idle.
    quiet_for_seconds: i64,
    /// Seconds for which the old key must be idle before it is safe to revoke. The operator sets
    /// them with `rotation.quiet_seconds`.
    #[schema(example = 900)]
    required_quiet_seconds: i64,
}

impl From<&RotationReport> for RotationBody {
    fn from(report: &RotationReport) -> Self {
        Self {
            old: (&report.old).into(),
            new: report.new.as_ref().map(KeyTrafficBody::from),
            state: report.state,
            adoption: report.adoption(),
            safe_to_revoke: report.safe_to_revoke,
            reason: report.reason.clone(),
            quiet_for_seconds: report.quiet_for.whole_seconds(),
            required_quiet_seconds: report.required_quiet.whole_seconds(),
        }
    }
}

/// Get the progress of a rotation
///
/// The counts are exact and cover all nodes; requests served from a cache count too. The response
/// is 404 if the key has no active successor.
#[utoipa::path(get, path = "/v1/api-keys/{id}/rotation", tag = "API keys",
    params(("id" = ApiKeyId, Path)),
    responses((status = 200, body = RotationBody), (status = 404)))]
pub async fn rotation(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
) -> ApiResult<Json<RotationBody>> {
    let report = app.auth.rotation_status(&caller, id).await?;
    Ok(Json(RotationBody::from(&report)))
}
