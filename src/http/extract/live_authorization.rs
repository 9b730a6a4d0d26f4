use std::{marker::PhantomData, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};
use secrecy::{ExposeSecret, SecretString};

use super::ProtectedAccess;
use crate::{
    auth::{authenticator::AuthenticationOutcome, check_scope},
    http::{
        ApiError, App,
        bearer::bearer_credential,
        cookies::{CookieAuthenticated, session_cookie},
    },
    model::principal::Caller,
};

/// A caller that meets the access rule `A`, and that can be checked again during a streamed
/// response, which may outlive the credential.
pub struct LiveAuthorization<A> {
    app: App,
    caller: Caller,
    credential: PresentedCredential,
    access: PhantomData<A>,
}

/// The credential that the request presented.
enum PresentedCredential {
    Bearer(SecretString),
    Cookie(SecretString),
}

impl<A: ProtectedAccess> FromRequestParts<App> for LiveAuthorization<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
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
        Ok(Self { app: Arc::clone(app), caller, credential, access: PhantomData })
    }
}

impl<A: ProtectedAccess> LiveAuthorization<A> {
    /// True if the credential is still valid, meets the rule and belongs to the same workspace.
    ///
    /// The check is as fresh as that of a new request.
    pub async fn is_valid(&self) -> bool {
        let (auth, now) = (&self.app.auth, self.app.env.clock.monotonic());
        let principal = match &self.credential {
            PresentedCredential::Bearer(token) => {
                match auth.authenticator.authenticate(token.expose_secret(), now).await {
                    Ok(AuthenticationOutcome::Principal(principal)) => principal,
                    _ => return false,
                }
            }
            PresentedCredential::Cookie(cookie) => {
                let principal = auth
                    .authenticator
                    .authenticate_cookie_from_cache(cookie.expose_secret(), now)
                    .await;
                let Ok(principal) = principal else { return false };
                principal
            }
        };
        principal.workspace_id == self.caller.workspace()
            && check_scope::check_access(A::REQUIREMENT, &principal, self.caller.request.ip).is_ok()
    }
}
