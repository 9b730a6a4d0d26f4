//! The state of a device authorization, as its client polls it (RFC 8628, section 3.5).

use std::time::Duration;

use time::OffsetDateTime;

use crate::model::id::GrantId;

/// The minimum time between the first two polls, in seconds.
pub const INITIAL_POLL_SECONDS: u32 = 5;
/// The time by which a poll may come early: clients wait for the interval by their own clocks, and
/// requests are not equally fast.
const LEEWAY: Duration = Duration::from_secs(1);
/// The increase of the minimum time, in seconds, after a poll that came too early.
const SLOW_DOWN_SECONDS: u32 = 5;
/// The longest minimum time between two polls, in seconds.
const MAX_POLL_SECONDS: u32 = 60;

/// The user's decision about a device authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceDecision {
    /// The user denied it.
    Denied,
    /// The user approved it with this grant.
    Approved(GrantId),
}

/// A stored device authorization, read under a lock.
#[derive(Debug, Clone, Copy)]
pub struct PolledAuthorization {
    /// The time after which it can no longer be approved or denied.
    pub expires_at: OffsetDateTime,
    /// The minimum time between two polls, in seconds.
    pub poll_seconds: u32,
    /// The time of the last poll.
    pub last_polled_at: Option<OffsetDateTime>,
    /// The user's decision. `None` if the user has not decided yet.
    pub decision: Option<DeviceDecision>,
}

/// The state of a device authorization, for the client that polls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// It does not exist, or belongs to another client.
    Unknown,
    /// It expired without a decision.
    Expired,
    /// The user denied it.
    Denied,
    /// The user approved it with this grant.
    Approved(GrantId),
    /// The user has not decided yet.
    Pending,
    /// The user has not decided yet, and the client polls too often.
    SlowDown,
}

impl PolledAuthorization {
    /// Returns the state at a poll, with the time since the last one. An approval has no deadline
    /// here: the grant has its own.
    #[must_use]
    pub fn state(&self, now: OffsetDateTime, since_poll: Option<Duration>) -> DeviceState {
        let is_early = |passed| passed + LEEWAY < Duration::from_secs(self.poll_seconds.into());
        match self.decision {
            Some(DeviceDecision::Denied) => DeviceState::Denied,
            Some(DeviceDecision::Approved(grant)) => DeviceState::Approved(grant),
            None if self.expires_at <= now => DeviceState::Expired,
            None if since_poll.is_some_and(is_early) => DeviceState::SlowDown,
            None => DeviceState::Pending,
        }
    }

    /// Returns the minimum time until the next poll, in seconds. `None` if the client need not poll
    /// again, because `state` is final.
    #[must_use]
    pub fn next_poll_seconds(&self, state: DeviceState) -> Option<u32> {
        match state {
            DeviceState::Pending => Some(self.poll_seconds),
            DeviceState::SlowDown => {
                Some(self.poll_seconds.saturating_add(SLOW_DOWN_SECONDS).min(MAX_POLL_SECONDS))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    const START: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn pending() -> PolledAuthorization {
        PolledAuthorization {
            expires_at: START + Duration::from_mins(15),
            poll_seconds: INITIAL_POLL_SECONDS,
            last_polled_at: None,
            decision: None,
        }
    }

    #[test]
    fn first_poll_is_never_too_early() {
        assert_eq!(pending().state(START, None), DeviceState::Pending);
    }

    #[test]
    fn poll_within_interval_is_slowed_down() {
        let at = |millis| pending().state(START, Some(Duration::from_millis(millis)));
        assert_eq!([0, 3_000, 3_999].map(at), [DeviceState::SlowDown; 3]);
        assert_eq!([4_000, 5_000, 6_000].map(at), [DeviceState::Pending; 3]);
    }

    #[test]
    fn authorization_expires_unless_it_was_decided() {
        let (end, grant) = (pending().expires_at, GrantId::from(Uuid::from_u128(1)));
        assert_eq!(pending().state(end - Duration::from_nanos(1), None), DeviceState::Pending);
        assert_eq!(pending().state(end, None), DeviceState::Expired);
        let decided = |decision| {
            let decision = Some(decision);
            PolledAuthorization { decision, ..pending() }.state(end, Some(Duration::ZERO))
        };
        assert_eq!(decided(DeviceDecision::Denied), DeviceState::Denied);
        assert_eq!(decided(DeviceDecision::Approved(grant)), DeviceState::Approved(grant));
    }

    proptest! {
        #[test]
        fn interval_grows_by_five_seconds_up_to_a_minute(early_polls in 0_u32..40) {
            let mut device = pending();
            for _ in 0..early_polls {
                device.poll_seconds = device.next_poll_seconds(DeviceState::SlowDown).unwrap();
            }
            prop_assert_eq!(device.poll_seconds, (5 + 5 * early_polls).min(60));
            prop_assert_eq!(device.next_poll_seconds(DeviceState::Pending), Some(device.poll_seconds));
            prop_assert_eq!(device.next_poll_seconds(DeviceState::Expired), None);
        }
    }
}
