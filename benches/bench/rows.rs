//! The table of requests: every row in every round, one after the other.

use std::{path::Path, time::Duration};

use tokio::time::sleep;

use crate::{
    environment::{BenchEnvironment, Server, ServiceStartError},
    keys::KeyFiles,
    options::Options,
    process::{cpu_micros, resident_kilobytes, wait_until_idle},
    seed::USER_COUNT,
    stats::{format_millis, format_number, median, to_f64},
    table::Table,
    wrk::{self, Traffic, WrkResult},
};

const VERIFY_PATH: &str = "/v1/auth/verify";
/// Connections of every row but sign-in.
const CONNECTIONS: usize = 48;
/// Indexes of the rows with which others are compared.
const BARE_AXUM_ROW: usize = 0;
const SCRIPT_ROW: usize = 2;

/// The row with which a row is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Baseline {
    /// Bare axum.
    Bare,
    /// Bare axum with a script that sends another key in each request.
    Script,
}

/// A row and its measurements.
struct Row<'a> {
    name: String,
    /// `None` if the server is not available.
    server: Option<&'a Server>,
    traffic: Traffic,
    connections: usize,
    baseline: Baseline,
    /// True if every response must be a rejection.
    expects_rejection: bool,
    /// True if all keys are used once before each round.
    is_warmed_up: bool,
    samples: Vec<Sample>,
}

impl<'a> Row<'a> {
    fn new(name: &str, server: Option<&'a Server>, traffic: Traffic) -> Self {
        Self {
            name: name.to_owned(),
            server,
            traffic,
            connections: CONNECTIONS,
            baseline: Baseline::Bare,
            expects_rejection: false,
            is_warmed_up: false,
            samples: Vec::new(),
        }
    }

    /// Counts unexpected responses and requests without a response.
    fn failed(&self) -> u64 {
        let failed = self.samples.iter().map(|Sample { outcome, .. }| {
            let wrong = if self.expects_rejection {
                outcome.requests - outcome.error_responses
            } else {
                outcome.error_responses
            };
            wrong + outcome.connection_errors
        });
        failed.sum()
    }
}

/// One round of one row.
#[derive(Clone, Copy)]
struct Sample {
    outcome: WrkResult,
    /// The CPU time of the server and of PostgreSQL, in microseconds.
    server_cpu: u64,
    postgres_cpu: u64,
    resident_kilobytes: u64,
}

impl Sample {
    fn rate(&self) -> f64 {
        to_f64(self.outcome.requests) / to_f64(self.outcome.micros) * 1e6
    }

    fn cpu(&self) -> f64 {
        to_f64(self.server_cpu) / to_f64(self.outcome.requests)
    }
}

fn same_request(path: &'static str, bearer: &str) -> Traffic {
    Traffic::SameRequest { path, bearer: bearer.to_owned() }
}

/// Measures all rows and prints the table.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let keys = KeyFiles::create(options, world).await?;
    let strict = world
        .start_another_service("main", "strict", &[("CALL2ME_AUTH__AUDIT__DURABILITY", "strict")])
        .await;
    let (strict, unavailable) = match strict {
        Ok(server) => (Some(server), None),
        // The service exits with this status if it does not know the setting.
        Err(ServiceStartError::Exited(status, line)) if status.code() == Some(2) => {
            (None, Some(line))
        }
        Err(reason) => return Err(reason.into()),
    };
    let counted_before = counted_as_unknown(world).await?;
    let mut rows = rows(world, &keys, strict.as_ref());
    for round in 0..options.rounds() {
        for row in &mut rows {
            eprintln!("round {}: {}", round + 1, row.name);
            if let Some(server) = row.server {
                let sample = measure_round(options, world, row, server, &keys, round).await?;
                row.samples.push(sample);
            }
        }
    }
    print(&rows);
    print_notes(&rows, unavailable.as_deref());
    let unknown_requests: u64 = rows
        .iter()
        .filter(|r| r.expects_rejection)
        .flat_map(|r| &r.samples)
        .map(|s| s.outcome.requests)
        .sum();
    let counted = counted_as_unknown(world).await? - counted_before;
    println!(
        "Unknown keys: {unknown_requests} responses, {counted} of which the service has counted as unknown."
    );
    Ok(())
}

/// Returns the number of requests that the service has counted as unknown. It stores its counts
/// every five seconds.
async fn counted_as_unknown(world: &BenchEnvironment) -> Result<i64, String> {
    sleep(Duration::from_millis(5500)).await;
    sqlx::query_scalar("SELECT coalesce(sum(attempts), 0)::bigint FROM unknown_credential_counts")
        .fetch_one(&mut world.connect("main").await?)
        .await
        .map_err(|error| error.to_string())
}

fn rows<'a>(
    world: &'a BenchEnvironment,
    keys: &KeyFiles,
    strict: Option<&'a Server>,
) -> Vec<Row<'a>> {
    let (account, service) = (&world.account, Some(&world.service));
    let key = || same_request(VERIFY_PATH, &account.key);
    let any = || Traffic::RandomKey { file: keys.warm.clone(), keys: keys.warm_count };
    let next =
        |file: &Path, keys| Traffic::SequentialKeys { file: file.to_owned(), first: 0, keys };
    let login = Traffic::Posts {
        path: "/v1/auth/login",
        bodies: account.logins.iter().map(ToString::to_string).collect(),
    };
    let row = |name: &str, server, traffic| Row::new(name, server, traffic);
    let warm = format!("verify, {} warm keys †", format_number(to_f64(keys.warm_count as u64), 0));
    vec![
        row("bare axum", Some(&world.bare), key()),
        row("nginx, `return 200`", Some(&world.nginx), key()),
        row("bare axum, keys from a script", Some(&world.bare), any()),
        row("verify, one warm key", service, key()),
        Row { baseline: Baseline::Script, is_warmed_up: true, ..row(&warm, service, any()) },
        row("verify, one warm JWT", service, same_request(VERIFY_PATH, &account.jwt)),
        row("verify, strict audit", strict, key()),
        Row {
            baseline: Baseline::Script,
            ..row("verify, first use of a key †", service, next(&keys.fresh, keys.fresh_per_round))
        },
        Row {
            baseline: Baseline::Script,
            expects_rejection: true,
            ..row("verify, unknown keys †", service, next(&keys.unknown, keys.unknown_per_round))
        },
        row("`GET /v1/agents`, 5 agents", service, same_request("/v1/agents", &account.key)),
        Row { connections: USER_COUNT as usize, ..row("8 concurrent sign-ins", service, login) },
    ]
}

async fn measure_round(
    options: &Options,
    world: &BenchEnvironment,
    row: &Row<'_>,
    server: &Server,
    keys: &KeyFiles,
    round: usize,
) -> Result<Sample, String> {
    if row.is_warmed_up {
        keys.warm_up(server.port).await?;
        wait_until_idle(world.postgres.pid()).await;
    }
    let traffic = row.traffic.for_round(round);
    let (pid, postgres) = (server.process.pid(), world.postgres.pid());
    let before = (cpu_micros(pid), cpu_micros(postgres));
    let seconds = options.seconds();
    let outcome = wrk::run(world.folder(), server.port, &traffic, row.connections, seconds).await?;
    let resident_kilobytes = resident_kilobytes(pid).unwrap_or_default();
    wait_until_idle(postgres).await;
    Ok(Sample {
        outcome,
        server_cpu: cpu_micros(pid).saturating_sub(before.0),
        postgres_cpu: cpu_micros(postgres).saturating_sub(before.1),
        resident_kilobytes,
    })
}

fn print(rows: &[Row<'_>]) {
    let mut table = Table::new(&[
        "request",
        "requests/s",
        "of axum",
        "CPU µs/request",
        "of axum",
        "PostgreSQL µs",
        "p50 ms",
        "p99 ms",
        "failed",
        "RSS MiB",
    ]);
    for row in rows {
        let baseline = if row.baseline == Baseline::Script { SCRIPT_ROW } else { BARE_AXUM_ROW };
        table.push_row(cells(row, &rows[baseline]));
    }
    table.print("Requests");
}

fn cells(row: &Row<'_>, baseline: &Row<'_>) -> Vec<String> {
    if row.server.is_none() {
        return vec![format!("{}: not in this build", row.name)];
    }
    let of = |value: fn(&Sample) -> f64| median(row.samples.iter().map(value));
    let ratio = |value: fn(&Sample) -> f64| {
        let pairs = row.samples.iter().zip(&baseline.samples);
        median(pairs.map(|(own, bare)| value(own) / value(bare)))
    };
    vec![
        row.name.clone(),
        format_number(of(Sample::rate), 0),
        format!("{} %", format_number(ratio(Sample::rate) * 100.0, 1)),
        format_number(of(Sample::cpu), 1),
        format!("{} ×", format_number(ratio(Sample::cpu), 2)),
        format_number(of(|s| to_f64(s.postgres_cpu) / to_f64(s.outcome.requests)), 1),
        format_millis(of(|s| to_f64(s.outcome.p50))),
        format_millis(of(|s| to_f64(s.outcome.p99))),
        row.failed().to_string(),
        format_number(of(|s| to_f64(s.resident_kilobytes) / 1024.0), 0),
    ]
}

fn print_notes(rows: &[Row<'_>], unavailable: Option<&str>) {
    println!(
        "\nRequests/s, latencies and failures are those of wrk. CPU is user and system time per request, of \
         the server's process and of PostgreSQL with all its backends, from the start of the load until \
         PostgreSQL has written the audit log (300 ms, then until it is idle). A ratio is the median of \
         the ratios of the rounds. † wrk runs a script that sends another key in each request, which \
         costs it time; these rows are compared with bare axum under such a script. For unknown keys, \
         every response but a rejection is a failure; for the others, every rejection."
    );
    if let Some(line) = unavailable {
        println!("Strict audit: {line}");
    }
    for row in rows {
        let Traffic::SequentialKeys { keys, .. } = &row.traffic else { continue };
        let most = row.samples.iter().map(|s| s.outcome.requests).max().unwrap_or_default();
        if most > *keys as u64 {
            println!(
                "{}: {most} requests in a round, but only {keys} keys; some were used twice.",
                row.name
            );
        }
    }
}
