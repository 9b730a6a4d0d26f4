//! API keys.

use std::net::IpAddr;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Answer, CreatedOnce, Creating, json};
use crate::{
    auth::keys::{ChangeKey, MintKey, Minted},
    http::{
        ApiError, App,
        extract::{self, Admin, Authorized, Creation, FirstPartyAdmin, PathId, Query, ReadOnly},
    },
    idempotency::Work,
    model::{
        api_key::{ApiKey, KeyStatus},
        id::{ApiKeyId, Id},
        scope::Scope,
        text,
    },
    store::api_keys::KeyFilter,
};

/// A key, without its secret.
#[derive(Serialize, ToSchema)]
pub struct ApiKeyBody {
    id: ApiKeyId,
    /// What people call it.
    #[schema(example = "prod-2026-q2")]
    name: String,
    #[schema(required = true)]
    description: Option<String>,
    scope: Scope,
    status: KeyStatus,
    /// Enough of the key to recognize it.
    #[schema(example = "sk_call2me_live_AbCd…wXyZ")]
    redacted: String,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    /// Who minted it; null is the operator.
    #[schema(required = true, example = "user_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    created_by: Option<String>,
    /// When a request last bore it, cached or not.
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
    /// The key that it succeeded.
    #[schema(required = true)]
    rotated_from: Option<ApiKeyId>,
    /// The key that succeeds it.
    #[schema(required = true)]
    rotated_to: Option<ApiKeyId>,
    /// The networks that it may be used from; empty is any.
    #[schema(example = json!(["203.0.113.0/24"]))]
    allowed_ips: Vec<String>,
}

impl ApiKeyBody {
    pub(super) fn new(app: &App, key: ApiKey) -> Self {
        Self {
            id: key.id,
            status: key.status(),
            redacted: key.redacted(app.auth.environment()),
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
        }
    }
}

/// A key to be minted. It never expires: there is no field for that.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKeyRequest {
    /// 1 to 100 characters; need not be unique.
    #[schema(min_length = 1, max_length = 100, example = "prod-2026-q2")]
    name: String,
    /// What it may do, for ever; `write` unless said otherwise.
    #[serde(default = "write")]
    #[schema(default = "write")]
    scope: Scope,
    /// At most 500 characters.
    #[schema(max_length = 500, example = "The booking server")]
    description: Option<String>,
    /// The networks that it may be used from, in CIDR notation; none is any.
    #[serde(default)]
    #[schema(max_items = 100, example = json!(["203.0.113.0/24"]))]
    allowed_ips: Option<Vec<String>>,
}

fn write() -> Scope {
    Scope::Write
}

/// A fresh key, with its secret.
#[derive(Serialize, ToSchema)]
pub struct CreatedKeyBody {
    #[serde(flatten)]
    key_resource: ApiKeyBody,
    /// The whole key. It is shown here and never again.
    #[schema(example = "sk_call2me_live_…")]
    key: String,
}

/// Mint a key
///
/// The answer is the only place that ever shows the secret.
#[utoipa::path(post, path = "/v1/api-keys", tag = "API keys", request_body = CreateKeyRequest,
    params(crate::http::openapi::IdempotencyKey),
    responses((status = 201, body = CreatedKeyBody), (status = 409)))]
pub async fn create(
    caller: Authorized<FirstPartyAdmin>,
    State(app): State<App>,
    Creation { body, attempt }: Creation<CreateKeyRequest>,
) -> Answer<CreatedOnce> {
    let mut work = match CreatedOnce::begin(&app, &caller, attempt).await? {
        Creating::Work(work) => work,
        Creating::Done(answer) => return Ok(answer),
    };
    let CreateKeyRequest { name, scope, description, allowed_ips } = body;
    let wanted = MintKey { name, scope, description, allowed_ips: allowed_ips.unwrap_or_default() };
    let minted = app.auth.mint_key(work.tx(), &caller, wanted).await?;
    minted_answer(&app, work, minted).await
}

/// The answer that shows the secret of a fresh key.
pub(super) async fn minted_answer(app: &App, work: Work, minted: Minted) -> Answer<CreatedOnce> {
    let location = format!("/v1/api-keys/{}", minted.key.id);
    let key = minted.secret.reveal().to_owned();
    let key_resource = ApiKeyBody::new(app, minted.key);
    CreatedOnce::finish(work, location, json(&CreatedKeyBody { key_resource, key })?).await
}

/// A page of keys.
#[derive(Serialize, ToSchema)]
pub struct ApiKeysBody {
    api_keys: Vec<ApiKeyBody>,
    total: i64,
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// List keys
#[utoipa::path(get, path = "/v1/api-keys", tag = "API keys",
    params(crate::http::openapi::PageParams,
           ("status" = Option<KeyStatus>, Query, description = "Only keys of this status"),
           ("name" = Option<String>, Query, description = "Only keys of exactly this name")),
    responses((status = 200, body = ApiKeysBody)))]
pub async fn list(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    query: Query,
) -> Answer<Json<ApiKeysBody>> {
    let filter = KeyFilter {
        status: query.parse_as("status", "active or revoked")?,
        name: query.text("name")?.map(filter_name).transpose()?,
    };
    let (page, total) = app.auth.list_keys(&caller, &filter, query.page()?).await?;
    let next_cursor = page.next_cursor(|key| key.id.uuid());
    let api_keys = page.items.into_iter().map(|key| ApiKeyBody::new(&app, key)).collect();
    Ok(Json(ApiKeysBody { api_keys, total, next_cursor }))
}

fn filter_name(name: &str) -> Answer<String> {
    text::name("name", name).map_err(|why| ApiError::invalid("name", why.0))
}

/// Get a key
#[utoipa::path(get, path = "/v1/api-keys/{id}", tag = "API keys", params(("id" = ApiKeyId, Path)),
    responses((status = 200, body = ApiKeyBody), (status = 404)))]
pub async fn get(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
) -> Answer<Json<ApiKeyBody>> {
    let key = app.auth.get_key(&caller, id).await?;
    Ok(Json(ApiKeyBody::new(&app, key)))
}

/// What is to change about a key; what is absent stays. The scope never changes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateKeyRequest {
    /// 1 to 100 characters.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = String, min_length = 1, max_length = 100, example = "prod-2026-q3")]
    name: Option<String>,
    /// At most 500 characters; null removes it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, max_length = 500)]
    #[expect(clippy::option_option, reason = "null removes it, absent leaves it")]
    description: Option<Option<String>>,
    /// Networks in CIDR notation; an empty list is any.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Vec<String>, max_items = 100, example = json!(["203.0.113.0/24"]))]
    allowed_ips: Option<Vec<String>>,
}

/// Tells a field that is null from one that is absent.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// Change a key
#[utoipa::path(patch, path = "/v1/api-keys/{id}", tag = "API keys",
    params(("id" = ApiKeyId, Path)), request_body = UpdateKeyRequest,
    responses((status = 200, body = ApiKeyBody), (status = 404)))]
pub async fn update(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    extract::Json(body): extract::Json<UpdateKeyRequest>,
) -> Answer<Json<ApiKeyBody>> {
    let UpdateKeyRequest { name, description, allowed_ips } = body;
    let key =
        app.auth.change_key(&caller, id, ChangeKey { name, description, allowed_ips }).await?;
    Ok(Json(ApiKeyBody::new(&app, key)))
}

/// Revoke a key
///
/// For good, and at once: no request that begins after the answer gets through. The key stays in the
/// list as revoked. With `if_quiet` only where that breaks nobody who was there lately; otherwise the 409 tells why,
/// in `rotation`. Revoking the successor of a key cancels its rotation.
#[utoipa::path(delete, path = "/v1/api-keys/{id}", tag = "API keys",
    params(("id" = ApiKeyId, Path),
           ("if_quiet" = Option<bool>, Query, description = "Only where it is safe to revoke")),
    responses((status = 204), (status = 404), (status = 409)))]
pub async fn revoke(
    caller: Authorized<Admin>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    query: Query,
) -> Answer<StatusCode> {
    let only_if_quiet = query.parse_as("if_quiet", "true or false")?.unwrap_or(false);
    app.auth.revoke_key(&caller, id, only_if_quiet).await?;
    Ok(StatusCode::NO_CONTENT)
}
