//! CORS: which web pages may call which paths.

use std::time::Duration;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, Method, header},
};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::http::{
    forward_auth::is_forward_auth_path,
    surface::{is_api_path, is_oauth_path},
};

/// Pages of users below `/oauth/`, which have a cookie.
const OAUTH_PAGES: [&str; 2] = ["/oauth/authorize", "/oauth/consent"];

/// Paths outside of the API that scripts of the configured origins may read.
const STATUS_PATHS: [&str; 4] = ["/health", "/livez", "/readyz", "/openapi.json"];

/// Response headers that scripts may read.
const EXPOSED_HEADERS: [HeaderName; 9] = [
    header::ALLOW,
    header::LOCATION,
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    HeaderName::from_static("idempotency-replayed"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// Time for which browsers may cache a preflight response.
const MAX_AGE: Duration = Duration::from_hours(1);

/// The rules of CORS, by path. Paths that no route has follow the rules of those around them, so
/// that scripts can read a 404.
#[derive(Clone)]
pub(super) struct CorsRules {
    any_origin: CorsLayer,
    /// `None` if no origins are configured.
    configured_origins: Option<CorsLayer>,
}

impl CorsRules {
    /// Creates the rules; scripts of `origins` may call the API with a bearer token.
    pub(super) fn new(origins: &[String]) -> Self {
        Self { any_origin: any_origin(), configured_origins: configured_origins(origins) }
    }

    /// Returns the rule for a request. Its layer answers preflight requests without the route.
    pub(super) fn rule_for(&self, request: &Request) -> Option<&CorsLayer> {
        // The layer would answer each OPTIONS request, without its route.
        if request.method() == Method::OPTIONS && !is_preflight(request) {
            return None;
        }
        let path = request.uri().path();
        if is_open_to_any_origin(path) {
            return Some(&self.any_origin);
        }
        let is_api = is_api_path(path) || STATUS_PATHS.contains(&path);
        // Gateways may ask with the method of their client: a preflight answer would let it pass.
        self.configured_origins.as_ref().filter(|_| is_api && !is_forward_auth_path(path))
    }
}

/// True for the request that a browser sends before one of a script (Fetch, section 4.8).
fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// True if scripts of any origin may call the path. No route there accepts a cookie.
fn is_open_to_any_origin(path: &str) -> bool {
    path.starts_with("/.well-known/") || is_oauth_path(path) && !OAUTH_PAGES.contains(&path)
}

/// Allows scripts of any origin, without cookies or other browser credentials.
fn any_origin() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        // Not `*`, which does not cover Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED_HEADERS)
        .max_age(MAX_AGE)
}

/// Allows scripts of these origins to call the API with a bearer token. `None` if there are no
/// origins.
fn configured_origins(origins: &[String]) -> Option<CorsLayer> {
    let values: Vec<_> =
        origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect();
    if values.is_empty() {
        return None;
    }
    let methods =
        [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let headers = [
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        HeaderName::from_static("idempotency-key"),
        HeaderName::from_static("last-event-id"),
        HeaderName::from_static("traceparent"),
        HeaderName::from_static("tracestate"),
        HeaderName::from_static("x-request-id"),
    ];
    Some(
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(values))
            .allow_methods(methods)
            .allow_headers(headers)
            .expose_headers(EXPOSED_HEADERS)
            .max_age(MAX_AGE),
    )
}
