//! The table: every row in every round, one after the other.

use crate::{
    options::Options,
    process::{cpu_micros, resident_kilobytes, settle},
    stats::{float, median, millis, number},
    table::Table,
    world::{Server, World},
    wrk::{self, Outcome, Traffic},
};

/// Connections of every row but sign-in.
const CONNECTIONS: usize = 48;

/// What a row is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Floor {
    /// Bare axum.
    Bare,
    /// Bare axum under the same script.
    Script,
}

/// A row, and what was measured of it.
struct Row<'a> {
    name: &'static str,
    server: &'a Server,
    traffic: Traffic,
    connections: usize,
    floor: Floor,
    /// Every answer is to be a refusal.
    refused: bool,
    samples: Vec<Sample>,
}

/// One round of one row.
#[derive(Clone, Copy)]
struct Sample {
    outcome: Outcome,
    /// Microseconds of the server and of PostgreSQL.
    server_cpu: u64,
    postgres_cpu: u64,
    resident_kilobytes: u64,
}

impl Sample {
    fn rate(&self) -> f64 {
        float(self.outcome.requests) / float(self.outcome.micros) * 1e6
    }

    fn cpu(&self) -> f64 {
        float(self.server_cpu) / float(self.outcome.requests)
    }
}

fn same(path: &'static str, bearer: Option<&str>) -> Traffic {
    Traffic::Same { method: "GET", path, bearer: bearer.map(str::to_owned), body: None }
}

/// Measures all rows and prints the table.
pub(crate) async fn measure(options: &Options, world: &World) -> Result<(), String> {
    let mut rows = rows(world);
    for round in 1..=options.rounds() {
        for row in &mut rows {
            eprintln!("round {round}: {}", row.name);
            let sample = one(options, world, row).await?;
            row.samples.push(sample);
        }
    }
    print(&rows);
    Ok(())
}

fn rows(world: &World) -> Vec<Row<'_>> {
    let verify = "/v1/auth/verify";
    let row = |name, server, traffic| Row {
        name,
        server,
        traffic,
        connections: CONNECTIONS,
        floor: Floor::Bare,
        refused: false,
        samples: Vec::new(),
    };
    let account = &world.account;
    vec![
        row("bare axum", &world.bare, same(verify, Some(&account.key))),
        row("nginx, `return 200`", &world.nginx, same(verify, Some(&account.key))),
        row("verify, one warm key", &world.service, same(verify, Some(&account.key))),
        row("verify, one warm JWT", &world.service, same(verify, Some(&account.jwt))),
    ]
}

async fn one(options: &Options, world: &World, row: &Row<'_>) -> Result<Sample, String> {
    let (server, postgres) = (row.server.process.pid(), world.postgres.pid());
    let before = (cpu_micros(server), cpu_micros(postgres));
    let (port, folder) = (row.server.port, world.folder());
    let outcome = wrk::run(folder, port, &row.traffic, row.connections, options.seconds()).await?;
    let resident_kilobytes = resident_kilobytes(server).unwrap_or_default();
    settle(postgres).await;
    Ok(Sample {
        outcome,
        server_cpu: cpu_micros(server) - before.0,
        postgres_cpu: cpu_micros(postgres) - before.1,
        resident_kilobytes,
    })
}

fn print(rows: &[Row<'_>]) {
    let mut table = Table::new(&[
        "what",
        "requests/s",
        "of bare axum",
        "CPU µs/request",
        "of bare axum",
        "PostgreSQL CPU µs/request",
        "p50 ms",
        "p99 ms",
        "failed",
        "RSS MiB",
    ]);
    for row in rows {
        table.row(cells(row, &rows[0]));
    }
    table.print("Requests");
}

fn cells(row: &Row<'_>, floor: &Row<'_>) -> Vec<String> {
    let of = |value: fn(&Sample) -> f64| median(row.samples.iter().map(value));
    let ratio = |value: fn(&Sample) -> f64| {
        let pairs = row.samples.iter().zip(&floor.samples);
        median(pairs.map(|(own, bare)| value(own) / value(bare)))
    };
    let failed: u64 = row.samples.iter().map(|s| s.outcome.refused + s.outcome.broken).sum();
    vec![
        row.name.to_owned(),
        number(of(Sample::rate), 0),
        format!("{} %", number(ratio(Sample::rate) * 100.0, 1)),
        number(of(Sample::cpu), 1),
        format!("{} ×", number(ratio(Sample::cpu), 2)),
        number(of(|s| float(s.postgres_cpu) / float(s.outcome.requests)), 1),
        millis(of(|s| float(s.outcome.p50))),
        millis(of(|s| float(s.outcome.p99))),
        failed.to_string(),
        number(of(|s| float(s.resident_kilobytes) / 1024.0), 0),
    ]
}
