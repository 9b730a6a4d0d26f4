//! Fills the audit log with events of twenty days, as if the service had written them.

use sqlx::{PgConnection, Row as _};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    seed::execute_sql,
    stats::{format_number, to_f64},
};

/// Rows per statement.
const BATCH: i64 = 500_000;
/// An address that few requests come from.
pub(super) const RARE_ADDRESS: &str = "203.0.113.99";

/// The content of the log. Unless stated otherwise, the fields describe the workspace that is
/// queried.
pub(super) struct FilledLog {
    /// All rows of all workspaces.
    pub(super) rows: i64,
    /// Rows of the workspace.
    pub(super) own_rows: i64,
    /// Partitions that contain rows.
    pub(super) partitions: i64,
    /// The size of the table and of all its indexes.
    pub(super) table_mib: f64,
    pub(super) indexes_mib: f64,
    /// The duration of the filling.
    pub(super) seconds: f64,
    /// The key with most of the rows, and a key with few.
    pub(super) busy_key: Uuid,
    pub(super) rare_key: Uuid,
    /// The owner of the workspace.
    pub(super) person: Uuid,
    /// An address that many requests come from.
    pub(super) busy_address: String,
    /// The ids of the newest and of the oldest request.
    pub(super) newest_request: Uuid,
    pub(super) oldest_request: Uuid,
    /// An hour, ten days ago.
    pub(super) since: String,
    pub(super) until: String,
}

/// Creates ten workspaces, a hundred keys and the partitions.
const PREPARE: &str = "
    SET synchronous_commit = off;
    SELECT setseed(0.5);
    SELECT create_audit_partition(now() - interval '20 days'), create_audit_partition(now());
    CREATE TEMPORARY TABLE mix AS
        SELECT (SELECT id FROM workspaces ORDER BY id DESC LIMIT 1) || array_agg(gen_random_uuid()) AS workspaces,
               (SELECT array_agg(gen_random_uuid()) FROM generate_series(1, 100)) AS keys,
               (SELECT id FROM users ORDER BY id DESC LIMIT 1) AS person,
               floor(extract(epoch FROM now() - interval '20 days') * 1000)::bigint AS first,
               20 * 86400000::bigint AS span
        FROM generate_series(1, 9)";

/// Inserts the rows `$1` to `$2` of `$3`. Actor 0 is the owner of the first workspace, actor 1 its
/// key with 30 % of all rows, actor 2 its key with 0.001 %. The keys from 3 on belong to all
/// workspaces.
const INSERT: &str = "
    INSERT INTO audit_events (
        id, workspace_id, action, actor_type, actor_id, actor_name, target_type, target_id,
        target_name, request_id, method, path, status, ip, user_agent, latency_us)
    SELECT (moment || '-7' || substr(gen_random_uuid()::text, 16))::uuid,
           mix.workspaces[CASE WHEN actor <= 2 THEN 1 ELSE actor % 10 + 1 END],
           CASE WHEN minted THEN 'api_key.created' ELSE 'request' END,
           CASE WHEN actor = 0 THEN 'user' ELSE 'api_key' END,
           CASE WHEN actor = 0 THEN mix.person ELSE mix.keys[actor] END,
           CASE WHEN actor = 0 THEN 'bench@call2me.example' ELSE 'production ' || actor END,
           CASE WHEN minted THEN 'key' END,
           CASE WHEN minted THEN mix.keys[1 + floor(path * 100)::int] END,
           CASE WHEN minted THEN 'staging' END,
           (moment || '-7' || substr(gen_random_uuid()::text, 16))::uuid,
           CASE WHEN minted OR path > 0.9 THEN 'POST' ELSE 'GET' END,
           CASE WHEN minted THEN '/v1/api-keys' WHEN path < 0.5 THEN '/v1/auth/verify'
                WHEN path < 0.7 THEN '/v1/agents' ELSE '/v1/calls' END,
           CASE WHEN minted THEN 201 WHEN outcome < 0.02 THEN 403 WHEN outcome < 0.03 THEN 404
                ELSE 200 END,
           CASE WHEN address < 0.00001 THEN '203.0.113.99'::inet
                ELSE '198.51.100.0'::inet + floor(address * 8)::int END,
           'call2me-python/2.4.1',
           50 + floor(1000 * path * path)::bigint
    FROM mix, (
        SELECT overlay(lpad(to_hex(first + number * span / $3), 12, '0') PLACING '-' FROM 9 FOR 0)
                   AS moment,
               CASE WHEN who < 0.3 THEN 1 WHEN who < 0.30001 THEN 2 WHEN who < 0.30501 THEN 0
                    ELSE 3 + floor((who - 0.30501) / 0.69499 * 98)::int END AS actor,
               minted < 0.0001 AS minted, path, outcome, address
        FROM (SELECT first, span, number, random() AS who, random() AS minted, random() AS path,
                     random() AS outcome, random() AS address
              FROM mix, generate_series($1::bigint, $2::bigint) AS number
              OFFSET 0) AS drawn
        OFFSET 0) AS event";

const DESCRIBE: &str = "
    SELECT (SELECT count(*) FROM audit_events) AS rows,
           (SELECT count(*) FROM audit_events WHERE workspace_id = mix.workspaces[1]) AS own_rows,
           (SELECT count(DISTINCT tableoid) FROM audit_events) AS partitions,
           (SELECT sum(pg_table_size(relid)) / 1048576.0 FROM pg_partition_tree('audit_events'))::float8
               AS table_mib,
           (SELECT sum(pg_indexes_size(relid)) / 1048576.0 FROM pg_partition_tree('audit_events'))::float8
               AS indexes_mib,
           mix.keys[1] AS busy_key, mix.keys[2] AS rare_key, mix.person, '198.51.100.3' AS busy_address,
           (SELECT request_id FROM audit_events
            WHERE workspace_id = mix.workspaces[1] ORDER BY id DESC LIMIT 1) AS newest_request,
           (SELECT request_id FROM audit_events
            WHERE workspace_id = mix.workspaces[1] ORDER BY id LIMIT 1) AS oldest_request,
           to_char(now() AT TIME ZONE 'UTC' - interval '10 days', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS since,
           to_char(now() AT TIME ZONE 'UTC' - interval '239 hours', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS until
    FROM mix";

/// Fills the audit log of a database with one workspace and one user.
pub(super) async fn fill_log(
    connection: &mut PgConnection,
    rows: i64,
) -> Result<FilledLog, String> {
    let start = Instant::now();
    execute_sql(connection, PREPARE).await?;
    for first in (1..=rows).step_by(usize::try_from(BATCH).unwrap_or(1)) {
        let last = rows.min(first + BATCH - 1);
        sqlx::query(INSERT)
            .bind(first)
            .bind(last)
            .bind(rows)
            .execute(&mut *connection)
            .await
            .map_err(|error| format!("cannot write events: {error}"))?;
        let done = u64::try_from(last).map(to_f64).unwrap_or_default();
        eprintln!("{} events written", format_number(done, 0));
    }
    // Vacuums as autovacuum would do later, so that it does not start during the measurements.
    execute_sql(connection, "VACUUM (ANALYZE) audit_events").await?;
    execute_sql(connection, "CHECKPOINT").await?;
    let seconds = start.elapsed().as_secs_f64();
    let description = describe(connection, seconds).await;
    description.map_err(|error| format!("cannot read the events: {error}"))
}

async fn describe(connection: &mut PgConnection, seconds: f64) -> Result<FilledLog, sqlx::Error> {
    let row = sqlx::query(DESCRIBE).fetch_one(connection).await?;
    Ok(FilledLog {
        rows: row.try_get("rows")?,
        own_rows: row.try_get("own_rows")?,
        partitions: row.try_get("partitions")?,
        table_mib: row.try_get("table_mib")?,
        indexes_mib: row.try_get("indexes_mib")?,
        seconds,
        busy_key: row.try_get("busy_key")?,
        rare_key: row.try_get("rare_key")?,
        person: row.try_get("person")?,
        busy_address: row.try_get("busy_address")?,
        newest_request: row.try_get("newest_request")?,
        oldest_request: row.try_get("oldest_request")?,
        since: row.try_get("since")?,
        until: row.try_get("until")?,
    })
}
