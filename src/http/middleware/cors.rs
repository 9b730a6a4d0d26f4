use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// Endpoints that scripts of any origin may call. None of them accepts a cookie.
const PUBLIC_PATHS: [&str; 6] = [
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-protected-resource",
    "/.well-known/jwks.json",
    "/oauth/register",
    "/oauth/token",
    "/oauth/revoke",
];

/// Response headers that scripts may read.
const EXPOSED_HEADERS: [HeaderName; 6] = [
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// Time for which browsers may cache a preflight response.
const MAX_AGE: Duration = Duration::from_hours(1);

/// True if scripts of any origin may call the path.
#[must_use]
pub fn is_open_to_any_origin(path: &str) -> bool {
    PUBLIC_PATHS.contains(&path)
}

/// Allows scripts of any origin, without cookies or other browser credentials.
pub fn cors_for_any_origin() -> CorsLayer {
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
pub fn cors_for_origins(origins: &[String]) -> Option<CorsLayer> {
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
