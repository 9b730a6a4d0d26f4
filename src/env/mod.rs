//! Time and randomness, injected.
//!
//! Nothing else in the crate reads the system's clock or random source (`clippy.toml` bans it), so a
//! test can hold both in its hands.

mod clock;
mod entropy;

use std::sync::Arc;

use uuid::Uuid;

pub use clock::{Clock, SystemClock};
pub use entropy::{Entropy, SystemEntropy};

/// The clock and the random source of a running service. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where secrets and ids come from.
    pub entropy: Arc<dyn Entropy>,
}

impl Env {
    /// The machine's own clock and random source.
    #[must_use]
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy) }
    }

    /// A fresh UUIDv7 (RFC 9562) of this moment.
    ///
    /// The twelve bits after the version hold the fraction of the millisecond (method 3 of section
    /// 6.2), so ids made by one node sort as they were made without a counter that every request
    /// would have to share.
    #[must_use]
    pub fn new_uuid(&self) -> Uuid {
        let mut random = [0; 8];
        self.entropy.fill(&mut random);
        let now = self.clock.now();
        let seconds = now.unix_timestamp().max(0).unsigned_abs();
        let nanos = u64::from(now.nanosecond());
        let millis = seconds * 1000 + nanos / 1_000_000;
        let fraction = ((nanos % 1_000_000) << 12) / 1_000_000;
        let high = (millis << 16) | 0x7000 | fraction;
        let low = (u64::from_be_bytes(random) >> 2) | (1 << 63);
        Uuid::from_u64_pair(high, low)
    }

    /// A fresh id of any kind.
    #[must_use]
    pub fn new_id<T: From<Uuid>>(&self) -> T {
        T::from(self.new_uuid())
    }
}
