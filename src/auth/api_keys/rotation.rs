//! Rotation of API keys without downtime: create a successor, deploy it, watch the remaining use of
//! the predecessor, and revoke that once it is idle.
//!
//! [`RotationReport`] decides when that is. A key is never reported safe to revoke before the uses
//! on all nodes are counted.

use serde_json::json;
use time::Duration;

use crate::{
    audit,
    auth::{
        AuthError,
        api_keys::{ApiKeys, CreateKeyParams, CreatedKey, require_within},
        caller::AdminCaller,
    },
    cache_invalidation::AuditWatermark,
    model::{
        api_key::NewApiKey,
        audit::Action,
        id::{ApiKeyId, WorkspaceId},
        principal::Caller,
        rotation::{KeyTraffic, NodeWatermark, RotationReport},
    },
    store::{self, AdminTx, Audited, Tx},
};

impl ApiKeys {
    /// Creates a successor with the same scope, in the request's transaction. The predecessor stays
    /// valid. The successor gets the predecessor's name unless `name` is given.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key; [`AuthError::Conflict`] if the key
    /// is revoked or has an active successor; [`AuthError::Forbidden`] for a scope above the
    /// caller's, or networks outside of the caller's.
    #[tracing::instrument(
        name = "auth.api_keys.rotate",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn rotate(
        &self,
        tx: &mut Tx,
        caller: &AdminCaller,
        id: ApiKeyId,
        name: Option<String>,
    ) -> Result<(CreatedKey, Audited), AuthError> {
        let workspace = caller.workspace();
        let (mut admin, rights) = AdminTx::lock(tx, caller).await?;
        let tx = &mut admin;
        store::api_keys::lock(tx, workspace, id).await?;
        let old = store::api_keys::get(tx, workspace, id).await?;
        let old = old.ok_or(AuthError::NotFound("API key"))?;
        if old.revoked_at.is_some() {
            return Err(AuthError::Conflict("the key is revoked: create a new one"));
        }
        // A successor has the same networks. If it had fewer, its clients would be cut off.
        require_within(&old.allowed_ips, &rights.networks)?;
        // The configured default may have been lowered since the key got its limit.
        let max_limit = self.workspace_limit(tx, workspace).await?;
        let params = CreateKeyParams {
            name: name.unwrap_or_else(|| old.name.clone()),
            description: old.description,
            scope: old.scope,
            allowed_ips: old.allowed_ips.iter().map(ToString::to_string).collect(),
            rate_limit_per_minute: old.rate_limit_per_minute.map(|limit| limit.min(max_limit)),
        };
        let rotated = audit::event(&self.context.env, caller, Action::ApiKeyRotated, 201);
        let (secret, new) = self.prepare(&params)?;
        let successor = NewApiKey { rotated_from: Some(id), ..new };
        let (minted, _) = self.create_prepared(tx, caller, &rights, (secret, successor)).await?;
        let successor = &minted.key;
        let event = rotated
            .with_target(id, old.name)
            .with_metadata(json!({ "rotated_to": successor.id, "name": successor.name }));
        let audited = store::audit::insert(tx, workspace, &event).await?;
        Ok((minted, audited))
    }

    /// Reports the progress of a key's rotation.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key, or the key has no active
    /// successor.
    #[tracing::instrument(
        name = "auth.api_keys.rotation_status",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn rotation_status(
        &self,
        caller: &Caller,
        id: ApiKeyId,
    ) -> Result<RotationReport, AuthError> {
        let report = self.rotation_report(caller, id).await?;
        if report.new.is_none() {
            return Err(AuthError::NotFound("rotation: the key has no active successor"));
        }
        Ok(report)
    }

    /// The required idle time of a predecessor before it is safe to revoke.
    #[must_use]
    pub fn required_quiet_period(&self) -> Duration {
        self.quiet_period
    }

    /// Reports the clients that revoking a key would break. As [`Self::rotation_status`], but also
    /// for a key that was not rotated.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the workspace has no such key.
    #[tracing::instrument(
        name = "auth.api_keys.rotation_report",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn rotation_report(
        &self,
        caller: &Caller,
        id: ApiKeyId,
    ) -> Result<RotationReport, AuthError> {
        // One snapshot, so that a page never shows a key both as unused and as in use.
        let watermark = self.context.audit.watermark();
        let workspace = caller.workspace();
        let mut tx = self.context.store.begin_snapshot(caller).await?;
        let report = self.build_rotation_report(&mut tx, workspace, id, watermark).await?;
        drop(tx);
        if let Some(confirmation) = report.new_evidence {
            // Store the evidence before returning the verdict: reports of other nodes rely on it
            // from then on.
            let mut tx = self.context.store.begin_for(caller).await?;
            store::usage::store_quiet_confirmation(&mut tx, workspace, id, confirmation).await?;
            let audited = Audited::exempt("the evidence of a report is no change");
            tx.commit(audited).await?.unfenced("a report, which changes no key");
        }
        Ok(report)
    }

    /// Builds a report on a key and its active successor from the counts of all nodes. `watermark`
    /// is that of this node, read before the transaction started.
    pub(in crate::auth) async fn build_rotation_report(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: ApiKeyId,
        watermark: NodeWatermark,
    ) -> Result<RotationReport, AuthError> {
        // Read this first: everything read after it contains at least the uses up to that time.
        let clock = &*self.context.env.clock;
        let coverage = store::usage::usage_watermark(tx, self.node_id, watermark, clock).await?;
        let key = store::api_keys::get(tx, workspace, id).await?;
        let key = key.ok_or(AuthError::NotFound("API key"))?;
        let old =
            self.key_traffic(tx, workspace, id).await?.ok_or(AuthError::NotFound("API key"))?;
        let new = match key.rotated_to {
            Some(successor) => self.key_traffic(tx, workspace, successor).await?,
            None => None,
        };
        let confirmed = store::usage::get_quiet_confirmation(tx, workspace, id).await?;
        Ok(RotationReport::new(old, new, coverage, confirmed, self.quiet_period))
    }

    async fn key_traffic(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: ApiKeyId,
    ) -> Result<Option<KeyTraffic>, AuthError> {
        let hour_ago = self.context.env.clock.now() - Duration::HOUR;
        Ok(store::usage::get_traffic(tx, workspace, id, hour_ago).await?)
    }
}
