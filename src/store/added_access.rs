//! Access that an API key or a user gave to what others made.
//!
//! Each list has a time limit, and one that exceeds it hides no other.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{StoreError, Tx, given_access::GivenAccess};
use crate::model::{
    api_key::KeyStatus,
    id::{ApiKeyId, ClientId, Id as _, UserId, WorkspaceId},
    key_descendants::{AccessSource, AddedAccess, AddedRedirectUri, AddedSecret, DescendantKey},
    page::ListPage,
    scope::{Role, Scope},
    user::Member,
};

/// Lists the access that a source gave to what others made: at most `limit` of each kind. Lists
/// that take too long are unknown.
///
/// # Errors
/// [`StoreError`] if a query fails.
pub async fn list_added_access(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: AccessSource,
    now: OffsetDateTime,
    limit: i64,
) -> Result<AddedAccess, StoreError> {
    let source = Source::read(tx, source).await?;
    list_added_by(tx, workspace, source.as_ref(), now, limit).await
}

/// A source of access, with what it gave access to.
pub(super) struct Source {
    user: Option<Uuid>,
    /// The key and its descendants. None of a user.
    pub(super) keys: Vec<Uuid>,
    /// The members and keys that got access from it, also through others. Of a key, also the keys
    /// that these created. Of a user, those are too many: administrators create keys for years.
    given: Vec<Uuid>,
}

impl Source {
    /// Reads the access that was given in the workspace. `None` if it is too much.
    pub(super) async fn read(
        tx: &mut Tx,
        source: AccessSource,
    ) -> Result<Option<Self>, StoreError> {
        tx.begin_report().await?;
        let given = GivenAccess::read(tx, source.key().is_some()).await;
        let given = tx.end_report(given).await?.flatten();
        Ok(given.map(|access| match source {
            AccessSource::Key(key) => Self {
                user: None,
                keys: access.key_and_descendants(key.uuid()),
                given: access.given_by(key.uuid()),
            },
            AccessSource::User(user) => Self {
                user: Some(user.uuid()),
                keys: Vec::new(),
                given: access.given_by(user.uuid()),
            },
        }))
    }
}

pub(super) async fn list_added_by(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: Option<&Source>,
    now: OffsetDateTime,
    limit: i64,
) -> Result<AddedAccess, StoreError> {
    let (mut given, mut added) = (None, None);
    if let Some(source) = source {
        tx.begin_report().await?;
        let report = list_given(tx, workspace, source, limit).await;
        given = tx.end_report(report).await?;
        tx.begin_report().await?;
        let report = list_added_to_clients(tx, workspace, source, now, limit).await;
        added = tx.end_report(report).await?;
    }
    let (members, widened_keys) =
        given.unwrap_or_else(|| (ListPage::unknown(), ListPage::unknown()));
    let (client_secrets, redirect_uris) =
        added.unwrap_or_else(|| (ListPage::unknown(), ListPage::unknown()));
    Ok(AddedAccess { client_secrets, redirect_uris, members, widened_keys })
}

async fn list_given(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: &Source,
    limit: i64,
) -> Result<(ListPage<Member>, ListPage<DescendantKey>), StoreError> {
    Ok((
        list_set_roles(tx, workspace, source, limit).await?,
        list_widened_keys(tx, workspace, source, limit).await?,
    ))
}

async fn list_added_to_clients(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: &Source,
    now: OffsetDateTime,
    limit: i64,
) -> Result<(ListPage<AddedSecret>, ListPage<AddedRedirectUri>), StoreError> {
    Ok((
        list_added_secrets(tx, workspace, source, now, limit).await?,
        list_added_uris(tx, workspace, source, limit).await?,
    ))
}

async fn list_added_secrets(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: &Source,
    now: OffsetDateTime,
    limit: i64,
) -> Result<ListPage<AddedSecret>, StoreError> {
    let secrets = sqlx::query_as!(
        AddedSecret,
        r#"SELECT c.id AS "client_id: ClientId", c.name AS client_name, s.created_at, s.created_by
           FROM oauth_client_secrets s JOIN oauth_clients c ON c.id = s.client_id
           WHERE c.workspace_id = $1
             AND (s.expires_at IS NULL OR s.expires_at > $4
                  OR has_oauth_grant_between(c.id, s.created_at, s.expires_at, $4))
             AND (s.creator_key_id IN (SELECT unnest($2::uuid[]))
                  OR s.creator_user_id = $3)
             AND (c.creator_key_id IN (SELECT unnest($2::uuid[]))
                  OR c.creator_user_id = $3) IS NOT TRUE
           ORDER BY s.created_at DESC, s.id DESC LIMIT $5"#,
        workspace.uuid(),
        &source.keys,
        source.user,
        now,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(secrets, limit))
}

async fn list_added_uris(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: &Source,
    limit: i64,
) -> Result<ListPage<AddedRedirectUri>, StoreError> {
    let uris = sqlx::query_as!(
        AddedRedirectUri,
        r#"SELECT c.id AS "client_id: ClientId", c.name AS client_name, a.uri, a.added_at,
                  a.removed_at, a.added_by
           FROM oauth_added_redirect_uris a JOIN oauth_clients c ON c.id = a.client_id
           WHERE c.workspace_id = $1
             AND (a.removed_at IS NULL OR has_oauth_grant_between(c.id, a.added_at, a.removed_at, NULL))
             AND (a.creator_key_id IN (SELECT unnest($2::uuid[]))
                  OR a.creator_user_id = $3)
             AND (c.creator_key_id IN (SELECT unnest($2::uuid[]))
                  OR c.creator_user_id = $3) IS NOT TRUE
           ORDER BY a.added_at DESC, c.id, a.uri LIMIT $4"#,
        workspace.uuid(),
        &source.keys,
        source.user,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(uris, limit))
}

/// Lists the members that the source invited, or whose role it set, also through members and keys
/// that it gave access to. Of a user, only administrators: others cannot give access.
async fn list_set_roles(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: &Source,
    limit: i64,
) -> Result<ListPage<Member>, StoreError> {
    let members = sqlx::query_as!(
        Member,
        r#"SELECT m.user_id AS "user_id: UserId", u.email, u.full_name, m.role AS "role: Role",
                  m.joined_at
           FROM memberships m JOIN users u ON u.id = m.user_id
           WHERE m.workspace_id = $1
             AND m.user_id IN (SELECT unnest($2::uuid[]))
             AND ($3::uuid IS NULL OR m.user_id <> $3 AND m.role IN ('owner', 'admin'))
           ORDER BY m.joined_at DESC, m.user_id LIMIT $4"#,
        workspace.uuid(),
        &source.given,
        source.user,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(members, limit))
}

/// A key that is not revoked.
pub(super) struct ActiveKeyRow {
    pub(super) id: ApiKeyId,
    pub(super) name: String,
    pub(super) scope: Scope,
    pub(super) created_at: OffsetDateTime,
    pub(super) created_by: Option<String>,
    pub(super) disabled_at: Option<OffsetDateTime>,
}

impl From<ActiveKeyRow> for DescendantKey {
    fn from(row: ActiveKeyRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            scope: row.scope,
            status: KeyStatus::of_times(row.disabled_at, None),
            created_at: row.created_at,
            created_by: row.created_by,
        }
    }
}

async fn list_widened_keys(
    tx: &mut Tx,
    workspace: WorkspaceId,
    source: &Source,
    limit: i64,
) -> Result<ListPage<DescendantKey>, StoreError> {
    let rows = sqlx::query_as!(
        ActiveKeyRow,
        r#"SELECT id AS "id: ApiKeyId", name, scope AS "scope: Scope", created_at, created_by,
                  disabled_at
           FROM api_keys
           WHERE workspace_id = $1 AND revoked_at IS NULL
             AND id IN (SELECT unnest($4::uuid[]))
             AND (creator_key_id IN (SELECT unnest($2::uuid[]))
                  OR creator_user_id = $3) IS NOT TRUE
           ORDER BY id DESC LIMIT $5"#,
        workspace.uuid(),
        &source.keys,
        source.user,
        &source.given,
        limit + 1,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(ListPage::from_overfetch(rows.into_iter().map(DescendantKey::from).collect(), limit))
}
