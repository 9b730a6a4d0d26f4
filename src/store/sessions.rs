//! Sessions of users.
//!
//! A session's refresh tokens are derived from a sealed seed in its row. The row also holds the
//! generation of the newest one. An ended session never becomes active again.

use std::time::Duration;

use ipnet::IpNet;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{DedicatedConnection, Server, Store, StoreError, Tx};
use crate::model::{
    id::{Id, PasskeyId, SessionId, UserId, WorkspaceId},
    page::{ListPage, PageRequest},
    scope::Role,
    session::{
        NewSession, PresentedSession, RefreshState, ReplacedCredentials, Session, SessionEndReason,
        SessionRecord, SessionSelector,
    },
    session_cookie::{CookieDigest, SessionCookie},
};

/// The minimum time between two recorded uses of a browser session.
const TOUCH_INTERVAL: Duration = Duration::from_mins(5);

impl DedicatedConnection {
    /// Finds sessions, before the caller is authenticated. Includes ended sessions.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_sessions(
        &mut self,
        ids: &[SessionId],
    ) -> Result<Vec<(SessionId, SessionRecord)>, StoreError> {
        self.run(async move |connection| find(connection, ids).await).await
    }
}

impl Store {
    /// Finds one session, as [`DedicatedConnection::find_sessions`] does.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_session(&self, id: SessionId) -> Result<Option<SessionRecord>, StoreError> {
        let mut connection = self.pools.requests().acquire().await?;
        Ok(find(&mut connection, &[id]).await?.pop().map(|(_, session)| session))
    }

    /// Finds the session of a cookie on a server and records its use, which restarts its idle time.
    /// `None` if the session does not exist, has another cookie, or was unused for longer than
    /// `idle`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails, or if new connections reach another server.
    pub async fn touch_session(
        &self,
        server: Server,
        cookie: &SessionCookie,
        now: OffsetDateTime,
        idle: Duration,
    ) -> Result<Option<SessionRecord>, StoreError> {
        let digest = cookie.digest();
        let mut connection = self.pools.acquire_on(server).await?;
        let row = sqlx::query_as!(
            SessionRow,
            r#"SELECT user_id AS "user_id!: UserId", workspace_id AS "workspace_id!: WorkspaceId",
                      email AS "email!", full_name, role AS "role: Role", expires_at AS "expires_at!",
                      ended_at, rate_limit_per_minute,
                      lacks_second_factor AS "lacks_second_factor!",
                      cookie_digest AS "cookie_digest!",
                      credential_generation AS "credential_generation!"
               FROM touch_session($1, $2, $3, $4, $5)"#,
            cookie.session().uuid(),
            digest.as_bytes(),
            now,
            now - idle,
            now - TOUCH_INTERVAL,
        )
        .fetch_optional(&mut *connection)
        .await?;
        Ok(row.and_then(SessionRow::into_record))
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
                  rate_limit_per_minute, lacks_second_factor AS "lacks_second_factor!",
                  cookie_digest AS "cookie_digest!",
                  credential_generation AS "credential_generation!"
           FROM find_sessions($1)"#,
        &ids,
    )
    .fetch_all(connection)
    .await?;
    let found = rows.into_iter().filter_map(|row| {
        let record = SessionRow {
            user_id: row.user_id,
            workspace_id: row.workspace_id,
            email: row.email,
            full_name: row.full_name,
            role: row.role,
            expires_at: row.expires_at,
            ended_at: row.ended_at,
            rate_limit_per_minute: row.rate_limit_per_minute,
            lacks_second_factor: row.lacks_second_factor,
            cookie_digest: row.cookie_digest,
            credential_generation: row.credential_generation,
        };
        Some((row.id, record.into_record()?))
    });
    Ok(found.collect())
}

struct SessionRow {
    user_id: UserId,
    workspace_id: WorkspaceId,
    email: String,
    full_name: Option<String>,
    role: Option<Role>,
    expires_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
    rate_limit_per_minute: Option<i32>,
    lacks_second_factor: bool,
    cookie_digest: Vec<u8>,
    credential_generation: i32,
}

impl SessionRow {
    /// Converts the row. `None` if the schema's constraints do not allow such a row.
    fn into_record(self) -> Option<SessionRecord> {
        Some(SessionRecord {
            user_id: self.user_id,
            workspace_id: self.workspace_id,
            name: self.full_name.unwrap_or(self.email).into(),
            role: self.role,
            expires_at: self.expires_at,
            is_ended: self.ended_at.is_some(),
            rate_limit_per_minute: self.rate_limit_per_minute.and_then(|n| n.try_into().ok()),
            lacks_second_factor: self.lacks_second_factor,
            cookie_digest: CookieDigest::new(self.cookie_digest.try_into().ok()?),
            credential_generation: self.credential_generation.try_into().ok()?,
        })
    }
}

/// The generation of a presented credential, as PostgreSQL stores it.
fn generation(session: PresentedSession) -> i32 {
    session.credential_generation.try_into().unwrap_or(i32::MAX)
}

/// Inserts a new session. `tx` must belong to its user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(tx: &mut Tx, session: &NewSession) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO sessions (id, user_id, workspace_id, created_at, last_seen_at, ip, user_agent,
                               refresh_seed, refreshed_at, expires_at, cookie_digest)
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $4, $8, $9)",
        session.id.uuid(),
        session.user_id.uuid(),
        session.workspace_id.uuid(),
        session.created_at,
        IpNet::from(session.ip) as _,
        session.user_agent,
        session.sealed_seed,
        session.expires_at,
        session.cookie_digest.as_bytes(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Replaces the cookie, the refresh token and the access tokens of an active session. `None` if the
/// session has ended, or if the presented ones were replaced meanwhile.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn replace_credentials(
    tx: &mut Tx,
    user: UserId,
    session: PresentedSession,
    sealed_seed: &[u8],
    cookie: CookieDigest,
    now: OffsetDateTime,
) -> Result<Option<ReplacedCredentials>, StoreError> {
    let row = sqlx::query!(
        r#"UPDATE sessions
           SET refresh_seed = $3, cookie_digest = $4, refreshed_at = $5, last_seen_at = $5,
               refresh_generation = refresh_generation + 1,
               credential_generation = credential_generation + 1
           WHERE id = $1 AND user_id = $2 AND ended_at IS NULL AND credential_generation = $6
           RETURNING workspace_id AS "workspace_id: WorkspaceId", refresh_generation,
                     credential_generation"#,
        session.id.uuid(),
        user.uuid(),
        sealed_seed,
        cookie.as_bytes(),
        now,
        generation(session),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.and_then(|row| {
        Some(ReplacedCredentials {
            workspace_id: row.workspace_id,
            refresh_generation: row.refresh_generation.try_into().ok()?,
            credential_generation: row.credential_generation.try_into().ok()?,
        })
    }))
}

/// Records the passkey that a session was last verified with.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_passkey(
    tx: &mut Tx,
    user: UserId,
    id: SessionId,
    passkey: PasskeyId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE sessions SET passkey_id = $3 WHERE id = $1 AND user_id = $2",
        id.uuid(),
        user.uuid(),
        passkey.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Returns the state of a session's refresh tokens. The row stays locked until the transaction
/// ends, so concurrent refreshes of one session take turns.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_refresh_state(
    tx: &mut Tx,
    user: UserId,
    id: SessionId,
) -> Result<Option<RefreshState>, StoreError> {
    let row = sqlx::query!(
        "SELECT refresh_seed, refresh_generation, credential_generation, refreshed_at, expires_at,
                ended_at
         FROM sessions WHERE id = $1 AND user_id = $2 FOR UPDATE",
        id.uuid(),
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.and_then(|row| {
        Some(RefreshState {
            sealed_seed: row.refresh_seed,
            generation: row.refresh_generation.try_into().ok()?,
            credential_generation: row.credential_generation.try_into().ok()?,
            refreshed_at: row.refreshed_at,
            expires_at: row.expires_at,
            is_ended: row.ended_at.is_some(),
        })
    }))
}

/// Makes the next refresh token the current one.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn advance_refresh_token(
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

/// Lists the active sessions of a user, newest first. `tx` must belong to that user. `idle` is the
/// time that a session may go without a refresh.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    user: UserId,
    now: OffsetDateTime,
    idle: Duration,
    page: PageRequest,
) -> Result<ListPage<Session>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: SessionId", workspace_id AS "workspace_id: WorkspaceId", created_at,
                  last_seen_at, ip AS "ip: IpNet", user_agent
           FROM sessions
           WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 AND refreshed_at > $3
             AND ($4::uuid IS NULL OR id < $4)
           ORDER BY id DESC LIMIT $5 OFFSET $6"#,
        user.uuid(),
        now,
        now - idle,
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    let sessions = rows.into_iter().map(|row| Session {
        id: row.id,
        workspace_id: row.workspace_id,
        created_at: row.created_at,
        last_seen_at: row.last_seen_at,
        ip: row.ip.map(|net| net.addr()),
        user_agent: row.user_agent,
    });
    Ok(ListPage::from_overfetch(sessions.collect(), page.limit))
}

/// Counts the active sessions of a user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(
    tx: &mut Tx,
    user: UserId,
    now: OffsetDateTime,
    idle: Duration,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM sessions
           WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2 AND refreshed_at > $3"#,
        user.uuid(),
        now,
        now - idle,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Ends the sessions of a user that `selector` matches. Returns the sessions that this call ended,
/// with their workspaces.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn end_for_user(
    tx: &mut Tx,
    user: UserId,
    selector: SessionSelector,
    now: OffsetDateTime,
    reason: SessionEndReason,
) -> Result<Vec<(SessionId, WorkspaceId)>, StoreError> {
    let (only, except) = match selector {
        SessionSelector::One(id) => (Some(id.uuid()), None),
        SessionSelector::AllExcept(id) => (None, Some(id.uuid())),
        SessionSelector::All => (None, None),
    };
    let rows = sqlx::query!(
        r#"UPDATE sessions SET ended_at = $4, end_reason = $5
           WHERE user_id = $1 AND ended_at IS NULL
             AND ($2::uuid IS NULL OR id = $2) AND ($3::uuid IS NULL OR id <> $3)
           RETURNING id AS "id: SessionId", workspace_id AS "workspace_id: WorkspaceId""#,
        user.uuid(),
        only,
        except,
        now,
        reason.as_str(),
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.workspace_id)).collect())
}

/// Ends the oldest active sessions of a user, so that at most `keep` remain. `new` is a new session
/// of the user, which stays. Returns the sessions that this call ended, with their workspaces.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn end_excess(
    tx: &mut Tx,
    user: UserId,
    new: SessionId,
    keep: i64,
    now: OffsetDateTime,
    idle: Duration,
) -> Result<Vec<(SessionId, WorkspaceId)>, StoreError> {
    let rows = sqlx::query!(
        r#"UPDATE sessions SET ended_at = $4, end_reason = $6
           WHERE id IN (SELECT id FROM sessions
                        WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $4
                          AND refreshed_at > $5
                        ORDER BY id <> $2, id DESC OFFSET $3)
           RETURNING id AS "id: SessionId", workspace_id AS "workspace_id: WorkspaceId""#,
        user.uuid(),
        new.uuid(),
        keep,
        now,
        now - idle,
        SessionEndReason::Superseded.as_str(),
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.workspace_id)).collect())
}

/// Returns true if the user has this session, active or ended.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn exists(tx: &mut Tx, user: UserId, id: SessionId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM sessions WHERE id = $1 AND user_id = $2) AS "exists!""#,
        id.uuid(),
        user.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Moves a session to another workspace of its user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_workspace(
    tx: &mut Tx,
    user: UserId,
    id: SessionId,
    workspace: WorkspaceId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE sessions SET workspace_id = $3 WHERE id = $1 AND user_id = $2",
        id.uuid(),
        user.uuid(),
        workspace.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Returns the start of a user's session, or `None` if it has ended or if its credentials were
/// replaced since it was presented. Does not check its expiry.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn active_since(
    tx: &mut Tx,
    user: UserId,
    session: PresentedSession,
) -> Result<Option<OffsetDateTime>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT created_at FROM sessions
         WHERE id = $1 AND user_id = $2 AND ended_at IS NULL AND credential_generation = $3",
        session.id.uuid(),
        user.uuid(),
        generation(session),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Returns true if the user of a session lacks a second factor that the workspace requires. `None`
/// if the session has ended, or if its credentials were replaced since it was presented. The
/// session may be that of another user than the transaction's. Does not check its expiry.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lacks_second_factor_if_active(
    tx: &mut Tx,
    session: PresentedSession,
) -> Result<Option<bool>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT lacks_second_factor AS "lacks!" FROM find_sessions(ARRAY[$1::uuid])
           WHERE ended_at IS NULL AND credential_generation = $2"#,
        session.id.uuid(),
        generation(session),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Sets the workspace of a user's transaction, and records it as the user's last workspace. Returns
/// true for a new device: no session among the user's newest 100 is from this network, or none has
/// this user agent, version numbers aside. The first session of a user is not a new device.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_workspace_and_check_device(
    tx: &mut Tx,
    workspace: WorkspaceId,
    network: IpNet,
    user_agent: Option<&str>,
) -> Result<bool, StoreError> {
    let context = tx.sign_workspace(workspace);
    Ok(sqlx::query_scalar!(
        r#"SELECT set_workspace_and_check_device($1, $2, $3, $4, $5, $6) AS "is_new_device!""#,
        workspace.uuid(),
        context.issued_at,
        &context.key_id,
        &context.mac,
        network as _,
        user_agent,
    )
    .fetch_one(tx.conn())
    .await?)
}
