use std::{
    num::NonZeroU32,
    sync::{Arc, Weak},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, StatusCode},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use governor::middleware::StateInformationMiddleware;
use ipnet::IpNet;
use tower_governor::{
    GovernorError, GovernorLayer,
    governor::{GovernorConfig, GovernorConfigBuilder},
    key_extractor::KeyExtractor,
};

use crate::{
    env::Env,
    http::{ApiError, App},
    limit::Decision,
    model::{address, audit::RequestInfo},
};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The 429 error for a decision that does not allow the request.
pub(super) fn rejection(decision: &Decision) -> Option<ApiError> {
    (!decision.allowed).then(|| ApiError::rate_limited(whole_seconds(decision.retry_in).max(1)))
}

/// Sets the `X-RateLimit-*` headers of a response.
pub(in crate::http) fn set_headers(decision: &Decision, env: &Env, headers: &mut HeaderMap) {
    let now = env.clock.now();
    let fraction = Duration::from_nanos(now.nanosecond().into());
    let reset =
        now.unix_timestamp().saturating_add_unsigned(whole_seconds(decision.full_in + fraction));
    headers.insert(LIMIT, decision.limit.into());
    headers.insert(REMAINING, decision.remaining.into());
    headers.insert(RESET, reset.into());
}

/// Whole seconds, rounded up, so that waiting that long is enough.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The rate limit of sign-in and similar routes, for each address.
///
/// It is far lower than that of the API, so that passwords cannot be guessed. An IPv6 address
/// counts as its /64.
#[derive(Clone)]
pub struct SignInLimit {
    config: Arc<GovernorConfig<BySubnet, StateInformationMiddleware>>,
    per_minute: NonZeroU32,
}

impl SignInLimit {
    /// A limit with full buckets.
    ///
    /// # Panics
    /// Never: neither the period nor the burst is zero.
    #[must_use]
    pub fn new(per_minute: NonZeroU32) -> Self {
        let config = GovernorConfigBuilder::default()
            .period(Duration::from_mins(1) / per_minute.get())
            .burst_size(per_minute.get())
            .key_extractor(BySubnet)
            .use_headers()
            .finish();
        #[expect(clippy::expect_used, reason = "fails only if a number is zero")]
        let config = Arc::new(config.expect("burst and period are not zero"));
        tokio::spawn(evict_regularly(Arc::downgrade(&config)));
        Self { config, per_minute }
    }

    /// Wraps a route with the limit.
    pub(super) fn limit(&self, route: MethodRouter<App>) -> MethodRouter<App> {
        let layer = GovernorLayer::new(Arc::clone(&self.config)).error_handler(rate_limit_response);
        route.route_layer(layer)
    }

    /// The decision that led to this response, read from its headers. Responses report this bucket
    /// and not the address's general one, since this one rejects first.
    pub(super) fn decision(&self, response: &Response) -> Decision {
        let remaining = response.headers().get(REMAINING).and_then(|value| value.to_str().ok());
        let remaining = remaining.and_then(|text| text.parse().ok()).unwrap_or(0);
        let limit = self.per_minute.get();
        let each = Duration::from_mins(1) / limit;
        Decision {
            allowed: response.status() != StatusCode::TOO_MANY_REQUESTS,
            limit,
            remaining,
            // An upper bound: the layer does not report the exact time.
            full_in: each * limit.saturating_sub(remaining),
            retry_in: Duration::ZERO,
        }
    }
}

/// Evicts full buckets every minute; `tower_governor` never does so itself.
async fn evict_regularly(config: Weak<GovernorConfig<BySubnet, StateInformationMiddleware>>) {
    let mut ticks = tokio::time::interval(Duration::from_mins(1));
    loop {
        ticks.tick().await;
        let Some(config) = config.upgrade() else { return };
        config.limiter().retain_recent();
        config.limiter().shrink_to_fit();
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that the layer requires")]
fn rate_limit_response(error: GovernorError) -> Response<Body> {
    match error {
        // `wait_time` is in seconds, rounded down.
        GovernorError::TooManyRequests { wait_time, .. } => {
            ApiError::rate_limited(wait_time + 1).into_response()
        }
        _ => ApiError::internal("a request has no client address").into_response(),
    }
}

#[derive(Debug, Clone, Copy)]
struct BySubnet;

impl KeyExtractor for BySubnet {
    type Key = IpNet;

    fn extract<T>(&self, request: &Request<T>) -> Result<IpNet, GovernorError> {
        let info = request.extensions().get::<Arc<RequestInfo>>();
        info.map(|info| address::client_subnet(info.ip)).ok_or(GovernorError::UnableToExtractKey)
    }
}
