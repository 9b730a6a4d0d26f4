//! Users and their password hashes.
//!
//! The role of the service cannot read password hashes from the table; only functions of the schema
//! return or compare them.

use secrecy::{ExposeSecret, SecretString};
use sqlx::types::Json;
use time::OffsetDateTime;

use super::{Store, StoreError, Tx, context::SignedDecision};
use crate::model::{
    email::Email,
    fields::Fields,
    id::{Id, UserId, WorkspaceId},
    timestamp,
    user::User,
};

/// The data of an account that a sign-in needs.
#[derive(Debug)]
pub struct SignInAccount {
    /// The user.
    pub user_id: UserId,
    /// The address as entered at registration.
    pub email: String,
    /// The user's name.
    pub full_name: Option<String>,
    /// The PHC string. `None` if no password was set.
    pub password_hash: Option<SecretString>,
    /// The workspace that the user was last in.
    pub last_workspace_id: Option<WorkspaceId>,
}

impl SignInAccount {
    /// Returns the user's name or, without one, the address.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.full_name.as_deref().unwrap_or(&self.email)
    }
}

impl Store {
    /// Finds the account with an address, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_account(&self, email: &Email) -> Result<Option<SignInAccount>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT user_id AS "user_id!: UserId", email AS "email!", full_name, password_hash,
                      last_workspace_id AS "last_workspace_id: WorkspaceId"
               FROM find_account_by_email($1)"#,
            email.normalized(),
        )
        .fetch_optional(&self.pools.requests())
        .await?;
        Ok(row.map(|row| SignInAccount {
            user_id: row.user_id,
            email: row.email,
            full_name: row.full_name,
            password_hash: row.password_hash.map(Into::into),
            last_workspace_id: row.last_workspace_id,
        }))
    }
}

/// Inserts a new user. `tx` must belong to that user.
///
/// # Errors
/// [`Constraint::EmailTaken`](super::Constraint::EmailTaken) if another account has the address.
pub async fn insert(
    tx: &mut Tx,
    user: &User,
    email: &Email,
    password_hash: &SecretString,
    workspace: WorkspaceId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO users (id, email, normalized_email, full_name, password_hash, profile,
                            last_workspace_id, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        user.id.uuid(),
        email.as_str(),
        email.normalized(),
        user.full_name,
        password_hash.expose_secret(),
        Json(&user.profile) as _,
        workspace.uuid(),
        user.created_at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Returns a user that the transaction may see.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(tx: &mut Tx, id: UserId) -> Result<Option<User>, StoreError> {
    let user = sqlx::query_as!(
        UserRow,
        r#"SELECT id AS "id: UserId", email, full_name,
                  profile AS "profile: Json<Fields>", created_at, email_verified_at,
                  reclaimable_until
           FROM users WHERE id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(user.map(User::from))
}

/// Returns a user and locks it until the transaction ends.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock(tx: &mut Tx, id: UserId) -> Result<Option<User>, StoreError> {
    let user = sqlx::query_as!(
        UserRow,
        r#"SELECT id AS "id: UserId", email, full_name,
                  profile AS "profile: Json<Fields>", created_at, email_verified_at,
                  reclaimable_until
           FROM users WHERE id = $1 FOR UPDATE"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(user.map(User::from))
}

/// Changes a user's name and profile. `tx` must belong to that user. False if the user does not
/// exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn update_profile(tx: &mut Tx, user: &User) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE users SET full_name = $2, profile = $3 WHERE id = $1",
        user.id.uuid(),
        user.full_name,
        Json(&user.profile) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Records the workspace that a user was last in. `tx` must belong to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_last_workspace(
    tx: &mut Tx,
    id: UserId,
    workspace: WorkspaceId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE users SET last_workspace_id = $2 WHERE id = $1 AND last_workspace_id IS DISTINCT FROM $2",
        id.uuid(),
        workspace.uuid(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Changes a user's password hash. `tx` must belong to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_password_hash(
    tx: &mut Tx,
    id: UserId,
    hash: &SecretString,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE users SET password_hash = $2 WHERE id = $1",
        id.uuid(),
        hash.expose_secret(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Removes a user's password: no password signs in until a reset sets one. `tx` must belong to that
/// user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn remove_password(tx: &mut Tx, id: UserId) -> Result<(), StoreError> {
    sqlx::query!("UPDATE users SET password_hash = NULL WHERE id = $1", id.uuid())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Checks that the password hash of the transaction's user is still `verified`, and locks it until
/// the transaction ends. If `renewed` is set, stores this new hash of the same password instead.
/// False if the hash has changed.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_password_hash(
    tx: &mut Tx,
    verified: &SecretString,
    renewed: Option<&SecretString>,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT CASE WHEN $2::text IS NULL THEN lock_password_hash($1)
                       ELSE replace_password_hash($1, $2) END AS "is!""#,
        verified.expose_secret(),
        renewed.map(ExposeSecret::expose_secret),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Marks a user's address as verified. `tx` must belong to that user. False if it was verified
/// before.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_email_verified(
    tx: &mut Tx,
    id: UserId,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let verified_at = timestamp::to_micros(now);
    let SignedDecision { key_id, mac } = tx
        .context
        .sign_decision("email_verified_at", &[id.uuid().as_bytes(), &verified_at.to_be_bytes()]);
    Ok(sqlx::query_scalar!(
        r#"SELECT set_email_verified($1, $2, $3) AS "is_new!""#,
        verified_at,
        &key_id,
        &mac,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Stores the end of the time in which a password reset ends what was set up before. `tx` must
/// belong to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_reclaimable_until(
    tx: &mut Tx,
    id: UserId,
    until: Option<OffsetDateTime>,
) -> Result<(), StoreError> {
    let until = until.map(timestamp::to_micros);
    let SignedDecision { key_id, mac } = tx.context.sign_decision(
        "reclaimable_until",
        &[id.uuid().as_bytes(), &until.unwrap_or_default().to_be_bytes()],
    );
    sqlx::query!(r#"SELECT set_reclaimable_until($1, $2, $3) AS "done""#, until, &key_id, &mac,)
        .fetch_one(tx.conn())
        .await?;
    Ok(())
}

/// Deletes the transaction's user, with all data that belongs to the user alone. API keys that the
/// user created stay. False if the user does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn delete(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT delete_current_user() AS "deleted!""#)
        .fetch_one(tx.conn())
        .await?)
}

struct UserRow {
    id: UserId,
    email: String,
    full_name: Option<String>,
    profile: Json<Fields>,
    created_at: OffsetDateTime,
    email_verified_at: Option<OffsetDateTime>,
    reclaimable_until: Option<OffsetDateTime>,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        Self {
            id: row.id,
            email: row.email,
            full_name: row.full_name,
            profile: row.profile.0,
            created_at: row.created_at,
            email_verified_at: row.email_verified_at,
            reclaimable_until: row.reclaimable_until,
        }
    }
}
