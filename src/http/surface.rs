//! The surfaces of the service: the API, the OAuth endpoints and the dashboard.

use axum::{http::Method, response::Response};

/// Turns an error response into a page, given the method and the path with query of the request.
pub(super) type RenderPageError = fn(Response, &Method, &str) -> Response;

/// The kind of client that a route serves: selects the credential and the form of errors.
#[derive(Clone, Copy)]
pub(super) enum AuthSurface {
    /// The API: a bearer credential, JSON errors.
    Api,
    /// The dashboard: a session cookie, HTML errors.
    Page(RenderPageError),
    /// OAuth endpoints: the handler authenticates the client; errors are those of RFC 6749.
    OAuth,
}

impl AuthSurface {
    /// The surface of a route of the route table; `None` for health and discovery, which the
    /// operator's machines read without rate limit or audit log.
    pub(super) fn of_route(path: &str) -> Option<Self> {
        if is_api_path(path) { Some(Self::Api) } else { is_oauth_path(path).then_some(Self::OAuth) }
    }
}

/// True if the path belongs to the API, which has rate limits and `Cache-Control: no-store`.
pub(super) fn is_api_path(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// True for the endpoints that OAuth clients call. Their errors have the format of RFC 6749.
pub(super) fn is_oauth_path(path: &str) -> bool {
    path.starts_with("/oauth/")
}
