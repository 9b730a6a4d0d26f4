//! Creates and verifies checkpoints: signed statements of the current end of a workspace's hash
//! chain.
//!
//! The owner keeps a checkpoint; a chain that is altered later no longer contains it.
//! [`super::signing_keys`] has a separate key for this purpose.

use std::sync::Arc;

use super::{
    AuthError,
    context::ServiceContext,
    signing_keys::{CHECKPOINT_TYPE, SigningKeys},
};
use crate::{
    model::{
        audit::{ChainHash, Checkpoint, SignedCheckpoint},
        id::WorkspaceId,
        principal::Caller,
    },
    store,
};

/// Signs and verifies checkpoints of audit logs.
pub struct Checkpoints {
    pub(super) context: Arc<ServiceContext>,
    pub(super) signing_keys: Arc<SigningKeys>,
}

impl Checkpoints {
    /// Signs the current end of the hash chain of the caller's workspace. An empty chain has
    /// sequence 0 and the workspace's genesis hash.
    ///
    /// # Errors
    /// [`AuthError::Internal`] if signing fails.
    #[tracing::instrument(
        name = "auth.checkpoints.create",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn create(&self, caller: &Caller) -> Result<SignedCheckpoint, AuthError> {
        self.create_as_operator(caller.workspace()).await
    }

    /// Signs the current end of the hash chain of a workspace, on behalf of the operator.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn create_as_operator(
        &self,
        workspace_id: WorkspaceId,
    ) -> Result<SignedCheckpoint, AuthError> {
        let mut tx = self.context.store.begin(workspace_id, None).await?;
        let head = store::audit_chains::get_head(&mut tx, workspace_id).await?;
        let checkpoint = match head {
            Some(head) => Checkpoint {
                workspace_id,
                sequence: head.sequence,
                hash: head.hash,
                at: head.sealed_at,
            },
            None => Checkpoint {
                workspace_id,
                sequence: 0,
                hash: ChainHash::genesis(workspace_id),
                at: self.context.env.clock.now(),
            },
        };
        let signature = self.signing_keys.current().sign_checkpoint(&checkpoint)?;
        Ok(SignedCheckpoint { checkpoint, signature })
    }

    /// Verifies that this deployment signed a checkpoint, with exactly these values.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for the field `signature` if it did not.
    pub fn verify(&self, signed: &SignedCheckpoint) -> Result<Checkpoint, AuthError> {
        let invalid =
            |reason| AuthError::invalid("signature", crate::model::ValidationError::new(reason));
        let header = jsonwebtoken::decode_header(&signed.signature)
            .map_err(|_| invalid("the checkpoint's signature is malformed"))?;
        let keys = self.signing_keys.current();
        let key = header.kid.as_deref().and_then(|kid| keys.checkpoint_verifying_key(kid));
        let key = key.ok_or_else(|| {
            invalid("the checkpoint was not signed with a key of this deployment")
        })?;
        if header.typ.as_deref() != Some(CHECKPOINT_TYPE) {
            return Err(invalid("the signature is not that of a checkpoint"));
        }
        let checkpoint: Checkpoint = key
            .verify(&signed.signature, |_| ())
            .ok_or_else(|| invalid("the checkpoint's signature is invalid"))?;
        if checkpoint != signed.checkpoint {
            return Err(invalid("the checkpoint does not match its signature"));
        }
        Ok(checkpoint)
    }
}
