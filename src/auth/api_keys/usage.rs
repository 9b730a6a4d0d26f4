//! Usage of API keys: counts by time, addresses, and the hygiene report.

use std::collections::HashMap;

use time::{Duration, OffsetDateTime};

use crate::{
    auth::{AuthError, api_keys::ApiKeys},
    model::{
        id::ApiKeyId,
        principal::Caller,
        scope::Scope,
        usage::{KeyHygiene, KeyUsage, UNUSED_AFTER, UsageBucket},
    },
    store,
    store::usage::{BucketLength, RequestCount},
};

/// Maximum number of keys of each kind in a report.
const MAX_KEYS: i64 = 100;

/// The length of the time series in a usage report.
#[derive(Debug, Clone, Copy)]
pub struct UsageWindow {
    /// Number of hours, including the current one.
    pub hours: u32,
    /// Number of days, including the current one.
    pub days: u32,
}

impl ApiKeys {
    /// Returns the usage of a key, from one snapshot.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key.
    #[tracing::instrument(
        name = "auth.api_keys.usage",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn usage(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        reach: UsageWindow,
    ) -> Result<KeyUsage, AuthError> {
        let workspace = caller.workspace();
        let mut tx = self.context.store.begin_snapshot(caller).await?;
        let key = store::api_keys::get(&mut tx, workspace, id).await?;
        key.ok_or(AuthError::NotFound("API key"))?;
        let now = self.context.env.clock.now();
        let hours = series_start(now, Duration::HOUR, reach.hours);
        let days = series_start(now, Duration::DAY, reach.days);
        let totals = store::usage::get_totals(&mut tx, workspace, id).await?;
        let epoch = OffsetDateTime::UNIX_EPOCH;
        let all =
            store::usage::list_buckets(&mut tx, workspace, id, BucketLength::All, epoch).await?;
        Ok(KeyUsage {
            total_requests: totals.requests,
            first_used_at: totals.first_used_at,
            last_used_at: totals.last_used_at,
            all: all.into_iter().next().unwrap_or_else(|| UsageBucket::empty(epoch)),
            by_hour: store::usage::list_buckets(&mut tx, workspace, id, BucketLength::Hour, hours)
                .await?,
            by_day: store::usage::list_buckets(&mut tx, workspace, id, BucketLength::Day, days)
                .await?,
            addresses: store::usage::list_addresses(&mut tx, workspace, id).await?,
        })
    }

    /// Counts requests per key and hour, oldest first. `hours` includes the current one.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "auth.api_keys.usage_by_hour",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn usage_by_hour(
        &self,
        caller: &Caller,
        ids: &[ApiKeyId],
        hours: u32,
    ) -> Result<HashMap<ApiKeyId, Vec<i64>>, AuthError> {
        let since = series_start(self.context.env.clock.now(), Duration::HOUR, hours);
        let mut tx = self.context.store.begin_for(caller).await?;
        let uses =
            store::usage::list_hourly_counts(&mut tx, caller.workspace(), ids, since).await?;
        Ok(series_by_key(uses, since, Duration::HOUR, hours))
    }

    /// Counts requests per key and minute, oldest first. Only the last sixty minutes are stored.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "auth.api_keys.usage_by_minute",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn usage_by_minute(
        &self,
        caller: &Caller,
        ids: &[ApiKeyId],
        minutes: u32,
    ) -> Result<HashMap<ApiKeyId, Vec<i64>>, AuthError> {
        let since = series_start(self.context.env.clock.now(), Duration::MINUTE, minutes);
        let mut tx = self.context.store.begin_for(caller).await?;
        let uses =
            store::usage::list_minute_counts(&mut tx, caller.workspace(), ids, since).await?;
        Ok(series_by_key(uses, since, Duration::MINUTE, minutes))
    }

    /// Returns those of the given keys that recently used less than their scope, with the highest
    /// scope that each used.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "auth.api_keys.over_scoped",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn over_scoped(
        &self,
        caller: &Caller,
        ids: &[ApiKeyId],
    ) -> Result<HashMap<ApiKeyId, Scope>, AuthError> {
        let (workspace, since) = (caller.workspace(), self.context.env.clock.now() - UNUSED_AFTER);
        let mut tx = self.context.store.begin_for(caller).await?;
        let keys =
            store::usage::list_over_scoped_keys(&mut tx, workspace, since, Some(ids), MAX_KEYS);
        Ok(keys.await?.into_iter().map(|key| (key.id, key.used_scope)).collect())
    }

    /// Returns keys that have long been unused, or that use less than their scope.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "auth.api_keys.hygiene",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn hygiene(&self, caller: &Caller) -> Result<KeyHygiene, AuthError> {
        let workspace = caller.workspace();
        let since = self.context.env.clock.now() - UNUSED_AFTER;
        let mut tx = self.context.store.begin_for(caller).await?;
        let unused = store::usage::list_unused_keys(&mut tx, workspace, since, MAX_KEYS).await?;
        let over_scoped =
            store::usage::list_over_scoped_keys(&mut tx, workspace, since, None, MAX_KEYS).await?;
        Ok(KeyHygiene { unused, over_scoped })
    }
}

/// Converts counts to one series per key, with zeros for missing intervals.
fn series_by_key(
    uses: Vec<RequestCount>,
    since: OffsetDateTime,
    length: Duration,
    count: u32,
) -> HashMap<ApiKeyId, Vec<i64>> {
    let count = usize::try_from(count).unwrap_or_default();
    let mut series: HashMap<ApiKeyId, Vec<i64>> = HashMap::new();
    for RequestCount { key_id, start, requests } in uses {
        let counts = series.entry(key_id).or_insert_with(|| vec![0; count]);
        let index = (start - since).whole_seconds() / length.whole_seconds();
        // Skip an interval that began after `since` was computed; the next report has it.
        if let Some(count_slot) =
            usize::try_from(index).ok().and_then(|index| counts.get_mut(index))
        {
            *count_slot += requests;
        }
    }
    series
}

/// The start of the first of `count` intervals, the last of which contains `now`.
fn series_start(now: OffsetDateTime, length: Duration, count: u32) -> OffsetDateTime {
    let elapsed = now.unix_timestamp().rem_euclid(length.whole_seconds());
    let nanos = Duration::nanoseconds(now.nanosecond().into());
    now - nanos - Duration::seconds(elapsed) - length * count.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn series_start_is_aligned_to_whole_hours_and_days() {
        let now = datetime!(2026-11-26 06:10:40.5 UTC);
        assert_eq!(series_start(now, Duration::HOUR, 1), datetime!(2026-11-26 06:00 UTC));
        assert_eq!(series_start(now, Duration::HOUR, 24), datetime!(2026-11-25 07:00 UTC));
        assert_eq!(series_start(now, Duration::DAY, 30), datetime!(2026-10-28 00:00 UTC));
    }
}
