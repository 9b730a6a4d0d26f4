//! Routes of API keys: create, list and update.
//!
//! Only the response to a creation holds the secret. Revocation is in [`super::key_revocation`],
//! rotation in [`super::key_rotation`], usage in [`super::key_usage`].

use std::net::IpAddr;

use axum::{Json, extract::State};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{ApiResult, CreationOutcome, IdempotentCreated, to_json};
use crate::{
    auth::api_keys::{CreateKeyParams, CreatedKey, UpdateKeyParams},
    http::{
        ApiError, App,
        extract::{
            self, Admin, Authorized, FirstPartyAdmin, IdempotentJson, PathId, Query, ReadOnly,
        },
    },
    idempotency::IdempotentTransaction,
    model::{
        api_key::{ApiKey, KeyStatus},
        id::{ApiKeyId, Id},
        scope::Scope,
        text,
    },
    store::{Audited, api_keys::KeyFilter},
};

/// An API key without its secret.
#[derive(Serialize, ToSchema)]
pub struct ApiKeyBody {
    id: ApiKeyId,
    /// The name of the key.
    #[schema(example = "prod-2026-q2")]
    name: String,
    #[schema(required = true)]
    description: Option<String>,
    scope: Scope,
    status: KeyStatus,
    /// The first and last characters of the key, to recognize it.
    #[schema(example = "sk_call2me_live_AbCd…wXyZ")]
    redacted: String,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// The id of the user or API key that created the key, or null for the operator.
    #[schema(required = true, example = "user_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    created_by: Option<String>,
    /// Time of the last request with the key. Requests served from a cache count too.
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
    #[schema(required = true, value_type = Option<String>, example = "203.0.113.9")]
    last_used_ip: Option<IpAddr>,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    revoked_at: Option<OffsetDateTime>,
    #[schema(required = true, example = "user_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    revoked_by: Option<String>,
    /// The predecessor: the key that this key replaces in a rotation.
    #[schema(required = true)]
    rotated_from: Option<ApiKeyId>,
    /// The successor: the key that replaces this key in a rotation.
    #[schema(required = true)]
    rotated_to: Option<ApiKeyId>,
    /// The networks that the key can be used from. Empty means any network.
    #[schema(example = json!(["203.0.113.0/24"]))]
    allowed_ips: Vec<String>,
    /// The rate limit of this key, in requests per minute. Null means the limit of the workspace.
    #[schema(required = true, example = 300)]
    rate_limit_per_minute: Option<u32>,
}

impl ApiKeyBody {
    pub(super) fn new(app: &App, key: ApiKey) -> Self {
        Self {
            id: key.id,
            status: key.status(),
            redacted: key.redacted(app.auth.api_keys.environment()),
            name: key.name,
            description: key.description,
            scope: key.scope,
            created_at: key.created_at,
            created_by: key.created_by,
            last_used_at: key.last_used_at,
            last_used_ip: key.last_used_ip,
            revoked_at: key.revoked_at,
            revoked_by: key.revoked_by,
            rotated_from: key.rotated_from,
            rotated_to: key.rotated_to,
            allowed_ips: key.allowed_ips.iter().map(ToString::to_string).collect(),
            rate_limit_per_minute: key.rate_limit_per_minute,
        }
    }
}

/// An API key to create. Keys do not expire.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKeyRequest {
    /// 1 to 100 characters. Names need not be unique.
    #[schema(min_length = 1, max_length = 100, example = "prod-2026-q2")]
    name: String,
    /// The scope of the key, at most the caller's own. It cannot be changed later.
    #[serde(default = "write")]
    #[schema(default = "write")]
    scope: Scope,
    /// At most 500 characters.
    #[schema(max_length = 500, example = "The booking server")]
    description: Option<String>,
    /// The networks that the key can be used from, in CIDR notation. If empty or absent, the key
    /// works from any network. If a key with `allowed_ips` creates it, they must be within those of
    /// that key, and are the same by default.
    #[serde(default)]
    #[schema(max_items = 100, example = json!(["203.0.113.0/24"]))]
    allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key, in requests per minute: at most that of the workspace, which is
    /// the default.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000_000, example = 300)]
    rate_limit_per_minute: Option<u32>,
}

fn write() -> Scope {
    Scope::Write
}

/// A new API key with its secret.
#[derive(Serialize, ToSchema)]
pub struct CreatedKeyBody {
    #[serde(flatten)]
    key_resource: ApiKeyBody,
    /// The whole key. Only this response contains it; it cannot be retrieved again.
    #[schema(example = "sk_call2me_live_…")]
    key: String,
}

/// Create an API key
///
/// Only this response contains the secret. Store it: it cannot be retrieved again. A workspace has
/// at most 1,000 keys that are not revoked; for a further one the response is 409.
#[utoipa::path(post, path = "/v1/api-keys", tag = "API keys", request_body = CreateKeyRequest,
    params(crate::http::dto::parameters::IdempotencyKeyHeader),
    responses((status = 201, body = CreatedKeyBody), (status = 409)))]
pub async fn create(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    IdempotentJson { body, attempt }: IdempotentJson<CreateKeyRequest>,
) -> ApiResult<IdempotentCreated> {
    let mut transaction = match IdempotentCreated::begin(&app, &caller, attempt).await? {
        CreationOutcome::New(transaction) => transaction,
        CreationOutcome::Replayed(response) => return Ok(response),
    };
    let CreateKeyRequest { name, scope, description, allowed_ips, rate_limit_per_minute } = body;
    let new_key = CreateKeyParams {
        name,
        scope,
        description,
        allowed_ips: allowed_ips.unwrap_or_default(),
        rate_limit_per_minute,
    };
    let created = app.auth.api_keys.create(transaction.tx(), &caller, new_key).await?;
    commit_created_key(&app, transaction, created).await
}

/// Commits the creation of a key and returns the response with its secret.
pub(super) async fn commit_created_key(
    app: &App,
    transaction: IdempotentTransaction,
    (created, audited): (CreatedKey, Audited),
) -> ApiResult<IdempotentCreated> {
    let location = format!("/v1/api-keys/{}", created.key.id);
    let key = created.secret.reveal().to_owned();
    let key_resource = ApiKeyBody::new(app, created.key);
    IdempotentCreated::finish(
        transaction,
        audited,
        location,
        to_json(&CreatedKeyBody { key_resource, key })?,
    )
    .await
}

/// A page of API keys.
#[derive(Serialize, ToSchema)]
pub struct ApiKeysBody {
    api_keys: Vec<ApiKeyBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List API keys
///
/// Newest first. Revoked keys stay in the list.
#[utoipa::path(get, path = "/v1/api-keys", tag = "API keys",
    params(crate::http::dto::parameters::PageParams,
           ("status" = Option<KeyStatus>, Query, description = "Only keys with this status"),
           ("name" = Option<String>, Query, description = "Only keys with exactly this name")),
    responses((status = 200, body = ApiKeysBody)))]
pub async fn list(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
) -> ApiResult<Json<ApiKeysBody>> {
    let filter = KeyFilter {
        status: query.parse_as("status", "active, disabled or revoked")?,
        name: query.text("name")?.map(filter_name).transpose()?,
    };
    let (page, total) = app.auth.api_keys.list(&caller, &filter, query.page()?).await?;
    let next_cursor = page.next_cursor(|key| key.id.uuid());
    let api_keys = page.items.into_iter().map(|key| ApiKeyBody::new(&app, key)).collect();
    Ok(Json(ApiKeysBody { api_keys, total, next_cursor }))
}

fn filter_name(name: &str) -> ApiResult<String> {
    text::validate_name("name", name).map_err(|why| ApiError::invalid("name", why.0))
}

/// Get an API key
#[utoipa::path(get, path = "/v1/api-keys/{id}", tag = "API keys", params(("id" = ApiKeyId, Path)),
    responses((status = 200, body = ApiKeyBody), (status = 404)))]
pub async fn get(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
) -> ApiResult<Json<ApiKeyBody>> {
    let key = app.auth.api_keys.get(&caller, id).await?;
    Ok(Json(ApiKeyBody::new(&app, key)))
}

/// A change of an API key. Absent fields keep their value. The scope cannot be changed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateKeyRequest {
    /// 1 to 100 characters.
    #[serde(default, deserialize_with = "deserialize_present")]
    #[schema(value_type = String, min_length = 1, max_length = 100, example = "prod-2026-q3")]
    name: Option<String>,
    /// At most 500 characters. Null removes the description.
    #[serde(default, deserialize_with = "deserialize_present")]
    #[schema(value_type = Option<String>, max_length = 500)]
    #[expect(clippy::option_option, reason = "null removes it, absent leaves it")]
    description: Option<Option<String>>,
    /// Networks in CIDR notation. An empty list allows any network. A key with `allowed_ips` can
    /// only set networks within its own.
    #[serde(default, deserialize_with = "deserialize_present")]
    #[schema(value_type = Vec<String>, max_items = 100, example = json!(["203.0.113.0/24"]))]
    allowed_ips: Option<Vec<String>>,
    /// The rate limit of the key, in requests per minute: at most that of the workspace. Null
    /// restores that of the workspace.
    #[serde(default, deserialize_with = "deserialize_present")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1_000_000_000)]
    #[expect(clippy::option_option, reason = "null removes it, absent leaves it")]
    rate_limit_per_minute: Option<Option<u32>>,
    /// True disables the key: it is rejected like a revoked one on every node, and its open
    /// invitations cannot be accepted. Keys and OAuth clients that it made keep working. False
    /// enables it again.
    #[serde(default, deserialize_with = "deserialize_present")]
    #[schema(value_type = bool)]
    disabled: Option<bool>,
}

/// Deserializes a field that is present, so that null differs from an absent field.
fn deserialize_present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// Update an API key
///
/// Takes effect on every node before the response. A revoked key cannot be disabled or enabled: the
/// response is then 409.
#[utoipa::path(patch, path = "/v1/api-keys/{id}", tag = "API keys",
    params(("id" = ApiKeyId, Path)), request_body = UpdateKeyRequest,
    responses((status = 200, body = ApiKeyBody), (status = 404), (status = 409)))]
pub async fn update(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    extract::Json(body): extract::Json<UpdateKeyRequest>,
) -> ApiResult<Json<ApiKeyBody>> {
    let UpdateKeyRequest { name, description, allowed_ips, rate_limit_per_minute, disabled } = body;
    let change =
        UpdateKeyParams { name, description, allowed_ips, rate_limit_per_minute, disabled };
    let key = app.auth.api_keys.update(&caller, id, change).await?;
    Ok(Json(ApiKeyBody::new(&app, key)))
}
