//! Whether a key that was rotated can be revoked yet.

use std::net::IpAddr;

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::id::ApiKeyId;

/// What a key was used for lately.
#[derive(Debug, Clone)]
pub struct KeyTraffic {
    /// The key.
    pub id: ApiKeyId,
    /// What it is called.
    pub name: String,
    /// When it was minted.
    pub created_at: OffsetDateTime,
    /// When it was first used.
    pub first_used_at: Option<OffsetDateTime>,
    /// When it was last used.
    pub last_used_at: Option<OffsetDateTime>,
    /// Whether any request with it was not refused.
    pub has_served: bool,
    /// Requests within the last hour.
    pub requests_last_hour: i64,
    /// Who used it within the last hour, the last first: at most a hundred of them.
    pub clients_last_hour: Vec<KeyClient>,
}

impl KeyTraffic {
    /// Where it was used from within the last hour, the last first.
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

/// A program at an address that used a key.
#[derive(Debug, Clone)]
pub struct KeyClient {
    /// The address.
    pub ip: IpAddr,
    /// What it calls itself; empty where it does not.
    pub user_agent: String,
    /// When it last used the key.
    pub last_used_at: OffsetDateTime,
    /// What it last did.
    pub last_method: String,
    /// And where.
    pub last_path: String,
    /// How often it used the key in all.
    pub requests: i64,
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RotationState {
    /// The new key has not served yet.
    Minted,
    /// It has, but the old one serves more.
    Adopted,
    /// The new key serves at least as much as the old one.
    Draining,
    /// The old key has been quiet for long enough.
    Quiet,
}

/// What is known of uses of keys, on all nodes.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Every use before then is counted.
    pub until: OffsetDateTime,
    /// When last there may have been uses that nobody counted: of a node that left without a farewell, or while one
    /// was cut off and turned people away.
    pub doubtful_at: Option<OffsetDateTime>,
}

/// A period in which a key was certainly not used, on any node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuietPeriod {
    /// The last moment at which the key was, or may have been, used.
    pub since: OffsetDateTime,
    /// Every use before this moment is counted.
    pub until: OffsetDateTime,
}

impl QuietPeriod {
    fn length(self) -> Duration {
        (self.until - self.since).max(Duration::ZERO)
    }
}

/// The evidence for an earlier report that called the old key safe to revoke.
///
/// It keeps the verdict from going back when a later report knows less: another node answers, a node is lost, a writer
/// is behind. Only a use of the old key voids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmation {
    /// The live successor of that time, which had served traffic.
    pub successor: Option<ApiKeyId>,
    /// When the old key was not used.
    pub quiet: QuietPeriod,
}

/// A rotation, and whether the old key can be revoked.
#[derive(Debug, Clone)]
pub struct RotationReport {
    /// The key that is to go.
    pub old: KeyTraffic,
    /// Its successor; none: it was not rotated.
    pub new: Option<KeyTraffic>,
    /// How far it is.
    pub state: RotationState,
    /// Whether revoking the old key breaks nobody who was there lately.
    pub safe_to_revoke: bool,
    /// Why, or why not.
    pub reason: String,
    /// For how long the old key has certainly not been used.
    pub quiet_for: Duration,
    /// For how long it has to be unused until it is safe to revoke.
    pub required_quiet: Duration,
    /// The evidence to store with the verdict, if it rests on what this report found out.
    pub confirms: Option<Confirmation>,
}

impl RotationReport {
    /// Judges the counts. `confirmed` is the evidence of an earlier verdict.
    #[must_use]
    pub fn new(
        old: KeyTraffic,
        new: Option<KeyTraffic>,
        known: Known,
        confirmed: Option<Confirmation>,
        quiet: Duration,
    ) -> Self {
        let last_use = old.last_used_at.unwrap_or(old.created_at);
        let silent_since = known.doubtful_at.map_or(last_use, |lost| lost.max(last_use));
        let counted = QuietPeriod { since: silent_since, until: known.until };
        let confirmed = confirmed.filter(|confirmed| last_use <= confirmed.quiet.since);
        // The verdict rests on the longer of the two.
        let evidence = confirmed
            .map(|confirmed| confirmed.quiet)
            .filter(|quiet| quiet.length() > counted.length())
            .unwrap_or(counted);
        let quiet_for = evidence.length();
        let is_quiet = quiet_for >= quiet;
        let serves = new.as_ref().is_none_or(|new| {
            new.has_served || confirmed.is_some_and(|known| known.successor == Some(new.id))
        });
        let safe_to_revoke = serves && is_quiet;
        let successor = new.as_ref().map(|new| new.id);
        let is_confirmed = confirmed.is_some_and(|known| {
            known.quiet.length() >= quiet && (successor.is_none() || known.successor == successor)
        });
        let confirms = (safe_to_revoke && !is_confirmed)
            .then_some(Confirmation { successor, quiet: evidence });
        let carries_most =
            new.as_ref().is_none_or(|new| new.requests_last_hour >= old.requests_last_hour);
        let state = match (serves, is_quiet) {
            (false, _) => RotationState::Minted,
            (true, true) => RotationState::Quiet,
            (true, false) if carries_most => RotationState::Draining,
            (true, false) => RotationState::Adopted,
        };
        let required_quiet = quiet;
        let (quiet, seconds) = (quiet.whole_seconds(), quiet_for.whole_seconds());
        let reason = match &new {
            Some(new) if !serves && new.first_used_at.is_none() => {
                "the new key has not been used yet".into()
            }
            Some(_) if !serves => "every request with the new key was refused so far".into(),
            _ if is_quiet => match &new {
                Some(_) => {
                    format!("the new key serves, and the old one has been quiet for {seconds} s")
                }
                None => format!("the key has been quiet for {seconds} s"),
            },
            _ if silent_since > last_use => format!(
                "a node was lost or cut off, and uses of the old key may be unknown: quiet for certain \
                 for {seconds} s, and it takes {quiet} s"
            ),
            _ if old.last_used_at.is_none() => format!(
                "the old key has not been used, but was minted only lately: it takes {quiet} s"
            ),
            _ => format!("the old key was in use {seconds} s ago: it takes {quiet} s of quiet"),
        };
        Self { old, new, state, safe_to_revoke, reason, quiet_for, required_quiet, confirms }
    }

    /// The new key's part of the last hour's requests with either, from 0 to 1, to four digits.
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
