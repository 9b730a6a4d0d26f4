//! What machines read: health, keys, metadata, the OpenAPI document.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{App, extract::Public};

/// How long PostgreSQL may take to say that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// How long its last answer counts.
const PING_EVERY: Duration = Duration::from_secs(1);

/// How the service is.
#[derive(Serialize, ToSchema)]
pub struct HealthBody {
    /// `healthy` or `unhealthy`.
    #[schema(example = "healthy")]
    status: &'static str,
    #[schema(example = "call2me-auth")]
    service: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
    checks: ChecksBody,
}

/// How what it needs is.
#[derive(Serialize, ToSchema)]
pub struct ChecksBody {
    /// `up` or `down`.
    #[schema(example = "up")]
    database: &'static str,
}

/// Health
#[utoipa::path(get, path = "/health", tag = "Operation",
    responses((status = 200, body = HealthBody), (status = 503, body = HealthBody)))]
pub async fn health(_: Public, State(app): State<App>) -> Response {
    let up = database_is_up(&app).await;
    let (code, status, database) = if up {
        (StatusCode::OK, "healthy", "up")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unhealthy", "down")
    };
    let body = HealthBody {
        status,
        service: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        checks: ChecksBody { database },
    };
    with_retry_after((code, Json(body)).into_response())
}

/// Whether PostgreSQL answered within the last second, or does now. Anybody may ask, so one of all who
/// do asks PostgreSQL.
async fn database_is_up(app: &App) -> bool {
    let mut last = app.last_ping.lock().await;
    if let Some((at, up)) = *last
        && app.env.clock.monotonic().saturating_sub(at) < PING_EVERY
    {
        return up;
    }
    let up = timeout(PING_TIMEOUT, app.store.ping()).await.is_ok_and(|answer| answer.is_ok());
    *last = Some((app.env.clock.monotonic(), up));
    up
}

fn with_retry_after(mut response: Response) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Is the process alive?
#[utoipa::path(get, path = "/livez", tag = "Operation",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn livez(_: Public, State(_app): State<App>) -> &'static str {
    "ok"
}

/// May it be sent requests?
#[utoipa::path(get, path = "/readyz", tag = "Operation",
    responses((status = 200, body = String, content_type = "text/plain"),
              (status = 503, body = String, content_type = "text/plain")))]
pub async fn readyz(_: Public, State(app): State<App>) -> Response {
    if database_is_up(&app).await {
        return "ok".into_response();
    }
    with_retry_after((StatusCode::SERVICE_UNAVAILABLE, "the database is down").into_response())
}

/// The keys that access tokens are verified with (RFC 7517)
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "Discovery",
    responses((status = 200, body = Object)))]
pub async fn jwks(_: Public, State(app): State<App>) -> Response {
    // Whoever meets a key that is not among those it has asks anew.
    let cache = [(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"))];
    (cache, Json(app.auth.jwks())).into_response()
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "Discovery",
    responses((status = 200, body = Object)))]
pub async fn openapi(_: Public, State(app): State<App>) -> Response {
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (content_type, app.openapi.clone()).into_response()
}
