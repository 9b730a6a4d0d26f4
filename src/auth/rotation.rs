//! Rotation of keys without downtime: mint a successor, deploy it, watch who still uses the old key, revoke
//! that once it is quiet.

use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::{
    Auth, AuthError,
    keys::{MintKey, Minted},
};
use crate::{
    audit,
    coherence::Diary,
    model::{
        api_key::NewApiKey,
        audit::Action,
        id::{ApiKeyId, WorkspaceId},
        principal::Caller,
        rotation::{KeyTraffic, RotationReport},
    },
    store::{self, Tx},
};

impl Auth {
    /// Mints a successor of the same scope, in the transaction of the request; the old key stays as it is. The
    /// successor is called as the old key is, unless something else is wanted.
    ///
    /// # Errors
    /// [`AuthError::NotFound`], [`AuthError::Conflict`] where the key is revoked or has a successor that
    /// lives, [`AuthError::Forbidden`] for a scope above the caller's.
    pub async fn rotate_key(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        id: ApiKeyId,
        name: Option<String>,
    ) -> Result<Minted, AuthError> {
        let workspace = caller.workspace();
        self.lock_members(tx, caller).await?;
        store::api_keys::lock(tx, workspace, id).await?;
        let old = store::api_keys::get(tx, workspace, id).await?;
        let old = old.ok_or(AuthError::NotFound("API key"))?;
        if old.revoked_at.is_some() {
            return Err(AuthError::Conflict("the key is revoked: mint another one"));
        }
        let wanted = MintKey {
            name: name.unwrap_or_else(|| old.name.clone()),
            description: old.description,
            scope: old.scope,
            allowed_ips: old.allowed_ips.iter().map(ToString::to_string).collect(),
        };
        let rotated = audit::event(&self.env, caller, Action::ApiKeyRotated, 201);
        let (secret, new) = self.new_key(&wanted)?;
        let minted =
            self.mint(tx, caller, (secret, NewApiKey { rotated_from: Some(id), ..new })).await?;
        let successor = &minted.key;
        let event = rotated
            .on(id, old.name)
            .with(json!({ "rotated_to": successor.id, "name": successor.name }));
        store::audit::insert(tx, workspace, &event).await?;
        Ok(minted)
    }

    /// How far a key's rotation is.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] for an unknown key, or one without a successor that lives.
    pub async fn rotation(
        &self,
        caller: &Caller,
        id: ApiKeyId,
    ) -> Result<RotationReport, AuthError> {
        let report = self.whom_it_serves(caller, id).await?;
        if report.new.is_none() {
            return Err(AuthError::NotFound("rotation: the key has no successor that lives"));
        }
        Ok(report)
    }

    /// For how long an old key has to be quiet.
    #[must_use]
    pub fn quiet_to_revoke(&self) -> Duration {
        self.quiet
    }

    /// Whom revoking a key would break: as [`Self::rotation`], also of a key that was not rotated.
    ///
    /// # Errors
    /// [`AuthError::NotFound`].
    pub async fn whom_it_serves(
        &self,
        caller: &Caller,
        id: ApiKeyId,
    ) -> Result<RotationReport, AuthError> {
        // At one moment: a key is not to be unused and in use on one page.
        let own_until = self.audit.written_until();
        let workspace = caller.workspace();
        let mut tx = self.store.begin_snapshot(workspace).await?;
        let report = self.report(&mut tx, workspace, id, own_until).await?;
        drop(tx);
        if let Some(confirmation) = report.confirms {
            // Before the verdict is given: what other nodes answer from then on rests on it.
            let mut tx = self.store.begin(workspace, None).await?;
            store::usage::confirm(&mut tx, workspace, id, confirmation).await?;
            tx.commit().await?;
        }
        Ok(report)
    }

    /// What the counts of all nodes say of a key and of its successor, if that lives. This node had written what
    /// happened until `own_until` before the transaction began to read.
    pub(super) async fn report(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: ApiKeyId,
        own_until: OffsetDateTime,
    ) -> Result<RotationReport, AuthError> {
        // First of all: what is known now is counted in all that is read behind it.
        let known = store::usage::known(tx, self.node, own_until).await?;
        let key = store::api_keys::get(tx, workspace, id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let old = self.traffic(tx, workspace, id).await?.ok_or(AuthError::NotFound("API key"))?;
        let new = match key.rotated_to {
            Some(successor) => self.traffic(tx, workspace, successor).await?,
            None => None,
        };
        let confirmed = store::usage::confirmation(tx, workspace, id).await?;
        Ok(RotationReport::new(old, new, known, confirmed, self.quiet))
    }

    async fn traffic(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: ApiKeyId,
    ) -> Result<Option<KeyTraffic>, AuthError> {
        let hour_ago = self.env.clock.now() - Duration::HOUR;
        Ok(store::usage::traffic(tx, workspace, id, hour_ago).await?)
    }
}
