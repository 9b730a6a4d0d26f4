//! The rotation report of an API key: the body of a route, and a part of the error `key_in_use`.

use std::net::IpAddr;

use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::model::{
    id::ApiKeyId,
    rotation::{KeyClient, KeyTraffic, RotationReport, RotationState},
};

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
