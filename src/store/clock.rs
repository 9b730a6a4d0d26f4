//! The clock of PostgreSQL: readings of it, and the record of its epochs.
//!
//! A node that notices a change of the clock begins an epoch in the database before it uses the new
//! time. So a node that sees times of the new clock sees the epoch too. [`DatabaseClock`] decides
//! if the clock has changed.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::context::ContextSigner;
use crate::{
    env::{Clock as _, ClockEpoch, ClockObservation, ClockReading, DatabaseClock},
    model::timestamp,
};

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
    let time = read_time(connection).await?;
    let received_at = clock.monotonic();
    match clock.observe(ClockReading { time, epoch: None, sent_at, received_at }) {
        // The next reading notices a change again, and begins an epoch.
        ClockObservation::Continuous | ClockObservation::Changed(_) => Ok(()),
    }
}

async fn read_time(connection: &mut PgConnection) -> Result<OffsetDateTime, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT database_time() AS "time!""#).fetch_one(connection).await
}

/// Reads the time and the epoch, and begins an epoch if the clock has changed.
pub(super) async fn synchronize(
    connection: &mut PgConnection,
    context: &ContextSigner,
    clock: &DatabaseClock,
    max_gap: Option<Duration>,
) -> Result<(), sqlx::Error> {
    let change = match max_gap {
        Some(_) => {
            Some(ClockChange { is_noticed: false, max_gap, at: read_time(connection).await? })
        }
        None => None,
    };
    let reading = read(connection, context, clock, change).await?;
    if let ClockObservation::Changed(by) = clock.observe(reading) {
        let seconds = by.as_seconds_f64();
        warn!(seconds, "the clock of PostgreSQL has changed");
        let change = ClockChange { is_noticed: true, max_gap: None, at: reading.time };
        clock.restart(read(connection, context, clock, Some(change)).await?);
    }
    Ok(())
}

/// The word of a node that the clock has changed, or may have changed. PostgreSQL believes it with
/// a MAC.
struct ClockChange {
    is_noticed: bool,
    /// The longest time for which no node may have read the clock.
    max_gap: Option<Duration>,
    /// The present time of PostgreSQL, for the MAC.
    at: OffsetDateTime,
}

async fn read(
    connection: &mut PgConnection,
    context: &ContextSigner,
    clock: &DatabaseClock,
    change: Option<ClockChange>,
) -> Result<ClockReading, sqlx::Error> {
    let has_changed = change.as_ref().is_some_and(|change| change.is_noticed);
    let max_gap = change.as_ref().and_then(|change| change.max_gap);
    let max_gap = max_gap.map(|gap| i64::try_from(gap.as_micros()).unwrap_or(i64::MAX));
    let signed = change.map(|change| {
        let gap = max_gap.unwrap_or(-1).to_be_bytes();
        let values = [&[u8::from(has_changed)][..], &gap];
        context.sign_decision_at("observe_clock", &values, timestamp::to_micros(change.at))
    });
    let sent_at = clock.monotonic();
    let row = sqlx::query!(
        r#"SELECT present AS "present!", epoch AS "epoch!", started_at AS "started_at!"
           FROM observe_clock($1, $2, $3, $4, $5)"#,
        has_changed,
        max_gap,
        signed.as_ref().map(|signed| signed.issued_at),
        signed.as_ref().map(|signed| &signed.key_id[..]),
        signed.as_ref().map(|signed| &signed.mac[..]),
    )
    .fetch_one(connection)
    .await?;
    let received_at = clock.monotonic();
    let epoch = Some(ClockEpoch { number: row.epoch, started_at: row.started_at });
    Ok(ClockReading { time: row.present, epoch, sent_at, received_at })
}
