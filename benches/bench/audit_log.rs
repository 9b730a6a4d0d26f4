//! Latency of `GET /v1/audit-log` on a long audit log, for each filter, over HTTP.

mod fill;

use call2me_auth::model::id::{ApiKeyId, RequestId, UserId};
use serde_json::Value;

use self::fill::{FilledLog, RARE_ADDRESS};
use crate::{
    client::{Client, format_request},
    environment::{BenchEnvironment, create_database},
    options::Options,
    process::wait_until_idle,
    seed,
    stats::{format_millis, format_number, median, percentile, to_f64},
    table::Table,
};

const DATABASE: &str = "audit_log";
/// The number of times that each query is measured.
const REPETITIONS: usize = 20;
/// A query that has taken this many microseconds in total is not repeated.
const MAX_TOTAL_MICROS: f64 = 60e6;
/// The page that the cursor query reads, and the number of events on it and on each page before it.
const DEEP_PAGE: usize = 200;
const DEEP_LIMIT: usize = 100;

/// A query and its measurements.
struct LogQuery {
    label: String,
    request: String,
    latencies: Vec<f64>,
    /// The number of events in the last response.
    events: usize,
    failed: u64,
}

/// Fills an audit log and prints the table.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let rows = match (options.quick, options.full) {
        (_, true) => 10_000_000,
        (true, _) => 100_000,
        _ => 1_000_000,
    };
    create_database(&world.postgres, DATABASE).await?;
    let server = world.start_another_service(DATABASE, "audit-log", &[]).await?;
    let account = seed::create_account(server.port).await?;
    let mut connection = world.connect(DATABASE).await?;
    let filled = fill::fill_log(&mut connection, rows).await?;
    wait_until_idle(world.postgres.pid()).await;
    let mut client = Client::connect(server.port).await.map_err(|error| error.to_string())?;
    let mut queries = build_queries(&filled, &account.jwt);
    queries.push(build_cursor_query(&mut client, &account.jwt).await?);
    for round in 1..=REPETITIONS {
        eprintln!("round {round}: the audit log");
        for query in &mut queries {
            measure_query(&mut client, query).await?;
        }
    }
    print(&filled, &queries);
    Ok(())
}

fn build_query(label: &str, query: &str, jwt: &str) -> LogQuery {
    let request = format_request("GET", &format!("/v1/audit-log{query}"), Some(jwt), None);
    LogQuery { label: label.to_owned(), request, latencies: Vec::new(), events: 0, failed: 0 }
}

fn build_queries(filled: &FilledLog, jwt: &str) -> Vec<LogQuery> {
    let FilledLog { busy_key, rare_key, person, newest_request, oldest_request, .. } = *filled;
    let FilledLog { busy_address, since, until, .. } = filled;
    let all = [
        ("first page", String::new()),
        ("`key_id`: 30 % of all", format!("?key_id={}", ApiKeyId::from(busy_key))),
        ("`key_id`: 0.001 % of all", format!("?key_id={}", ApiKeyId::from(rare_key))),
        ("`actor_id`: a user, 0.5 % of all", format!("?actor_id={}", UserId::from(person))),
        ("`status=403`: 2 % of all", "?status=403".to_owned()),
        ("`ip`: one of eight", format!("?ip={busy_address}")),
        ("`ip`: 0.001 % of all", format!("?ip={RARE_ADDRESS}")),
        ("`action=api_key.created`: 0.01 % of all", "?action=api_key.created".to_owned()),
        ("`since`, `until`: one hour, ten days ago", format!("?since={since}&until={until}")),
        ("`request_id`: newest", format!("?request_id={}", RequestId::from(newest_request))),
        ("`request_id`: oldest", format!("?request_id={}", RequestId::from(oldest_request))),
    ];
    all.iter().map(|(label, query)| build_query(label, query, jwt)).collect()
}

/// Follows the cursors as a client does, and returns the query for the last page.
async fn build_cursor_query(client: &mut Client, jwt: &str) -> Result<LogQuery, String> {
    let (mut page, mut query) = (1, format!("?limit={DEEP_LIMIT}"));
    while page < DEEP_PAGE {
        let next = build_query("", &query, jwt);
        let body = client.send_timed(&next.request).await?.0.json()?;
        let Some(cursor) = body["next_cursor"].as_str() else { break };
        query = format!("?limit={DEEP_LIMIT}&cursor={cursor}");
        page += 1;
    }
    Ok(build_query(&format!("`cursor`: page {page}, {DEEP_LIMIT} events each"), &query, jwt))
}

async fn measure_query(client: &mut Client, query: &mut LogQuery) -> Result<(), String> {
    if query.latencies.iter().sum::<f64>() > MAX_TOTAL_MICROS {
        return Ok(());
    }
    let (answer, micros) = client.send_timed(&query.request).await?;
    query.latencies.push(micros);
    match answer.json() {
        Ok(body) => query.events = body["events"].as_array().map_or(0, Vec::<Value>::len),
        Err(line) => {
            query.failed += 1;
            eprintln!("{}: {line}", query.label);
        }
    }
    Ok(())
}

fn print(filled: &FilledLog, queries: &[LogQuery]) {
    let mut table = Table::new(&["query", "events", "p50 ms", "max ms", "runs", "failed"]);
    for LogQuery { label, latencies, events, failed, .. } in queries {
        table.push_row([
            label.clone(),
            events.to_string(),
            format_millis(median(latencies.iter().copied())),
            format_millis(percentile(latencies, 100)),
            latencies.len().to_string(),
            failed.to_string(),
        ]);
    }
    let count = |rows: i64| format_number(to_f64(u64::try_from(rows).unwrap_or_default()), 0);
    table.print(&format!("`GET /v1/audit-log` with {} events", count(filled.rows)));
    println!(
        "\n{} rows in {} partitions, {} of them in the workspace that is queried; {} MiB of table, \
         {} MiB of indexes, filled in {} s. The queries run in turn over one connection, {REPETITIONS} \
         times each; a query that has taken a minute in total is not repeated. Pages have 50 events \
         unless stated otherwise. The oldest request is the first of the workspace, 20 days ago. A 503 \
         is a failure: a statement may take 10 s.",
        count(filled.rows),
        filled.partitions,
        count(filled.own_rows),
        format_number(filled.table_mib, 0),
        format_number(filled.indexes_mib, 0),
        format_number(filled.seconds, 0),
    );
}
