//! The end of a restore, as the owner of the tables: revokes again what the backup has revived, and
//! lifts the quarantine, in one transaction. [`crate::auth::restore`] runs it.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Connection as _, Postgres, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    StoreError, audit::insert_in_bulk, oauth_grants::EndedGrant, owner_connection::OwnerConnection,
};
use crate::model::{
    audit::NewEvent,
    id::{ApiKeyId, ClientId, EventId, GrantId, Id, SessionId, UserId, WorkspaceId},
    oauth::grant::GrantEndReason,
    scope::Role,
    session::SessionEndReason,
};

impl OwnerConnection {
    /// Puts the database in quarantine, unless it is already.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn begin_quarantine(&mut self) -> Result<(), StoreError> {
        sqlx::query!(
            "UPDATE database_state
             SET quarantined_at = clock_timestamp(),
                 quarantine_reason = 'the operator has begun a restore'
             WHERE quarantined_at IS NULL"
        )
        .execute(&mut self.0)
        .await?;
        Ok(())
    }

    /// Begins the transaction of a restore. Returns it with the reason of the quarantine, or `None`
    /// if the database is not in quarantine.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn begin_restore(&mut self) -> Result<Option<(RestoreTx<'_>, String)>, StoreError> {
        let mut tx = self.0.begin().await?;
        sqlx::query!("SELECT FROM database_state FOR UPDATE").fetch_one(&mut *tx).await?;
        let reason = sqlx::query_scalar!("SELECT quarantine_reason()").fetch_one(&mut *tx).await?;
        let Some(reason) = reason else { return Ok(None) };
        let mut restore = RestoreTx(tx);
        restore.set_invalidation(false).await?;
        restore.delete_invalidations().await?;
        Ok(Some((restore, reason)))
    }
}

/// The transaction of a restore. It is rolled back unless it is finished.
pub struct RestoreTx<'a>(Transaction<'a, Postgres>);

/// The grants to end. All that match one of the conditions end.
#[derive(Debug, Default)]
pub struct GrantsToEnd {
    /// Grants.
    pub grants: Vec<GrantId>,
    /// All grants of these clients.
    pub clients: Vec<ClientId>,
    /// All grants of these users in one workspace each.
    pub members: Vec<(WorkspaceId, UserId)>,
    /// Grants whose authorization code was not redeemed.
    pub unredeemed: bool,
    /// Grants whose refresh token rotates.
    pub rotating: bool,
}

/// The number of links and codes that became invalid.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct EndedLinks {
    /// Links to verify an address or to reset a password.
    pub mailed_links: u64,
    /// Open invitations.
    pub invitations: u64,
    /// Pending device authorizations.
    pub device_authorizations: u64,
    /// Emails that were not sent.
    pub emails: u64,
}

impl RestoreTx<'_> {
    /// Turns the invalidation of sessions and grants off and on: in quarantine no node caches any,
    /// and there may be a million of them.
    async fn set_invalidation(&mut self, is_on: bool) -> Result<(), StoreError> {
        let sql = if is_on {
            "ALTER TABLE sessions ENABLE TRIGGER sessions_notify_invalidation;
             ALTER TABLE oauth_grants ENABLE TRIGGER oauth_grants_notify_invalidation"
        } else {
            "ALTER TABLE sessions DISABLE TRIGGER sessions_notify_invalidation;
             ALTER TABLE oauth_grants DISABLE TRIGGER oauth_grants_notify_invalidation"
        };
        sqlx::raw_sql(sql).execute(&mut *self.0).await?;
        Ok(())
    }

    /// Deletes the invalidations of a backup. No node has a lease, so none needs them. After a dump
    /// of another cluster was restored, transaction ids start again, and a new transaction could
    /// have the id of one of these.
    async fn delete_invalidations(&mut self) -> Result<(), StoreError> {
        let sql = "DELETE FROM invalidations; DELETE FROM invalidation_batches";
        sqlx::raw_sql(sql).execute(&mut *self.0).await?;
        Ok(())
    }

    /// Returns those of some events that the database has.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_events(&mut self, ids: &[EventId]) -> Result<BTreeSet<EventId>, StoreError> {
        let ids = uuids(ids.iter().copied());
        let (Some(first), Some(last)) = (ids.iter().min(), ids.iter().max()) else {
            return Ok(BTreeSet::new());
        };
        let found = sqlx::query_scalar!(
            r#"SELECT id AS "id: EventId" FROM audit_events
               WHERE id BETWEEN $2 AND $3 AND action <> 'request' AND id = ANY($1)"#,
            &ids,
            first,
            last,
        );
        Ok(found.fetch_all(&mut *self.0).await?.into_iter().collect())
    }

    /// Returns the last sequence number of the hash chain of each workspace that has one.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn chain_ends(&mut self) -> Result<BTreeMap<WorkspaceId, i64>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT workspace_id AS "workspace: WorkspaceId", sequence FROM audit_chain_heads"#
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.workspace, row.sequence)).collect())
    }

    /// Revokes API keys. Returns those that were not revoked before, with name and workspace.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn revoke_keys(
        &mut self,
        keys: impl Iterator<Item = ApiKeyId>,
        now: OffsetDateTime,
    ) -> Result<Vec<(ApiKeyId, String, WorkspaceId)>, StoreError> {
        let rows = sqlx::query!(
            r#"UPDATE api_keys SET revoked_at = $2 WHERE id = ANY($1) AND revoked_at IS NULL
               RETURNING id AS "id: ApiKeyId", name, workspace_id AS "workspace: WorkspaceId""#,
            &uuids(keys),
            now,
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.id, row.name, row.workspace)).collect())
    }

    /// Disables API keys. Returns those that were active before, with name and workspace.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn disable_keys(
        &mut self,
        keys: impl Iterator<Item = ApiKeyId>,
        now: OffsetDateTime,
    ) -> Result<Vec<(ApiKeyId, String, WorkspaceId)>, StoreError> {
        let rows = sqlx::query!(
            r#"UPDATE api_keys SET disabled_at = $2
               WHERE id = ANY($1) AND revoked_at IS NULL AND disabled_at IS NULL
               RETURNING id AS "id: ApiKeyId", name, workspace_id AS "workspace: WorkspaceId""#,
            &uuids(keys),
            now,
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.id, row.name, row.workspace)).collect())
    }

    /// Ends grants.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn end_grants(
        &mut self,
        which: &GrantsToEnd,
        now: OffsetDateTime,
        reason: GrantEndReason,
    ) -> Result<Vec<EndedGrant>, StoreError> {
        let GrantsToEnd { grants, clients, members, unredeemed, rotating } = which;
        Ok(sqlx::query_as!(
            EndedGrant,
            r#"UPDATE oauth_grants g SET ended_at = $1, end_reason = $2
               FROM oauth_clients c
               WHERE c.id = g.client_id AND g.ended_at IS NULL
                 AND (g.id = ANY($3) OR g.client_id = ANY($4)
                      OR (g.workspace_id, g.user_id) IN
                             (SELECT * FROM unnest($5::uuid[], $6::uuid[]))
                      OR $7 AND g.redeemed_at IS NULL
                      OR $8 AND c.auth_method = 'none')
               RETURNING g.id AS "id: GrantId", g.client_id AS "client: ClientId",
                         g.workspace_id AS "workspace: WorkspaceId", g.user_id AS "user: UserId""#,
            now,
            reason.as_str(),
            &uuids(grants.iter().copied()),
            &uuids(clients.iter().copied()),
            &uuids(members.iter().map(|(workspace, _)| *workspace)),
            &uuids(members.iter().map(|(_, user)| *user)),
            unredeemed,
            rotating,
        )
        .fetch_all(&mut *self.0)
        .await?)
    }

    /// Deletes OAuth clients with their grants. Returns their names and workspaces.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn delete_clients(
        &mut self,
        clients: impl Iterator<Item = ClientId>,
    ) -> Result<Vec<(ClientId, String, Option<WorkspaceId>)>, StoreError> {
        let rows = sqlx::query!(
            r#"DELETE FROM oauth_clients WHERE id = ANY($1)
               RETURNING id AS "id: ClientId", name, workspace_id AS "workspace: WorkspaceId""#,
            &uuids(clients),
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.id, row.name, row.workspace)).collect())
    }

    /// Ends the secrets of OAuth clients. Returns the clients that had one, with their names and
    /// workspaces.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn end_client_secrets(
        &mut self,
        clients: impl Iterator<Item = ClientId>,
        now: OffsetDateTime,
    ) -> Result<Vec<(ClientId, String, Option<WorkspaceId>)>, StoreError> {
        let rows = sqlx::query!(
            r#"WITH ended AS (
                   UPDATE oauth_client_secrets SET expires_at = $2
                   WHERE client_id = ANY($1) AND (expires_at IS NULL OR expires_at > $2)
                   RETURNING client_id
               )
               SELECT id AS "id: ClientId", name, workspace_id AS "workspace: WorkspaceId"
               FROM oauth_clients WHERE id IN (SELECT client_id FROM ended)"#,
            &uuids(clients),
            now,
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.id, row.name, row.workspace)).collect())
    }

    /// Returns the memberships of users, with their addresses.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_memberships(
        &mut self,
        users: impl Iterator<Item = UserId>,
    ) -> Result<Vec<(WorkspaceId, UserId, String)>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT m.workspace_id AS "workspace: WorkspaceId", u.id AS "user: UserId", u.email
               FROM memberships m JOIN users u ON u.id = m.user_id WHERE u.id = ANY($1)"#,
            &uuids(users),
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.workspace, row.user, row.email)).collect())
    }

    /// Removes a member. Returns its address, or `None` if the user is no member.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn remove_member(
        &mut self,
        workspace: WorkspaceId,
        user: UserId,
    ) -> Result<Option<String>, StoreError> {
        let (workspace, user) = (workspace.uuid(), user.uuid());
        let removed = sqlx::query_scalar!(
            "DELETE FROM memberships m USING users u
             WHERE m.workspace_id = $1 AND m.user_id = $2 AND u.id = m.user_id RETURNING u.email",
            workspace,
            user,
        )
        .fetch_optional(&mut *self.0)
        .await?;
        sqlx::query!(
            "UPDATE users SET last_workspace_id =
                 (SELECT m.workspace_id FROM memberships m WHERE m.user_id = $2
                  ORDER BY m.joined_at, m.workspace_id LIMIT 1)
             WHERE id = $2 AND last_workspace_id = $1",
            workspace,
            user,
        )
        .execute(&mut *self.0)
        .await?;
        Ok(removed)
    }

    /// Lowers the role of a member. Returns the earlier role and the address, or `None` if the role
    /// is not higher.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn lower_role(
        &mut self,
        workspace: WorkspaceId,
        user: UserId,
        role: Role,
    ) -> Result<Option<(Role, String)>, StoreError> {
        let member = sqlx::query!(
            r#"SELECT m.role AS "role: Role", u.email
               FROM memberships m JOIN users u ON u.id = m.user_id
               WHERE m.workspace_id = $1 AND m.user_id = $2"#,
            workspace.uuid(),
            user.uuid(),
        )
        .fetch_optional(&mut *self.0)
        .await?;
        let Some(member) = member.filter(|member| member.role > role) else { return Ok(None) };
        sqlx::query!(
            "UPDATE memberships
             SET role = $3, role_set_by_user_id = NULL, role_set_by_key_id = NULL
             WHERE workspace_id = $1 AND user_id = $2",
            workspace.uuid(),
            user.uuid(),
            role.as_str(),
        )
        .execute(&mut *self.0)
        .await?;
        Ok(Some((member.role, member.email)))
    }

    /// Deletes accounts. Returns their number.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn delete_accounts(
        &mut self,
        users: impl Iterator<Item = UserId>,
    ) -> Result<u64, StoreError> {
        let deleted = sqlx::query!("DELETE FROM users WHERE id = ANY($1)", &uuids(users));
        Ok(deleted.execute(&mut *self.0).await?.rows_affected())
    }

    /// Removes passwords: the users must reset them. Returns the users that had one.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn remove_passwords(
        &mut self,
        users: impl Iterator<Item = UserId>,
    ) -> Result<Vec<UserId>, StoreError> {
        let removed = sqlx::query_scalar!(
            r#"UPDATE users SET password_hash = NULL
               WHERE id = ANY($1) AND password_hash IS NOT NULL RETURNING id AS "id: UserId""#,
            &uuids(users),
        );
        Ok(removed.fetch_all(&mut *self.0).await?)
    }

    /// Deletes workspaces with all their data except the audit log. Returns their names.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn delete_workspaces(
        &mut self,
        workspaces: impl Iterator<Item = WorkspaceId>,
    ) -> Result<Vec<(WorkspaceId, String)>, StoreError> {
        let rows = sqlx::query!(
            r#"DELETE FROM workspaces WHERE id = ANY($1)
               RETURNING id AS "id: WorkspaceId", name"#,
            &uuids(workspaces),
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.id, row.name)).collect())
    }

    /// Returns all workspaces, with true for those that have an owner.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_workspaces(&mut self) -> Result<Vec<(WorkspaceId, bool)>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT w.id AS "id: WorkspaceId",
                      EXISTS (SELECT FROM memberships m
                              WHERE m.workspace_id = w.id AND m.role = 'owner') AS "has_owner!"
               FROM workspaces w"#
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.id, row.has_owner)).collect())
    }

    /// Ends all sessions.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn end_sessions(
        &mut self,
        now: OffsetDateTime,
        reason: SessionEndReason,
    ) -> Result<Vec<(SessionId, WorkspaceId)>, StoreError> {
        let rows = sqlx::query!(
            r#"UPDATE sessions SET ended_at = $1, end_reason = $2
               WHERE ended_at IS NULL AND expires_at > $1
               RETURNING id AS "id: SessionId", workspace_id AS "workspace: WorkspaceId""#,
            now,
            reason.as_str(),
        );
        let rows = rows.fetch_all(&mut *self.0).await?.into_iter();
        Ok(rows.map(|row| (row.id, row.workspace)).collect())
    }

    /// Ends all links, invitations and device authorizations, and discards emails that wait to be
    /// sent.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn end_links(&mut self, now: OffsetDateTime) -> Result<EndedLinks, StoreError> {
        let links = sqlx::query!(
            "UPDATE one_time_tokens SET used_at = $1 WHERE used_at IS NULL AND expires_at > $1",
            now,
        );
        let mailed_links = links.execute(&mut *self.0).await?.rows_affected();
        let invitations = sqlx::query!(
            "UPDATE invitations SET closed_at = $1 WHERE closed_at IS NULL AND expires_at > $1",
            now,
        );
        let invitations = invitations.execute(&mut *self.0).await?.rows_affected();
        let devices = sqlx::query!("DELETE FROM oauth_device_authorizations");
        let device_authorizations = devices.execute(&mut *self.0).await?.rows_affected();
        let emails = sqlx::query!("DELETE FROM email_outbox");
        let emails = emails.execute(&mut *self.0).await?.rows_affected();
        Ok(EndedLinks { mailed_links, invitations, device_authorizations, emails })
    }

    /// Inserts audit events of any workspaces.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn append_events(&mut self, events: &[NewEvent]) -> Result<(), StoreError> {
        insert_in_bulk(&mut self.0, events).await
    }

    /// Marks all nodes as expired, lifts the quarantine and commits. No node may have a lease.
    ///
    /// # Errors
    /// [`StoreError`] if a query fails.
    pub async fn finish(mut self) -> Result<(), StoreError> {
        self.set_invalidation(true).await?;
        // A node that did not notice the quarantine has to register, and to clear its cache: the
        // ends of sessions have no invalidations.
        sqlx::query!("UPDATE nodes SET is_expired = true").execute(&mut *self.0).await?;
        sqlx::query!(r#"SELECT require_synchronous_commit() AS "done""#)
            .fetch_one(&mut *self.0)
            .await?;
        sqlx::query!(
            "UPDATE database_state
             SET (system_identifier, database, generation_table) =
                     (SELECT i.system_identifier, i.database, i.generation_table
                      FROM database_identity() i),
                 quarantine_reason = NULL, quarantined_at = NULL"
        )
        .execute(&mut *self.0)
        .await?;
        Ok(self.0.commit().await?)
    }
}

fn uuids<T: Id>(ids: impl Iterator<Item = T>) -> Vec<Uuid> {
    ids.map(Id::uuid).collect()
}
