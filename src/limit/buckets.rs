//! Rate limit buckets in memory (GCRA). `governor` decides; the state of a bucket is one number.

use std::{
    cell::Cell,
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};

/// Number of locks that the keys are spread over, so that two requests rarely need the same one.
const SHARDS: usize = 64;

/// The result of charging or reading a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// True if the request may pass.
    pub allowed: bool,
    /// Requests per minute, which is also the burst of a full bucket.
    pub limit: u32,
    /// Requests that may still pass now.
    pub remaining: u32,
    /// Time until the bucket is full again.
    pub full_in: Duration,
    /// Time until the next request may pass; zero if one may pass now.
    pub retry_in: Duration,
}

/// The operation on a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BucketOperation {
    /// Charge one request.
    Charge,
    /// Read the state.
    Peek,
    /// Refund one request that was charged.
    Refund,
}

impl BucketOperation {
    /// The decision for a bucket that is full in `full_in` before the operation.
    pub(super) fn decide(self, per_minute: NonZeroU32, full_in: Duration) -> Decision {
        match self {
            Self::Charge => decide(per_minute, full_in),
            Self::Peek => peek_decision(per_minute, full_in),
            Self::Refund => {
                peek_decision(per_minute, full_in.saturating_sub(refill_interval(per_minute)))
            }
        }
    }
}

/// Buckets by key.
///
/// The state of a bucket is the theoretical arrival time of GCRA. This is also the time at which
/// the bucket is full again and can be evicted.
pub(super) struct Buckets<K> {
    shards: Vec<Mutex<HashMap<K, Duration>>>,
    hasher: RandomState,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::new() }
    }

    /// Charges one request to a key's bucket; `now` is a time of the monotonic clock.
    pub(super) fn charge(&self, key: &K, per_minute: NonZeroU32, now: Duration) -> Decision {
        self.apply(BucketOperation::Charge, key, per_minute, now)
    }

    /// Returns the state of a key's bucket without charging it.
    pub(super) fn peek(&self, key: &K, per_minute: NonZeroU32, now: Duration) -> Decision {
        let full_in =
            self.shard(key).get(key).map_or(Duration::ZERO, |full_at| full_at.saturating_sub(now));
        peek_decision(per_minute, full_in)
    }

    /// Applies an operation to a key's bucket; `now` is a time of the monotonic clock.
    pub(super) fn apply(
        &self,
        operation: BucketOperation,
        key: &K,
        per_minute: NonZeroU32,
        now: Duration,
    ) -> Decision {
        let mut shard = self.shard(key);
        // A missing bucket is full, and so is one with a time in the past.
        let full_at = shard.entry(key.clone()).or_default();
        let decision = operation.decide(per_minute, full_at.saturating_sub(now));
        if decision.allowed {
            *full_at = now + decision.full_in;
        }
        decision
    }

    /// Evicts the buckets that are full.
    pub(super) fn evict_full(&self, now: Duration) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, full_at| *full_at > now);
            if shard.capacity() > 4 * shard.len() + 64 {
                shard.shrink_to_fit();
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        let len = |shard: &Mutex<HashMap<K, Duration>>| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).len()
        };
        self.shards.iter().map(len).sum()
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, Duration>> {
        let index = self.hasher.hash_one(key) % (SHARDS as u64);
        let shard = &self.shards[usize::try_from(index).unwrap_or_default()];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time after which one charged request is refilled.
pub(super) fn refill_interval(per_minute: NonZeroU32) -> Duration {
    (Duration::from_mins(1) / per_minute.get()).max(Duration::from_nanos(1))
}

/// The decision for a bucket that is full in `full_in`, without charging it.
fn peek_decision(per_minute: NonZeroU32, full_in: Duration) -> Decision {
    let charged = full_in.as_nanos().div_ceil(refill_interval(per_minute).as_nanos());
    let remaining = per_minute.get().saturating_sub(charged.try_into().unwrap_or(u32::MAX));
    let retry_in = decide(per_minute, full_in).retry_in;
    Decision { allowed: remaining > 0, limit: per_minute.get(), remaining, full_in, retry_in }
}

/// Charges one request, by GCRA, to a bucket that is full in `full_in`. The time of the decision is
/// zero. `charge.lua` must decide in the same way.
fn decide(per_minute: NonZeroU32, full_in: Duration) -> Decision {
    let each = refill_interval(per_minute);
    let limit = per_minute.get();
    let Some(quota) = Quota::with_period(each).map(|quota| quota.allow_burst(per_minute)) else {
        return Decision { allowed: false, limit, remaining: 0, full_in, retry_in: full_in };
    };
    let bucket = Bucket(Cell::new(full_in));
    let limiter: RateLimiter<_, _, _, StateInformationMiddleware> =
        RateLimiter::new(quota, bucket, FrozenClock);
    match limiter.check() {
        Ok(snapshot) => Decision {
            allowed: true,
            limit,
            remaining: snapshot.remaining_burst_capacity(),
            full_in: limiter.into_state_store().0.get(),
            retry_in: Duration::ZERO,
        },
        Err(not_until) => Decision {
            allowed: false,
            limit,
            remaining: 0,
            full_in,
            retry_in: not_until.wait_time_from(FrozenClock.now()),
        },
    }
}

/// The state of one bucket during a decision.
#[derive(Debug)]
struct Bucket(Cell<Duration>);

impl StateStore for Bucket {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, next) = decide(Some(self.0.get().into()))?;
        self.0.set(next.into());
        Ok(outcome)
    }
}

/// A clock that stands still at zero: a decision is made at one point in time.
#[derive(Debug, Clone, Copy)]
struct FrozenClock;

impl Clock for FrozenClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn per_minute(limit: u32) -> NonZeroU32 {
        NonZeroU32::new(limit).unwrap()
    }

    #[test]
    fn burst_beyond_the_limit_is_rejected() {
        let buckets = Buckets::new();
        let now = Duration::from_secs(1000);
        for remaining in (0..6).rev() {
            let decision = buckets.charge(&"a", per_minute(6), now);
            assert!(decision.allowed);
            assert_eq!(decision.remaining, remaining);
            assert_eq!(decision.full_in, Duration::from_secs(10) * (6 - remaining));
        }
        let refused = buckets.charge(&"a", per_minute(6), now);
        assert!(!refused.allowed);
        assert_eq!(refused.retry_in, Duration::from_secs(10));
        assert_eq!(refused.full_in, Duration::from_mins(1));
        assert!(buckets.charge(&"b", per_minute(6), now).allowed);
    }

    proptest! {
        /// Waiting for `retry_in` is enough, and less is not.
        #[test]
        fn request_after_retry_in_passes(limit in 1_u32..10_000, gaps in prop::collection::vec(0_u64..2_000, 1..200)) {
            let buckets = Buckets::new();
            let mut now = Duration::from_secs(5);
            for gap in gaps {
                now += Duration::from_micros(gap);
                let decision = buckets.charge(&(), per_minute(limit), now);
                if !decision.allowed {
                    let early = (now + decision.retry_in).checked_sub(Duration::from_nanos(1)).unwrap();
                    prop_assert!(!buckets.peek(&(), per_minute(limit), early).allowed);
                    now += decision.retry_in;
                    prop_assert!(buckets.charge(&(), per_minute(limit), now).allowed);
                }
            }
        }

        /// In a minute at most twice the limit passes: the burst and the refill.
        #[test]
        fn refill_is_the_limit_per_minute(limit in 1_u32..500, step in 1_u64..200) {
            let buckets = Buckets::new();
            let (mut now, mut passed) = (Duration::ZERO, 0);
            while now < Duration::from_mins(1) {
                passed += u32::from(buckets.charge(&(), per_minute(limit), now).allowed);
                now += Duration::from_millis(step);
            }
            prop_assert!(passed <= 2 * limit);
        }

        #[test]
        fn refund_undoes_one_charge(limit in 1_u32..1000, charges in 0_u32..50) {
            let buckets = Buckets::new();
            let (now, limit) = (Duration::from_secs(9), per_minute(limit));
            for _ in 0..charges {
                buckets.charge(&(), limit, now);
            }
            let before = buckets.peek(&(), limit, now);
            if buckets.charge(&(), limit, now).allowed {
                let refunded = buckets.apply(BucketOperation::Refund, &(), limit, now);
                prop_assert_eq!(refunded, before);
                prop_assert_eq!(buckets.peek(&(), limit, now), before);
            }
        }

        #[test]
        fn look_after_charge_returns_the_same_state(limit in 1_u32..1000, charges in 1_usize..50) {
            let buckets = Buckets::new();
            let now = Duration::from_secs(9);
            for _ in 0..charges {
                let charged = buckets.charge(&(), per_minute(limit), now);
                let seen = buckets.peek(&(), per_minute(limit), now);
                prop_assert_eq!(seen.remaining, charged.remaining);
                prop_assert_eq!(seen.full_in, charged.full_in);
            }
        }
    }

    #[test]
    fn full_buckets_are_evicted() {
        let buckets = Buckets::new();
        for key in 0..1000 {
            buckets.charge(&key, per_minute(60), Duration::from_secs(key));
        }
        buckets.evict_full(Duration::from_secs(500));
        assert_eq!(buckets.len(), 500);
    }
}
