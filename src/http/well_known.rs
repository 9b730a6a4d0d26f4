//! Health checks, the JSON Web Key Set and the OpenAPI document.
//!
//! These routes need no credential and are not in the audit log. Anyone can call them, so health
//! checks share one database ping per second. Only the document, which is large, counts against the
//! rate limit of the client's address.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::{ApiError, App, extract::Public};
use crate::{
    auth::{AuthError, signing_keys::JWKS_MAX_AGE_SECONDS},
    store::DatabaseRefusal,
};

const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Lifetime of a ping result. Health checks in this time share it.
const PING_CACHE_TTL: Duration = Duration::from_secs(1);

/// The state of the service.
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

/// The state of the dependencies of the service.
#[derive(Serialize, ToSchema)]
pub struct ChecksBody {
    /// `up` or `down`.
    #[schema(example = "up")]
    database: &'static str,
    /// `up`, or `down` if the database has the schema of another version.
    #[schema(example = "up")]
    schema: &'static str,
    /// `up`, or `down` if the database was restored, and the operator has not finished the restore.
    #[schema(example = "up")]
    restore: &'static str,
    /// `up`, or `down` if audit events cannot be written.
    #[schema(example = "up")]
    audit_log: &'static str,
}

/// The dependencies of the service: true if they are usable.
struct Readiness {
    database: bool,
    refusal: Option<DatabaseRefusal>,
    audit_log: bool,
}

impl Readiness {
    async fn of(app: &App) -> Self {
        let (refusal, audit_log) = (app.store.database_refusal(), !app.audit.is_stalled());
        Self { database: is_database_up(app).await, refusal, audit_log }
    }

    /// The reason why the service is not ready, if it is not.
    fn failure(&self) -> Option<&'static str> {
        match self {
            // Before the database: in quarantine, the node has no lease.
            Self { refusal: Some(refusal), .. } => Some(refusal.message()),
            Self { database: false, .. } => Some("the database is down"),
            Self { audit_log: false, .. } => Some("audit events cannot be written"),
            _ => None,
        }
    }
}

/// Get the health of the service
#[utoipa::path(get, path = "/health", tag = "Operation",
    responses((status = 200, body = HealthBody), (status = 503, body = HealthBody)))]
pub async fn health(_: Public, State(app): State<App>) -> Response {
    let readiness = Readiness::of(&app).await;
    let (code, status) = match readiness.failure() {
        None => (StatusCode::OK, "healthy"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    };
    let state = |is_up: bool| if is_up { "up" } else { "down" };
    let Readiness { database, refusal, audit_log } = readiness;
    let body = HealthBody {
        status,
        service: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        checks: ChecksBody {
            database: state(database),
            schema: state(refusal != Some(DatabaseRefusal::OtherSchema)),
            restore: state(refusal != Some(DatabaseRefusal::Quarantine)),
            audit_log: state(audit_log),
        },
    };
    with_retry_after((code, Json(body)).into_response())
}

/// Returns true if PostgreSQL answers and commits, now or within the last second. The endpoints are
/// public, so concurrent calls wait for one ping instead of sending their own.
async fn is_database_up(app: &App) -> bool {
    let mut last = app.last_database_ping.lock().await;
    if let Some((at, up)) = *last
        && app.env.clock.monotonic().saturating_sub(at) < PING_CACHE_TTL
    {
        return up;
    }
    let answers = timeout(PING_TIMEOUT, app.store.ping()).await.is_ok_and(|answer| answer.is_ok());
    // Without a lease, PostgreSQL has not committed for some seconds.
    let up = answers && app.lease.is_valid_at(app.env.clock.monotonic());
    *last = Some((app.env.clock.monotonic(), up));
    up
}

fn with_retry_after(mut response: Response) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Check that the process is alive
///
/// A liveness probe: it does not check the database.
#[utoipa::path(get, path = "/livez", tag = "Operation",
    responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn livez(_: Public, State(_app): State<App>) -> &'static str {
    "ok"
}

/// Check that the service can take requests
///
/// A readiness probe: 503 while the database is unreachable or does not commit, has the schema of
/// another version, was restored, or cannot store audit events.
#[utoipa::path(get, path = "/readyz", tag = "Operation",
    responses((status = 200, body = String, content_type = "text/plain"),
              (status = 503, body = String, content_type = "text/plain")))]
pub async fn readyz(_: Public, State(app): State<App>) -> Response {
    match Readiness::of(&app).await.failure() {
        None => "ok".into_response(),
        Some(reason) => with_retry_after((StatusCode::SERVICE_UNAVAILABLE, reason).into_response()),
    }
}

/// Get the public keys (RFC 7517)
///
/// The JSON Web Key Set that verifies access tokens and ID tokens. Cache it, and fetch it again
/// when a token names an unknown `kid`. A new key is listed for longer than `max-age` before it
/// signs.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "Discovery",
    responses((status = 200, body = Object)))]
pub async fn jwks(_: Public, State(app): State<App>) -> Response {
    cached_jwks(app.auth.signing_keys.current().jwks())
}

/// Get the public keys of checkpoints (RFC 7517)
///
/// The JSON Web Key Set that verifies checkpoints of audit logs. It keeps all keys forever.
#[utoipa::path(get, path = "/.well-known/audit-checkpoint-keys.json", tag = "Discovery",
    responses((status = 200, body = Object)))]
pub async fn checkpoint_jwks(_: Public, State(app): State<App>) -> Response {
    cached_jwks(app.auth.signing_keys.current().checkpoint_jwks())
}

fn cached_jwks(keys: Value) -> Response {
    let cache = format!("public, max-age={JWKS_MAX_AGE_SECONDS}");
    ([(header::CACHE_CONTROL, cache)], Json(keys)).into_response()
}

/// Get this OpenAPI document
#[utoipa::path(get, path = "/openapi.json", tag = "Discovery",
    responses((status = 200, body = Object)))]
pub async fn openapi(_: Public, State(app): State<App>, request: HeaderMap) -> Response {
    match &*app.openapi {
        Some(document) => document.respond(&request),
        None => {
            ApiError::from(AuthError::Internal("cannot write the OpenAPI document")).into_response()
        }
    }
}
