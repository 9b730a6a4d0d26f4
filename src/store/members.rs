//! Memberships of users in workspaces, with their roles.
//!
//! A membership begins with the creation of its workspace ([`super::workspaces::create`]) or with
//! an invitation ([`super::invitations::accept`]).

use std::collections::BTreeSet;

use sqlx::types::Json;
use time::OffsetDateTime;

use super::{AdminTx, Store, StoreError, Tx};
use crate::model::{
    email::Email,
    fields::Fields,
    id::{Id, SessionId, UserId, WorkspaceId},
    page::{ListPage, PageRequest},
    principal::Creator,
    scope::Role,
    session::SessionEndReason,
    user::{Member, Membership, User},
};

impl Store {
    /// Begins a transaction as [`Store::begin`] does, for a workspace that the request names.
    /// `None` if the user is not a member: a stranger takes none of the workspace's transactions,
    /// and does not wait for them.
    ///
    /// The membership may end before the caller locks it, so the caller checks it again.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub async fn begin_as_member(
        &self,
        workspace: WorkspaceId,
        user: UserId,
    ) -> Result<Option<Tx>, StoreError> {
        let mut tx = self.begin_for_user(user).await?;
        let is_member = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM memberships
                              WHERE workspace_id = $1 AND user_id = $2) AS "is!""#,
            workspace.uuid(),
            user.uuid(),
        )
        .fetch_one(tx.conn())
        .await?;
        tx.rollback().await?;
        if !is_member {
            return Ok(None);
        }
        match self.begin(workspace, Some(user)).await {
            Ok(tx) => Ok(Some(tx)),
            Err(StoreError::NotAMember) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns a user's role in a workspace and locks it against changes until the transaction ends.
/// `None` if the user is not a member.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_role_for_share(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<Option<Role>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT role AS "role: Role" FROM memberships
           WHERE workspace_id = $1 AND user_id = $2 FOR SHARE"#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// True if an owner of the workspace has a verified email address.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn has_verified_owner(tx: &mut Tx, workspace: WorkspaceId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM memberships m JOIN users u ON u.id = m.user_id
               WHERE m.workspace_id = $1 AND m.role = 'owner' AND u.email_verified_at IS NOT NULL
           ) AS "has_one!""#,
        workspace.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Locks a membership for a change until the transaction ends. False if the user is not a member.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock(tx: &mut Tx, workspace: WorkspaceId, user: UserId) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar!(
        r#"SELECT true AS "found!" FROM memberships
           WHERE workspace_id = $1 AND user_id = $2 FOR NO KEY UPDATE"#,
        workspace.uuid(),
        user.uuid(),
    );
    Ok(query.fetch_optional(tx.conn()).await?.is_some())
}

/// Returns a member of a workspace as its API keys see the user: with the profile that they stored,
/// and with the name that they stored or, without one, the user's own.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get_profile(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<Option<User>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT u.email, coalesce(m.full_name, u.full_name) AS full_name,
                  m.profile AS "profile: Json<Fields>", u.created_at, u.email_verified_at,
                  u.reclaimable_until
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1 AND m.user_id = $2"#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| User {
        id: user,
        email: row.email,
        full_name: row.full_name,
        profile: row.profile.0,
        created_at: row.created_at,
        email_verified_at: row.email_verified_at,
        reclaimable_until: row.reclaimable_until,
    }))
}

/// Changes the name and profile of a member that API keys of the workspace see.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn update_profile(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: &User,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE memberships SET full_name = $3, profile = $4
         WHERE workspace_id = $1 AND user_id = $2",
        workspace.uuid(),
        user.id.uuid(),
        user.full_name,
        Json(&user.profile) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Lists the memberships of a user, oldest first. `tx` must belong to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_by_user(tx: &mut Tx, user: UserId) -> Result<Vec<Membership>, StoreError> {
    Ok(sqlx::query_as!(
        Membership,
        r#"SELECT workspace_id AS "workspace_id: WorkspaceId", role AS "role: Role"
           FROM memberships WHERE user_id = $1 ORDER BY joined_at, workspace_id"#,
        user.uuid(),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Lists the members of a workspace, newest account first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list(
    tx: &mut Tx,
    workspace: WorkspaceId,
    page: PageRequest,
) -> Result<ListPage<Member>, StoreError> {
    let members = sqlx::query_as!(
        Member,
        r#"SELECT m.user_id AS "user_id: UserId", u.email, u.full_name, m.role AS "role: Role",
                  m.joined_at
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1 AND ($2::uuid IS NULL OR m.user_id < $2)
           ORDER BY m.user_id DESC LIMIT $3 OFFSET $4"#,
        workspace.uuid(),
        page.before,
        page.limit + 1,
        page.offset,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(members, page.limit))
}

/// Counts the members of a workspace.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn count(tx: &mut Tx, workspace: WorkspaceId) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM memberships WHERE workspace_id = $1"#,
        workspace.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Locks a workspace until the transaction ends, so that changes to its memberships take turns.
/// False if the workspace does not exist.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_workspace(tx: &mut Tx, workspace: WorkspaceId) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar!(
        r#"SELECT true AS "found!" FROM workspaces WHERE id = $1 FOR NO KEY UPDATE"#,
        workspace.uuid(),
    );
    Ok(query.fetch_optional(tx.conn()).await?.is_some())
}

/// Returns a member.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<Option<Member>, StoreError> {
    Ok(sqlx::query_as!(
        Member,
        r#"SELECT m.user_id AS "user_id: UserId", u.email, u.full_name, m.role AS "role: Role",
                  m.joined_at
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1 AND m.user_id = $2"#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Returns true if the workspace has an owner other than this user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn has_another_owner(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM memberships
                          WHERE workspace_id = $1 AND user_id <> $2 AND role = 'owner') AS "is!""#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Returns true if the user is an owner of the workspace, and no other owner vouches for it: one
/// with a verified email address, who joined before this user did, or before the address of this
/// user was verified.
///
/// Until the first proof, an account lets no one in. Afterwards another person than the owner of
/// the address may have done so.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn is_sole_verifiable_owner(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM memberships own JOIN users self ON self.id = own.user_id
               WHERE own.workspace_id = $1 AND own.user_id = $2 AND own.role = 'owner'
                 AND NOT EXISTS (
                     SELECT FROM memberships m JOIN users u ON u.id = m.user_id
                     WHERE m.workspace_id = $1 AND m.user_id <> $2
                       AND m.role = 'owner' AND u.email_verified_at IS NOT NULL
                       AND (self.email_verified_at IS NULL
                            OR m.joined_at < greatest(self.email_verified_at, own.joined_at)))
           ) AS "is!""#,
        workspace.uuid(),
        user.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Returns all members of a workspace and locks their memberships until the transaction ends.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_all(tx: &mut Tx, workspace: WorkspaceId) -> Result<Vec<Member>, StoreError> {
    Ok(sqlx::query_as!(
        Member,
        r#"SELECT m.user_id AS "user_id: UserId", u.email, u.full_name, m.role AS "role: Role",
                  m.joined_at
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1 ORDER BY m.user_id FOR UPDATE OF m"#,
        workspace.uuid(),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Returns true if the user with this address is a member.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn has_member_with_email(
    tx: &mut Tx,
    workspace: WorkspaceId,
    email: &Email,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM memberships m JOIN users u ON u.id = m.user_id
                          WHERE m.workspace_id = $1 AND u.normalized_email = $2) AS "is!""#,
        workspace.uuid(),
        email.normalized(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Changes the role of a member.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn set_role(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    user: UserId,
    role: Role,
    by: Creator,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE memberships SET role = $3, role_set_by_user_id = $4, role_set_by_key_id = $5
         WHERE workspace_id = $1 AND user_id = $2",
        workspace.uuid(),
        user.uuid(),
        role.as_str(),
        by.user.map(Id::uuid),
        by.key.map(Id::uuid),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Removes members of the transaction's workspace and ends their sessions there. Returns the
/// sessions that it ended. If this was the workspace of a user's last sign-in, the next sign-in
/// uses the oldest remaining membership.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn remove(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    users: &[UserId],
    now: OffsetDateTime,
    reason: SessionEndReason,
) -> Result<Vec<SessionId>, StoreError> {
    let users: Vec<_> = users.iter().map(|user| user.uuid()).collect();
    Ok(sqlx::query_scalar!(
        r#"SELECT remove_members($1, $2, $3, $4) AS "id!: SessionId""#,
        workspace.uuid(),
        &users,
        now,
        reason.as_str(),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Locks the transaction's user, and those of the other users that are members of a workspace of
/// this user, in the order of their ids.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock_users(tx: &mut Tx, users: &BTreeSet<UserId>) -> Result<(), StoreError> {
    let ids: Vec<_> = users.iter().map(|user| user.uuid()).collect();
    sqlx::query!(r#"SELECT lock_fellow_members($1) AS "done""#, &ids).fetch_one(tx.conn()).await?;
    Ok(())
}

/// Returns the email addresses of a workspace's owners: the first twenty to join.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_owner_emails(
    tx: &mut Tx,
    workspace: WorkspaceId,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT u.email FROM memberships m JOIN users u ON u.id = m.user_id
         WHERE m.workspace_id = $1 AND m.role = 'owner' ORDER BY m.joined_at, u.id LIMIT 20",
        workspace.uuid(),
    )
    .fetch_all(tx.conn())
    .await?)
}
