//! The clock of PostgreSQL: readings of it, and the record of its epochs.
//!
//! A node that notices a change of the clock begins an epoch in the database before it uses the new
//! time. So a node that sees times of the new clock sees the epoch too. [`DatabaseClock`] decides
//! if the clock has changed.

use std::time::Duration;

use sqlx::PgConnection;
use tracing::{info, warn};

use super::cache_invalidation::interval;
use crate::env::{Clock as _, ClockEpoch, ClockObservation, ClockReading, DatabaseClock};

/// The precision of the last reading in the database: nodes do not store each one.
pub const READING_INTERVAL: Duration = Duration::from_secs(1);

/// The difference between the clocks of the machine and of PostgreSQL that is logged.
const LOGGED_SKEW: Duration = Duration::from_secs(1);

/// Logs if the clock of this machine begins or ceases to differ from that of PostgreSQL.
pub(super) fn log_skew(clock: &DatabaseClock) {
    let skew = clock.skew();
    let is_skewed = skew.unsigned_abs() > LOGGED_SKEW;
    if !clock.update_skewed(is_skewed) {
        return;
    }
    let seconds = skew.as_seconds_f64();
    if is_skewed {
        warn!(
            seconds,
            "the clock of this machine differs from that of PostgreSQL; the service uses that of \
             PostgreSQL"
        );
    } else {
        info!(seconds, "the clock of this machine agrees with that of PostgreSQL");
    }
}

/// Reads the time, without its epoch.
pub(super) async fn read_first(
    connection: &mut PgConnection,
    clock: &DatabaseClock,
) -> Result<(), sqlx::Error> {
    let sent_at = clock.monotonic();
    let time =
        sqlx::query_scalar!(r#"SELECT database_time() AS "time!""#).fetch_one(connection).await?;
    let received_at = clock.monotonic();
    match clock.observe(ClockReading { time, epoch: None, sent_at, received_at }) {
        // The next reading notices a change again, and begins an epoch.
        ClockObservation::Continuous | ClockObservation::Changed(_) => Ok(()),
    }
}

/// Reads the time and the epoch, and begins an epoch if the clock has changed.
pub(super) async fn synchronize(
    connection: &mut PgConnection,
    clock: &DatabaseClock,
    max_gap: Option<Duration>,
) -> Result<(), sqlx::Error> {
    let reading = read(&mut *connection, clock, false, max_gap).await?;
    if let ClockObservation::Changed(by) = clock.observe(reading) {
        let seconds = by.as_seconds_f64();
        warn!(seconds, "the clock of PostgreSQL has changed");
        clock.restart(read(connection, clock, true, None).await?);
    }
    Ok(())
}

async fn read(
    connection: &mut PgConnection,
    clock: &DatabaseClock,
    has_changed: bool,
    max_gap: Option<Duration>,
) -> Result<ClockReading, sqlx::Error> {
    let sent_at = clock.monotonic();
    let row = sqlx::query!(
        r#"SELECT present AS "present!", epoch AS "epoch!", started_at AS "started_at!"
           FROM observe_clock($1, $2)"#,
        has_changed,
        max_gap.map(interval),
    )
    .fetch_one(connection)
    .await?;
    let received_at = clock.monotonic();
    let epoch = Some(ClockEpoch { number: row.epoch, started_at: row.started_at });
    Ok(ClockReading { time: row.present, epoch, sent_at, received_at })
}
