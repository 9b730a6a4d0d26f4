//! What API keys are used for.

use std::{collections::BTreeMap, net::IpAddr};

use axum::{Json, extract::State};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::Answer;
use crate::{
    auth::usage::Reach,
    http::{
        ApiError, App,
        extract::{Authorized, PathId, Query, ReadOnly},
    },
    model::{
        id::ApiKeyId,
        scope::Scope,
        usage::{Hygiene, KeyAddress, KeyUsage, OverScopedKey, Spell, UnusedKey},
    },
};

/// Hours and days that are told of unless the client asks otherwise, and at most.
const HOURS: (u32, u32) = (48, 744);
const DAYS: (u32, u32) = (30, 1100);

/// How often a key was used in an hour or a day.
#[derive(Serialize, ToSchema)]
pub struct SpellBody {
    /// When it begins, in UTC.
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    start: OffsetDateTime,
    requests: i64,
    /// By the first digit of the answer's status.
    #[schema(example = json!({ "2xx": 120, "3xx": 0, "4xx": 1, "5xx": 0 }))]
    by_status: BTreeMap<String, i64>,
    /// By the first word of the path behind the version; questions of gateways are `gateway`.
    #[schema(example = json!({ "agents": 100, "calls": 21 }))]
    by_route: BTreeMap<String, i64>,
}

fn by_status(spell: &Spell) -> BTreeMap<String, i64> {
    spell.by_status.iter().map(|(class, requests)| (format!("{class}xx"), *requests)).collect()
}

impl From<Spell> for SpellBody {
    fn from(spell: Spell) -> Self {
        let by_status = by_status(&spell);
        let Spell { start, requests, by_route, .. } = spell;
        Self { start, requests, by_status, by_route }
    }
}

/// An address that used a key.
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

/// What a key is used for.
#[derive(Serialize, ToSchema)]
pub struct KeyUsageBody {
    /// Requests, since it was minted.
    total_requests: i64,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    first_used_at: Option<OffsetDateTime>,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
    /// The oldest first; hours without a request are left out.
    by_hour: Vec<SpellBody>,
    /// The oldest first; days without a request are left out.
    by_day: Vec<SpellBody>,
    /// Of all that is kept.
    #[schema(example = json!({ "2xx": 120, "3xx": 0, "4xx": 1, "5xx": 0 }))]
    by_status: BTreeMap<String, i64>,
    /// Of all that is kept.
    #[schema(example = json!({ "agents": 100, "calls": 21 }))]
    by_route: BTreeMap<String, i64>,
    /// The hundred that used it last, the last first.
    addresses: Vec<KeyAddressBody>,
}

impl From<KeyUsage> for KeyUsageBody {
    fn from(usage: KeyUsage) -> Self {
        Self {
            total_requests: usage.total_requests,
            first_used_at: usage.first_used_at,
            last_used_at: usage.last_used_at,
            by_hour: usage.by_hour.into_iter().map(SpellBody::from).collect(),
            by_day: usage.by_day.into_iter().map(SpellBody::from).collect(),
            by_status: by_status(&usage.all),
            by_route: usage.all.by_route,
            addresses: usage.addresses.into_iter().map(KeyAddressBody::from).collect(),
        }
    }
}

/// See what a key is used for
///
/// From counts that are exact, of all nodes, and kept for longer than the audit log.
#[utoipa::path(get, path = "/v1/api-keys/{id}/usage", tag = "API keys",
    params(("id" = ApiKeyId, Path),
        ("hours" = Option<u32>, Query, minimum = 1, maximum = 744,
         description = "How many hours `by_hour` reaches back: 48"),
        ("days" = Option<u32>, Query, minimum = 1, maximum = 1100,
         description = "How many days `by_day` reaches back: 30")),
    responses((status = 200, body = KeyUsageBody), (status = 404)))]
pub async fn usage(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
    PathId(id): PathId<ApiKeyId>,
    query: Query,
) -> Answer<Json<KeyUsageBody>> {
    let reach = Reach { hours: count(&query, "hours", HOURS)?, days: count(&query, "days", DAYS)? };
    Ok(Json(app.auth.key_usage(&caller, id, reach).await?.into()))
}

fn count(query: &Query, name: &'static str, (usual, most): (u32, u32)) -> Answer<u32> {
    let what = format!("a whole number from 1 to {most}");
    let count = query.parse_as(name, &what)?.unwrap_or(usual);
    if (1..=most).contains(&count) {
        Ok(count)
    } else {
        Err(ApiError::invalid(name, format!("{name} must be {what}")))
    }
}

/// An active key that has not been used for ninety days.
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

/// An active key that may do more than it did in ninety days.
#[derive(Serialize, ToSchema)]
pub struct OverScopedKeyBody {
    id: ApiKeyId,
    name: String,
    /// What it may do.
    scope: Scope,
    /// The most that it was used for, of what was not refused.
    used_scope: Scope,
    /// Since when that was looked at.
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

/// Keys that somebody should look at.
#[derive(Serialize, ToSchema)]
pub struct HygieneBody {
    /// Not used for ninety days, the longest first; at most a hundred.
    unused: Vec<UnusedKeyBody>,
    /// Scope greater than what they were used for; at most a hundred.
    over_scoped: Vec<OverScopedKeyBody>,
}

impl From<Hygiene> for HygieneBody {
    fn from(hygiene: Hygiene) -> Self {
        Self {
            unused: hygiene.unused.into_iter().map(UnusedKeyBody::from).collect(),
            over_scoped: hygiene.over_scoped.into_iter().map(OverScopedKeyBody::from).collect(),
        }
    }
}

/// Find keys that somebody should look at
///
/// Those that nobody has used for ninety days, and those that may do more than they are used for.
#[utoipa::path(get, path = "/v1/api-keys/hygiene", tag = "API keys",
    responses((status = 200, body = HygieneBody)))]
pub async fn hygiene(
    caller: Authorized<ReadOnly>,
    State(app): State<App>,
) -> Answer<Json<HygieneBody>> {
    Ok(Json(app.auth.key_hygiene(&caller).await?.into()))
}
