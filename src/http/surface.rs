//! The surfaces of the service: the API, forward-auth, the OAuth endpoints and the dashboard. Each
//! has one function that renders its errors.

use axum::{
    extract::Request,
    http::{Method, Uri, uri::PathAndQuery},
    response::Response,
};

use super::{
    ApiError,
    error::{EndpointError, render_api_error, render_oauth_error},
    forward_auth::is_forward_auth_path,
};
use crate::model::id::RequestId;

/// Renders an error as a page, given the method and the path with query of the request.
pub(super) type RenderErrorPage = fn(&ApiError, &Method, &str) -> Response;

/// The kind of client that a route serves: selects the credential and the format of errors.
#[derive(Clone, Copy)]
pub(super) enum Surface {
    /// The API: a bearer credential, JSON errors.
    Api,
    /// Forward-auth: as the API, for a request that a gateway received.
    Gateway,
    /// OAuth endpoints: the handler authenticates the client; errors are those of RFC 6749.
    OAuth,
    /// The dashboard: a session cookie, HTML errors.
    Page(RenderErrorPage),
}

impl Surface {
    /// The surface of a route of the route table; `None` for health and discovery, which the
    /// operator's machines read without rate limit or audit log.
    pub(super) fn of_route(path: &str) -> Option<Self> {
        if is_forward_auth_path(path) {
            Some(Self::Gateway)
        } else if is_api_path(path) {
            Some(Self::Api)
        } else {
            is_oauth_path(path).then_some(Self::OAuth)
        }
    }

    /// Returns the format of errors of a request.
    pub(super) fn error_format(self, request: &Request) -> ErrorFormat {
        match self {
            Self::Api | Self::Gateway => ErrorFormat::Json,
            Self::OAuth => ErrorFormat::OAuth,
            Self::Page(render) => {
                let (method, uri) = (request.method().clone(), request.uri().clone());
                ErrorFormat::Page { render, method, uri }
            }
        }
    }
}

/// The format of the errors of one request.
pub(super) enum ErrorFormat {
    /// The JSON body of the API.
    Json,
    /// The JSON body of RFC 6749.
    OAuth,
    /// A page.
    Page {
        /// Renders the page.
        render: RenderErrorPage,
        /// The method of the request.
        method: Method,
        /// The URI of the request.
        uri: Uri,
    },
}

impl ErrorFormat {
    /// Renders an error. Only a request without `RequestInfo`, which is a bug, gets an error that
    /// this function did not render: a status without a body.
    pub(super) fn render(
        &self,
        error: EndpointError,
        request_id: RequestId,
        public_url: &str,
    ) -> Response {
        match self {
            Self::Json => render_api_error(&error.into_api_error(), request_id, public_url),
            Self::OAuth => render_oauth_error(&error),
            Self::Page { render, method, uri } => {
                let path_and_query = uri.path_and_query().map_or("/", PathAndQuery::as_str);
                render(&error.into_api_error(), method, path_and_query)
            }
        }
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
