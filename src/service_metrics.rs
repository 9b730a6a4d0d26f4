//! A metrics collector that reads the counters and state of the components on each scrape.

use std::{
    fmt,
    sync::{Weak, atomic::Ordering::Relaxed},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use crate::{env::Clock as _, http::AppState};

/// Collects the metrics of a running service; none after it has stopped.
pub(crate) struct ServiceCollector(pub(crate) Weak<AppState>);

impl fmt::Debug for ServiceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State(…)")
    }
}

impl Collector for ServiceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(app) = self.0.upgrade() else { return Ok(()) };
        let writer = &mut MetricWriter(&mut encoder);
        caches(writer, &app)?;
        audit(writer, &app)?;
        let lease = app.lease.remaining(app.env.clock.monotonic()).as_secs_f64();
        writer.gauge(
            "lease_seconds",
            "Remaining time of this node's lease, during which it may use its cache",
            lease,
        )?;
        clock(writer, &app)?;
        let [requests, background] = app.store.pool_usage();
        let states = [
            (["requests", "busy"], ConstGauge::new(f64::from(requests.open - requests.idle))),
            (["requests", "idle"], ConstGauge::new(f64::from(requests.idle))),
            (["background", "busy"], ConstGauge::new(f64::from(background.open - background.idle))),
            (["background", "idle"], ConstGauge::new(f64::from(background.idle))),
        ];
        let help = "Connections to PostgreSQL by pool and state";
        writer.family("database_connections", help, ["pool", "state"], &states)?;
        let waiting = app.auth.passwords.pending_hashes();
        writer.gauge("password_queue", "Password hashes queued or in progress", number(waiting))?;
        let unread = app.unread_responses.usage();
        let help = "Bytes of large responses that their clients have not read";
        writer.gauge("unread_response_bytes", help, number(unread.bytes))?;
        let help = "Large responses that were discarded because clients read too slowly";
        writer.counter("unread_responses_discarded", help, unread.discarded)?;
        limits(writer, &app)
    }
}

fn clock(writer: &mut MetricWriter<'_, '_>, app: &AppState) -> fmt::Result {
    let clock = &app.env.database_clock;
    let help = "Time by which the clock of this machine is ahead of that of PostgreSQL";
    writer.gauge("clock_skew_seconds", help, clock.skew().as_seconds_f64())?;
    let epoch = clock.epoch().map_or(0, |epoch| epoch.number.max(0).unsigned_abs());
    let help = "Times that the clock of PostgreSQL has changed, or was not read by any node";
    writer.counter("clock_changes", help, epoch)
}

fn caches(writer: &mut MetricWriter<'_, '_>, app: &AppState) -> fmt::Result {
    let caches = &app.auth.caches;
    let caches =
        [("keys", caches.key_cache_stats()), ("sessions_and_grants", caches.binding_cache_stats())];
    let lookups = caches.iter().flat_map(|(cache, (counts, _))| {
        let outcomes =
            [("hit", &counts.hits), ("unknown", &counts.negative_hits), ("miss", &counts.misses)];
        outcomes.map(|(outcome, count)| ([*cache, outcome], ConstCounter::new(count.load(Relaxed))))
    });
    let help = "Credential cache lookups by outcome";
    writer.family("cache_lookups", help, ["cache", "outcome"], &lookups.collect::<Vec<_>>())?;
    let entries = caches.map(|(cache, (_, known))| ([cache], ConstGauge::new(number(known))));
    writer.family("cache_entries", "Entries of the credential caches", ["cache"], &entries)
}

fn limits(writer: &mut MetricWriter<'_, '_>, app: &AppState) -> fmt::Result {
    let counts = app.limits.counts();
    let decisions = [
        (["shared"], ConstCounter::new(counts.shared_decisions.load(Relaxed))),
        (["local"], ConstCounter::new(counts.local_decisions.load(Relaxed))),
    ];
    let help = "Rate-limit decisions by store";
    writer.family("rate_limit_decisions", help, ["store"], &decisions)?;
    let failed = counts.failed_calls.load(Relaxed);
    writer.counter(
        "rate_limit_failed_calls",
        "Failed calls to the shared rate-limit store",
        failed,
    )?;
    let fallbacks = counts.fallbacks.load(Relaxed);
    writer.counter(
        "rate_limit_fallbacks",
        "Times the shared rate-limit store became unavailable",
        fallbacks,
    )?;
    let shared = f64::from(u8::from(app.limits.is_shared()));
    writer.gauge(
        "rate_limit_shared",
        "1 if rate limits are shared with other nodes, else 0",
        shared,
    )?;
    let buckets = number(app.limits.bucket_count());
    writer.gauge("rate_limit_buckets", "Rate-limit buckets on this node", buckets)
}

fn audit(writer: &mut MetricWriter<'_, '_>, app: &AppState) -> fmt::Result {
    let counts = app.audit.counts();
    // Read in this order, so that the number of waiting events is never negative.
    let (lost, written) = (counts.lost.load(Relaxed), counts.written.load(Relaxed));
    let accepted = counts.accepted.load(Relaxed);
    writer.counter("audit_events_accepted", "Audit events queued", accepted)?;
    writer.counter("audit_events_written", "Audit events committed to PostgreSQL", written)?;
    writer.counter(
        "audit_events_lost",
        "Audit events that were lost and will never be written",
        lost,
    )?;
    let waiting = accepted.saturating_sub(written + lost);
    #[expect(clippy::cast_precision_loss, reason = "a queue is not that long")]
    let waiting = waiting as f64;
    writer.gauge("audit_events_waiting", "Audit events waiting to be written", waiting)?;
    let failures = counts.failures();
    let failures = failures.iter().map(|(state, count)| ([&**state], ConstCounter::new(*count)));
    let help = "Failed attempts to write a batch of audit events, by SQLSTATE";
    writer.family("audit_write_failures", help, ["sqlstate"], &failures.collect::<Vec<_>>())?;
    let help = "Time for which the current batch of audit events has been waiting to be written";
    writer.gauge("audit_write_stall_seconds", help, app.audit.stalled_for().as_secs_f64())?;
    let sealed = app.seal_counts.sealed.load(Relaxed);
    writer.counter("audit_events_sealed", "Audit events sealed by this node", sealed)?;
    #[expect(clippy::cast_precision_loss, reason = "a delay in milliseconds is small")]
    let lag = app.seal_counts.lag_ms.load(Relaxed) as f64 / 1000.0;
    let help = "Age of the oldest event in the last batch that this node sealed";
    writer.gauge("audit_seal_lag_seconds", help, lag)?;
    let followers = number(app.audit_log.subscriptions().count());
    writer.gauge("audit_streams", "Clients connected to audit log streams", followers)
}

fn number(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}

/// Writes metrics, with or without labels, to an encoder.
struct MetricWriter<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl MetricWriter<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    /// Encodes a metric with labels; the values are counters or gauges.
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
            let labels = std::array::from_fn::<_, N, _>(|index| (labels[index], texts[index]));
            value.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
