//! Time, randomness and the cost of password hashes, injected.
//!
//! Nothing else in the crate reads the system's clock or random source (`clippy.toml` bans it), so
//! tests control both. A running service follows the clock of PostgreSQL (`database_clock.rs`). The
//! cost of password hashes is no setting: only tests reduce it.

mod clock;
mod database_clock;
mod entropy;
mod password_cost;

use std::sync::Arc;

use uuid::Uuid;

#[cfg(test)]
pub(crate) use clock::ManualClock;
pub use clock::{Clock, ClockEpoch, MAX_DISAGREEMENT, SystemClock};
pub use database_clock::{ClockObservation, ClockReading, DatabaseClock};
pub use entropy::{Entropy, SystemEntropy};
pub use password_cost::PasswordCost;

/// The clock, the random source and the password cost of a running service. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The clock of PostgreSQL, which `clock` is too unless a test controls the time.
    pub database_clock: DatabaseClock,
    /// The random source of secrets and ids.
    pub entropy: Arc<dyn Entropy>,
    /// The cost of new password hashes.
    pub password_cost: PasswordCost,
}

impl Env {
    /// Creates an environment with the machine's random source and clock, and
    /// [`PasswordCost::RECOMMENDED`]. Once the service has connected to PostgreSQL, the clock
    /// follows that of PostgreSQL.
    #[must_use]
    pub fn system() -> Self {
        Self::with_machine_clock(Arc::new(SystemClock))
    }

    /// Creates an environment as [`Self::system`] does, on a machine with this clock.
    #[must_use]
    pub fn with_machine_clock(machine: Arc<dyn Clock>) -> Self {
        let database_clock = DatabaseClock::new(machine);
        Self {
            clock: Arc::new(database_clock.clone()),
            database_clock,
            entropy: Arc::new(SystemEntropy),
            password_cost: PasswordCost::RECOMMENDED,
        }
    }

    /// Generates a UUIDv7 (RFC 9562) for the current time.
    ///
    /// The twelve bits after the version hold the fraction of the millisecond (method 3 of section
    /// 6.2). So the ids of one node sort by time of creation, without a counter that all requests
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

    /// Generates an id of any kind.
    #[must_use]
    pub fn new_id<T: From<Uuid>>(&self) -> T {
        T::from(self.new_uuid())
    }
}
