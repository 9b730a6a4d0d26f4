//! What keys are used for.

use std::collections::HashMap;

use time::{Duration, OffsetDateTime};

use super::{Auth, AuthError};
use crate::{
    model::{
        id::ApiKeyId,
        principal::Caller,
        scope::Scope,
        usage::{Hygiene, KeyUsage, Spell, UNUSED_AFTER},
    },
    store::{
        self,
        usage::{Length, Uses},
    },
};

/// Keys of each kind that are told of at a time.
const MOST_KEYS: i64 = 100;

/// How far back series reach.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Hours, this one included.
    pub hours: u32,
    /// Days, this one included.
    pub days: u32,
}

impl Auth {
    /// What a key is used for.
    ///
    /// # Errors
    /// [`AuthError::NotFound`].
    pub async fn key_usage(
        &self,
        caller: &Caller,
        id: ApiKeyId,
        reach: Reach,
    ) -> Result<KeyUsage, AuthError> {
        let workspace = caller.workspace();
        let mut tx = self.store.begin_snapshot(workspace).await?;
        let key = store::api_keys::get(&mut tx, workspace, id).await?;
        key.ok_or(AuthError::NotFound("API key"))?;
        let now = self.env.clock.now();
        let hours = begin(now, Duration::HOUR, reach.hours);
        let days = begin(now, Duration::DAY, reach.days);
        let totals = store::usage::totals(&mut tx, workspace, id).await?;
        let epoch = OffsetDateTime::UNIX_EPOCH;
        let all = store::usage::spells(&mut tx, workspace, id, Length::All, epoch).await?;
        Ok(KeyUsage {
            total_requests: totals.requests,
            first_used_at: totals.first_used_at,
            last_used_at: totals.last_used_at,
            all: all.into_iter().next().unwrap_or_else(|| Spell::empty(epoch)),
            by_hour: store::usage::spells(&mut tx, workspace, id, Length::Hour, hours).await?,
            by_day: store::usage::spells(&mut tx, workspace, id, Length::Day, days).await?,
            addresses: store::usage::addresses(&mut tx, workspace, id).await?,
        })
    }

    /// How often each of these keys was used in each of so many hours, the oldest first, this one included.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn hourly_uses(
        &self,
        caller: &Caller,
        ids: &[ApiKeyId],
        hours: u32,
    ) -> Result<HashMap<ApiKeyId, Vec<i64>>, AuthError> {
        let since = begin(self.env.clock.now(), Duration::HOUR, hours);
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let uses = store::usage::hours_of(&mut tx, caller.workspace(), ids, since).await?;
        Ok(slots(uses, since, Duration::HOUR, hours))
    }

    /// The same by minutes, of which the last sixty are kept.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn uses_by_minute(
        &self,
        caller: &Caller,
        ids: &[ApiKeyId],
        minutes: u32,
    ) -> Result<HashMap<ApiKeyId, Vec<i64>>, AuthError> {
        let since = begin(self.env.clock.now(), Duration::MINUTE, minutes);
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let uses = store::usage::minutes_of(&mut tx, caller.workspace(), ids, since).await?;
        Ok(slots(uses, since, Duration::MINUTE, minutes))
    }

    /// The most that these keys were used for lately, of those that may do more.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn over_scoped(
        &self,
        caller: &Caller,
        ids: &[ApiKeyId],
    ) -> Result<HashMap<ApiKeyId, Scope>, AuthError> {
        let (workspace, since) = (caller.workspace(), self.env.clock.now() - UNUSED_AFTER);
        let mut tx = self.store.begin(workspace, None).await?;
        let keys = store::usage::over_scoped_keys(&mut tx, workspace, since, Some(ids), MOST_KEYS);
        Ok(keys.await?.into_iter().map(|key| (key.id, key.used_scope)).collect())
    }

    /// Keys that have long not been used, or may do more than they do.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn key_hygiene(&self, caller: &Caller) -> Result<Hygiene, AuthError> {
        let workspace = caller.workspace();
        let since = self.env.clock.now() - UNUSED_AFTER;
        let mut tx = self.store.begin(workspace, None).await?;
        let unused = store::usage::unused_keys(&mut tx, workspace, since, MOST_KEYS).await?;
        let over_scoped =
            store::usage::over_scoped_keys(&mut tx, workspace, since, None, MOST_KEYS).await?;
        Ok(Hygiene { unused, over_scoped })
    }
}

/// What was counted, each key's in a row of its own.
fn slots(
    uses: Vec<Uses>,
    since: OffsetDateTime,
    length: Duration,
    count: u32,
) -> HashMap<ApiKeyId, Vec<i64>> {
    let count = usize::try_from(count).unwrap_or_default();
    let mut rows: HashMap<ApiKeyId, Vec<i64>> = HashMap::new();
    for Uses { key_id, start, requests } in uses {
        let row = rows.entry(key_id).or_insert_with(|| vec![0; count]);
        let place = (start - since).whole_seconds() / length.whole_seconds();
        // What began just now is left for the next look.
        if let Some(slot) = usize::try_from(place).ok().and_then(|place| row.get_mut(place)) {
            *slot += requests;
        }
    }
    rows
}

/// The beginning of the first of so many spells of which the last is now.
fn begin(now: OffsetDateTime, length: Duration, count: u32) -> OffsetDateTime {
    let into = now.unix_timestamp().rem_euclid(length.whole_seconds());
    let nanos = Duration::nanoseconds(now.nanosecond().into());
    now - nanos - Duration::seconds(into) - length * count.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn spells_begin_where_clocks_strike() {
        let now = datetime!(2026-11-26 06:10:40.5 UTC);
        assert_eq!(begin(now, Duration::HOUR, 1), datetime!(2026-11-26 06:00 UTC));
        assert_eq!(begin(now, Duration::HOUR, 24), datetime!(2026-11-25 07:00 UTC));
        assert_eq!(begin(now, Duration::DAY, 30), datetime!(2026-10-28 00:00 UTC));
    }
}
