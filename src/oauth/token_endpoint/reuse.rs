//! Refused and reused codes and tokens.

use serde_json::json;

use super::TokenContext;
use crate::{
    auth::AuthError,
    model::{audit::Action, oauth::grant::GrantEndReason},
    oauth::{OAuth, OAuthError, grants::LockedGrant},
    store,
};

impl OAuth {
    /// Records in the audit log that a genuine code or token was refused; returns `invalid_grant`.
    pub(super) async fn record_refusal(
        &self,
        TokenContext { client, request, .. }: TokenContext<'_>,
        LockedGrant { tx, parties, .. }: LockedGrant,
        why: &'static str,
    ) -> OAuthError {
        // Release the locks before waiting for the audit queue.
        drop(tx);
        let event = self
            .client_event(request, parties.workspace_id, Action::TokenRefused, client, 400)
            .with_target(parties.id, None)
            .with_metadata(json!({ "user_id": parties.user_id, "description": why }));
        match self.auth.context.queue_audit_event(event).await {
            Ok(()) => OAuthError::invalid_grant(why),
            Err(failed) => failed.into(),
        }
    }

    /// Ends a grant whose code or refresh token was reused, on all nodes before it returns.
    pub(super) async fn end_reused_grant(
        &self,
        TokenContext { client, request, .. }: TokenContext<'_>,
        LockedGrant { mut tx, parties, .. }: LockedGrant,
        reason: GrantEndReason,
    ) -> Result<(), AuthError> {
        let (id, workspace, now) = (parties.id, parties.workspace_id, self.env.clock.now());
        if store::oauth_grants::end(&mut tx, workspace, id, now, reason).await? {
            let event = self
                .client_event(request, workspace, Action::GrantReuseDetected, client, 400)
                .with_target(id, None)
                .with_metadata(reason.audit_metadata(client.id, parties.user_id));
            store::audit::insert(&mut tx, workspace, &event).await?;
        }
        tx.commit().await?;
        Ok(self.auth.context.fence.wait().await?)
    }
}
