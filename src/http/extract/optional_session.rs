use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};

use crate::{
    auth::{
        authenticator::{AuthenticationOutcome, inactive_key_reason},
        caller::SessionCaller,
    },
    http::{ApiError, App, bearer::bearer_credential, error::ErrorCode},
    model::{audit::RequestInfo, principal::Caller},
};

/// The caller of an open route that accepts the access token of a session: `None` if no credential
/// was sent. Any other credential is rejected.
#[derive(Debug)]
pub struct OptionalSession(pub Option<SessionCaller>);

impl FromRequestParts<App> for OptionalSession {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let request = parts.extensions.get::<Arc<RequestInfo>>().cloned();
        let request =
            request.ok_or_else(|| ApiError::internal("the request has no RequestInfo"))?;
        let Some(credential) = bearer_credential(&parts.headers)? else {
            return Ok(Self(None));
        };
        match app.auth.authenticator.authenticate(credential, request.started_at).await? {
            AuthenticationOutcome::Principal(principal) => {
                Ok(Self(Some(SessionCaller::new(Caller { principal, request })?)))
            }
            AuthenticationOutcome::InactiveKey(key) => {
                Err(ApiError::new(ErrorCode::Unauthorized, inactive_key_reason(key.status)))
            }
        }
    }
}
