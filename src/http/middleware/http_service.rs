//! The outermost layer: request id, common response headers, panics outside of handlers.

use std::{net::IpAddr, panic::AssertUnwindSafe};

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use futures_util::FutureExt;
use tower::ServiceExt;

use super::request_info::attach_request_info;
use crate::http::{
    ApiError, App,
    surface::{ErrorFormat, is_api_path, is_oauth_path},
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The HTTP service around all routes.
///
/// Attaches the request's information and sets the headers that every response has.
#[derive(Clone)]
pub struct HttpService {
    app: App,
    routes: Router,
}

impl HttpService {
    /// Wraps these routes. This is not a layer of the router, which would box every request again.
    #[must_use]
    pub fn new(app: App, routes: Router) -> Self {
        Self { app, routes }
    }

    /// Handles a request from the connection's peer address.
    pub async fn call(self, peer: IpAddr, mut request: Request) -> Response {
        let Self { app, routes } = self;
        let info = attach_request_info(&app, peer, &mut request);
        let path = request.uri().path();
        let is_private = is_api_path(path) || is_oauth_path(path);
        // The access layer catches and logs panics of handlers. This catches those of the code
        // around it.
        let handled = AssertUnwindSafe(routes.oneshot(request)).catch_unwind();
        let mut response = match handled.await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => {
                let error = ApiError::internal("a middleware panicked").into();
                ErrorFormat::Json.render(error, info.id, &app.settings.public_url)
            }
        };
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(info.id.to_string()) {
            headers.insert(REQUEST_ID, id);
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if is_private {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response
    }
}
