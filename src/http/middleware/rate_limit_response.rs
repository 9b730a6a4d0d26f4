//! Rate limits in responses: the 429 error and the `X-RateLimit-*` headers.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};

use crate::{env::Env, http::ApiError, limit::Decision};

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
