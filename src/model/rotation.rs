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
}

impl RotationReport {
    /// What the counts say.
    #[must_use]
    pub fn new(old: KeyTraffic, new: Option<KeyTraffic>, known: Known, quiet: Duration) -> Self {
        let last_use = old.last_used_at.unwrap_or(old.created_at);
        let silent_since = known.doubtful_at.map_or(last_use, |lost| lost.max(last_use));
        let quiet_for = (known.until - silent_since).max(Duration::ZERO);
        let is_quiet = quiet_for >= quiet;
        let serves = new.as_ref().is_none_or(|new| new.has_served);
        let safe_to_revoke = serves && is_quiet;
        let carries_most =
            new.as_ref().is_none_or(|new| new.requests_last_hour >= old.requests_last_hour);
        let state = match (serves, is_quiet) {
            (false, _) => RotationState::Minted,
            (true, true) => RotationState::Quiet,
            (true, false) if carries_most => RotationState::Draining,
            (true, false) => RotationState::Adopted,
        };
        let (quiet, seconds) = (quiet.whole_seconds(), quiet_for.whole_seconds());
        let reason = match &new {
            Some(new) if new.first_used_at.is_none() => "the new key has not been used yet".into(),
            Some(new) if !new.has_served => {
                "every request with the new key was refused so far".into()
            }
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
        Self { old, new, state, safe_to_revoke, reason, quiet_for }
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
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const QUIET: Duration = Duration::minutes(15);

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn traffic(
        first: Option<i64>,
        last: Option<i64>,
        has_served: bool,
        requests: i64,
    ) -> KeyTraffic {
        KeyTraffic {
            id: Uuid::nil().into(),
            name: "k".into(),
            created_at: at(0),
            first_used_at: first.map(at),
            last_used_at: last.map(at),
            has_served,
            requests_last_hour: requests,
            clients_last_hour: Vec::new(),
        }
    }

    fn report(old: KeyTraffic, new: KeyTraffic, until: i64, lost: Option<i64>) -> RotationReport {
        let known = Known { until: at(until), doubtful_at: lost.map(at) };
        RotationReport::new(old, Some(new), known, QUIET)
    }

    #[test]
    fn a_rotation_goes_from_minted_to_quiet() {
        use RotationState::{Adopted, Draining, Minted, Quiet};
        let old = |last, requests| traffic(Some(10), Some(last), true, requests);
        let unused = || traffic(None, None, false, 0);
        let new = |requests| traffic(Some(1000), Some(2000), true, requests);
        let refused = traffic(Some(1000), Some(2000), false, 5);
        for (report, state, safe, why) in [
            (report(old(990, 9), unused(), 2000, None), Minted, false, "has not been used"),
            (report(old(10, 0), unused(), 9000, None), Minted, false, "has not been used"),
            (report(old(10, 0), refused, 9000, None), Minted, false, "was refused"),
            (report(old(2000, 9), new(3), 2001, None), Adopted, false, "in use 1 s ago"),
            (report(old(2000, 3), new(9), 2899, None), Draining, false, "in use 899 s ago"),
            (report(old(2000, 3), new(9), 2900, None), Quiet, true, "quiet for 900 s"),
            (report(old(2000, 0), new(0), 9000, None), Quiet, true, "quiet for 7000 s"),
            // The count lags behind: what is not known is not quiet.
            (report(old(2000, 3), new(9), 1990, None), Draining, false, "in use 0 s ago"),
            (report(old(2000, 3), new(9), 5000, Some(4200)), Draining, false, "a node was lost"),
            (report(old(2000, 3), new(9), 5100, Some(4200)), Quiet, true, "quiet for 900 s"),
            (
                report(traffic(None, None, false, 0), new(9), 800, None),
                Draining,
                false,
                "minted only lately",
            ),
            (
                report(traffic(None, None, false, 0), new(9), 900, None),
                Quiet,
                true,
                "quiet for 900 s",
            ),
        ] {
            assert_eq!((report.state, report.safe_to_revoke), (state, safe), "{}", report.reason);
            assert!(report.reason.contains(why), "{}", report.reason);
        }
    }

    proptest! {
        #[test]
        fn safe_is_never_said_while_a_use_may_be_unknown(
            last in 0_i64..5000, until in 0_i64..5000, lost in prop::option::of(0_i64..5000),
            unseen in 0_i64..5000,
        ) {
            let report = report(
                traffic(Some(0), Some(last), true, 1),
                traffic(Some(1), Some(1), true, 1),
                until,
                lost,
            );
            // Any use that the counts do not hold yet is later than `until`, or was on the lost node.
            if report.safe_to_revoke && unseen < lost.unwrap_or(0) {
                prop_assert!(until - unseen >= QUIET.whole_seconds());
            }
            prop_assert_eq!(report.safe_to_revoke, report.state == RotationState::Quiet);
            prop_assert!(report.adoption() >= 0.0 && report.adoption() <= 1.0);
        }
    }
}
