//! Usage of API keys, counted by hour, minute, route, status and address.
//!
//! The sealer counts each request once, when it seals the request's event; this module reads the
//! counts and deletes old ones. It also stores the evidence of the verdict that a rotated key is
//! safe to revoke.

use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx, context::SignedDecision};
use crate::{
    env::{Clock, ClockEpoch, MAX_DISAGREEMENT},
    model::{
        api_key::KeyStatus,
        id::{ApiKeyId, EventId, Id, WorkspaceId},
        rotation::{
            EventPosition, KeyClient, KeyTraffic, NodeWatermark, QuietEvidence, QuietPeriod,
            UsageWatermark,
        },
        scope::Scope,
        usage::{KeyAddress, OverScopedKey, UnusedKey, UsageBucket},
    },
};

/// The maximum number of clients or addresses in one result.
const MAX_CLIENTS: i64 = 100;

/// Returns the time up to which every use of a key is counted, on all nodes. `own` is the watermark
/// of this node; those of the other nodes are in the database.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn usage_watermark(
    tx: &mut Tx,
    own_node: Uuid,
    own: NodeWatermark,
    clock: &dyn Clock,
) -> Result<UsageWatermark, StoreError> {
    let row = sqlx::query!(
        r#"SELECT counted_until, usage_gap_at, clock_epoch AS "clock_epoch!",
                  clock_epoch_started_at AS "clock_epoch_started_at!"
           FROM usage_watermark($1, $2)"#,
        own_node,
        own.clock_epoch,
    )
    .fetch_one(tx.conn())
    .await?;
    let mut counted_until = own.written_until.min(row.counted_until.unwrap_or(own.written_until));
    let Some(own_epoch) = own.clock_epoch else {
        let usage_gap_at = row.usage_gap_at;
        return Ok(UsageWatermark { counted_until, usage_gap_at, clock_epoch: None });
    };
    let epoch = ClockEpoch { number: row.clock_epoch, started_at: row.clock_epoch_started_at };
    if own_epoch != epoch.number {
        // This node has not noticed the epoch yet.
        counted_until = counted_until.min(epoch.started_at);
    }
    // A gap in the future was before the clock was set back, so before this epoch.
    let now = clock.now() + MAX_DISAGREEMENT;
    let usage_gap_at = row.usage_gap_at.filter(|lost| *lost <= now);
    Ok(UsageWatermark { counted_until, usage_gap_at, clock_epoch: Some(epoch) })
}

/// Returns the evidence of the last verdict that a key is safe to revoke, if there is one.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get_quiet_confirmation(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
) -> Result<Option<QuietEvidence>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT successor_id AS "successor: ApiKeyId", total_requests, quiet_since, quiet_until
           FROM quiet_confirmations WHERE workspace_id = $1 AND key_id = $2"#,
        workspace.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| QuietEvidence {
        successor: row.successor,
        total_requests: row.total_requests,
        quiet: QuietPeriod { since: row.quiet_since, until: row.quiet_until },
    }))
}

/// Stores the evidence of a verdict. It replaces earlier evidence unless that was stored after more
/// requests.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn store_quiet_confirmation(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
    confirmation: QuietEvidence,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO quiet_confirmations AS stored
             (workspace_id, key_id, successor_id, total_requests, quiet_since, quiet_until)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (workspace_id, key_id) DO UPDATE SET
             successor_id = excluded.successor_id, total_requests = excluded.total_requests,
             quiet_since = excluded.quiet_since, quiet_until = excluded.quiet_until
         WHERE stored.total_requests <= excluded.total_requests",
        workspace.uuid(),
        id.uuid(),
        confirmation.successor.map(Id::uuid),
        confirmation.total_requests,
        confirmation.quiet.since,
        confirmation.quiet.until,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Returns the use of a key since `hour_ago`. `None` if the key does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get_traffic(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
    hour_ago: OffsetDateTime,
) -> Result<Option<KeyTraffic>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT k.name, k.created_at, a.first_used_at AS "first_used_at?",
                  a.last_used_at AS "last_used_at?", a.last_used_epoch AS "last_used_epoch?",
                  a.total_requests AS "total_requests?",
                  a.last_success_id AS "last_success_id?: EventId",
                  a.last_success_epoch AS "last_success_epoch?",
                  a.last_failure_id AS "last_failure_id?: EventId",
                  a.last_failure_epoch AS "last_failure_epoch?",
                  k.disabled_at, k.revoked_at,
                  (SELECT coalesce(sum(m.requests), 0)::bigint FROM key_usage_minutes m
                   WHERE m.key_id = k.id AND m.minute >= $3) AS "requests!"
           FROM api_keys k LEFT JOIN api_key_activity a ON a.key_id = k.id
           WHERE k.workspace_id = $1 AND k.id = $2"#,
        workspace.uuid(),
        id.uuid(),
        hour_ago,
    )
    .fetch_optional(tx.conn())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let position = |(clock_epoch, id)| EventPosition { clock_epoch, id };
    Ok(Some(KeyTraffic {
        id,
        name: row.name,
        created_at: row.created_at,
        first_used_at: row.first_used_at,
        last_used_at: row.last_used_at,
        last_used_epoch: row.last_used_epoch.unwrap_or_default(),
        total_requests: row.total_requests.unwrap_or_default(),
        last_success: row.last_success_epoch.zip(row.last_success_id).map(position),
        last_failure: row.last_failure_epoch.zip(row.last_failure_id).map(position),
        status: KeyStatus::of_times(row.disabled_at, row.revoked_at),
        requests_last_hour: row.requests,
        clients_last_hour: list_clients_since(tx, workspace, id, hour_ago).await?,
    }))
}

async fn list_clients_since(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
    since: OffsetDateTime,
) -> Result<Vec<KeyClient>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT ip AS "ip: IpNet", user_agent, last_used_at, last_method, last_path, requests
           FROM key_usage_clients
           WHERE workspace_id = $1 AND key_id = $2 AND last_used_at >= $3
           ORDER BY last_used_at DESC, ip, user_agent LIMIT $4"#,
        workspace.uuid(),
        id.uuid(),
        since,
        MAX_CLIENTS,
    )
    .fetch_all(tx.conn())
    .await?;
    let clients = rows.into_iter().map(|row| KeyClient {
        ip: row.ip.addr(),
        user_agent: row.user_agent,
        last_used_at: row.last_used_at,
        last_method: row.last_method,
        last_path: row.last_path,
        requests: row.requests,
    });
    Ok(clients.collect())
}

/// The total use of a key.
#[derive(Debug, Clone, Copy, Default)]
pub struct UsageTotals {
    /// The number of requests.
    pub requests: i64,
    /// The time of the first request.
    pub first_used_at: Option<OffsetDateTime>,
    /// The time of the last request.
    pub last_used_at: Option<OffsetDateTime>,
}

/// Returns the total use of a key.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get_totals(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
) -> Result<UsageTotals, StoreError> {
    let row = sqlx::query!(
        "SELECT total_requests, first_used_at, last_used_at FROM api_key_activity
         WHERE workspace_id = $1 AND key_id = $2",
        workspace.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map_or_else(UsageTotals::default, |row| UsageTotals {
        requests: row.total_requests,
        first_used_at: row.first_used_at,
        last_used_at: row.last_used_at,
    }))
}

/// The length of a usage bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketLength {
    /// An hour.
    Hour,
    /// A day in UTC.
    Day,
    /// Everything that is stored, as one bucket.
    All,
}

impl BucketLength {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::All => "all",
        }
    }
}

/// Returns the use of a key since `since` in buckets, oldest first. There is no bucket for a time
/// without use.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_buckets(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
    length: BucketLength,
    since: OffsetDateTime,
) -> Result<Vec<UsageBucket>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT CASE $3::text WHEN 'all' THEN timestamptz 'epoch' ELSE date_trunc($3, hour, 'UTC') END AS "start!",
                  route_group, status_class, sum(requests)::bigint AS "requests!"
           FROM key_usage_hours
           WHERE workspace_id = $1 AND key_id = $2 AND hour >= $4 AND requests > 0
           GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"#,
        workspace.uuid(),
        id.uuid(),
        length.as_str(),
        since,
    )
    .fetch_all(tx.conn())
    .await?;
    let mut buckets: Vec<UsageBucket> = Vec::new();
    for row in rows {
        if buckets.last().is_none_or(|bucket| bucket.start != row.start) {
            buckets.push(UsageBucket::empty(row.start));
        }
        if let Some(bucket) = buckets.last_mut() {
            bucket.add(row.route_group, row.status_class, row.requests);
        }
    }
    Ok(buckets)
}

/// Returns the hourly request counts of these keys since `since`. There is no entry for an hour
/// without use.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_hourly_counts(
    tx: &mut Tx,
    workspace: WorkspaceId,
    ids: &[ApiKeyId],
    since: OffsetDateTime,
) -> Result<Vec<RequestCount>, StoreError> {
    let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
    Ok(sqlx::query_as!(
        RequestCount,
        r#"SELECT key_id AS "key_id: ApiKeyId", hour AS start, sum(requests)::bigint AS "requests!"
           FROM key_usage_hours
           WHERE workspace_id = $1 AND key_id = ANY ($2) AND hour >= $3
           GROUP BY key_id, hour"#,
        workspace.uuid(),
        &ids,
        since,
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Returns the request counts of these keys by minute, since `since`. They are kept for at least
/// the last hour.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_minute_counts(
    tx: &mut Tx,
    workspace: WorkspaceId,
    ids: &[ApiKeyId],
    since: OffsetDateTime,
) -> Result<Vec<RequestCount>, StoreError> {
    let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
    Ok(sqlx::query_as!(
        RequestCount,
        r#"SELECT key_id AS "key_id: ApiKeyId", minute AS start, requests
           FROM key_usage_minutes
           WHERE workspace_id = $1 AND key_id = ANY ($2) AND minute >= $3"#,
        workspace.uuid(),
        &ids,
        since,
    )
    .fetch_all(tx.conn())
    .await?)
}

/// The requests of a key in one hour or one minute.
#[derive(Debug)]
pub struct RequestCount {
    /// The key.
    pub key_id: ApiKeyId,
    /// The start of the hour or minute.
    pub start: OffsetDateTime,
    /// The number of requests.
    pub requests: i64,
}

/// Returns the addresses that used a key, most recently used first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_addresses(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
) -> Result<Vec<KeyAddress>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT ip AS "ip: IpNet", sum(requests)::bigint AS "requests!",
                  min(first_used_at) AS "first_used_at!", max(last_used_at) AS "last_used_at!"
           FROM key_usage_clients WHERE workspace_id = $1 AND key_id = $2
           GROUP BY ip ORDER BY max(last_used_at) DESC, ip LIMIT $3"#,
        workspace.uuid(),
        id.uuid(),
        MAX_CLIENTS,
    )
    .fetch_all(tx.conn())
    .await?;
    let addresses = rows.into_iter().map(|row| KeyAddress {
        ip: row.ip.addr(),
        requests: row.requests,
        first_used_at: row.first_used_at,
        last_used_at: row.last_used_at,
    });
    Ok(addresses.collect())
}

/// Returns keys without a use since `since` that are not revoked, longest unused first. A key that
/// was never used counts from its creation.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_unused_keys(
    tx: &mut Tx,
    workspace: WorkspaceId,
    since: OffsetDateTime,
    limit: i64,
) -> Result<Vec<UnusedKey>, StoreError> {
    Ok(sqlx::query_as!(
        UnusedKey,
        r#"SELECT k.id AS "id: ApiKeyId", k.name, k.scope AS "scope: Scope", k.created_at,
                  a.last_used_at AS "last_used_at?"
           FROM api_keys k LEFT JOIN api_key_activity a ON a.key_id = k.id
           WHERE k.workspace_id = $1 AND k.revoked_at IS NULL
             AND coalesce(a.last_used_at, k.created_at) < $2
           ORDER BY coalesce(a.last_used_at, k.created_at), k.id LIMIT $3"#,
        workspace.uuid(),
        since,
        limit,
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Returns keys that were used since `since`, but only for less than their scope allows, and that
/// are not revoked. If `only` is set, considers these keys alone.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_over_scoped_keys(
    tx: &mut Tx,
    workspace: WorkspaceId,
    since: OffsetDateTime,
    only: Option<&[ApiKeyId]>,
    limit: i64,
) -> Result<Vec<OverScopedKey>, StoreError> {
    let only: Option<Vec<_>> = only.map(|ids| ids.iter().map(|id| id.uuid()).collect());
    Ok(sqlx::query_as!(
        OverScopedKey,
        r#"SELECT k.id AS "id: ApiKeyId", k.name, k.scope AS "scope: Scope",
                  used.scope AS "used_scope!: Scope", used.first AS "used_since!",
                  a.last_used_at AS "last_used_at!"
           FROM api_keys k
           JOIN api_key_activity a ON a.key_id = k.id
           JOIN LATERAL (
               SELECT (ARRAY['read-only', 'write', 'admin'])[
                          max(array_position(ARRAY['read-only', 'write', 'admin'], h.scope))] AS scope,
                      min(h.hour) AS first
               FROM key_usage_hours h WHERE h.key_id = k.id AND h.hour >= $2 AND h.status_class < 4
           ) used ON array_position(ARRAY['read-only', 'write', 'admin'], used.scope)
                   < array_position(ARRAY['read-only', 'write', 'admin'], k.scope)
           WHERE k.workspace_id = $1 AND k.revoked_at IS NULL
             AND ($4::uuid[] IS NULL OR k.id = ANY ($4))
           ORDER BY k.id DESC LIMIT $3"#,
        workspace.uuid(),
        since,
        limit,
        only.as_deref(),
    )
    .fetch_all(tx.conn())
    .await?)
}

impl Store {
    /// Deletes counts by minute that are older than two hours. One call deletes 50,000 rows at
    /// most, so it must run often.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_usage_minutes(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_usage_minutes($1) AS "done""#, now)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }

    /// Deletes hourly counts that are older than `retention`, 50,000 rows at most, and the clients
    /// of keys without a use since then.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_key_usage(
        &self,
        now: OffsetDateTime,
        retention: std::time::Duration,
    ) -> Result<(), StoreError> {
        let (seconds, SignedDecision { key_id, mac }) =
            self.context.sign_setting("audit.usage_retention_days", retention);
        sqlx::query!(
            r#"SELECT prune_key_usage($1, $2, $3, $4) AS "done""#,
            now,
            seconds,
            &key_id,
            &mac,
        )
        .fetch_one(&self.pools.background())
        .await?;
        Ok(())
    }
}
