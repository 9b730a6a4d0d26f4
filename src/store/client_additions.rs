//! Secrets and redirect URIs that API keys added to OAuth clients of other creators, and their end
//! in a cascade.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{AdminTx, StoreError};
use crate::model::id::{ClientId, Id as _, WorkspaceId};

/// A client to which keys added secrets or redirect URIs, of which some have ended now.
#[derive(Debug)]
pub struct RestoredClient {
    /// The client's id.
    pub id: ClientId,
    /// The client's name.
    pub name: String,
    /// What the keys added.
    pub additions: ClientAdditions,
    /// The time at which the first of them was added.
    pub since: OffsetDateTime,
    /// The time at which the last of them ended. `None`: now.
    pub until: Option<OffsetDateTime>,
}

/// What keys added to a client.
#[derive(Debug)]
pub enum ClientAdditions {
    /// The number of secrets that have ended now. Others had expired.
    Secrets(i64),
    /// Redirect URIs.
    RedirectUris {
        /// Those that were removed now.
        removed: Vec<String>,
        /// Those that had been removed before, and from whose time the client has grants.
        earlier: Vec<String>,
    },
}

/// Ends the secrets that keys added to OAuth clients. The newest other secret
/// that is still valid becomes the current one again. Also returns clients whose added secrets have
/// expired, if they have grants from the time in between.
///
/// # Errors
/// [`StoreError`] if a query fails.
pub async fn end_added_secrets(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    keys: &[Uuid],
    now: OffsetDateTime,
) -> Result<Vec<RestoredClient>, StoreError> {
    let rows = sqlx::query!(
        r#"WITH added AS (
               SELECT s.id, c.id AS client_id, c.name, s.created_at, s.expires_at,
                      s.expires_at IS NULL OR s.expires_at > $3 AS is_valid
               FROM oauth_client_secrets s JOIN oauth_clients c ON c.id = s.client_id
               WHERE c.workspace_id = $1
                 AND s.creator_key_id IN (SELECT unnest($2::uuid[]))
                 AND (s.expires_at IS NULL OR s.expires_at > $3
                      OR has_oauth_grant_between(c.id, s.created_at, s.expires_at, $3))
           ), ended AS (
               DELETE FROM oauth_client_secrets
               WHERE id IN (SELECT id FROM added WHERE is_valid)
           )
           SELECT client_id AS "id!: ClientId", name AS "name!",
                  count(*) FILTER (WHERE is_valid) AS "secrets!", min(created_at) AS "since!",
                  CASE WHEN NOT bool_or(is_valid) THEN max(expires_at) END AS until
           FROM added GROUP BY client_id, name ORDER BY client_id"#,
        workspace.uuid(),
        keys,
        now,
    )
    .fetch_all(tx.conn())
    .await?;
    for row in rows.iter().filter(|row| row.secrets > 0) {
        // Its successor is one of those that ended: only a later secret lets a current one expire.
        sqlx::query!(
            "UPDATE oauth_client_secrets SET expires_at = NULL
             WHERE id = (SELECT id FROM oauth_client_secrets
                         WHERE client_id = $1 AND (expires_at IS NULL OR expires_at > $2)
                         ORDER BY created_at DESC, id DESC LIMIT 1)
               AND expires_at IS NOT NULL",
            row.id.uuid(),
            now,
        )
        .execute(tx.conn())
        .await?;
    }
    let clients = rows.into_iter().map(|row| RestoredClient {
        id: row.id,
        name: row.name,
        additions: ClientAdditions::Secrets(row.secrets),
        since: row.since,
        until: row.until,
    });
    Ok(clients.collect())
}

/// Removes the redirect URIs that keys added to OAuth clients. Also returns
/// clients of which such URIs were removed before, if they have grants from the time in between.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn remove_added_uris(
    tx: &mut AdminTx<'_>,
    workspace: WorkspaceId,
    keys: &[Uuid],
    now: OffsetDateTime,
) -> Result<Vec<RestoredClient>, StoreError> {
    let rows = sqlx::query!(
        r#"WITH added AS (
               SELECT a.id, a.client_id, a.uri, a.added_at, a.removed_at
               FROM oauth_added_redirect_uris a JOIN oauth_clients c ON c.id = a.client_id
               WHERE c.workspace_id = $1
                 AND a.creator_key_id IN (SELECT unnest($2::uuid[]))
                 AND (a.removed_at IS NULL
                      OR has_oauth_grant_between(c.id, a.added_at, a.removed_at, NULL))
           ), removed AS (
               UPDATE oauth_added_redirect_uris SET removed_at = $3
               WHERE id IN (SELECT id FROM added WHERE removed_at IS NULL)
           ), by_client AS (
               SELECT client_id,
                      coalesce(array_agg(uri ORDER BY uri) FILTER (WHERE removed_at IS NULL), '{}')
                          AS uris,
                      coalesce(array_agg(DISTINCT uri) FILTER (WHERE removed_at IS NOT NULL), '{}')
                          AS earlier,
                      min(added_at) AS since,
                      CASE WHEN bool_and(removed_at IS NOT NULL) THEN max(removed_at) END AS until
               FROM added GROUP BY client_id
           )
           UPDATE oauth_clients c
           SET redirect_uris = ARRAY(
               SELECT uri FROM unnest(c.redirect_uris) WITH ORDINALITY AS kept (uri, position)
               WHERE uri <> ALL (r.uris) ORDER BY position)
           FROM by_client r WHERE c.id = r.client_id AND c.workspace_id = $1
           RETURNING c.id AS "id!: ClientId", c.name AS "name!", r.uris AS "uris!",
                     r.earlier AS "earlier!", r.since AS "since!", r.until AS until"#,
        workspace.uuid(),
        keys,
        now,
    )
    .fetch_all(tx.conn())
    .await?;
    let clients = rows.into_iter().map(|row| RestoredClient {
        id: row.id,
        name: row.name,
        additions: ClientAdditions::RedirectUris { removed: row.uris, earlier: row.earlier },
        since: row.since,
        until: row.until,
    });
    Ok(clients.collect())
}
