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

/// The refusal that a bucket asks for, if it does.
pub(super) fn refusal(decision: &Decision) -> Option<ApiError> {
    (!decision.allowed).then(|| ApiError::rate_limited(whole_seconds(decision.retry_in).max(1)))
}

/// Tells of a bucket in the headers of a response.
pub(super) fn describe(decision: &Decision, env: &Env, headers: &mut HeaderMap) {
    let now = env.clock.now();
    let fraction = Duration::from_nanos(now.nanosecond().into());
    let reset =
        now.unix_timestamp().saturating_add_unsigned(whole_seconds(decision.full_in + fraction));
    headers.insert(LIMIT, decision.limit.into());
    headers.insert(REMAINING, decision.remaining.into());
    headers.insert(RESET, reset.into());
}

/// Rounded up: whoever waits that long has waited long enough.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The limit on sign-in and the like for each address: far lower than that of the API, so that
/// passwords cannot be tried.
#[derive(Clone)]
pub struct SignInLimit {
    config: Arc<GovernorConfig<BySubnet, StateInformationMiddleware>>,
    per_minute: NonZeroU32,
}

impl SignInLimit {
    /// With empty buckets.
    ///
    /// # Panics
    /// Never: neither number is zero.
    #[must_use]
    pub fn new(per_minute: NonZeroU32) -> Self {
        let config = GovernorConfigBuilder::default()
            .period(Duration::from_mins(1) / per_minute.get())
            .burst_size(per_minute.get())
            .key_extractor(BySubnet)
            .use_headers()
            .finish();
        #[expect(clippy::expect_used, reason = "refused only where a number is zero")]
        let config = Arc::new(config.expect("a burst and a period"));
        tokio::spawn(keep_small(Arc::downgrade(&config)));
        Self { config, per_minute }
    }

    /// Puts a route under the limit.
    pub(super) fn limit(&self, route: MethodRouter<App>) -> MethodRouter<App> {
        let layer = GovernorLayer::new(Arc::clone(&self.config)).error_handler(refuse);
        route.route_layer(layer)
    }

    /// What the bucket said to the request of this response, which is told instead of the address's
    /// other bucket, since it is the one that refuses first.
    pub(super) fn decision(&self, response: &Response) -> Decision {
        let remaining = response.headers().get(REMAINING).and_then(|value| value.to_str().ok());
        let remaining = remaining.and_then(|text| text.parse().ok()).unwrap_or(0);
        let limit = self.per_minute.get();
        let each = Duration::from_mins(1) / limit;
        Decision {
            allowed: response.status() != StatusCode::TOO_MANY_REQUESTS,
            limit,
            remaining,
            // At the latest: the layer keeps the exact moment to itself.
            full_in: each * limit.saturating_sub(remaining),
            retry_in: Duration::ZERO,
        }
    }
}

/// `tower_governor` forgets no bucket by itself.
async fn keep_small(config: Weak<GovernorConfig<BySubnet, StateInformationMiddleware>>) {
    let mut ticks = tokio::time::interval(Duration::from_mins(1));
    loop {
        ticks.tick().await;
        let Some(config) = config.upgrade() else { return };
        config.limiter().retain_recent();
        config.limiter().shrink_to_fit();
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
fn refuse(error: GovernorError) -> Response<Body> {
    match error {
        // Its seconds are rounded down.
        GovernorError::TooManyRequests { wait_time, .. } => {
            ApiError::rate_limited(wait_time + 1).into_response()
        }
        _ => ApiError::internal("a request has no address").into_response(),
    }
}

#[derive(Debug, Clone, Copy)]
struct BySubnet;

impl KeyExtractor for BySubnet {
    type Key = IpNet;

    fn extract<T>(&self, request: &Request<T>) -> Result<IpNet, GovernorError> {
        let info = request.extensions().get::<Arc<RequestInfo>>();
        info.map(|info| address::subnet(info.ip)).ok_or(GovernorError::UnableToExtractKey)
    }
}
