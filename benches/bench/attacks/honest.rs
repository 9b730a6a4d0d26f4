//! Honest traffic: clients of many workspaces, at a fixed and modest rate.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::deployment::{Deployment, LARGE_BODY_BYTES, Tenant};
use crate::{
    client::{self, format_request, forwarded_from},
    stats::duration_micros,
};

/// An honest request without a response for this long has failed.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);
/// The offset between the first requests of two operations: their requests are never due at once.
const STAGGER: Duration = Duration::from_millis(5);

/// A kind of honest request.
#[derive(Clone, Copy)]
struct HonestOperation {
    label: &'static str,
    per_second: u32,
    /// The status of a success.
    expected: u16,
    /// Formats the request of one tenant.
    format: fn(&Tenant) -> String,
}

const OPERATIONS: [HonestOperation; 4] = [
    HonestOperation { label: "verify a key", per_second: 50, expected: 200, format: verify_key },
    HonestOperation { label: "sign in", per_second: 2, expected: 200, format: sign_in },
    HonestOperation { label: "list the log", per_second: 5, expected: 200, format: list_events },
    HonestOperation { label: "send 256 KiB", per_second: 5, expected: 200, format: send_body },
];

fn verify_key(tenant: &Tenant) -> String {
    format_request("GET", "/v1/auth/verify", Some(&tenant.key), None)
}

fn sign_in(tenant: &Tenant) -> String {
    format_request("POST", "/v1/auth/login", None, Some(&tenant.login))
}

fn list_events(tenant: &Tenant) -> String {
    format_request("GET", "/v1/audit-log", Some(&tenant.key), None)
}

fn send_body(tenant: &Tenant) -> String {
    let body = serde_json::json!({ "greeting": "a".repeat(LARGE_BODY_BYTES) });
    format_request(
        "PATCH",
        &format!("/v1/agents/{}", tenant.agent_id),
        Some(&tenant.key),
        Some(&body),
    )
}

/// Describes the rates, such as `50 requests/s to verify a key`.
pub(super) fn describe_rates() -> String {
    let rates = OPERATIONS
        .map(|operation| format!("{} a second to {}", operation.per_second, operation.label));
    rates.join(", ")
}

/// The result of one operation.
#[derive(Default)]
pub(super) struct HonestResult {
    pub(super) label: &'static str,
    /// The latency of each expected response, in microseconds.
    pub(super) latencies: Vec<f64>,
    /// Requests with another response, or without any.
    pub(super) failed: usize,
}

/// Adds the results of a phase to those of earlier ones.
pub(super) fn add(all: &mut Vec<HonestResult>, phase: Vec<HonestResult>) {
    if all.is_empty() {
        *all = phase;
        return;
    }
    for (total, result) in all.iter_mut().zip(phase) {
        total.latencies.extend(result.latencies);
        total.failed += result.failed;
    }
}

/// The requests of all operations.
pub(super) struct HonestTraffic {
    port: u16,
    /// For each operation, the request of each tenant.
    requests: Arc<Vec<Vec<String>>>,
}

impl HonestTraffic {
    /// Formats the requests.
    pub(super) fn new(deployment: &Deployment) -> Self {
        let of_operation = |operation: &HonestOperation| {
            let tenants = deployment.tenants.iter();
            tenants
                .map(|tenant| forwarded_from(tenant.address, &(operation.format)(tenant)))
                .collect()
        };
        let requests = Arc::new(OPERATIONS.iter().map(of_operation).collect());
        Self { port: deployment.server.port, requests }
    }

    /// Sends all operations at their rates for a duration, on a thread of its own. Waits for all
    /// responses.
    pub(super) async fn run(&self, duration: Duration) -> Result<Vec<HonestResult>, String> {
        let (port, requests) = (self.port, Arc::clone(&self.requests));
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(run_operations(port, requests, duration))
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| error.to_string())?
    }
}

async fn run_operations(
    port: u16,
    requests: Arc<Vec<Vec<String>>>,
    duration: Duration,
) -> Result<Vec<HonestResult>, String> {
    let start = Instant::now();
    let mut operations = Vec::new();
    for (number, operation) in OPERATIONS.into_iter().enumerate() {
        let requests = Arc::clone(&requests);
        let first = start + STAGGER * u32::try_from(number).unwrap_or_default();
        operations.push(tokio::spawn(async move {
            run_operation(port, operation, &requests[number], first, duration).await
        }));
    }
    let mut results = Vec::new();
    for operation in operations {
        results.push(operation.await.map_err(|error| error.to_string())?);
    }
    Ok(results)
}

/// Sends the requests of one operation when they are due, even if earlier ones have no response
/// yet.
async fn run_operation(
    port: u16,
    operation: HonestOperation,
    requests: &[String],
    first: Instant,
    duration: Duration,
) -> HonestResult {
    let mut in_flight = JoinSet::new();
    let mut due = first;
    for request in requests.iter().cycle() {
        if due >= first + duration {
            break;
        }
        sleep_until(due).await;
        let request = request.clone();
        in_flight.spawn(async move { send(port, &request, operation.expected).await });
        due += Duration::from_secs(1) / operation.per_second;
    }
    let results = in_flight.join_all().await;
    let latencies: Vec<f64> = results.iter().flatten().copied().collect();
    let failed = results.len() - latencies.len();
    HonestResult { label: operation.label, latencies, failed }
}

/// Sends a request over a new connection. Returns its latency in microseconds, or `None` if the
/// response is not the expected one. A delay of our own timer does not count.
async fn send(port: u16, request: &str, expected: u16) -> Option<f64> {
    let start = Instant::now();
    let response = timeout(RESPONSE_TIMEOUT, client::send_once(port, request)).await.ok()?.ok()?;
    (response.status == expected).then(|| duration_micros(start.elapsed()))
}
