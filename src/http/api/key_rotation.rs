//! Routes to rotate an API key without downtime.
//!
//! A rotation creates a successor. The old key stays active; the rotation report states when it is
//! safe to revoke. The rules of the report are in [`crate::model::rotation`].

use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    ApiResult, CreationOutcome, IdempotentCreated,
    api_keys::{CreatedKeyBody, commit_created_key},
};
use crate::{
    http::{
        App,
        dto::rotation::RotationBody,
        extract::{Authorized, FirstPartyAdmin, IdempotentJson, PathId, ReadOnly},
    },
    model::id::ApiKeyId,
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
    params(("id" = ApiKeyId, Path), crate::http::dto::parameters::IdempotencyKeyHeader),
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
    let created = app.auth.api_keys.rotate(transaction.tx(), &caller, id, body.name).await?;
    commit_created_key(&app, transaction, created).await
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
    let report = app.auth.api_keys.rotation_status(&caller, id).await?;
    Ok(Json(RotationBody::from(&report)))
}
