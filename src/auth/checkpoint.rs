//! Checkpoints: what a workspace's chain was at one place, signed for its owner to keep.

use jsonwebtoken::{Algorithm, Validation};

use super::{Auth, AuthError};
use crate::{
    auth::signing_keys::CHECKPOINT_TYPE,
    model::{
        audit::{ChainHash, Checkpoint, SignedCheckpoint},
        principal::Caller,
    },
    store,
};

impl Auth {
    /// The end of the chain of the caller's workspace.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn checkpoint(&self, caller: &Caller) -> Result<SignedCheckpoint, AuthError> {
        let workspace_id = caller.workspace();
        let mut tx = self.store.begin(workspace_id, None).await?;
        let head = store::chains::head(&mut tx, workspace_id).await?;
        let checkpoint = match head {
            Some(head) => {
                Checkpoint { workspace_id, sequence: head.sequence, hash: head.hash, at: head.at }
            }
            None => Checkpoint {
                workspace_id,
                sequence: 0,
                hash: ChainHash::genesis(workspace_id),
                at: self.env.clock.now(),
            },
        };
        let signature = self.signing_keys.current().sign_checkpoint(&checkpoint);
        let signature = signature.map_err(|_| AuthError::Internal("cannot sign a checkpoint"))?;
        Ok(SignedCheckpoint { checkpoint, signature })
    }

    /// Whether a checkpoint is one that this deployment signed, with just these values.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where it is not.
    pub fn verify_checkpoint(&self, signed: &SignedCheckpoint) -> Result<Checkpoint, AuthError> {
        let refuse = |why| AuthError::invalid("signature", crate::model::Invalid::new(why));
        let header = jsonwebtoken::decode_header(&signed.signature)
            .map_err(|_| refuse("the checkpoint's signature is malformed"))?;
        let keys = self.signing_keys.current();
        let key = header.kid.as_deref().and_then(|kid| keys.checkpoint_verifier(kid));
        let key = key.ok_or_else(|| refuse("the checkpoint is not by a key of this deployment"))?;
        if header.typ.as_deref() != Some(CHECKPOINT_TYPE) {
            return Err(refuse("the checkpoint's signature is that of something else"));
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        // It has no end.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let told = jsonwebtoken::decode::<Checkpoint>(&signed.signature, key, &validation)
            .map_err(|_| refuse("the checkpoint's signature is not genuine"))?;
        if told.claims != signed.checkpoint {
            return Err(refuse("the checkpoint is not the one that was signed"));
        }
        Ok(told.claims)
    }
}
