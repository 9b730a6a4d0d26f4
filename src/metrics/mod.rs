//! Metrics for the operator, in the text format of Prometheus.
//!
//! No label has values that a client can choose, so the number of time series is bounded: routes
//! are those of the route table, outcomes are an enumeration.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// The content type of the text that [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Histogram buckets in seconds: from 50 µs, more than a request with a cached key takes, to 10 s,
/// when clients have given up.
const LATENCIES: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 10.0,
];

type Requests = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// The metrics of a service. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Requests by route and outcome.
    requests: Requests,
    /// Time that a change to a credential, such as a revocation, waited until every node had
    /// applied it.
    pub fence_wait_duration: Histogram,
    /// Changes that are waiting for other nodes at the moment.
    pub revocations_pending: Gauge,
    /// Time from the announcement of an invalidation until this node had applied it.
    pub revocation_lag: Histogram,
    registry: Arc<Mutex<Registry>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: &'static str,
    outcome: Outcome,
}

/// The outcome of a request, by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome {
    Ok,
    Unauthorized,
    Forbidden,
    RateLimited,
    ClientError,
    Unavailable,
    ServerError,
}

impl Outcome {
    const COUNT: usize = 7;

    const fn of(status: u16) -> Self {
        match status {
            0..400 => Self::Ok,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            429 => Self::RateLimited,
            400..500 => Self::ClientError,
            503 => Self::Unavailable,
            _ => Self::ServerError,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate_limited",
            Self::ClientError => "client_error",
            Self::Unavailable => "unavailable",
            Self::ServerError => "server_error",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("call2me_auth");
        let requests = Family::new_with_constructor(histogram as fn() -> Histogram);
        let name = "request_duration_seconds";
        registry.register(
            name,
            "Duration of requests, from the request's head to the response",
            requests.clone(),
        );
        let fence_wait_duration = histogram();
        let name = "fence_wait_duration_seconds";
        registry.register(
            name,
            "Time that revocations and other changes waited until every node had applied them",
            fence_wait_duration.clone(),
        );
        let revocations_pending = Gauge::default();
        registry.register(
            "revocations_pending",
            "Revocations and other changes that are waiting for other nodes",
            revocations_pending.clone(),
        );
        let revocation_lag = histogram();
        let name = "revocation_lag_seconds";
        let help =
            "Time from the announcement of a cache invalidation until this node had applied it";
        registry.register(name, help, revocation_lag.clone());
        let registry = Arc::new(Mutex::new(registry));
        Self { requests, fence_wait_duration, revocations_pending, revocation_lag, registry }
    }
}

fn histogram() -> Histogram {
    Histogram::new(LATENCIES)
}

impl Metrics {
    /// Returns the metrics of a route; `route` is its path pattern.
    #[must_use]
    pub fn route(&self, method: &'static str, route: &'static str) -> RouteMetrics {
        let outcomes = Arc::default();
        RouteMetrics { requests: self.requests.clone(), method, route, outcomes }
    }

    /// Registers a collector that is read on each scrape.
    pub fn register_collector(&self, collector: impl Collector) {
        self.registry().register_collector(Box::new(collector));
    }

    /// Renders all metrics as text.
    ///
    /// # Errors
    /// [`fmt::Error`] if a collector fails.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut rendered = String::new();
        text::encode(&mut rendered, &self.registry())?;
        Ok(rendered)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the requests of one route. Cheap to clone.
#[derive(Clone)]
pub struct RouteMetrics {
    requests: Requests,
    method: &'static str,
    route: &'static str,
    /// The histogram of each outcome, resolved once: a lookup on every request costs more.
    outcomes: Arc<[OnceLock<Histogram>; Outcome::COUNT]>,
}

impl RouteMetrics {
    /// Records a request's status and duration.
    pub fn observe(&self, status: u16, duration: Duration) {
        let outcome = Outcome::of(status);
        let histogram = self.outcomes[outcome as usize].get_or_init(|| {
            let (method, route) = (self.method, self.route);
            self.requests.get_or_create_owned(&RequestLabels { method, route, outcome })
        });
        histogram.observe(duration.as_secs_f64());
    }
}

/// Increments a gauge for as long as it exists.
#[derive(Debug)]
pub struct GaugeGuard<'a>(&'a Gauge);

impl<'a> GaugeGuard<'a> {
    /// Increments the gauge.
    #[must_use]
    pub fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_outcome() {
        let metrics = Metrics::default();
        let route = metrics.route("GET", "/v1/agents");
        for status in [200, 204, 401, 403, 404, 422, 429, 500, 503] {
            route.observe(status, Duration::from_micros(80));
        }
        let text = metrics.render().unwrap();
        let count = |outcome: &str| {
            let labels = format!("{{method=\"GET\",route=\"/v1/agents\",outcome=\"{outcome}\"}}");
            let name = format!("call2me_auth_request_duration_seconds_count{labels} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
        };
        assert_eq!(count("ok"), "2");
        assert_eq!(count("client_error"), "2");
        for outcome in ["unauthorized", "forbidden", "rate_limited", "unavailable", "server_error"]
        {
            assert_eq!(count(outcome), "1", "{outcome}");
        }
    }
}
