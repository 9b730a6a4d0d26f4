//! Rejected credentials. A request with a key that is disabled or revoked is audited.

use std::sync::Arc;

use super::{AccessLayer, LimitedResult, pending_event::event_not_committed};
use crate::{
    auth::authenticator::inactive_key_reason,
    http::{
        ApiError,
        error::{EndpointError, ErrorCode},
        middleware::rate_limit_response,
    },
    model::{
        api_key::{KeyRecord, KeyStatus},
        audit::{Action, Actor, NewEvent, RequestInfo},
        usage::KeyUse,
    },
};

impl AccessLayer {
    /// Rejects a missing or invalid credential; the request counts against the client's address.
    pub(super) async fn reject_credential(
        &self,
        error: ApiError,
        info: &RequestInfo,
    ) -> LimitedResult {
        // The credential could not be checked: a server error, which must not cost the client.
        if error.cause().is_some() {
            let error = EndpointError::from(error);
            self.log_server_error(&error, info);
            return (Err(error), self.app.limits.peek_address(info.ip).await);
        }
        if error.is_unknown_credential() {
            self.app.audit.unknown_credentials().count(info.ip, self.app.env.clock.now());
        }
        let decision = self.app.limits.charge_address(info.ip).await;
        let error = error.with_challenge_scope(self.rule.scope());
        (Err(rate_limit_response::rejection(&decision).unwrap_or(error).into()), decision)
    }

    /// Rejects a disabled or revoked key and audits it in the key's workspace, which should learn
    /// that the key is still in use.
    pub(super) async fn reject_inactive_key(
        &self,
        key: &KeyRecord,
        info: &Arc<RequestInfo>,
    ) -> LimitedResult {
        let decision = self.app.limits.charge_address(info.ip).await;
        if let Some(refusal) = rate_limit_response::rejection(&decision) {
            return (Err(refusal.into()), decision);
        }
        let Some(permit) = self.app.audit.reserve().await else {
            return (Err(audit_queue_full()), decision);
        };
        let env = &self.app.env;
        let actor = Actor::api_key(key.id, &key.name);
        let error = ApiError::new(ErrorCode::Unauthorized, inactive_key_reason(key.status));
        let error = error.with_challenge_scope(self.rule.scope());
        let status = error.code().status().as_u16();
        let mut event =
            NewEvent::new(env.new_id(), key.workspace_id, Action::ApiKeyRejected, actor)
                .with_request(info, status, env.clock.monotonic());
        // A disabled key may be enabled again, and be the successor in a rotation.
        if key.status == KeyStatus::Disabled {
            event.key_use = KeyUse::Rejection;
        }
        let is_recorded = permit.record(event).await;
        (Err(if is_recorded { error.into() } else { event_not_committed() }), decision)
    }
}

/// Answers 503: a request that cannot be audited must not be served.
pub(super) fn audit_queue_full() -> EndpointError {
    ApiError::unavailable("the audit event queue is full").into()
}
