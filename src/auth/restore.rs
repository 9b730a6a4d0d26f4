//! The end of a restore: revokes again what the backup has revived, and lifts the quarantine.
//!
//! - What the operator lists as revoked since the backup is revoked again.
//! - All sessions end: an ended one, or a superseded refresh token, would be valid again. So would
//!   mailed links, invitations and codes.
//! - Everything is one transaction, with its audit events. A run that fails changes nothing and can
//!   be repeated.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    env::Env,
    model::{
        audit::{Action, Actor, Checkpoint, NewEvent},
        id::{ClientId, UserId, WorkspaceId},
        oauth::grant::GrantEndReason,
        restore::{ManualChange, RevocationList, Revocations},
        session::SessionEndReason,
    },
    store::{
        StoreError,
        owner_connection::OwnerConnection,
        restore::{EndedLinks, GrantsToEnd, RestoreTx},
        with_source,
    },
};

/// The kind of a restore.
#[derive(Debug)]
pub enum RestoreKind {
    /// The database was restored to an earlier time, after which all this was revoked.
    Backup(Box<RevocationList>),
    /// The database was moved while all nodes were stopped: nothing is lost.
    Move,
}

/// The options of the operator.
#[derive(Debug)]
pub struct RestoreOptions {
    /// The kind of the restore.
    pub kind: RestoreKind,
    /// Checkpoints of audit logs from before the restore.
    pub checkpoints: Vec<Checkpoint>,
    /// Do not end the grants whose refresh token rotates.
    pub keep_oauth_grants: bool,
    /// Change nothing.
    pub dry_run: bool,
}

/// The result of a restore.
#[derive(Debug, Serialize)]
pub struct RestoreReport {
    /// True if nothing was changed.
    pub dry_run: bool,
    /// The reason of the quarantine.
    pub quarantine: String,
    /// The number of objects that were revoked again.
    pub revoked: Revoked,
    /// The number of sessions that ended.
    pub sessions: u64,
    /// The number of grants that ended because their refresh token rotates, or because their code
    /// was not redeemed.
    pub oauth_grants: u64,
    /// The links and codes that ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<EndedLinks>,
    /// The comparison with each checkpoint.
    pub checkpoints: Vec<ComparedCheckpoint>,
    /// The changes that the operator has to repeat.
    pub repeat_by_hand: Vec<ManualChange>,
    /// Workspaces that have lost their last owner.
    pub workspaces_without_owner: Vec<WorkspaceId>,
    /// One line for the operator.
    pub summary: String,
}

/// The number of objects that were revoked again.
#[derive(Debug, Default, Serialize)]
pub struct Revoked {
    /// API keys.
    pub api_keys: usize,
    /// API keys that were disabled.
    pub disabled_api_keys: usize,
    /// OAuth clients.
    pub oauth_clients: usize,
    /// OAuth clients whose secrets ended.
    pub oauth_client_secrets: usize,
    /// OAuth grants.
    pub oauth_grants: usize,
    /// Members that were removed.
    pub members: usize,
    /// Members whose role was lowered.
    pub roles: usize,
    /// Passwords.
    pub passwords: usize,
    /// Accounts.
    pub accounts: u64,
    /// Workspaces.
    pub workspaces: usize,
}

/// A checkpoint and the restored audit log.
#[derive(Debug, Serialize)]
pub struct ComparedCheckpoint {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The sequence number of the checkpoint.
    pub sequence: i64,
    /// The last sequence number of the restored log.
    pub last_sequence: i64,
    /// The number of events up to the checkpoint that the restored log lacks.
    pub missing_events: i64,
}

/// Finishes a restore as the owner of the tables.
///
/// # Errors
/// A message of one line for the operator. Nothing is changed then.
pub async fn finish(
    owner_url: &str,
    env: &Env,
    options: RestoreOptions,
) -> Result<RestoreReport, String> {
    let RestoreOptions { kind, checkpoints, keep_oauth_grants, dry_run } = options;
    let mut owner = OwnerConnection::connect(owner_url).await?;
    let failed = |error: StoreError| format!("cannot finish the restore: {}", with_source(error));
    let (tx, quarantine) = owner.begin_restore().await.map_err(failed)?.ok_or(
        "the database is not in quarantine: there is nothing to finish. After a restore of a base \
         backup, first run `call2me-auth admin restore begin`",
    )?;
    let now = env.clock.now();
    let mut progress =
        RestoreProgress { tx, env, now, events: Vec::new(), revoked: Revoked::default() };
    let checkpoints = progress.compare(&checkpoints).await.map_err(failed)?;
    let missing: i64 = checkpoints.iter().map(|checkpoint| checkpoint.missing_events).sum();
    let mut report = RestoreReport {
        dry_run,
        quarantine,
        revoked: Revoked::default(),
        sessions: 0,
        oauth_grants: 0,
        links: None,
        checkpoints,
        repeat_by_hand: Vec::new(),
        workspaces_without_owner: Vec::new(),
        summary: String::new(),
    };
    match kind {
        RestoreKind::Move if missing > 0 => {
            return Err(format!(
                "the audit log lacks {missing} events of the checkpoints, so the database was not \
                 moved but restored to an earlier time: list what was revoked since then"
            ));
        }
        RestoreKind::Move => {}
        RestoreKind::Backup(list) => {
            progress.revoke(*list, keep_oauth_grants, &mut report).await.map_err(failed)?;
        }
    }
    report.summary = summary(&report, missing);
    if !dry_run {
        progress.tx.append_events(&progress.events).await.map_err(failed)?;
        progress.tx.finish().await.map_err(failed)?;
    }
    report.revoked = progress.revoked;
    Ok(report)
}

/// Puts the database in quarantine, as the owner of the tables.
///
/// # Errors
/// A message of one line for the operator.
pub async fn begin(owner_url: &str) -> Result<(), String> {
    let mut owner = OwnerConnection::connect(owner_url).await?;
    let failed = |error| format!("cannot begin the restore: {}", with_source(error));
    owner.begin_quarantine().await.map_err(failed)
}

fn summary(report: &RestoreReport, missing: i64) -> String {
    let outcome = if report.dry_run {
        "nothing was changed"
    } else {
        "the quarantine is over: nodes serve again within a few seconds"
    };
    let log = match report.checkpoints.len() {
        0 => "the audit log was compared with no checkpoint".to_owned(),
        count => format!("the audit log lacks {missing} events of {count} checkpoints"),
    };
    let by_hand = match report.repeat_by_hand.len() {
        0 => String::new(),
        count => format!("; repeat {count} changes by hand (repeat_by_hand)"),
    };
    format!("{outcome}; {log}{by_hand}")
}

/// A restore that is being finished.
struct RestoreProgress<'a> {
    tx: RestoreTx<'a>,
    env: &'a Env,
    now: OffsetDateTime,
    /// The audit events of all changes.
    events: Vec<NewEvent>,
    revoked: Revoked,
}

impl RestoreProgress<'_> {
    async fn compare(
        &mut self,
        checkpoints: &[Checkpoint],
    ) -> Result<Vec<ComparedCheckpoint>, StoreError> {
        let ends = self.tx.chain_ends().await?;
        let compared = checkpoints.iter().map(|&Checkpoint { workspace_id, sequence, .. }| {
            let last_sequence = ends.get(&workspace_id).copied().unwrap_or_default();
            let missing_events = (sequence - last_sequence).max(0);
            ComparedCheckpoint { workspace_id, sequence, last_sequence, missing_events }
        });
        Ok(compared.collect())
    }

    async fn revoke(
        &mut self,
        list: RevocationList,
        keep_oauth_grants: bool,
        report: &mut RestoreReport,
    ) -> Result<(), StoreError> {
        let RevocationList { mut revocations, mut events } = list;
        let ids: Vec<_> = events.iter().map(|event| event.id).collect();
        let known = self.tx.find_events(&ids).await?;
        events.retain(|event| !known.contains(&event.id));
        revocations.add_events(events);
        self.record_restore(&report.checkpoints).await?;
        self.revoke_keys(&revocations).await?;
        // Before the sessions: their events name the reason.
        self.remove_passwords(&revocations).await?;
        self.end_sessions(report).await?;
        self.end_grants(&revocations, keep_oauth_grants, report).await?;
        self.delete_clients(&revocations).await?;
        self.remove_members(&revocations).await?;
        self.delete_workspaces(&revocations).await?;
        report.links = Some(self.tx.end_links(self.now).await?);
        let workspaces = self.tx.list_workspaces().await?.into_iter();
        report.workspaces_without_owner =
            workspaces.filter(|(_, has_owner)| !has_owner).map(|(id, _)| id).collect();
        report.repeat_by_hand = revocations.by_hand;
        Ok(())
    }

    /// Records in each audit log that the database was restored.
    async fn record_restore(&mut self, compared: &[ComparedCheckpoint]) -> Result<(), StoreError> {
        let mut missing = BTreeMap::<_, i64>::new();
        for checkpoint in compared {
            let most = missing.entry(checkpoint.workspace_id).or_default();
            *most = (*most).max(checkpoint.missing_events);
        }
        for (workspace, _) in self.tx.list_workspaces().await? {
            let details = match missing.get(&workspace) {
                Some(count) => json!({ "missing_events": count }),
                None => json!({}),
            };
            self.record(workspace, Action::WorkspaceRestored, details, |event| {
                event.with_target(workspace, None)
            });
        }
        Ok(())
    }

    async fn revoke_keys(&mut self, revocations: &Revocations) -> Result<(), StoreError> {
        let revoked = self.tx.revoke_keys(revocations.keys.iter().copied(), self.now).await?;
        self.revoked.api_keys = revoked.len();
        let disabled = revocations.disabled_keys.iter().copied();
        let disabled = self.tx.disable_keys(disabled, self.now).await?;
        self.revoked.disabled_api_keys = disabled.len();
        let changes = [(Action::ApiKeyRevoked, revoked), (Action::ApiKeyDisabled, disabled)];
        for (action, keys) in changes {
            for (id, name, workspace) in keys {
                self.record(workspace, action, reason(), |event| event.with_target(id, name));
            }
        }
        Ok(())
    }

    async fn end_sessions(&mut self, report: &mut RestoreReport) -> Result<(), StoreError> {
        let ended = self.tx.end_sessions(self.now, SessionEndReason::DatabaseRestored).await?;
        report.sessions = ended.len().try_into().unwrap_or(u64::MAX);
        for (id, workspace) in ended {
            let details = json!({ "reason": SessionEndReason::DatabaseRestored.as_str() });
            self.record(workspace, Action::SessionEnded, details, |event| {
                event.with_target(id, None)
            });
        }
        Ok(())
    }

    async fn end_grants(
        &mut self,
        revocations: &Revocations,
        keep_oauth_grants: bool,
        report: &mut RestoreReport,
    ) -> Result<(), StoreError> {
        let users = revocations.accounts.iter().copied();
        let memberships = self.tx.list_memberships(users).await?;
        let of_accounts = memberships.into_iter().map(|(workspace, user, _)| (workspace, user));
        let clients: Vec<ClientId> =
            revocations.clients.union(&revocations.client_grants).copied().collect();
        let listed = GrantsToEnd {
            grants: revocations.grants.iter().copied().collect(),
            clients,
            members: revocations.members.iter().copied().chain(of_accounts).collect(),
            ..GrantsToEnd::default()
        };
        self.revoked.oauth_grants = self.end_selected_grants(&listed).await?;
        // A superseded refresh token would be valid again, and a redeemed code.
        let rotating = !keep_oauth_grants;
        let revived = GrantsToEnd { unredeemed: true, rotating, ..GrantsToEnd::default() };
        let revived = self.end_selected_grants(&revived).await?;
        report.oauth_grants = revived.try_into().unwrap_or(u64::MAX);
        Ok(())
    }

    async fn end_selected_grants(&mut self, which: &GrantsToEnd) -> Result<usize, StoreError> {
        let reason = GrantEndReason::DatabaseRestored;
        let ended = self.tx.end_grants(which, self.now, reason).await?;
        for grant in &ended {
            let details = reason.audit_metadata(grant.client, grant.user);
            self.record(grant.workspace, Action::GrantEnded, details, |event| {
                event.with_target(grant.id, None)
            });
        }
        Ok(ended.len())
    }

    async fn delete_clients(&mut self, revocations: &Revocations) -> Result<(), StoreError> {
        let secrets = revocations.client_secrets.difference(&revocations.clients).copied();
        let secrets = self.tx.end_client_secrets(secrets, self.now).await?;
        self.revoked.oauth_client_secrets = secrets.len();
        let deleted = self.tx.delete_clients(revocations.clients.iter().copied()).await?;
        self.revoked.oauth_clients = deleted.len();
        let changes = [(Action::ClientSecretRevoked, secrets), (Action::ClientDeleted, deleted)];
        for (action, clients) in changes {
            for (id, name, workspace) in clients {
                // A client that registered itself belongs to no workspace.
                if let Some(workspace) = workspace {
                    self.record(workspace, action, reason(), |event| event.with_target(id, name));
                }
            }
        }
        Ok(())
    }

    async fn remove_members(&mut self, revocations: &Revocations) -> Result<(), StoreError> {
        for (&(workspace, user), &role) in &revocations.roles {
            if let Some((from, email)) = self.tx.lower_role(workspace, user, role).await? {
                self.revoked.roles += 1;
                let details = json!({ "from": from, "to": role });
                self.record(workspace, Action::MemberRoleChanged, details, |event| {
                    event.with_target(user, email)
                });
            }
        }
        let accounts = revocations.accounts.iter().copied();
        let of_accounts = self.tx.list_memberships(accounts.clone()).await?;
        let of_accounts = of_accounts.into_iter().map(|(workspace, user, _)| (workspace, user));
        let members = revocations.members.iter().copied().chain(of_accounts);
        for (workspace, user) in members.collect::<Vec<_>>() {
            if let Some(email) = self.tx.remove_member(workspace, user).await? {
                self.revoked.members += 1;
                self.record(workspace, Action::MemberRemoved, reason(), |event| {
                    event.with_target(user, email)
                });
            }
        }
        self.revoked.accounts = self.tx.delete_accounts(accounts).await?;
        Ok(())
    }

    async fn remove_passwords(&mut self, revocations: &Revocations) -> Result<(), StoreError> {
        let removed: Vec<UserId> =
            self.tx.remove_passwords(revocations.passwords.iter().copied()).await?;
        self.revoked.passwords = removed.len();
        for (workspace, user, email) in self.tx.list_memberships(removed.into_iter()).await? {
            self.record(workspace, Action::PasswordChanged, reason(), |event| {
                event.with_target(user, email)
            });
        }
        Ok(())
    }

    async fn delete_workspaces(&mut self, revocations: &Revocations) -> Result<(), StoreError> {
        let deleted = self.tx.delete_workspaces(revocations.workspaces.iter().copied()).await?;
        self.revoked.workspaces = deleted.len();
        for (id, name) in deleted {
            self.record(id, Action::WorkspaceDeleted, reason(), |event| {
                event.with_target(id, name)
            });
        }
        Ok(())
    }

    fn record(
        &mut self,
        workspace: WorkspaceId,
        action: Action,
        details: Value,
        add_target: impl FnOnce(NewEvent) -> NewEvent,
    ) {
        let event = NewEvent::new(self.env.new_id(), workspace, action, Actor::system());
        self.events.push(add_target(event).with_metadata(details));
    }
}

/// The metadata of an event whose change repeats one that the backup lacks.
fn reason() -> Value {
    json!({ "reason": "database_restored" })
}
