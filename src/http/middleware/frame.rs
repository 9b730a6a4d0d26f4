use std::{net::IpAddr, panic::AssertUnwindSafe};

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tower::ServiceExt;

use super::{fallback::is_v1, request_info::note};
use crate::http::{ApiError, App, USUAL_HEADERS, error, oauth::is_endpoint};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is around all routes: what every request brings, and what every answer has.
#[derive(Clone)]
pub struct Frame {
    app: App,
    routes: Router,
}

impl Frame {
    /// Around these routes. Not a layer of the router, which would box every request once more.
    #[must_use]
    pub fn new(app: App, routes: Router) -> Self {
        Self { app, routes }
    }

    /// Answers a request of this peer.
    pub async fn call(self, peer: IpAddr, mut request: Request) -> Response {
        let Self { app, routes } = self;
        let info = note(&app, peer, &mut request);
        let path = request.uri().path();
        let is_private = is_v1(path) || is_endpoint(path);
        // Handlers have a net of their own, which also writes the log: this is for what is around them.
        let run = AssertUnwindSafe(routes.oneshot(request)).catch_unwind();
        let mut response = match run.await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => ApiError::internal("something around a handler panicked").into_response(),
        };
        response.headers_mut().reserve(USUAL_HEADERS);
        if let Some(error) = ApiError::of(&response).cloned() {
            error::render(&error, &mut response, info.id, &app.settings.public_url);
        }
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
