//! Second factors, and sign-ins that wait for one.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::id::{Id, SessionId, UserId, WorkspaceId};

/// A person's authenticator; read under a lock.
#[derive(Debug)]
pub struct Factor {
    /// What its secret is derived from.
    pub id: Uuid,
    /// Since when.
    pub created_at: OffsetDateTime,
    /// Wrong codes in place of a first one.
    pub wrong_codes: i32,
    /// Whether the person has shown a first code.
    pub confirmed: bool,
    /// The step of the last code that was accepted.
    pub last_step: i64,
    /// A bit for each recovery code that was used.
    pub used_recovery_codes: i32,
    /// Which recovery codes these are: how often they were made anew.
    pub recovery_round: i32,
}

/// A sign-in whose password was right; read under a lock.
#[derive(Debug)]
pub struct Challenge {
    /// The workspace that was asked for.
    pub workspace: Option<WorkspaceId>,
    /// Wrong codes so far.
    pub wrong_codes: i32,
}

impl Store {
    /// Whose challenge this is, before anybody is known.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_mfa_challenge(&self, id: Uuid) -> Result<Option<UserId>, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT find_mfa_challenge($1) AS "user: UserId""#, id)
            .fetch_one(&self.pools.requests())
            .await?)
    }

    /// Drops challenges that nobody can meet any more.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_mfa_challenges(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_mfa_challenges($1) AS "done""#, now)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }
}

/// A person's authenticator, if there is one. Codes for it take turns until the transaction ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn lock(tx: &mut Tx, user: UserId) -> Result<Option<Factor>, StoreError> {
    Ok(sqlx::query_as!(
        Factor,
        r#"SELECT factor_id AS id, created_at, wrong_codes, confirmed_at IS NOT NULL AS "confirmed!", last_step,
                  used_recovery_codes, recovery_round
           FROM totp_factors WHERE user_id = $1 FOR UPDATE"#,
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Whether a session has shown whatever its person has beside the password: no session outlives that an
/// authenticator is set up but the one that did it, so it is about passkeys where there is none.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn is_shown(tx: &mut Tx, user: UserId, session: SessionId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (SELECT FROM passkeys WHERE user_id = $1)
               OR EXISTS (SELECT FROM totp_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL)
               OR EXISTS (SELECT FROM sessions WHERE user_id = $1 AND id = $2 AND passkey_id IS NOT NULL)
               AS "shown!""#,
        user.uuid(),
        session.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Begins with another authenticator; false where there is one that was confirmed.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn start(
    tx: &mut Tx,
    user: UserId,
    factor: Uuid,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "INSERT INTO totp_factors AS f (user_id, factor_id, created_at) VALUES ($1, $2, $3)
         ON CONFLICT (user_id) DO UPDATE
             SET factor_id = excluded.factor_id, created_at = excluded.created_at, last_step = 0,
                 wrong_codes = 0, recovery_round = 0
             WHERE f.confirmed_at IS NULL",
        user.uuid(),
        factor,
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that a code was accepted; from the first one on, codes are asked for.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn accept_step(
    tx: &mut Tx,
    user: UserId,
    step: i64,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE totp_factors SET last_step = $2, confirmed_at = coalesce(confirmed_at, $3)
         WHERE user_id = $1",
        user.uuid(),
        step,
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Notes a wrong code in place of a first one.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn count_wrong_first_code(tx: &mut Tx, user: UserId) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE totp_factors SET wrong_codes = wrong_codes + 1 WHERE user_id = $1",
        user.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Notes that a recovery code was used.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn use_recovery_code(tx: &mut Tx, user: UserId, number: u8) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE totp_factors SET used_recovery_codes = used_recovery_codes | (1 << $2)
         WHERE user_id = $1",
        user.uuid(),
        i32::from(number),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Makes all recovery codes so far worth nothing; answers the round of the new ones, or none where there is no
/// authenticator.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn renew_recovery_codes(
    tx: &mut Tx,
    user: UserId,
) -> Result<Option<(Uuid, i32)>, StoreError> {
    let row = sqlx::query!(
        "UPDATE totp_factors SET recovery_round = recovery_round + 1, used_recovery_codes = 0
         WHERE user_id = $1 AND confirmed_at IS NOT NULL RETURNING factor_id, recovery_round",
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| (row.factor_id, row.recovery_round)))
}

/// Whether a person has a second factor.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn exists(tx: &mut Tx, user: UserId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM totp_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL)
           AS "exists!""#,
        user.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Takes a person's authenticator away; false where none was confirmed.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn remove(tx: &mut Tx, user: UserId) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "DELETE FROM totp_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL",
        user.uuid(),
    );
    Ok(done.execute(tx.conn()).await?.rows_affected() == 1)
}

/// Stores a challenge.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn insert_challenge(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    workspace: Option<WorkspaceId>,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO mfa_challenges (id, user_id, workspace_id, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5)",
        id,
        user.uuid(),
        workspace.map(Id::uuid),
        created_at,
        expires_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A challenge that can still be met, which is this transaction's until it ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn lock_challenge(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<Option<Challenge>, StoreError> {
    Ok(sqlx::query_as!(
        Challenge,
        r#"SELECT workspace_id AS "workspace: WorkspaceId", wrong_codes FROM mfa_challenges
           WHERE id = $1 AND user_id = $2 AND used_at IS NULL AND expires_at > $3 FOR UPDATE"#,
        id,
        user.uuid(),
        now,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// How many wrong codes a person's challenges got since then, and when the first of these was made.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn wrong_codes(
    tx: &mut Tx,
    user: UserId,
    since: OffsetDateTime,
) -> Result<(i64, Option<OffsetDateTime>), StoreError> {
    let row = sqlx::query!(
        r#"SELECT coalesce(sum(wrong_codes), 0) AS "wrong!", min(created_at) AS first
           FROM mfa_challenges WHERE user_id = $1 AND created_at > $2 AND wrong_codes > 0"#,
        user.uuid(),
        since,
    )
    .fetch_one(tx.conn())
    .await?;
    Ok((row.wrong, row.first))
}

/// Notes a wrong code.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn count_wrong_code(tx: &mut Tx, user: UserId, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mfa_challenges SET wrong_codes = wrong_codes + 1 WHERE id = $1 AND user_id = $2",
        id,
        user.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Notes that a challenge was met.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn use_challenge(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mfa_challenges SET used_at = $3 WHERE id = $1 AND user_id = $2",
        id,
        user.uuid(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Makes a person's challenges worth nothing: the password that they began with is another one now.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn discard_challenges(
    tx: &mut Tx,
    user: UserId,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mfa_challenges SET used_at = $2 WHERE user_id = $1 AND used_at IS NULL",
        user.uuid(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}
