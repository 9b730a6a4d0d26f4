//! Routes that need a credential. From a valid credential on, every result is audited, 429
//! included.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{extract::Request, http::HeaderMap};
use tokio::time::timeout;

use super::{
    AccessLayer, LimitedResult,
    pending_event::{PendingEvent, event_not_committed},
};
use crate::{
    auth::{
        authenticator::{AuthenticationOutcome, inactive_key_reason},
        check_scope::ADDRESS_NOT_ALLOWED,
    },
    http::{
        ApiError,
        bearer::bearer_credential,
        cookies::{CookieAuthenticated, session_cookie},
        error::{EndpointError, ErrorCode},
        forward_auth::RequiredScope,
        middleware::rate_limit_response,
        surface::Surface,
    },
    model::{
        api_key::{KeyRecord, KeyStatus},
        audit::{Action, Actor, NewEvent, RequestInfo},
        principal::Caller,
        usage::{KeyUse, RouteUse},
    },
};

/// The time in which forward-auth answers, with some of the promised second left for the network.
/// Gateways give up soon, and some of them then answer 403 (Envoy after 2 s).
const FORWARD_AUTH_DEADLINE: Duration = Duration::from_millis(800);

impl AccessLayer {
    /// Serves a request to a route that needs a credential, for forward-auth with a deadline.
    pub(super) async fn serve_authenticated(
        &self,
        info: &Arc<RequestInfo>,
        request: Request,
    ) -> LimitedResult {
        let is_late = AtomicBool::new(false);
        let mut work = pin!(self.authenticate_and_serve(info, request, &is_late));
        if !matches!(self.surface, Surface::Gateway) {
            return work.await;
        }
        if let Ok(result) = timeout(FORWARD_AUTH_DEADLINE, &mut work).await {
            return result;
        }
        // The request is dropped only when this function returns, so its event gets this status.
        is_late.store(true, Relaxed);
        let error = ApiError::unavailable("the deadline of forward-auth has passed").into();
        self.log_server_error(&error, info);
        (Err(error), self.app.limits.peek_address(info.ip).await)
    }

    async fn authenticate_and_serve(
        &self,
        info: &Arc<RequestInfo>,
        mut request: Request,
        is_late: &AtomicBool,
    ) -> LimitedResult {
        // Has timeouts of its own.
        let principal = match self.authenticate(request.headers(), info).await {
            Ok(AuthenticationOutcome::Principal(principal)) => principal,
            Ok(AuthenticationOutcome::InactiveKey(key)) => {
                return self.reject_inactive_key(&key, info).await;
            }
            Err(error) => return self.reject_credential(error, info).await,
        };
        let permit = self.app.audit.reserve().await;
        let caller = Caller { principal, request: Arc::clone(info) };
        // A request from an address that the key does not allow is no use of the key: it neither
        // uses up the key's bucket nor keeps the key from being idle.
        let is_address_allowed = caller.principal.allows_address(info.ip);
        let key_use = if is_address_allowed {
            KeyUse::Request(self.route_use_for(&request))
        } else {
            KeyUse::Rejection
        };
        // Created before the bucket is charged, which takes a moment if buckets are shared: a
        // client that disconnects meanwhile is still in the audit log.
        let event = permit.map(|permit| PendingEvent::new(self, &caller, key_use, is_late, permit));
        let limits = &self.app.limits;
        let decision = if is_address_allowed {
            limits.charge_credential(&caller.principal).await
        } else {
            limits.charge_address(info.ip).await
        };
        let Some(event) = event else { return (Err(audit_queue_full()), decision) };
        let result = if let Some(refusal) = rate_limit_response::rejection(&decision) {
            Err(refusal.into())
        } else if !is_address_allowed {
            Err(ApiError::from(ADDRESS_NOT_ALLOWED).into())
        } else {
            request.extensions_mut().insert(caller.clone());
            if self.is_page() {
                request.extensions_mut().insert(CookieAuthenticated);
            }
            self.run_endpoint(info, request).await
        };
        (event.complete(result).await, decision)
    }

    /// The kind of usage that a request counts as. Of forward-auth, each request requires its own
    /// scope.
    fn route_use_for(&self, request: &Request) -> RouteUse {
        let required = request.extensions().get::<RequiredScope>();
        let scope = required.map_or(self.route_use.scope, |required| required.used());
        RouteUse { scope, ..self.route_use }
    }

    /// Verifies the credential of a request: the session cookie of a page, or the bearer
    /// credential.
    ///
    /// Pages accept no other credential and the API accepts no cookie, so that a request which
    /// another site makes a browser send (CSRF) never reaches the API with credentials.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        info: &RequestInfo,
    ) -> Result<AuthenticationOutcome, ApiError> {
        let authenticator = &self.app.auth.authenticator;
        match self.surface {
            Surface::Api | Surface::Gateway => {
                let credential = bearer_credential(headers)?;
                let credential = credential.ok_or_else(ApiError::missing_credential)?;
                Ok(authenticator.authenticate(credential, info.started_at).await?)
            }
            Surface::Page(_) => {
                let cookie = session_cookie(&self.app, headers);
                let cookie = cookie.ok_or_else(ApiError::missing_credential)?;
                let principal = authenticator.authenticate_cookie(&cookie).await?;
                Ok(AuthenticationOutcome::Principal(principal))
            }
            Surface::OAuth => Err(ApiError::missing_credential()),
        }
    }

    /// Rejects a missing or invalid credential; the request counts against the client's address.
    async fn reject_credential(&self, error: ApiError, info: &RequestInfo) -> LimitedResult {
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
    async fn reject_inactive_key(&self, key: &KeyRecord, info: &Arc<RequestInfo>) -> LimitedResult {
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
fn audit_queue_full() -> EndpointError {
    ApiError::unavailable("the audit event queue is full").into()
}
