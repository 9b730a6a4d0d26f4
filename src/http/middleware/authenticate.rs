use std::time::Duration;

use axum::http::HeaderMap;

use crate::{
    auth::authenticator::AuthenticationOutcome,
    http::{ApiError, App, bearer::bearer_credential, cookies::session_cookie},
};

/// Verifies the bearer credential of a request.
///
/// # Errors
/// `unauthorized` if there is no credential or it is not valid, and as [`bearer_credential`].
pub(super) async fn authenticate(
    app: &App,
    headers: &HeaderMap,
    began: Duration,
) -> Result<AuthenticationOutcome, ApiError> {
    let credential = bearer_credential(headers)?.ok_or_else(ApiError::missing_credential)?;
    Ok(app.auth.authenticator.authenticate(credential, began).await?)
}

/// Verifies the session cookie of a request.
///
/// Pages accept no other credential and the API accepts no cookie, so that a request which another
/// site makes a browser send (CSRF) never reaches the API with credentials.
///
/// # Errors
/// `unauthorized` if there is no session cookie or it is not valid.
pub(super) async fn authenticate_cookie(
    app: &App,
    headers: &HeaderMap,
) -> Result<AuthenticationOutcome, ApiError> {
    let cookie = session_cookie(app, headers).ok_or_else(ApiError::missing_credential)?;
    Ok(AuthenticationOutcome::Principal(app.auth.authenticator.authenticate_cookie(&cookie).await?))
}
