//! Sessions of people.

use ipnet::IpNet;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Line, Store, StoreError, Tx};
use crate::model::{
    id::{Id, SessionId, UserId, WorkspaceId},
    refresh_token::RefreshSeed,
    scope::Role,
    session::{EndReason, NewSession, RefreshState, SessionRecord},
};

impl Line {
    /// Sessions and where they stand, before their bearers are believed.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_sessions(
        &mut self,
        ids: &[SessionId],
    ) -> Result<Vec<(SessionId, SessionRecord)>, StoreError> {
        self.run(async move |connection| find(connection, ids).await).await
    }
}

impl Store {
    /// One session, as [`Line::find_sessions`] finds it.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_session(&self, id: SessionId) -> Result<Option<SessionRecord>, StoreError> {
        let mut connection = self.pools.requests().acquire().await?;
        Ok(find(&mut connection, &[id]).await?.pop().map(|(_, session)| session))
    }
}

async fn find(
    connection: &mut PgConnection,
    ids: &[SessionId],
) -> Result<Vec<(SessionId, SessionRecord)>, sqlx::Error> {
    let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
    let rows = sqlx::query!(
        r#"SELECT id AS "id!: SessionId", user_id AS "user_id!: UserId",
                  workspace_id AS "workspace_id!: WorkspaceId", email AS "email!", full_name,
                  role AS "role: Role", expires_at AS "expires_at!", ended_at,
                  rate_limit_per_minute
           FROM find_sessions($1)"#,
        &ids,
    )
    .fetch_all(connection)
    .await?;
    let found = rows.into_iter().map(|row| {
        let record = SessionRecord {
            user_id: row.user_id,
            workspace_id: row.workspace_id,
            name: row.full_name.unwrap_or(row.email).into(),
            role: row.role,
            expires_at: row.expires_at,
            ended: row.ended_at.is_some(),
            rate_limit_per_minute: row.rate_limit_per_minute.and_then(|n| n.try_into().ok()),
        };
        (row.id, record)
    });
    Ok(found.collect())
}

/// Stores a new session, in a transaction of its person.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert(tx: &mut Tx, session: &NewSession) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO sessions (id, user_id, workspace_id, created_at, last_seen_at, ip, user_agent,
                               refresh_seed, refreshed_at, expires_at)
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $4, $8)",
        session.id.uuid(),
        session.user_id.uuid(),
        session.workspace_id.uuid(),
        session.created_at,
        IpNet::from(session.ip) as _,
        session.user_agent,
        session.seed.as_bytes(),
        session.expires_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Where a session's refresh tokens stand. The row stays locked until the transaction ends, so
/// concurrent refreshes of one session take turns.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn lock_refresh_state(
    tx: &mut Tx,
    user: UserId,
    id: SessionId,
) -> Result<Option<RefreshState>, StoreError> {
    let row = sqlx::query!(
        "SELECT refresh_seed, refresh_generation, refreshed_at, expires_at, ended_at
         FROM sessions WHERE id = $1 AND user_id = $2 FOR UPDATE",
        id.uuid(),
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.and_then(|row| {
        Some(RefreshState {
            seed: RefreshSeed::new(row.refresh_seed.try_into().ok()?),
            generation: row.refresh_generation.try_into().ok()?,
            refreshed_at: row.refreshed_at,
            expires_at: row.expires_at,
            ended: row.ended_at.is_some(),
        })
    }))
}

/// Makes the next refresh token the current one.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn advance_refresh(
    tx: &mut Tx,
    user: UserId,
    id: SessionId,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE sessions SET refresh_generation = refresh_generation + 1, refreshed_at = $3,
                             last_seen_at = $3
         WHERE id = $1 AND user_id = $2",
        id.uuid(),
        user.uuid(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Ends a session; false if it had ended before.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn end(
    tx: &mut Tx,
    user: UserId,
    id: SessionId,
    now: OffsetDateTime,
    reason: EndReason,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE sessions SET ended_at = $3, end_reason = $4
         WHERE id = $1 AND user_id = $2 AND ended_at IS NULL",
        id.uuid(),
        user.uuid(),
        now,
        reason.as_str(),
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}
