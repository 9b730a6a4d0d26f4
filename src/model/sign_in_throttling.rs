//! The policy of sign-in throttling: the pause that wrong passwords cause, and when an account's
//! owner is notified of guesses.
//!
//! Failed attempts are counted per account and subnet of the client, and those from networks that
//! the account never signed in from also per account. This module has no state: the
//! database counts, so that concurrent attempts on several nodes all count.

use std::time::Duration;

use time::OffsetDateTime;

/// The number of failed attempts that cause no pause.
const FREE_ATTEMPTS: u32 = 5;
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_mins(15);
/// The time without a failed attempt after which earlier ones no longer count.
const RESET_AFTER: Duration = Duration::from_hours(1);

/// The number of failed attempts from foreign networks, without a break of `RESET_AFTER`, that
/// cause a notification of the account's owner.
pub const NOTIFIED_FOREIGN_ATTEMPTS: u32 = 20;
/// The minimum time between two notifications.
pub const NOTIFICATION_INTERVAL: Duration = Duration::from_hours(24);

/// The failed attempts to sign in to one account from one subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAttempts {
    /// The number of attempts since the last success or reset.
    pub count: u32,
    /// The time of the last one.
    pub last_at: OffsetDateTime,
}

impl FailedAttempts {
    /// Returns true if the attempts no longer count, because the last one is too long ago.
    #[must_use]
    pub fn are_expired(&self, now: OffsetDateTime) -> bool {
        self.last_at <= expiry_cutoff(now)
    }

    /// Returns the time until the next attempt is allowed; zero if it is allowed now. `elapsed` is
    /// the time since the last one.
    ///
    /// Five failed attempts cause no pause. The sixth attempt is allowed one second after them, and
    /// each further failure doubles the pause, up to a quarter of an hour.
    #[must_use]
    pub fn remaining_pause(&self, elapsed: Duration) -> Duration {
        self.pause().saturating_sub(elapsed)
    }

    /// Returns the pause after the last attempt.
    fn pause(&self) -> Duration {
        match self.count.checked_sub(FREE_ATTEMPTS) {
            None => Duration::ZERO,
            Some(doublings) => Duration::from_secs(2_u64.saturating_pow(doublings)).min(MAX_PAUSE),
        }
    }
}

/// Returns the time up to which failed attempts no longer count.
#[must_use]
pub fn expiry_cutoff(now: OffsetDateTime) -> OffsetDateTime {
    now - RESET_AFTER
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const START: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn failed(count: u32) -> FailedAttempts {
        FailedAttempts { count, last_at: START }
    }

    fn pause_after(count: u32) -> u64 {
        failed(count).remaining_pause(Duration::ZERO).as_secs()
    }

    #[test]
    fn pause_starts_after_five_attempts_and_doubles_up_to_quarter_of_an_hour() {
        assert_eq!([0, 1, 4].map(pause_after), [0, 0, 0]);
        assert_eq!([5, 6, 7, 8].map(pause_after), [1, 2, 4, 8]);
        assert_eq!([14, 15, 16, u32::MAX].map(pause_after), [512, 900, 900, 900]);
    }

    #[test]
    fn attempts_expire_after_an_hour() {
        let hour = Duration::from_hours(1);
        assert!(!failed(20).are_expired(START + hour - Duration::from_nanos(1)));
        assert!(failed(20).are_expired(START + hour));
        assert_eq!(expiry_cutoff(START + hour), START);
    }

    proptest! {
        #[test]
        fn next_attempt_is_allowed_exactly_when_pause_is_over(
            count: u32, elapsed_ms in 0_u64..4_000_000,
        ) {
            let attempts = failed(count);
            let elapsed = Duration::from_millis(elapsed_ms);
            let pause = attempts.remaining_pause(elapsed);
            let full = attempts.remaining_pause(Duration::ZERO);
            prop_assert!(full <= MAX_PAUSE);
            prop_assert_eq!(pause.is_zero(), elapsed >= full);
            prop_assert_eq!(attempts.remaining_pause(elapsed + pause), Duration::ZERO);
        }

        #[test]
        fn further_failure_never_shortens_pause(count in 0_u32..u32::MAX, elapsed_ms in 0_u64..4_000_000) {
            let elapsed = Duration::from_millis(elapsed_ms);
            let pause = failed(count + 1).remaining_pause(Duration::ZERO);
            prop_assert!(pause >= failed(count).remaining_pause(elapsed));
        }
    }
}
