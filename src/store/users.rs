//! People.

use secrecy::{ExposeSecret, SecretString};
use sqlx::types::Json;
use time::OffsetDateTime;

use super::{Store, StoreError, Tx};
use crate::model::{
    email::Email,
    fields::Fields,
    id::{Id, UserId, WorkspaceId},
    user::User,
};

/// What a sign-in needs to know of the account with an address.
#[derive(Debug)]
pub struct SignIn {
    /// Whose account it is.
    pub user_id: UserId,
    /// The address as it was given at registration.
    pub email: String,
    /// The person's name.
    pub full_name: Option<String>,
    /// The PHC string; none: no password was set.
    pub password_hash: Option<SecretString>,
    /// The workspace that the person was last in.
    pub last_workspace_id: Option<WorkspaceId>,
}

impl SignIn {
    /// The name or, without one, the address.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.full_name.as_deref().unwrap_or(&self.email)
    }
}

impl Store {
    /// The account with an address, before anybody is known to be signed in.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_sign_in(&self, email: &Email) -> Result<Option<SignIn>, StoreError> {
        let row = sqlx::query!(
            r#"SELECT user_id AS "user_id!: UserId", email AS "email!", full_name, password_hash,
                      last_workspace_id AS "last_workspace_id: WorkspaceId"
               FROM find_sign_in($1)"#,
            email.key(),
        )
        .fetch_optional(&self.pools.requests())
        .await?;
        Ok(row.map(|row| SignIn {
            user_id: row.user_id,
            email: row.email,
            full_name: row.full_name,
            password_hash: row.password_hash.map(Into::into),
            last_workspace_id: row.last_workspace_id,
        }))
    }
}

/// Stores a new person, in a transaction of that person.
///
/// # Errors
/// [`Constraint::EmailTaken`](super::Constraint::EmailTaken) where another account has the address.
pub async fn insert(
    tx: &mut Tx,
    user: &User,
    email: &Email,
    password_hash: &SecretString,
    workspace: WorkspaceId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO users (id, email, email_key, full_name, password_hash, profile,
                            last_workspace_id, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        user.id.uuid(),
        email.as_str(),
        email.key(),
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

/// A person whom the transaction may see.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn get(tx: &mut Tx, id: UserId) -> Result<Option<User>, StoreError> {
    let user = sqlx::query_as!(
        UserRow,
        r#"SELECT id AS "id: UserId", email, full_name,
                  profile AS "profile: Json<Fields>", created_at, email_verified_at
           FROM users WHERE id = $1"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(user.map(User::from))
}

/// A person who stays as they are until the transaction ends.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn lock(tx: &mut Tx, id: UserId) -> Result<Option<User>, StoreError> {
    let user = sqlx::query_as!(
        UserRow,
        r#"SELECT id AS "id: UserId", email, full_name,
                  profile AS "profile: Json<Fields>", created_at, email_verified_at
           FROM users WHERE id = $1 FOR UPDATE"#,
        id.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(user.map(User::from))
}

/// Changes a person's name and whatever else is kept about them, in a transaction of that person.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn update_profile(tx: &mut Tx, user: &User) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE users SET full_name = $2, profile = $3 WHERE id = $1",
        user.id.uuid(),
        user.full_name,
        Json(&user.profile) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Remembers the workspace that a person was last in, in a transaction of that person.
///
/// # Errors
/// When PostgreSQL cannot be reached.
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

/// Gives a person another password hash, in a transaction of that person.
///
/// # Errors
/// When PostgreSQL cannot be reached.
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

/// Whether the password hash of the transaction's person is still the one that was verified; then it stays so
/// until the transaction ends, or is replaced by one of the same password.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn pin_password_hash(
    tx: &mut Tx,
    verified: &SecretString,
    renewed: Option<&SecretString>,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT CASE WHEN $2::text IS NULL THEN pin_password_hash($1)
                       ELSE replace_password_hash($1, $2) END AS "is!""#,
        verified.expose_secret(),
        renewed.map(ExposeSecret::expose_secret),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Notes that a person's address is theirs, in a transaction of that person; false where that was known.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn set_email_verified(
    tx: &mut Tx,
    id: UserId,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE users SET email_verified_at = $2 WHERE id = $1 AND email_verified_at IS NULL",
        id.uuid(),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Deletes the person of the transaction, with all that is theirs alone.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn delete(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT delete_person() AS "deleted!""#).fetch_one(tx.conn()).await?)
}

struct UserRow {
    id: UserId,
    email: String,
    full_name: Option<String>,
    profile: Json<Fields>,
    created_at: OffsetDateTime,
    email_verified_at: Option<OffsetDateTime>,
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
        }
    }
}
