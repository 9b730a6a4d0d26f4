//! What the operator can watch: instruments that the parts write to, in the text format of Prometheus.
//!
//! No label has values that a client chooses: routes are those of the route table, outcomes an
//! enumeration.

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

/// The content type of what [`Metrics::render`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From 50 µs, of which a cached key takes less, to 10 s, when requests are given up.
const LATENCIES: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 10.0,
];

type Requests = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// The instruments of one service. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Requests by route and outcome.
    requests: Requests,
    /// How long changes waited until every node knew.
    pub fence_waits: Histogram,
    /// How many wait.
    pub fence_waiting: Gauge,
    /// From when a change was announced to when this node had forgotten what it concerns.
    pub revocation_lag: Histogram,
    registry: Arc<Mutex<Registry>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: &'static str,
    outcome: Outcome,
}

/// How a request ended.
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
            "Requests of the API, from their head to the answer",
            requests.clone(),
        );
        let fence_waits = histogram();
        let name = "fence_wait_duration_seconds";
        registry.register(
            name,
            "How long changes waited until every node knew",
            fence_waits.clone(),
        );
        let fence_waiting = Gauge::default();
        registry.register(
            "fence_waiting",
            "Changes that wait at the moment",
            fence_waiting.clone(),
        );
        let revocation_lag = histogram();
        let name = "revocation_lag_seconds";
        let help =
            "From the announcement of a change to this node having forgotten what it concerns";
        registry.register(name, help, revocation_lag.clone());
        let registry = Arc::new(Mutex::new(registry));
        Self { requests, fence_waits, fence_waiting, revocation_lag, registry }
    }
}

fn histogram() -> Histogram {
    Histogram::new(LATENCIES)
}

impl Metrics {
    /// The instruments of a route.
    #[must_use]
    pub fn route(&self, method: &'static str, route: &'static str) -> RouteMetrics {
        let outcomes = Arc::default();
        RouteMetrics { requests: self.requests.clone(), method, route, outcomes }
    }

    /// Adds what is asked for only when the metrics are read.
    pub fn add(&self, collector: impl Collector) {
        self.registry().register_collector(Box::new(collector));
    }

    /// All of them, as text.
    ///
    /// # Errors
    /// When a collector cannot tell.
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
    /// Found once, since every request would have to look for it.
    outcomes: Arc<[OnceLock<Histogram>; Outcome::COUNT]>,
}

impl RouteMetrics {
    /// Counts a request that took so long and was answered with this status.
    pub fn observe(&self, status: u16, took: Duration) {
        let outcome = Outcome::of(status);
        let histogram = self.outcomes[outcome as usize].get_or_init(|| {
            let (method, route) = (self.method, self.route);
            self.requests.get_or_create_owned(&RequestLabels { method, route, outcome })
        });
        histogram.observe(took.as_secs_f64());
    }
}

/// One more that waits, for as long as this lives.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Gauge);

impl<'a> Waiting<'a> {
    /// Counts it.
    #[must_use]
    pub fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
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
