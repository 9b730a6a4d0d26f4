//! What keys are used for, as it was added up.

use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    id::{ApiKeyId, Id, WorkspaceId},
    rotation::{Confirmation, KeyClient, KeyTraffic, Known, QuietPeriod},
    scope::Scope,
    usage::{KeyAddress, OverScopedKey, Spell, UnusedKey},
};

/// Programs at addresses that are told of at a time.
const CLIENTS: i64 = 100;

/// Until when every use of a key is counted that other nodes than this one have seen; none: until now.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn known(
    tx: &mut Tx,
    own_node: Uuid,
    own_until: OffsetDateTime,
) -> Result<Known, StoreError> {
    let row = sqlx::query!("SELECT until, doubtful_at FROM uses_known($1)", own_node)
        .fetch_one(tx.conn())
        .await?;
    let until = row.until.map_or(own_until, |until| until.min(own_until));
    Ok(Known { until, doubtful_at: row.doubtful_at })
}

/// The evidence of the last verdict that a key is safe to revoke, if it is kept.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn confirmation(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
) -> Result<Option<Confirmation>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT successor_id AS "successor: ApiKeyId", quiet_since, quiet_until FROM quiet_keys
           WHERE workspace_id = $1 AND key_id = $2"#,
        workspace.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| Confirmation {
        successor: row.successor,
        quiet: QuietPeriod { since: row.quiet_since, until: row.quiet_until },
    }))
}

/// Keeps the evidence of a verdict in place of an older one.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn confirm(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
    confirmation: Confirmation,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO quiet_keys AS kept (workspace_id, key_id, successor_id, quiet_since, quiet_until)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (key_id) DO UPDATE SET
             successor_id = excluded.successor_id, quiet_since = excluded.quiet_since,
             quiet_until = excluded.quiet_until
         WHERE kept.quiet_since <= excluded.quiet_since",
        workspace.uuid(),
        id.uuid(),
        confirmation.successor.map(Id::uuid),
        confirmation.quiet.since,
        confirmation.quiet.until,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// What a key was used for since an hour ago.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn traffic(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
    hour_ago: OffsetDateTime,
) -> Result<Option<KeyTraffic>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT k.name, k.created_at, a.first_used_at AS "first_used_at?",
                  a.last_used_at AS "last_used_at?",
                  EXISTS (SELECT FROM key_usage_hours h WHERE h.key_id = k.id AND h.status_class < 4)
                      AS "has_served!",
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
    Ok(Some(KeyTraffic {
        id,
        name: row.name,
        created_at: row.created_at,
        first_used_at: row.first_used_at,
        last_used_at: row.last_used_at,
        has_served: row.has_served,
        requests_last_hour: row.requests,
        clients_last_hour: clients_since(tx, workspace, id, hour_ago).await?,
    }))
}

async fn clients_since(
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
        CLIENTS,
    )
    .fetch_all(tx.conn())
    .await?;
    let client = rows.into_iter().map(|row| KeyClient {
        ip: row.ip.addr(),
        user_agent: row.user_agent,
        last_used_at: row.last_used_at,
        last_method: row.last_method,
        last_path: row.last_path,
        requests: row.requests,
    });
    Ok(client.collect())
}

/// How often a key was used in all, and when first and last.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Requests.
    pub requests: i64,
    /// The first of them.
    pub first_used_at: Option<OffsetDateTime>,
    /// The last of them.
    pub last_used_at: Option<OffsetDateTime>,
}

/// How often a key was used in all.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn totals(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
) -> Result<Totals, StoreError> {
    let row = sqlx::query!(
        "SELECT total_requests, first_used_at, last_used_at FROM api_key_activity
         WHERE workspace_id = $1 AND key_id = $2",
        workspace.uuid(),
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map_or_else(Totals::default, |row| Totals {
        requests: row.total_requests,
        first_used_at: Some(row.first_used_at),
        last_used_at: Some(row.last_used_at),
    }))
}

/// The length of a spell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// An hour.
    Hour,
    /// A day, in UTC.
    Day,
    /// All that is kept.
    All,
}

impl Length {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::All => "all",
        }
    }
}

/// How often a key was used since a moment, by hours or days, the oldest first; where it was not used, there
/// is nothing.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn spells(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: ApiKeyId,
    length: Length,
    since: OffsetDateTime,
) -> Result<Vec<Spell>, StoreError> {
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
    let mut spells: Vec<Spell> = Vec::new();
    for row in rows {
        if spells.last().is_none_or(|spell| spell.start != row.start) {
            spells.push(Spell::empty(row.start));
        }
        if let Some(spell) = spells.last_mut() {
            spell.add(row.route_group, row.status_class, row.requests);
        }
    }
    Ok(spells)
}

/// How often each of these keys was used, by hours since a moment.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn hours_of(
    tx: &mut Tx,
    workspace: WorkspaceId,
    ids: &[ApiKeyId],
    since: OffsetDateTime,
) -> Result<Vec<Uses>, StoreError> {
    let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
    Ok(sqlx::query_as!(
        Uses,
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

/// How often each of these keys was used, by minutes since a moment; of the last hour they are kept.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn minutes_of(
    tx: &mut Tx,
    workspace: WorkspaceId,
    ids: &[ApiKeyId],
    since: OffsetDateTime,
) -> Result<Vec<Uses>, StoreError> {
    let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
    Ok(sqlx::query_as!(
        Uses,
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

/// How often a key was used in an hour or a minute.
#[derive(Debug)]
pub struct Uses {
    /// The key.
    pub key_id: ApiKeyId,
    /// When that began.
    pub start: OffsetDateTime,
    /// Requests.
    pub requests: i64,
}

/// The addresses that used a key last, the last first.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn addresses(
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
        CLIENTS,
    )
    .fetch_all(tx.conn())
    .await?;
    let address = rows.into_iter().map(|row| KeyAddress {
        ip: row.ip.addr(),
        requests: row.requests,
        first_used_at: row.first_used_at,
        last_used_at: row.last_used_at,
    });
    Ok(address.collect())
}

/// Active keys that have not been used since a moment, the longest unused first.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn unused_keys(
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

/// Active keys that were used since a moment, but for less than they may do; of these alone, if any are given.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn over_scoped_keys(
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
           ) used ON used.scope IS NOT NULL AND used.scope <> k.scope
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
    /// Forgets the minutes of longer than two hours ago; some of them, so it is to be asked often.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_usage_minutes(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_usage_minutes($1) AS "done""#, now)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }

    /// Forgets what keys were used for before a moment.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_key_usage(&self, oldest: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_key_usage($1) AS "done""#, oldest)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }
}
