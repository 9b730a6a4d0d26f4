//! Second factors: TOTP authenticator apps, recovery codes, and sign-ins that wait for a second
//! factor.
//!
//! The TOTP secret and the recovery codes are derived from the factor's key, which is stored
//! sealed.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::id::{Id, SessionId, UserId, WorkspaceId};

/// A user's authenticator app, read under a lock.
#[derive(Debug)]
pub struct TotpFactor {
    /// The id of the factor.
    pub id: Uuid,
    /// The sealed key, from which the secret and the recovery codes are derived.
    pub sealed_key: Vec<u8>,
    /// The time of creation.
    pub created_at: OffsetDateTime,
    /// The number of wrong codes during enrollment.
    pub wrong_codes: i32,
    /// True once the user has entered a first valid code.
    pub confirmed: bool,
    /// The time step of the last accepted code. No code works twice.
    pub last_accepted_step: i64,
    /// A bit set of the used recovery codes.
    pub used_recovery_codes: i32,
    /// The number of times that the recovery codes were regenerated. It determines the valid set.
    pub recovery_code_generation: i32,
}

/// A sign-in whose password was correct and that waits for a second factor. Read under a lock.
#[derive(Debug)]
pub struct MfaChallenge {
    /// The workspace that the sign-in requested.
    pub workspace: Option<WorkspaceId>,
    /// The number of wrong codes so far.
    pub wrong_codes: i32,
}

impl Store {
    /// Returns the user of a challenge, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_mfa_challenge_user(&self, id: Uuid) -> Result<Option<UserId>, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT find_mfa_challenge_user($1) AS "user: UserId""#, id)
            .fetch_one(&self.pools.requests())
            .await?)
    }

    /// Deletes challenges that are older than a day.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_mfa_challenges(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_mfa_challenges($1) AS "done""#, now)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

/// Returns a user's authenticator app and locks it until the transaction ends, so that code checks
/// take turns.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock(tx: &mut Tx, user: UserId) -> Result<Option<TotpFactor>, StoreError> {
    Ok(sqlx::query_as!(
        TotpFactor,
        r#"SELECT factor_id AS id, sealed_key, created_at, wrong_codes, confirmed_at IS NOT NULL AS "confirmed!", last_accepted_step,
                  used_recovery_codes, recovery_code_generation
           FROM totp_factors WHERE user_id = $1 FOR UPDATE"#,
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Returns true if the user has no passkey, has a confirmed authenticator app, or verified this
/// session with a passkey. Enrolling an authenticator app ends all other sessions, so every session
/// of a user with an authenticator app has passed it.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn is_satisfied(
    tx: &mut Tx,
    user: UserId,
    session: SessionId,
) -> Result<bool, StoreError> {
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

/// Starts the enrollment of a new authenticator app, which replaces an unconfirmed one. False if
/// the user has a confirmed one.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn start_enrollment(
    tx: &mut Tx,
    user: UserId,
    factor: Uuid,
    sealed_key: &[u8],
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "INSERT INTO totp_factors AS f (user_id, factor_id, sealed_key, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (user_id) DO UPDATE
             SET factor_id = excluded.factor_id, sealed_key = excluded.sealed_key,
                 created_at = excluded.created_at, last_accepted_step = 0, wrong_codes = 0, recovery_code_generation = 0
             WHERE f.confirmed_at IS NULL",
        user.uuid(),
        factor,
        sealed_key,
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Records the time step of an accepted code. The first accepted code confirms the authenticator
/// app; from then on, sign-in requires a code.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_accepted_code(
    tx: &mut Tx,
    user: UserId,
    step: i64,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE totp_factors SET last_accepted_step = $2, confirmed_at = coalesce(confirmed_at, $3)
         WHERE user_id = $1",
        user.uuid(),
        step,
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Counts a wrong code during enrollment.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_wrong_enrollment_code(tx: &mut Tx, user: UserId) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE totp_factors SET wrong_codes = wrong_codes + 1 WHERE user_id = $1",
        user.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Marks a recovery code as used.
///
/// # Errors
/// [`StoreError`] if the query fails.
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

/// Invalidates all recovery codes. Returns the factor's id, its sealed key and the round of the new
/// codes. `None` if there is no confirmed authenticator app.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn regenerate_recovery_codes(
    tx: &mut Tx,
    user: UserId,
) -> Result<Option<(Uuid, Vec<u8>, i32)>, StoreError> {
    let row = sqlx::query!(
        "UPDATE totp_factors SET recovery_code_generation = recovery_code_generation + 1, used_recovery_codes = 0
         WHERE user_id = $1 AND confirmed_at IS NOT NULL RETURNING factor_id, sealed_key, recovery_code_generation",
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| (row.factor_id, row.sealed_key, row.recovery_code_generation)))
}

/// Returns true if the user has a confirmed authenticator app.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn has_totp(tx: &mut Tx, user: UserId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM totp_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL)
           AS "exists!""#,
        user.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Deletes a user's authenticator app. False if none was confirmed.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn remove(tx: &mut Tx, user: UserId) -> Result<bool, StoreError> {
    let query = sqlx::query!(
        "DELETE FROM totp_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL",
        user.uuid(),
    );
    Ok(query.execute(tx.conn()).await?.rows_affected() == 1)
}

/// Deletes a user's authenticator app that is not confirmed.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn cancel_enrollment(tx: &mut Tx, user: UserId) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM totp_factors WHERE user_id = $1 AND confirmed_at IS NULL",
        user.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Inserts a challenge.
///
/// # Errors
/// [`StoreError`] if the query fails.
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

/// Returns a challenge and locks it until the transaction ends. `None` if it was used or has
/// expired.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_challenge(
    tx: &mut Tx,
    user: UserId,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<Option<MfaChallenge>, StoreError> {
    Ok(sqlx::query_as!(
        MfaChallenge,
        r#"SELECT workspace_id AS "workspace: WorkspaceId", wrong_codes FROM mfa_challenges
           WHERE id = $1 AND user_id = $2 AND used_at IS NULL AND expires_at > $3 FOR UPDATE"#,
        id,
        user.uuid(),
        now,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Returns the number of wrong codes in a user's challenges since `since`, and the time of creation
/// of the first challenge with a wrong code.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count_wrong_codes(
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

/// Counts a wrong code for a challenge.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_wrong_code(tx: &mut Tx, user: UserId, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE mfa_challenges SET wrong_codes = wrong_codes + 1 WHERE id = $1 AND user_id = $2",
        id,
        user.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Marks a challenge as used.
///
/// # Errors
/// [`StoreError`] if the query fails.
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

/// Marks all open challenges of a user as used. They began with a password that has changed since.
///
/// # Errors
/// [`StoreError`] if the query fails.
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
