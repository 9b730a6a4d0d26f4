//! Rotation of API keys: the decision that revoking a predecessor is safe.
//!
//! Invariant: a key becomes safe to revoke only after an idle period in which all uses on all nodes
//! are counted, and only if its successor has served a request since its last failure. Later
//! reports keep this verdict until the key is used again, or its successor fails or is disabled.
//!
//! Idle time counts within one epoch of PostgreSQL's clock only. Across a change of the clock,
//! times cannot be compared: a verdict rests on the number of requests then, which no clock
//! affects.
//!
//! `auth::api_keys::rotation` collects the counts and stores the evidence.

use std::net::IpAddr;

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::{
    api_key::KeyStatus,
    id::{ApiKeyId, EventId},
};
use crate::env::ClockEpoch;

/// The recent usage of a key.
#[derive(Debug, Clone)]
pub struct KeyTraffic {
    /// The key's id.
    pub id: ApiKeyId,
    /// The key's name.
    pub name: String,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// Time of the first use.
    pub first_used_at: Option<OffsetDateTime>,
    /// Time of the last use.
    pub last_used_at: Option<OffsetDateTime>,
    /// The epoch of the clock in which the last use was counted.
    pub last_used_epoch: i64,
    /// The total number of uses.
    pub total_requests: i64,
    /// The event of the last request that the key served.
    pub last_success: Option<EventPosition>,
    /// The event of the last request that was refused for the key, or that the service failed.
    pub last_failure: Option<EventPosition>,
    /// The key's status.
    pub status: KeyStatus,
    /// Number of requests in the last hour.
    pub requests_last_hour: i64,
    /// The clients of the last hour, most recent first; at most 100.
    pub clients_last_hour: Vec<KeyClient>,
}

impl KeyTraffic {
    /// True if the key is active and has served a request since its last failure.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        // `None` is less than every id.
        self.status == KeyStatus::Active && self.last_success > self.last_failure
    }

    /// True if no request has tried the key.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.first_used_at.is_none() && self.last_failure.is_none()
    }

    /// Returns the reason for which the key cannot replace its predecessor yet; `None` if it can.
    fn obstacle(&self) -> Option<&'static str> {
        if self.is_serving() {
            return None;
        }
        Some(match (self.status, self.last_success, self.last_failure) {
            (KeyStatus::Disabled, ..) => "the new key is disabled",
            (KeyStatus::Revoked, ..) => "the new key is revoked",
            (KeyStatus::Active, None, None) => "the new key has not been used yet",
            (KeyStatus::Active, None, Some(_)) => {
                "every request with the new key has been refused so far"
            }
            (KeyStatus::Active, Some(_), _) => {
                "requests with the new key have failed since its last success (401, 403, 429 or \
                 5xx); it must serve one again"
            }
        })
    }

    /// Returns the client addresses of the last hour, most recent first.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for client in &self.clients_last_hour {
            if !addresses.contains(&client.ip) {
                addresses.push(client.ip);
            }
        }
        addresses
    }
}

/// The position of an event in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventPosition {
    /// The epoch of the clock in which it was counted.
    pub clock_epoch: i64,
    /// The event. Ids sort by time within an epoch.
    pub id: EventId,
}

/// A client of a key: one user agent at one address.
#[derive(Debug, Clone)]
pub struct KeyClient {
    /// The client's address.
    pub ip: IpAddr,
    /// The `User-Agent` header; empty if there was none.
    pub user_agent: String,
    /// Time of the client's last request.
    pub last_used_at: OffsetDateTime,
    /// Method of the client's last request.
    pub last_method: String,
    /// Path of the client's last request.
    pub last_path: String,
    /// Total number of the client's requests.
    pub requests: i64,
}

/// The progress of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RotationState {
    /// No request with the new key has succeeded yet.
    Minted,
    /// The new key is in use, but the old key gets more requests.
    Adopted,
    /// The new key gets at least as many requests as the old key.
    Draining,
    /// The old key has been idle for long enough.
    Quiet,
}

/// The watermark of a node's audit events.
#[derive(Debug, Clone, Copy)]
pub struct NodeWatermark {
    /// The time up to which the node has written all its events.
    pub written_until: OffsetDateTime,
    /// The number of the clock's epoch that this time belongs to. `None` if the node does not
    /// follow the clock of PostgreSQL.
    pub clock_epoch: Option<i64>,
}

/// The completeness of the usage counts, over all nodes.
#[derive(Debug, Clone, Copy)]
pub struct UsageWatermark {
    /// All uses before this time are counted.
    pub counted_until: OffsetDateTime,
    /// The last time at which uses may have been lost: a node stopped without a graceful shutdown,
    /// or was cut off and refused requests.
    pub usage_gap_at: Option<OffsetDateTime>,
    /// The epoch of PostgreSQL's clock that these times belong to. `None` if the node does not
    /// follow that clock.
    pub clock_epoch: Option<ClockEpoch>,
}

impl UsageWatermark {
    /// Returns the time since which a key may have been unused, and the reason for which it is not
    /// the time of the last use.
    fn idle_since(&self, old: &KeyTraffic) -> (OffsetDateTime, Option<IdleLimit>) {
        let (mut since, mut limit) = (old.last_used_at.unwrap_or(old.created_at), None);
        if let Some(epoch) = self.clock_epoch {
            // A use of an earlier epoch was before the start of this one, also if its time is not.
            let is_earlier = old.last_used_at.is_some() && old.last_used_epoch < epoch.number;
            if is_earlier || since < epoch.started_at {
                (since, limit) = (epoch.started_at, Some(IdleLimit::ClockChange));
            }
        }
        if let Some(lost) = self.usage_gap_at.filter(|lost| *lost > since) {
            (since, limit) = (lost, Some(IdleLimit::LostNode));
        }
        (since, limit)
    }
}

/// The reason for which idle time counts only from a later time than the last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdleLimit {
    /// Uses may have been lost.
    LostNode,
    /// The clock has changed.
    ClockChange,
}

/// A period in which a key was certainly not used on any node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuietPeriod {
    /// The last time at which the key was used, or may have been used.
    pub since: OffsetDateTime,
    /// All uses before this time are counted.
    pub until: OffsetDateTime,
}

impl QuietPeriod {
    fn length(self) -> Duration {
        (self.until - self.since).max(Duration::ZERO)
    }
}

/// The stored evidence of an earlier report that called the old key safe to revoke.
///
/// It keeps that verdict when a later report has less information: another node answers, a node is
/// lost, an audit writer lags, or the clock has changed. Only a use of the old key invalidates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuietEvidence {
    /// The successor at that time.
    pub successor: Option<ApiKeyId>,
    /// The number of uses of the old key at that time.
    pub total_requests: i64,
    /// The period in which the old key was not used.
    pub quiet: QuietPeriod,
}

/// The state of a rotation, with the verdict whether the old key can be revoked.
#[derive(Debug, Clone)]
pub struct RotationReport {
    /// The old key, to be revoked.
    pub old: KeyTraffic,
    /// The successor; `None` if the key was not rotated.
    pub new: Option<KeyTraffic>,
    /// The progress of the rotation.
    pub state: RotationState,
    /// True if revoking the old key breaks no recent client.
    pub safe_to_revoke: bool,
    /// The reason for the verdict, for display.
    pub reason: String,
    /// Time for which the old key has certainly been idle.
    pub quiet_for: Duration,
    /// Time for which the old key must be idle before it is safe to revoke.
    pub required_quiet: Duration,
    /// New evidence for the verdict, to be stored before the report is returned to a client.
    pub new_evidence: Option<QuietEvidence>,
}

impl RotationReport {
    /// Derives the verdict from the counts.
    ///
    /// `confirmed` is the evidence of an earlier verdict, `quiet` the time for which the old key
    /// must be idle.
    #[must_use]
    pub fn new(
        old: KeyTraffic,
        new: Option<KeyTraffic>,
        known: UsageWatermark,
        confirmed: Option<QuietEvidence>,
        quiet: Duration,
    ) -> Self {
        let (idle_since, limit) = known.idle_since(&old);
        let counted = QuietPeriod { since: idle_since, until: known.counted_until };
        // A use since then invalidates the stored evidence.
        let confirmed = confirmed.filter(|known| old.total_requests <= known.total_requests);
        // The verdict rests on the longer of the counted and the confirmed period.
        let evidence = confirmed
            .map(|confirmed| confirmed.quiet)
            .filter(|quiet| quiet.length() > counted.length())
            .unwrap_or(counted);
        let quiet_for = evidence.length();
        let is_quiet = quiet_for >= quiet;
        // Both ids of the successor only grow, so this changes back only after a failure.
        let obstacle = new.as_ref().and_then(KeyTraffic::obstacle);
        let safe_to_revoke = obstacle.is_none() && is_quiet;
        let successor = new.as_ref().map(|new| new.id);
        let is_confirmed = confirmed.is_some_and(|known| {
            known.quiet.length() >= quiet && (successor.is_none() || known.successor == successor)
        });
        let total_requests = old.total_requests;
        let new_evidence = (safe_to_revoke && !is_confirmed).then_some(QuietEvidence {
            successor,
            total_requests,
            quiet: evidence,
        });
        let carries_most =
            new.as_ref().is_none_or(|new| new.requests_last_hour >= old.requests_last_hour);
        let has_served = new.as_ref().is_none_or(|new| new.last_success.is_some());
        let state = match (has_served, safe_to_revoke) {
            (false, _) => RotationState::Minted,
            (true, true) => RotationState::Quiet,
            (true, false) if carries_most => RotationState::Draining,
            (true, false) => RotationState::Adopted,
        };
        let required_quiet = quiet;
        let (quiet, seconds) = (quiet.whole_seconds(), quiet_for.whole_seconds());
        let reason = match (&new, obstacle) {
            (_, Some(obstacle)) => obstacle.to_owned(),
            (Some(_), _) if is_quiet => {
                format!("the new key is in use, and the old key has been idle for {seconds} s")
            }
            (None, _) if is_quiet => format!("the key has been idle for {seconds} s"),
            _ if limit == Some(IdleLimit::LostNode) => format!(
                "a node was lost or cut off, so uses of the old key may be missing; it has \
                 certainly been idle for {seconds} s and must be idle for {quiet} s"
            ),
            _ if limit == Some(IdleLimit::ClockChange) => format!(
                "the clock of the database was changed, or no node was running; the old key has \
                 certainly been idle for {seconds} s and must be idle for {quiet} s"
            ),
            _ if old.last_used_at.is_none() => format!(
                "the old key has not been used, but was created only recently; it must be idle for \
                 {quiet} s"
            ),
            _ => {
                format!("the old key was last used {seconds} s ago; it must be idle for {quiet} s")
            }
        };
        Self { old, new, state, safe_to_revoke, reason, quiet_for, required_quiet, new_evidence }
    }

    /// Returns the report with another verdict: the key is not safe to revoke, for this reason.
    #[must_use]
    pub fn blocked(self, reason: impl Into<String>) -> Self {
        let state = match self.state {
            RotationState::Quiet => RotationState::Draining,
            state => state,
        };
        let (reason, new_evidence) = (reason.into(), None);
        Self { safe_to_revoke: false, state, reason, new_evidence, ..self }
    }

    /// Returns the adoption: the new key's share of the last hour's requests with either key, from
    /// 0 to 1, rounded to four decimal places.
    #[must_use]
    pub fn adoption(&self) -> f64 {
        let new = self.new.as_ref().map_or(0, |new| new.requests_last_hour);
        let all = new + self.old.requests_last_hour;
        #[expect(clippy::cast_precision_loss, reason = "a ratio, of an hour's requests")]
        let ratio = if all == 0 { 0.0 } else { new as f64 / all as f64 };
        (ratio * 10_000.0).round() / 10_000.0
    }
}

#[cfg(test)]
mod tests;
