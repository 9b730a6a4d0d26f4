//! Refused and reused codes and tokens, in the audit log and in the state of their grant.

use serde_json::json;

use super::TokenEndpoint;
use crate::{
    auth::AuthError,
    model::{audit::Action, oauth::grant::GrantEndReason},
    oauth::{InvalidGrant, OAuthError, clients::AuthenticatedClient, grants::LockedGrant},
    store::{self, Audited},
};

impl TokenEndpoint {
    /// Records in the audit log that a genuine code or token was refused. Returns the error for the
    /// client.
    pub(super) async fn record_refusal(
        &self,
        client: &AuthenticatedClient,
        LockedGrant { tx, parties, .. }: LockedGrant,
        cause: InvalidGrant,
    ) -> OAuthError {
        // Release the locks before waiting for the audit queue.
        drop(tx);
        let event = client
            .audit_event(&self.context, parties.workspace_id, Action::TokenRefused, 400)
            .with_target(parties.id, None)
            .with_metadata(
                json!({ "user_id": parties.user_id, "description": cause.description() }),
            );
        match self.context.queue_audit_event(event).await {
            Ok(()) => cause.into(),
            Err(failed) => failed.into(),
        }
    }

    /// Ends a grant whose code or refresh token was reused, on all nodes before it returns.
    pub(super) async fn end_reused_grant(
        &self,
        client: &AuthenticatedClient,
        LockedGrant { mut tx, parties, .. }: LockedGrant,
        reason: GrantEndReason,
    ) -> Result<(), AuthError> {
        let (id, workspace, now) = (parties.id, parties.workspace_id, self.context.env.clock.now());
        let audited = if store::oauth_grants::end(&mut tx, workspace, id, now, reason).await? {
            let event = client
                .audit_event(&self.context, workspace, Action::GrantReuseDetected, 400)
                .with_target(id, None)
                .with_metadata(reason.audit_metadata(client.id, parties.user_id));
            store::audit::insert(&mut tx, workspace, &event).await?
        } else {
            Audited::exempt("the grant had already ended")
        };
        Ok(self.context.fence.wait(tx.commit(audited).await?).await?)
    }
}
