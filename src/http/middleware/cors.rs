use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// Endpoints that programs in browsers need, wherever they come from; none of them goes by a cookie.
const OPEN: [&str; 6] = [
    "/.well-known/oauth-authorization-server",
    "/.well-known/oauth-protected-resource",
    "/.well-known/jwks.json",
    "/oauth/register",
    "/oauth/token",
    "/oauth/revoke",
];

/// What scripts may read of an answer.
const EXPOSED: [HeaderName; 6] = [
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// How long browsers may remember that they may.
const MAX_AGE: Duration = Duration::from_hours(1);

/// Whether scripts of any origin may call a path.
#[must_use]
pub fn is_open_to_browsers(path: &str) -> bool {
    OPEN.contains(&path)
}

/// Lets scripts of any origin in, without credentials of the browser's.
pub fn for_any_origin() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        // Not `*`, which does not hold for Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE)
}

/// Lets scripts of these origins call the API with a bearer token; none where there are none.
pub fn for_origins(origins: &[String]) -> Option<CorsLayer> {
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
            .expose_headers(EXPOSED)
            .max_age(MAX_AGE),
    )
}
