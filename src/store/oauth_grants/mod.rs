//! OAuth grants: the access of a client to a workspace, until it is ended.
//!
//! Authorization codes and refresh tokens are derived from a grant and are not stored. Ending a
//! grant therefore ends all its tokens.

mod state;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{DedicatedConnection, Store, StoreError, Tx, context::SignedDecision};
use crate::model::{
    id::{ClientId, GrantId, Id, UserId, WorkspaceId},
    oauth::{
        grant::{GrantEndReason, GrantRecord, GrantUser, NewGrant, NewOwnGrant},
        pkce::CodeChallenge,
    },
    scope::{Role, Scope},
};

pub use state::lock;

/// The parties of a grant, which determine the transaction to begin for it.
#[derive(Debug, Clone, Copy)]
pub struct GrantParties {
    /// The grant's id.
    pub id: GrantId,
    /// The client that has the grant.
    pub client_id: ClientId,
    /// The workspace that the grant gives access to.
    pub workspace_id: WorkspaceId,
    /// The user that consented. `None` if the client acts for itself.
    pub user_id: Option<UserId>,
    /// True if that user lacks a second factor that the workspace requires.
    pub lacks_second_factor: bool,
}

/// A grant that has ended.
#[derive(Debug)]
pub struct EndedGrant {
    /// The grant.
    pub id: GrantId,
    /// Its client.
    pub client: ClientId,
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// The user that consented.
    pub user: Option<UserId>,
}

impl DedicatedConnection {
    /// Finds grants, before their access tokens are verified. Includes ended grants.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_grants(
        &mut self,
        ids: &[GrantId],
    ) -> Result<Vec<(GrantId, GrantRecord)>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| id.uuid()).collect();
        let find = sqlx::query!(
            r#"SELECT id AS "id!: GrantId", client_id AS "client_id!: ClientId",
                      client_name AS "client_name!", workspace_id AS "workspace_id!: WorkspaceId",
                      user_id AS "user_id: UserId", email, full_name, role AS "role: Role",
                      scope AS "scope!: Scope", ended_at, revoked_tokens AS "revoked_tokens!",
                      rate_limit_per_minute, lacks_second_factor AS "lacks_second_factor!"
               FROM find_oauth_grants($1)"#,
            &ids,
        );
        let rows = self.run(async move |connection| find.fetch_all(connection).await).await?;
        let records = rows.into_iter().map(|row| {
            let (name, role) = (row.full_name.or(row.email), row.role);
            let user = row.user_id.map(|user_id| GrantUser {
                user_id,
                name: name.unwrap_or_default().into(),
                role,
            });
            let record = GrantRecord {
                client_id: row.client_id,
                client_name: row.client_name.into(),
                workspace_id: row.workspace_id,
                user,
                scope: row.scope,
                is_ended: row.ended_at.is_some(),
                revoked_tokens: row.revoked_tokens,
                rate_limit_per_minute: row.rate_limit_per_minute.and_then(|n| n.try_into().ok()),
                lacks_second_factor: row.lacks_second_factor,
            };
            (row.id, record)
        });
        Ok(records.collect())
    }
}

impl Store {
    /// Returns the parties of a grant, before the caller is authenticated.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_grant_parties(
        &self,
        id: GrantId,
    ) -> Result<Option<GrantParties>, StoreError> {
        Ok(sqlx::query_as!(
            GrantParties,
            r#"SELECT id AS "id!: GrantId", client_id AS "client_id!: ClientId",
                      workspace_id AS "workspace_id!: WorkspaceId", user_id AS "user_id: UserId",
                      lacks_second_factor AS "lacks_second_factor!"
               FROM find_oauth_grants(ARRAY[$1::uuid])"#,
            id.uuid(),
        )
        .fetch_optional(&self.pools.requests())
        .await?)
    }

    /// Ends grants that were unused for a day more than `idle`. Deletes codes that were never
    /// redeemed, grants that ended more than 90 days ago, expired client secrets, and clients
    /// without a grant that are older than seven days (not workspace clients). Works in batches of
    /// a thousand rows: no transaction is long.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn prune_oauth(
        &self,
        now: OffsetDateTime,
        idle: std::time::Duration,
    ) -> Result<(), StoreError> {
        let (seconds, SignedDecision { key_id, mac }) =
            self.context.sign_setting("oauth.refresh_token_seconds", idle);
        loop {
            let has_more = sqlx::query!(
                r#"SELECT prune_expired_oauth_codes($1) AS "codes!",
                          prune_oauth_grants($1, $2, $3, $4) AS "grants!",
                          prune_oauth_clients($1) AS "clients!""#,
                now,
                seconds,
                &key_id,
                &mac,
            )
            .fetch_one(&self.pools.background())
            .await?;
            if !(has_more.codes || has_more.grants || has_more.clients) {
                return Ok(());
            }
        }
    }
}

/// Inserts a grant of a user. `tx` must belong to its workspace and user. The grant records the
/// passkey that the user's session was verified with, if any.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn insert(tx: &mut Tx, grant: &NewGrant) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO oauth_grants (id, client_id, workspace_id, user_id, scope, resources, passkey_id,
                                   created_at, redirect_uri, code_challenge, redeem_by, refresh_seed)
         VALUES ($1, $2, $3, $4, $5, $6,
                 (SELECT passkey_id FROM sessions WHERE id = $7 AND user_id = $4),
                 $8, $9, $10, $11, $12)",
        grant.id.uuid(),
        grant.client_id.uuid(),
        grant.workspace_id.uuid(),
        grant.user_id.uuid(),
        grant.scope.as_str(),
        &grant.resources,
        grant.session_id.uuid(),
        grant.created_at,
        grant.flow.redirect_uri(),
        grant.flow.challenge().map(CodeChallenge::as_bytes),
        grant.redeem_by,
        grant.sealed_seed,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Returns true if the grant's user lacks a second factor that the workspace requires.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lacks_second_factor(tx: &mut Tx, id: GrantId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT lacks_second_factor AS "lacks!" FROM find_oauth_grants(ARRAY[$1::uuid])"#,
        id.uuid(),
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Returns true if the grant's user lacks a second factor that the workspace requires. `None` if
/// the grant has ended, or if the access token with this `jti` was revoked.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lacks_second_factor_if_active(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: GrantId,
    token: Uuid,
) -> Result<Option<bool>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT lacks_second_factor AS "lacks!" FROM find_oauth_grants(ARRAY[$1::uuid])
           WHERE workspace_id = $2 AND ended_at IS NULL AND $3 <> ALL (revoked_tokens)"#,
        id.uuid(),
        workspace.uuid(),
        token,
    )
    .fetch_optional(tx.conn())
    .await?)
}

/// Returns the grant of a client that acts for itself, and creates it if there is none. `tx` must
/// belong to the workspace of the client.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn get_or_create_own_grant(
    tx: &mut Tx,
    grant: &NewOwnGrant,
) -> Result<GrantId, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT get_or_create_own_grant($1, $2, $3, $4, $5, $6, $7) AS "id!: GrantId""#,
        grant.id.uuid(),
        grant.client_id.uuid(),
        grant.workspace_id.uuid(),
        grant.scope.as_str(),
        &grant.resources,
        grant.created_at,
        grant.sealed_seed,
    )
    .fetch_one(tx.conn())
    .await?)
}

/// Records that tokens were issued for a grant. `generation` is that of its newest refresh token.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_token_issuance(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: GrantId,
    generation: u32,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE oauth_grants SET redeemed_at = coalesce(redeemed_at, $4), last_used_at = $4,
                                 refresh_generation = $3
         WHERE id = $1 AND workspace_id = $2",
        id.uuid(),
        workspace.uuid(),
        i32::try_from(generation).unwrap_or(i32::MAX),
        now,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Ends a grant. False if it had already ended.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn end(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: GrantId,
    now: OffsetDateTime,
    reason: GrantEndReason,
) -> Result<bool, StoreError> {
    let result = sqlx::query!(
        "UPDATE oauth_grants SET ended_at = $3, end_reason = $4
         WHERE id = $1 AND workspace_id = $2 AND ended_at IS NULL",
        id.uuid(),
        workspace.uuid(),
        now,
        reason.as_str(),
    )
    .execute(tx.conn())
    .await?;
    Ok(result.rows_affected() == 1)
}

/// Ends all grants of users, in one workspace or in all.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn end_for_users(
    tx: &mut Tx,
    workspace: Option<WorkspaceId>,
    users: &[UserId],
    now: OffsetDateTime,
    reason: GrantEndReason,
) -> Result<Vec<EndedGrant>, StoreError> {
    let users: Vec<_> = users.iter().map(|user| user.uuid()).collect();
    Ok(sqlx::query_as!(
        EndedGrant,
        r#"UPDATE oauth_grants SET ended_at = $3, end_reason = $4
           WHERE ($1::uuid IS NULL OR workspace_id = $1) AND user_id = ANY ($2)
             AND ended_at IS NULL
           RETURNING id AS "id: GrantId", client_id AS "client: ClientId",
                     workspace_id AS "workspace: WorkspaceId", user_id AS "user: UserId""#,
        workspace.map(Id::uuid),
        &users,
        now,
        reason.as_str(),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Maximum numbers of active grants of one user.
#[derive(Debug, Clone, Copy)]
pub struct GrantLimits {
    /// To one client in one workspace, of each kind: redeemed and not redeemed.
    pub per_client: i64,
    /// In total.
    pub per_user: i64,
}

/// Ends the oldest grants of a user above the limits, those that were not redeemed first. `new` is
/// a new grant of the user, which stays, and counts as redeemed.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn end_excess(
    tx: &mut Tx,
    user: UserId,
    new: GrantId,
    limits: GrantLimits,
    now: OffsetDateTime,
) -> Result<Vec<EndedGrant>, StoreError> {
    Ok(sqlx::query_as!(
        EndedGrant,
        r#"UPDATE oauth_grants SET ended_at = $5, end_reason = $6
           WHERE id IN (
               SELECT id FROM (
                   SELECT id,
                          rank() OVER (PARTITION BY client_id, workspace_id, is_unredeemed
                                       ORDER BY id <> $2, id DESC) AS rank_for_client,
                          rank() OVER (ORDER BY is_unredeemed, id <> $2, id DESC) AS rank
                   FROM (SELECT id, client_id, workspace_id,
                                redeemed_at IS NULL AND id <> $2 AS is_unredeemed
                         FROM oauth_grants WHERE user_id = $1 AND ended_at IS NULL) active
               ) ranked
               WHERE rank_for_client > $3 OR rank > $4)
           RETURNING id AS "id: GrantId", client_id AS "client: ClientId",
                     workspace_id AS "workspace: WorkspaceId", user_id AS "user: UserId""#,
        user.uuid(),
        new.uuid(),
        limits.per_client,
        limits.per_user,
        now,
        GrantEndReason::Superseded.as_str(),
    )
    .fetch_all(tx.conn())
    .await?)
}

/// Revokes one access token of a grant by its `jti`. Returns the number of revoked tokens on
/// record. Those created before `since` have expired and are removed from the record.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn revoke_token(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: GrantId,
    token: Uuid,
    since: OffsetDateTime,
) -> Result<i32, StoreError> {
    let count = sqlx::query_scalar!(
        r#"UPDATE oauth_grants SET revoked_tokens = ARRAY(
               SELECT revoked FROM unnest(revoked_tokens) AS revoked WHERE revoked >= uuidv7_lower_bound($4)
               UNION SELECT $3)
           WHERE id = $1 AND workspace_id = $2
           RETURNING cardinality(revoked_tokens) AS "count!""#,
        id.uuid(),
        workspace.uuid(),
        token,
        since,
    );
    Ok(count.fetch_optional(tx.conn()).await?.unwrap_or(0))
}

/// Returns the scope and resources of earlier consents: active grants of a user to a client in a
/// workspace, made through this redirect URI and used since `used_since`. At most 100, newest
/// first.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn list_prior_consents(
    tx: &mut Tx,
    workspace: WorkspaceId,
    user: UserId,
    client: ClientId,
    redirect_uri: &str,
    used_since: OffsetDateTime,
) -> Result<Vec<(Scope, Vec<String>)>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT scope AS "scope: Scope", resources FROM oauth_grants
           WHERE client_id = $3 AND user_id = $2 AND workspace_id = $1
             AND ended_at IS NULL AND redirect_uri = $4 AND last_used_at > $5
           ORDER BY id DESC LIMIT 100"#,
        workspace.uuid(),
        user.uuid(),
        client.uuid(),
        redirect_uri,
        used_since,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|row| (row.scope, row.resources)).collect())
}

/// Returns true if a user has an active grant to a client, or is a member of `workspace`, which
/// registered the client. `tx` must belong to that user.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn is_client_trusted(
    tx: &mut Tx,
    user: UserId,
    client: ClientId,
    workspace: Option<WorkspaceId>,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM oauth_grants
                          WHERE client_id = $2 AND user_id = $1 AND ended_at IS NULL)
                  OR EXISTS (SELECT FROM memberships WHERE user_id = $1 AND workspace_id = $3)
                  AS "is!""#,
        user.uuid(),
        client.uuid(),
        workspace.map(Id::uuid),
    )
    .fetch_one(tx.conn())
    .await?)
}
