//! The state that handlers and middleware share.

use std::{
    num::NonZeroU32,
    sync::{Arc, LazyLock},
    time::Duration,
};

use ipnet::IpNet;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    large_body::LargeBodyPermits, refusal_pauses::RefusalPauses, static_content::StaticContent,
    unread_responses::UnreadResponses,
};
use crate::{
    audit::{AuditLog, AuditWriter, SealCounts},
    auth::Auth,
    cache_invalidation::Lease,
    config::Settings,
    env::Env,
    idempotency::Idempotency,
    limit::Limits,
    metrics::Metrics,
    oauth::OAuth,
    resources::Resources,
    store::Store,
    telemetry::LogLimiter,
};

/// The application state in a cheap-to-clone handle.
pub type App = Arc<AppState>;

/// Capacity that is reserved for the headers of a response. Most responses fit, so that the map
/// is allocated once.
pub(super) const HEADER_CAPACITY: usize = 16;

/// The application state that handlers and middleware share.
pub struct AppState {
    /// Authentication, sessions, API keys and members.
    pub auth: Auth,
    /// The OAuth authorization server.
    pub oauth: OAuth,
    /// Idempotency keys and their stored responses.
    pub idempotency: Idempotency,
    /// The platform's resources, such as agents and calls.
    pub resources: Resources,
    /// Read access to the audit log.
    pub audit_log: AuditLog,
    /// Write access to the audit log.
    pub audit: AuditWriter,
    /// Counters of the events that this node has sealed.
    pub seal_counts: Arc<SealCounts>,
    /// Cancelled when the graceful shutdown begins. It ends responses that would never end by
    /// themselves, such as event streams.
    pub shutdown: CancellationToken,
    /// Rate limits.
    pub limits: Limits,
    /// The database, for health checks.
    pub store: Store,
    /// Clock and source of randomness.
    pub env: Env,
    /// HTTP settings.
    pub settings: HttpSettings,
    /// Time (monotonic) and result of the last health check of the database.
    pub last_database_ping: Mutex<Option<(Duration, bool)>>,
    /// Limits the log lines of 503 responses.
    pub unavailable_log: LogLimiter,
    /// Permits for requests with large bodies.
    pub large_body_permits: LargeBodyPermits,
    /// Pauses before 429 responses.
    pub refusal_pauses: RefusalPauses,
    /// Large responses that their clients have not read yet.
    pub unread_responses: UnreadResponses,
    /// The OpenAPI document as JSON. It is written at the first request for it.
    pub openapi: LazyLock<Option<StaticContent>, Box<dyn FnOnce() -> Option<StaticContent> + Send>>,
    /// Metrics for the operator.
    pub metrics: Metrics,
    /// The node's right to serve from its cache.
    pub lease: Lease,
}

/// HTTP settings.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// The base URL of the service for clients, without a trailing slash.
    pub public_url: String,
    /// Origins of web pages that may call the API from a browser (CORS).
    pub allowed_origins: Vec<String>,
    /// Trusted proxies: only their `X-Forwarded-For` header is used.
    pub trusted_proxies: Vec<IpNet>,
    /// Maximum size of a request body in bytes.
    pub max_body_bytes: usize,
    /// Maximum run time of a handler.
    pub handler_timeout: Duration,
    /// Maximum time for a request body to arrive.
    pub body_timeout: Duration,
    /// Requests that take longer than this are logged.
    pub slow_request: Duration,
    /// Requests per minute from an address without a valid credential.
    pub per_address_per_minute: NonZeroU32,
}

impl From<&Settings> for HttpSettings {
    fn from(settings: &Settings) -> Self {
        Self {
            public_url: settings.server.public_url.clone(),
            allowed_origins: settings.server.allowed_origins.clone(),
            trusted_proxies: settings.server.trusted_proxies.clone(),
            max_body_bytes: settings.server.max_body_bytes,
            handler_timeout: settings.server.handler_timeout,
            body_timeout: settings.server.header_timeout,
            slow_request: settings.log.slow_request,
            per_address_per_minute: settings.rate_limit.per_address_per_minute,
        }
    }
}
