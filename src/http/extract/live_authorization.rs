use std::{marker::PhantomData, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};
use secrecy::{ExposeSecret, SecretString};

use super::{AccessRule, ProtectedAccess};
use crate::{
    auth::{
        authenticator::{AuthenticationOutcome, inactive_key_reason},
        check_scope::{self, AccessRequirement},
    },
    http::{
        ApiError, App,
        bearer::bearer_credential,
        cookies::{CookieAuthenticated, session_cookie},
        error::ErrorCode,
    },
    model::principal::Caller,
};

/// The authorization of a request that takes some time: its body may arrive late, or its response
/// may outlive the credential. It can be checked again.
pub struct RequestAuthorization {
    app: App,
    caller: Caller,
    credential: PresentedCredential,
    requirement: AccessRequirement,
}

/// The credential that the request presented.
enum PresentedCredential {
    Bearer(SecretString),
    Cookie(SecretString),
}

impl RequestAuthorization {
    /// The authorization of a request to a route with this rule; `None` if the rule requires no
    /// credential.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthorized`] if the request has no credential.
    pub fn of_rule(rule: AccessRule, parts: &Parts, app: &App) -> Result<Option<Self>, ApiError> {
        let AccessRule::Protected(requirement) = rule else { return Ok(None) };
        Self::new(requirement, parts, app).map(Some)
    }

    fn new(requirement: AccessRequirement, parts: &Parts, app: &App) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| {
            ApiError::internal("a protected route is not wrapped by the access layer")
        })?;
        let credential = match parts.extensions.get::<CookieAuthenticated>() {
            Some(CookieAuthenticated) => session_cookie(app, &parts.headers)
                .map(|cookie| PresentedCredential::Cookie(cookie.into())),
            None => bearer_credential(&parts.headers)?
                .map(|token| PresentedCredential::Bearer(token.into())),
        };
        let credential = credential.ok_or_else(ApiError::missing_credential)?;
        Ok(Self { app: Arc::clone(app), caller, credential, requirement })
    }

    /// Checks that the credential is still valid, meets the requirement and belongs to the same
    /// workspace. The check is as fresh as that of a new request.
    ///
    /// # Errors
    /// The error that a new request would get; [`ErrorCode::Unauthorized`] if the session has
    /// switched to another workspace.
    pub async fn check(&self) -> Result<(), ApiError> {
        let checked = self.authenticate_again().await;
        checked.map_err(|error| error.with_challenge_scope(self.requirement.scope()))
    }

    async fn authenticate_again(&self) -> Result<(), ApiError> {
        let (auth, now) = (&self.app.auth.authenticator, self.app.env.clock.monotonic());
        let principal = match &self.credential {
            PresentedCredential::Bearer(token) => {
                match auth.authenticate(token.expose_secret(), now).await? {
                    AuthenticationOutcome::Principal(principal) => principal,
                    AuthenticationOutcome::InactiveKey(key) => {
                        let reason = inactive_key_reason(key.status);
                        return Err(ApiError::new(ErrorCode::Unauthorized, reason));
                    }
                }
            }
            PresentedCredential::Cookie(cookie) => {
                auth.authenticate_cookie_from_cache(cookie.expose_secret(), now).await?
            }
        };
        if principal.workspace_id != self.caller.workspace() {
            let message = "the session has switched to another workspace";
            return Err(ApiError::new(ErrorCode::Unauthorized, message));
        }
        Ok(check_scope::check_access(self.requirement, &principal, self.caller.request.ip)?)
    }
}

/// A caller that meets the access rule `A`, and that can be checked again during a streamed
/// response, which may outlive the credential.
pub struct LiveAuthorization<A> {
    authorization: RequestAuthorization,
    access: PhantomData<A>,
}

impl<A: ProtectedAccess> FromRequestParts<App> for LiveAuthorization<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let authorization = RequestAuthorization::new(A::REQUIREMENT, parts, app)?;
        Ok(Self { authorization, access: PhantomData })
    }
}

impl<A: ProtectedAccess> LiveAuthorization<A> {
    /// True if the credential is still valid, meets the rule and belongs to the same workspace.
    ///
    /// The check is as fresh as that of a new request.
    pub async fn is_valid(&self) -> bool {
        self.authorization.check().await.is_ok()
    }
}
