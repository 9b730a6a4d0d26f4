//! What the parts count for themselves, told when the metrics are read.

use std::{
    fmt,
    sync::{Weak, atomic::Ordering::Relaxed},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use crate::http::Api;

/// Reads the state of a running service; nothing, once it has ended.
pub(crate) struct State(pub(crate) Weak<Api>);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State(…)")
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(app) = self.0.upgrade() else { return Ok(()) };
        let tell = &mut Tell(&mut encoder);
        caches(tell, &app)?;
        audit(tell, &app)?;
        let lease = app.lease.left(app.env.clock.monotonic()).as_secs_f64();
        tell.gauge(
            "lease_seconds",
            "How long this node may still believe what it has cached",
            lease,
        )?;
        let [requests, own] = app.store.connections();
        let states = [
            (["requests", "busy"], ConstGauge::new(f64::from(requests.open - requests.idle))),
            (["requests", "idle"], ConstGauge::new(f64::from(requests.idle))),
            (["own", "busy"], ConstGauge::new(f64::from(own.open - own.idle))),
            (["own", "idle"], ConstGauge::new(f64::from(own.idle))),
        ];
        let help = "Connections to PostgreSQL";
        tell.family("database_connections", help, ["pool", "state"], &states)?;
        let waiting = app.auth.passwords_waiting();
        tell.gauge("password_queue", "Password hashes that wait or are computed", number(waiting))?;
        limits(tell, &app)
    }
}

fn caches(tell: &mut Tell<'_, '_>, app: &Api) -> fmt::Result {
    let caches = app.auth.caches();
    let caches = [
        ("keys", caches.keys_seen()),
        ("sessions", caches.sessions_seen()),
        ("grants", caches.grants_seen()),
    ];
    let lookups = caches.iter().flat_map(|(cache, (counts, _))| {
        let outcomes =
            [("hit", &counts.hits), ("unknown", &counts.unknown_hits), ("miss", &counts.misses)];
        outcomes.map(|(outcome, count)| ([*cache, outcome], ConstCounter::new(count.load(Relaxed))))
    });
    let help = "Credentials that were looked up, by what came of it in memory";
    tell.family("cache_lookups", help, ["cache", "outcome"], &lookups.collect::<Vec<_>>())?;
    let entries = caches.map(|(cache, (_, known))| ([cache], ConstGauge::new(number(known))));
    tell.family("cache_entries", "Credentials that are known", ["cache"], &entries)
}

fn limits(tell: &mut Tell<'_, '_>, app: &Api) -> fmt::Result {
    let counts = app.limits.counts();
    let decisions = [
        (["shared"], ConstCounter::new(counts.shared_decisions.load(Relaxed))),
        (["local"], ConstCounter::new(counts.local_decisions.load(Relaxed))),
    ];
    let help = "Requests that a bucket decided on, by where it is";
    tell.family("rate_limit_decisions", help, ["store"], &decisions)?;
    let failed = counts.failed_calls.load(Relaxed);
    tell.counter(
        "rate_limit_failed_calls",
        "Requests that asked the shared store in vain",
        failed,
    )?;
    let fallbacks = counts.fallbacks.load(Relaxed);
    tell.counter("rate_limit_fallbacks", "Times that the shared store went away", fallbacks)?;
    let shared = f64::from(u8::from(app.limits.are_shared()));
    tell.gauge("rate_limit_shared", "Whether limits are shared with other nodes now", shared)?;
    let buckets = number(app.limits.buckets());
    tell.gauge("rate_limit_buckets", "Buckets of this node that are not full", buckets)
}

fn audit(tell: &mut Tell<'_, '_>, app: &Api) -> fmt::Result {
    let counts = app.audit.counts();
    // In this order, so that what waits is never less than nothing.
    let (lost, written) = (counts.lost.load(Relaxed), counts.written.load(Relaxed));
    let accepted = counts.accepted.load(Relaxed);
    tell.counter("audit_events_accepted", "Events that were queued", accepted)?;
    tell.counter("audit_events_written", "Events that PostgreSQL has committed", written)?;
    tell.counter("audit_events_lost", "Events that were not written and never will be", lost)?;
    let waiting = accepted.saturating_sub(written + lost);
    #[expect(clippy::cast_precision_loss, reason = "a queue is not that long")]
    let waiting = waiting as f64;
    tell.gauge("audit_events_waiting", "Events that are to be written", waiting)?;
    let sealed = app.seals.sealed.load(Relaxed);
    tell.counter("audit_events_sealed", "Events that this node has sealed", sealed)?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a delay")]
    let lag = app.seals.lag_ms.load(Relaxed) as f64 / 1000.0;
    let help = "How old the oldest event was when this node last sealed some";
    tell.gauge("audit_seal_lag_seconds", help, lag)?;
    let followers = number(app.audit_log.followers().count());
    tell.gauge("audit_streams", "Clients that follow the audit log of a workspace", followers)
}

fn number(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}

struct Tell<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Tell<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    /// One metric with labels; the values are counters or gauges.
    fn family<const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        values: &[([&str; N], M)],
    ) -> fmt::Result {
        let Some((_, first)) = values.first() else { return Ok(()) };
        let mut family = self.0.encode_descriptor(name, help, None, first.metric_type())?;
        for (texts, value) in values {
            let labels = std::array::from_fn::<_, N, _>(|place| (labels[place], texts[place]));
            value.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
