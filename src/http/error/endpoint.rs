use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{ApiError, ErrorCode, oauth::protocol_status};
use crate::oauth::{OAuthErrorCode, ProtocolError};

/// The error of an endpoint.
#[derive(Debug)]
pub enum EndpointError {
    /// An error of the service.
    Service(ApiError),
    /// An error that the OAuth RFCs define. Only OAuth endpoints return it.
    Protocol(ProtocolError),
}

impl EndpointError {
    /// The status of the error, unless the surface renders it with another one.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Service(error) => error.code().status(),
            Self::Protocol(error) => protocol_status(error.code),
        }
    }

    /// The text for the operator's log.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Service(error) => error.cause(),
            Self::Protocol(..) => None,
        }
    }

    /// True if the error is exempt from the rate limit of the client's address. Devices that poll
    /// as often as they are allowed get it: other clients behind the same address must not use up
    /// their limit.
    #[must_use]
    pub fn is_rate_limit_exempt(&self) -> bool {
        let polling = [OAuthErrorCode::AuthorizationPending, OAuthErrorCode::SlowDown];
        matches!(self, Self::Protocol(error) if polling.contains(&error.code))
    }

    /// True if a sign-in succeeded but for its second factor.
    #[must_use]
    pub fn is_second_factor_due(&self) -> bool {
        matches!(self, Self::Service(error) if error.code() == ErrorCode::MfaRequired)
    }

    /// Converts it for a surface that does not have the errors of OAuth.
    #[must_use]
    pub fn into_api_error(self) -> ApiError {
        match self {
            Self::Service(error) => error,
            Self::Protocol(error) => ApiError::new(ErrorCode::BadRequest, error.description),
        }
    }
}

impl IntoResponse for EndpointError {
    /// As that of [`ApiError`].
    fn into_response(self) -> Response {
        self.status().into_response()
    }
}
