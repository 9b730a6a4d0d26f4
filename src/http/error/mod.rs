//! The errors of endpoints, and their format on each surface.
//!
//! An error takes three steps:
//!
//! 1. `convert.rs` turns the error of a service into an [`ApiError`], or at an OAuth endpoint into
//!    an [`EndpointError`], with which the handler fails. It stays a value until step 2.
//! 2. `ErrorFormat::render` in `surface.rs` selects the format of the route.
//! 3. `api.rs` renders JSON, `oauth.rs` the format of RFC 6749, and `dashboard::page` a page.
//!
//! The message for the client and the cause for the operator are separate fields: no message holds
//! SQL, a secret or a backtrace. Messages start in lower case and have no final period, since pages
//! turn them into sentences.

mod api;
mod code;
mod convert;
mod endpoint;
mod oauth;

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use secrecy::SecretString;

use crate::model::{ValidationError, rotation::RotationReport, scope::Scope};

pub(in crate::http) use api::render_api_error;
pub use api::{ErrorBody, ErrorDetails};
pub use code::ErrorCode;
pub use endpoint::EndpointError;
pub use oauth::OAuthErrorBody;
pub(in crate::http) use oauth::render_oauth_error;

/// An error of the service.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    /// Text for the client.
    message: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    required_scope: Option<Scope>,
    /// Completes a sign-in after a correct password.
    mfa_token: Option<SecretString>,
    /// Selects the challenge of a 401: without a credential it has no `error` (RFC 6750, section
    /// 3.1).
    has_credential: bool,
    /// The scope in the challenge of a 401.
    challenge_scope: Option<Scope>,
    is_second_factor_missing: bool,
    /// True if no route serves the path or the method.
    is_route_missing: bool,
    /// In seconds.
    retry_after: Option<u64>,
    /// Evidence that a key may still be in use.
    rotation: Option<Box<RotationReport>>,
    /// Text for the operator's log.
    cause: Option<Box<str>>,
}

impl ApiError {
    /// Creates an error with a message for the client.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            required_scope: None,
            mfa_token: None,
            has_credential: true,
            challenge_scope: None,
            is_second_factor_missing: false,
            is_route_missing: false,
            retry_after: None,
            rotation: None,
            cause: None,
        }
    }

    /// The request has no credential.
    #[must_use]
    pub fn missing_credential() -> Self {
        let message = "an API key or access token is required; send Authorization: Bearer …";
        Self { has_credential: false, ..Self::new(ErrorCode::Unauthorized, message) }
    }

    /// Sets the required scope that the challenge of a 401 names (RFC 6750, section 3).
    #[must_use]
    pub fn with_challenge_scope(self, scope: Option<Scope>) -> Self {
        Self { challenge_scope: scope, ..self }
    }

    /// No route has this path.
    #[must_use]
    pub fn route_not_found() -> Self {
        Self { is_route_missing: true, ..Self::new(ErrorCode::NotFound, "route not found") }
    }

    /// The route does not have this method.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let message = "method not allowed; the Allow header lists the methods of this route";
        Self { is_route_missing: true, ..Self::new(ErrorCode::MethodNotAllowed, message) }
    }

    /// The value of a field is invalid.
    pub fn invalid(
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: Some(field.into()), ..Self::new(ErrorCode::ValidationFailed, message) }
    }

    /// The value of a query parameter is invalid.
    #[must_use]
    pub fn invalid_parameter(name: &'static str, why: ValidationError) -> Self {
        Self::invalid(name, why.0)
    }

    /// Too many requests. `retry_after` is in seconds.
    #[must_use]
    pub fn rate_limited(retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(
                ErrorCode::RateLimited,
                format!("too many requests; retry in {retry_after} s"),
            )
        }
    }

    /// A temporary failure. `cause` goes to the operator's log only.
    #[must_use]
    pub fn unavailable(cause: &str) -> Self {
        Self {
            retry_after: Some(1),
            cause: Some(cause.into()),
            ..Self::new(
                ErrorCode::Unavailable,
                "the service is temporarily unavailable; please retry",
            )
        }
    }

    /// An internal error. `cause` goes to the operator's log only.
    #[must_use]
    pub fn internal(cause: &str) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                ErrorCode::Internal,
                "an internal error occurred; quote the request_id when you contact support",
            )
        }
    }

    /// The error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The text for the client.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// True if the request failed only because the session lacks a second factor.
    #[must_use]
    pub fn is_second_factor_missing(&self) -> bool {
        self.is_second_factor_missing
    }

    /// True if no route serves the path or the method of the request.
    #[must_use]
    pub fn is_route_missing(&self) -> bool {
        self.is_route_missing
    }

    /// True if the request had a credential and it was rejected.
    #[must_use]
    pub fn is_unknown_credential(&self) -> bool {
        self.code == ErrorCode::Unauthorized && self.has_credential
    }

    /// Seconds to wait before a retry.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after
    }

    /// The text for the operator's log.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }
}

/// Restricts a text to the characters that RFC 6749 and RFC 6750 allow in `error_description`:
/// printable ASCII without quotes and backslashes.
fn sanitize_description(text: &str) -> String {
    let replace = |c| if matches!(c, '"' | '\\') { '\'' } else { c };
    text.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).map(replace).collect()
}

impl IntoResponse for ApiError {
    /// Returns the status without a body. axum requires this of the rejections of extractors, but
    /// an endpoint returns the error as it is, and its surface renders it.
    fn into_response(self) -> Response {
        self.code.status().into_response()
    }
}
