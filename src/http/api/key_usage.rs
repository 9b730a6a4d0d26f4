//! Routes of the usage of API keys, and of the key hygiene report.
//!
//! All numbers are exact counts over all nodes. The rules are in [`crate::auth::api_keys::usage`].

use std::{collections::BTreeMap, net::IpAddr};

use axum::{Json, extract::State};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ApiResult;
use crate::{
    auth::api_keys::usage::UsageWindow,
    http::{
        ApiError, App,
        extract::{Authorized, PathId, Query, ReadOnly},
    },
    model::{
        id::ApiKeyId,
        scope::Scope,
        usage::{KeyAddress, KeyHygiene, KeyUsage, OverScopedKey, UnusedKey, UsageBucket},
    },
};

/// Default and maximum of the `hours` parameter.
const HOURS: (u32, u32) = (48, 744);
/// Default and maximum of the `days` parameter.
const DAYS: (u32, u32) = (30, 1100);

/// The usage of a key in one hour or day.
#[derive(Serialize, ToSchema)]
pub struct UsageBucketBody {
    /// Start of the hour or day in UTC.
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    start: OffsetDateTime,
    requests: i64,
    /// Requests by class of the response status.
    #[schema(example = json!({ "2xx": 120, "3xx": 0, "4xx": 1, "5xx": 0 }))]
    by_status: BTreeMap<String, i64>,
    /// Requests by the first path segment after `/v1/`. Forward-auth requests are `gateway`.
    #[schema(example = json!({ "agents": 100, "calls": 21 }))]
    by_route: BTreeMap<String, i64>,
}

fn by_status(bucket: &UsageBucket) -> BTreeMap<String, i64> {
    bucket.by_status.iter().map(|(class, requests)| (format!("{class}xx"), *requests)).collect()
}

impl From<UsageBucket> for UsageBucketBody {
    fn from(bucket: UsageBucket) -> Self {
        let by_status = by_status(&bucket);
        let UsageBucket { start, requests, by_route, .. } = bucket;
        Self { start, requests, by_status, by_route }
    }
}

/// An IP address that used a key.
#[derive(Serialize, ToSchema)]
pub struct KeyAddressBody {
    #[schema(value_type = String, example = "203.0.113.9")]
    ip: IpAddr,
    requests: i64,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    first_used_at: OffsetDateTime,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    last_used_at: OffsetDateTime,
}

impl From<KeyAddress> for KeyAddressBody {
    fn from(address: KeyAddress) -> Self {
        let KeyAddress { ip, requests, first_used_at, last_used_at } = address;
        Self { ip, requests, first_used_at, last_used_at }
    }
}

/// The usage of a key.
#[derive(Serialize, ToSchema)]
pub struct KeyUsageBody {
    /// Number of requests since the key was created.
    total_requests: i64,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    first_used_at: Option<OffsetDateTime>,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
    /// Usage by hour, oldest first. Hours without a request are omitted.
    by_hour: Vec<UsageBucketBody>,
    /// Usage by day, oldest first. Days without a request are omitted.
    by_day: Vec<UsageBucketBody>,
    /// All recorded requests by class of the response status.
    #[schema(example = json!({ "2xx": 120, "3xx": 0, "4xx": 1, "5xx": 0 }))]
    by_status: BTreeMap<String, i64>,
    /// All recorded requests by the first path segment after `/v1/`.
    #[schema(example = json!({ "agents": 100, "calls": 21 }))]
    by_route: BTreeMap<String, i64>,
    /// The 100 addresses that used the key last, most recent first.
    addresses: Vec<KeyAddressBody>,
}

impl From<KeyUsage> for KeyUsageBody {
    fn from(usage: KeyUsage) -> Self {
        Self {
            total_requests: usage.total_requests,
            first_used_at: usage.first_used_at,
            last_used_at: usage.last_used_at,
            by_hour: usage.by_hour.into_iter().map(UsageBucketBody::from).collect(),
            by_day: usage.by_day.into_iter().map(UsageBucketBody::from).collect(),
            by_status: by_status(&usage.all),
            by_route: usage.all.by_route,
            addresses: usage.addresses.into_iter().map(KeyAddressBody::from).collect(),
        }
    }
}

/// Get the usage of an API key
///
/// The counts are exact and cover all nodes. They can be kept for longer than the audit log.
#[utoipa::path(get, path = "/v1/api-keys/{id}/usage", tag = "API keys",
    params(("id" = ApiKeyId, Path),
        ("hours" = Option<u32>, Query, minimum = 1, maximum = 744,
         description = "Number of hours in `by_hour`, including the current one. The default is 48"),
        ("days" = Option<u32>, Query, minimum = 1, maximum = 1100,
         description = "Number of days in `by_day`, including the current one. The default is 30")),
    responses((status = 200, body = KeyUsageBody), (status = 404)))]
pub async fn usage(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    query: Query,
) -> ApiResult<Json<KeyUsageBody>> {
    let reach =
        UsageWindow { hours: count(&query, "hours", HOURS)?, days: count(&query, "days", DAYS)? };
    Ok(Json(app.auth.api_keys.usage(&caller, id, reach).await?.into()))
}

fn count(query: &Query, name: &'static str, (default, max): (u32, u32)) -> ApiResult<u32> {
    let expected = format!("a whole number from 1 to {max}");
    let count = query.parse_as(name, &expected)?.unwrap_or(default);
    if (1..=max).contains(&count) {
        Ok(count)
    } else {
        Err(ApiError::invalid(name, format!("{name} must be {expected}")))
    }
}

/// An active key without a request in the last 90 days.
#[derive(Serialize, ToSchema)]
pub struct UnusedKeyBody {
    id: ApiKeyId,
    name: String,
    scope: Scope,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
}

impl From<UnusedKey> for UnusedKeyBody {
    fn from(key: UnusedKey) -> Self {
        let UnusedKey { id, name, scope, created_at, last_used_at } = key;
        Self { id, name, scope, created_at, last_used_at }
    }
}

/// An active key with a greater scope than its requests of the last 90 days required.
#[derive(Serialize, ToSchema)]
pub struct OverScopedKeyBody {
    id: ApiKeyId,
    name: String,
    /// The scope of the key.
    scope: Scope,
    /// The greatest scope that its successful requests required.
    used_scope: Scope,
    /// The first hour in the last 90 days that `used_scope` covers.
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    used_since: OffsetDateTime,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    last_used_at: OffsetDateTime,
}

impl From<OverScopedKey> for OverScopedKeyBody {
    fn from(key: OverScopedKey) -> Self {
        let OverScopedKey { id, name, scope, used_scope, used_since, last_used_at } = key;
        Self { id, name, scope, used_scope, used_since, last_used_at }
    }
}

/// The key hygiene report: keys to revoke, or to replace with a smaller scope.
#[derive(Serialize, ToSchema)]
pub struct HygieneBody {
    /// Keys without a request in the last 90 days, longest unused first, at most 100.
    unused: Vec<UnusedKeyBody>,
    /// Keys with a greater scope than their requests required, at most 100.
    over_scoped: Vec<OverScopedKeyBody>,
}

impl From<KeyHygiene> for HygieneBody {
    fn from(hygiene: KeyHygiene) -> Self {
        Self {
            unused: hygiene.unused.into_iter().map(UnusedKeyBody::from).collect(),
            over_scoped: hygiene.over_scoped.into_iter().map(OverScopedKeyBody::from).collect(),
        }
    }
}

/// Get the key hygiene report
///
/// Lists active keys without a request in the last 90 days, and active keys with a greater scope
/// than their requests required.
#[utoipa::path(get, path = "/v1/api-keys/hygiene", tag = "API keys",
    responses((status = 200, body = HygieneBody)))]
pub async fn hygiene(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> ApiResult<Json<HygieneBody>> {
    Ok(Json(app.auth.api_keys.hygiene(&caller).await?.into()))
}
