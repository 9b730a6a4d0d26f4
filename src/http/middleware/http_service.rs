//! The outermost layer: request id, common response headers, panics outside of handlers.

use std::{net::IpAddr, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Router,
    body::HttpBody as _,
    extract::Request,
    http::{HeaderName, HeaderValue, Version, header, uri::Authority},
    response::Response,
};
use futures_util::FutureExt;
use tower::{Layer as _, ServiceExt as _};

use super::{cors::CorsRules, request_info::attach_request_info};
use crate::{
    http::{
        ApiError, App,
        error::{EndpointError, ErrorCode},
        forward_auth::is_forward_auth_path,
        surface::{ErrorFormat, is_api_path, is_oauth_path},
    },
    server::Respond,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The HTTP service around all routes.
///
/// Attaches the request's information, applies the rules of CORS, and sets the headers that every
/// response has.
#[derive(Clone)]
pub struct HttpService {
    app: App,
    cors: Arc<CorsRules>,
    routes: Router,
}

impl HttpService {
    /// Wraps these routes. This is not a layer of the router, which would box every request again.
    #[must_use]
    pub fn new(app: App, routes: Router) -> Self {
        let cors = Arc::new(CorsRules::new(&app.settings.allowed_origins));
        Self { app, cors, routes }
    }
}

impl Respond for HttpService {
    async fn respond(self, peer: IpAddr, mut request: Request) -> Response {
        let Self { app, cors, routes } = self;
        let info = attach_request_info(&app, peer, &mut request);
        let path = request.uri().path();
        let is_private = is_api_path(path) || is_oauth_path(path);
        let is_host_valid = has_valid_host(&request);
        // The answer to a gateway must not wait for a body, which decides nothing.
        let has_unread_body = is_forward_auth_path(path) && !request.body().is_end_stream();
        // The access layer catches and logs panics of handlers. This catches those of the code
        // around it.
        let handled = AssertUnwindSafe(async {
            if !is_host_valid {
                return Err(invalid_host());
            }
            // The rule's layer answers preflight requests without the route.
            let Ok(response) = match cors.rule_for(&request) {
                Some(rule) => rule.layer(routes).oneshot(request).await,
                None => routes.oneshot(request).await,
            };
            Ok(response)
        });
        let handled = handled.catch_unwind().await;
        let handled =
            handled.unwrap_or_else(|_| Err(ApiError::internal("a middleware panicked").into()));
        let mut response = handled.unwrap_or_else(|error: EndpointError| {
            ErrorFormat::Json.render(error, info.id, &app.settings.public_url)
        });
        if !is_host_valid || has_unread_body {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
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

/// True if the request has the `Host` header that HTTP/1.1 requires: exactly one, which is empty or
/// an authority (RFC 9112, section 3.2). With none or several, a proxy in front may have routed the
/// request by another host than its sender meant.
fn has_valid_host(request: &Request) -> bool {
    if request.version() != Version::HTTP_11 {
        return true;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.is_empty() || Authority::try_from(host.as_bytes()).is_ok()
}

fn invalid_host() -> EndpointError {
    ApiError::new(ErrorCode::BadRequest, "send exactly one Host header, with the host's name")
        .into()
}
