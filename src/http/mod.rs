//! HTTP: routes, middleware and the format of responses.
//!
//! A request passes these layers, from the outside in:
//!
//! 1. [`middleware::HttpService`]: request id, error bodies and the headers of every response;
//! 2. the router: 404 and 405 need no credential;
//! 3. for `/v1`, OAuth and page routes, [`middleware::protect_route`]: credential, rate limit,
//!    request timeout, panic handling and the audit event;
//! 4. the handler: its first parameter, [`extract::Authorized`], checks the scope.
//!
//! Routes are in [`routes`], pages in [`dashboard`], the mapping of errors in [`error`].
//!
//! Imports inside this module run in one direction as well: from the tables of [`routes`] and
//! [`dashboard`] over [`api`] and [`oauth`], [`middleware`] and [`extract`] to [`error`], [`dto`],
//! cookies, bearer credentials and the original requests of gateways.

pub mod api;
mod bearer;
mod cookies;
pub mod dashboard;
pub mod dto;
pub mod error;
pub mod extract;
mod fallback;
mod forward_auth;
pub mod middleware;
pub mod oauth;
pub mod openapi;
pub mod route;
pub mod routes;
mod surface;
pub mod well_known;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use axum::Router;
use ipnet::IpNet;
use tokio::sync::{Mutex, Semaphore, watch};

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
};

pub use error::ApiError;

/// The application state in a cheap-to-clone handle.
pub type App = Arc<AppState>;

/// Capacity that is reserved for the headers of a response. Most responses fit, so that the map
/// is allocated once.
const HEADER_CAPACITY: usize = 16;

/// The maximum number of requests with large bodies in progress. It bounds their memory.
pub const MAX_CONCURRENT_LARGE_BODIES: usize = 128;

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
    /// True as soon as the graceful shutdown begins. Endless responses, such as event streams,
    /// watch it and end.
    pub shutdown: watch::Sender<bool>,
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
    /// Permits for requests with large bodies, [`MAX_CONCURRENT_LARGE_BODIES`] of them.
    pub large_body_permits: Semaphore,
    /// The OpenAPI document as JSON.
    pub openapi: String,
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
    /// Sign-in attempts per minute for each client address.
    pub sign_in_per_minute: NonZeroU32,
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
            sign_in_per_minute: settings.rate_limit.sign_in_per_minute,
        }
    }
}

/// Builds the HTTP service: the routes of API, OAuth and dashboard with their middleware.
#[must_use]
pub fn build_service(app: &App) -> middleware::HttpService {
    let sign_in = middleware::SignInLimit::new(app.settings.sign_in_per_minute);
    let (mut api, mut any_origin, mut pages) = (Router::new(), Router::new(), Router::new());
    for route in routes::table() {
        let (path, is_open) = (route.path, middleware::is_open_to_any_origin(route.path));
        let guarded = middleware::protect_route(route, app, &sign_in);
        if is_open {
            any_origin = any_origin.route(path, guarded);
        } else {
            api = api.route(path, guarded);
        }
    }
    for page in dashboard::route_table() {
        pages = pages.route(
            page.path,
            middleware::protect_page(page, dashboard::page::convert_error_response, app, &sign_in),
        );
    }
    // The 405 fallback must be inside the CORS layers, which answer preflight requests.
    let with_405 =
        |router: Router<App>| router.method_not_allowed_fallback(fallback::method_not_allowed);
    let (api, any_origin) =
        (with_405(api), with_405(any_origin).layer(middleware::cors_for_any_origin()));
    let api = match middleware::cors_for_origins(&app.settings.allowed_origins) {
        Some(cors) => api.layer(cors),
        None => api,
    };
    let router = api
        .merge(any_origin)
        .merge(with_405(pages))
        .merge(openapi::swagger_ui(app))
        .fallback(fallback::not_found)
        .with_state(Arc::clone(app));
    middleware::HttpService::new(Arc::clone(app), router)
}
