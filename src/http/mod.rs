//! HTTP: routes, what wraps them, and how answers look.
//!
//! A request passes, from the outside in:
//!
//! 1. [`middleware::Frame`]: the request's id, the body of errors, the headers of every answer;
//! 2. the router: 404 and 405 need no credential;
//! 3. for routes of `/v1` and for pages, [`middleware::guarded`]: the credential, its rate limit, a time-out, a net
//!    for panics, and the event of the audit log;
//! 4. the handler, whose first parameter, [`extract::Authorized`], checks the scope.
//!
//! The routes are in [`routes`], pages in [`dashboard`], the mapping of errors in [`error`].

pub mod api;
pub mod dashboard;
pub mod error;
pub mod extract;
pub mod middleware;
pub mod oauth;
pub mod openapi;
pub mod routes;
pub mod well_known;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use axum::Router;
use ipnet::IpNet;
use tokio::sync::{Mutex, Semaphore, watch};

use crate::{
    audit::{AuditLog, AuditWriter, SealCounts},
    auth::Auth,
    coherence::Lease,
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

/// What handlers and middlewares share.
pub type App = Arc<Api>;

/// Headers of an answer, mostly: room is made for them once.
const USUAL_HEADERS: usize = 16;

/// Requests with large bodies that are served at a time.
pub const LARGE_BODIES: usize = 128;

/// What handlers and middlewares share.
pub struct Api {
    /// Who is calling, and how one becomes somebody.
    pub auth: Auth,
    /// Who lets which program in.
    pub oauth: OAuth,
    /// Creating requests that may come again.
    pub idempotency: Idempotency,
    /// The platform's resources.
    pub resources: Resources,
    /// The audit log, to be read.
    pub audit_log: AuditLog,
    /// The audit log, to be written.
    pub audit: AuditWriter,
    /// What this node has sealed of it.
    pub seals: Arc<SealCounts>,
    /// Whether the service is about to end, for answers that would go on for ever.
    pub stopping: watch::Sender<bool>,
    /// Rate limits.
    pub limits: Limits,
    /// The database, for its health.
    pub store: Store,
    /// Time and randomness.
    pub env: Env,
    /// What can be set about HTTP.
    pub settings: HttpSettings,
    /// When PostgreSQL was last asked whether it is there, and what came of it.
    pub last_ping: Mutex<Option<(Duration, bool)>>,
    /// Places for requests with large bodies.
    pub large_bodies: Semaphore,
    /// The OpenAPI document, as JSON.
    pub openapi: String,
    /// What the operator can watch.
    pub metrics: Metrics,
    /// This node's right to believe what it has cached.
    pub lease: Lease,
}

/// What can be set about HTTP.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Where clients reach the service, without a slash at the end.
    pub public_url: String,
    /// Origins of web pages that may call the API from browsers.
    pub allowed_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The largest request body, in bytes.
    pub max_body_bytes: usize,
    /// The longest that a handler may take.
    pub handler_timeout: Duration,
    /// The longest that a body may take to arrive.
    pub body_timeout: Duration,
    /// Requests that take longer are logged.
    pub slow_request: Duration,
    /// Sign-ins a minute for each address.
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

/// The whole API.
#[must_use]
pub fn service(app: &App) -> middleware::Frame {
    let sign_in = middleware::SignInLimit::new(app.settings.sign_in_per_minute);
    let (mut api, mut open, mut pages) = (Router::new(), Router::new(), Router::new());
    for route in routes::table() {
        let (path, is_open) = (route.path, middleware::is_open_to_browsers(route.path));
        let guarded = middleware::guarded(route, app, &sign_in);
        if is_open {
            open = open.route(path, guarded);
        } else {
            api = api.route(path, guarded);
        }
    }
    for page in dashboard::table() {
        pages = pages.route(page.path, middleware::guarded_page(page, app, &sign_in));
    }
    // Before the layers, which answer what browsers ask beforehand.
    let closed =
        |router: Router<App>| router.method_not_allowed_fallback(middleware::method_not_allowed);
    let (api, open) = (closed(api), closed(open).layer(middleware::for_any_origin()));
    let api = match middleware::for_origins(&app.settings.allowed_origins) {
        Some(cors) => api.layer(cors),
        None => api,
    };
    let router = api
        .merge(open)
        .merge(closed(pages))
        .merge(openapi::swagger_ui(app))
        .fallback(middleware::not_found)
        .with_state(Arc::clone(app));
    middleware::Frame::new(Arc::clone(app), router)
}
