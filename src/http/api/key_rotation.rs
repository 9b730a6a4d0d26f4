//! Rotation of API keys: a successor, and whether it is safe to revoke the old key.

use std::net::IpAddr;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    Answer, CreatedOnce, Creating,
    api_keys::{CreatedKeyBody, minted_answer},
};
use crate::{
    http::{
        App,
        extract::{Authorized, Creation, FirstPartyAdmin, PathId, ReadOnly},
    },
    model::{
        id::ApiKeyId,
        rotation::{KeyClient, KeyTraffic, RotationReport, RotationState},
    },
};

/// A successor to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// What the successor is called: 1 to 100 characters; as the old key, unless given.
    #[schema(min_length = 1, max_length = 100, example = "prod-2026-q3")]
    name: Option<String>,
}

/// Rotate a key
///
/// Mints a successor with the same scope, description and addresses. The old key stays active until it is revoked:
/// deploy the new one, watch `GET /v1/api-keys/{id}/rotation`, then revoke with `if_quiet=true`. The answer is the only
/// place that ever shows the new secret.
#[utoipa::path(post, path = "/v1/api-keys/{id}/rotate", tag = "API keys",
    params(("id" = ApiKeyId, Path), crate::http::openapi::IdempotencyKey),
    request_body = RotateRequest,
    responses((status = 201, body = CreatedKeyBody), (status = 404), (status = 409)))]
pub async fn rotate(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    Creation { body, attempt }: Creation<RotateRequest>,
) -> Answer<CreatedOnce> {
    let mut work = match CreatedOnce::begin(&app, &caller, attempt).await? {
        Creating::Work(work) => work,
        Creating::Done(answer) => return Ok(answer),
    };
    let minted = app.auth.rotate_key(work.tx(), &caller, id, body.name).await?;
    minted_answer(&app, work, minted).await
}

/// A program at an address that used a key within the last hour.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyClientBody {
    #[schema(value_type = String, example = "203.0.113.9")]
    ip: IpAddr,
    #[schema(required = true, example = "Zapier")]
    user_agent: Option<String>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    last_used_at: OffsetDateTime,
    /// What it last did…
    #[schema(example = "POST")]
    last_method: String,
    /// …and where.
    #[schema(example = "/v1/calls")]
    last_path: String,
    /// How often it used the key, in all.
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

/// What a key was used for lately.
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
    /// The last first.
    #[schema(value_type = Vec<String>, example = json!(["203.0.113.9"]))]
    addresses_last_hour: Vec<IpAddr>,
    /// The last first, at most a hundred.
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

/// How far a rotation is.
#[derive(Debug, Serialize, ToSchema)]
pub struct RotationBody {
    old: KeyTrafficBody,
    /// Null in a refusal to revoke a key that was not rotated.
    #[schema(required = true)]
    new: Option<KeyTrafficBody>,
    state: RotationState,
    /// The new key's part of the last hour's requests with either, from 0 to 1.
    #[schema(example = 0.97)]
    adoption: f64,
    /// Whether the new key serves and the old one has been quiet for long enough, on every node.
    safe_to_revoke: bool,
    /// Why, or why not.
    #[schema(example = "the old key was in use 12 s ago: it takes 900 s of quiet")]
    reason: String,
    /// For how long the old key has certainly not been used.
    quiet_for_seconds: i64,
    /// For how long it has to be unused until it is safe to revoke: `rotation.quiet_seconds`.
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

/// See how far a rotation is
///
/// From exact counts: requests that were served from a cache are among them, on all nodes.
#[utoipa::path(get, path = "/v1/api-keys/{id}/rotation", tag = "API keys",
    params(("id" = ApiKeyId, Path)),
    responses((status = 200, body = RotationBody), (status = 404)))]
pub async fn rotation(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
) -> Answer<Json<RotationBody>> {
    let report = app.auth.rotation(&caller, id).await?;
    Ok(Json(RotationBody::from(&report)))
}
