//! Latency of the first use of a key, by the number of keys in the table. Each number has its own
//! database. See [`memory`] for the memory that the service needs.

mod memory;

use call2me_auth::model::api_key::ApiKeySecret;
use sqlx::PgConnection;

use crate::{
    client::{Client, format_request},
    environment::{BenchEnvironment, Server, create_database},
    options::Options,
    process::{cpu_micros, wait_until_idle},
    seed::{self, Account},
    stats::{format_millis, format_number, median, percentile, to_f64},
    table::Table,
};

const VERIFY_PATH: &str = "/v1/auth/verify";
/// First uses in each database.
const USES: usize = 500;
/// Keys that are created at a time.
const CHUNK: usize = 100_000;
/// The databases, and the number of keys in each.
const SIZES: [(&str, usize); 3] =
    [("growth_1k", 1000), ("growth_100k", 100_000), ("growth_1m", 1_000_000)];

/// A database of many keys, and its measurements.
struct KeyDatabase {
    name: &'static str,
    keys: usize,
    server: Server,
    account: Account,
    /// A request with each of the keys to be used.
    uses: Vec<String>,
    /// The size of the table and of its indexes, in MiB.
    size: (f64, f64),
    rounds: Vec<Round>,
}

/// One round of first uses.
struct Round {
    latencies: Vec<f64>,
    postgres_micros: u64,
    failed: u64,
}

/// Measures first uses and memory, and prints the tables.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let mut all = Vec::new();
    // The memory is measured with the keys of the database that has `CHUNK` of them.
    let mut memory_keys = Vec::new();
    for (name, keys) in SIZES {
        if keys <= CHUNK || options.full {
            let (database, last) = create_key_database(world, name, keys).await?;
            if keys == CHUNK {
                memory_keys = last;
            }
            all.push(database);
        }
    }
    for round in 0..options.rounds() {
        for database in &mut all {
            eprintln!("round {}: first uses, {} keys", round + 1, database.keys);
            let step = options.rounds();
            let uses: Vec<&String> = database.uses.iter().skip(round).step_by(step).collect();
            let sample = measure_first_uses(world, &database.server, &uses).await?;
            database.rounds.push(sample);
        }
    }
    print(&all);
    let database = all.into_iter().find(|database| database.keys == CHUNK);
    let KeyDatabase { name, account, .. } =
        database.ok_or("the database of many keys is missing")?;
    memory::measure(options, world, name, &account, &memory_keys).await
}

/// Creates a database with this many keys and starts a service on it. Also returns the last keys
/// that were created.
async fn create_key_database(
    world: &BenchEnvironment,
    name: &'static str,
    keys: usize,
) -> Result<(KeyDatabase, Vec<ApiKeySecret>), String> {
    eprintln!("creating {keys} keys");
    create_database(&world.postgres, name).await?;
    let server = world.start_another_service(name, name, &[]).await.map_err(String::from)?;
    let account = seed::create_account(server.port).await?;
    let mut connection = world.connect(name).await?;
    let (mut uses, mut last) = (Vec::new(), Vec::new());
    for first in (0..keys).step_by(CHUNK) {
        last = seed::generate_keys(&world.env, CHUNK.min(keys - first))?;
        seed::store_keys(&mut connection, &world.env, account.workspace_id, &last).await?;
        // The keys are from everywhere in the table.
        let chosen = last.iter().step_by(keys / USES);
        uses.extend(chosen.map(|key| format_request("GET", VERIFY_PATH, Some(key.reveal()), None)));
    }
    let size = size(&mut connection).await?;
    warm_up(world, &server).await?;
    Ok((KeyDatabase { name, keys, server, account, uses, size, rounds: Vec::new() }, last))
}

/// Opens the connection for lookups and prepares their statement, with unknown keys.
async fn warm_up(world: &BenchEnvironment, server: &Server) -> Result<(), String> {
    let mut client = Client::connect(server.port).await.map_err(|error| error.to_string())?;
    for key in seed::generate_keys(&world.env, 20)? {
        client.send_timed(&format_request("GET", VERIFY_PATH, Some(key.reveal()), None)).await?;
    }
    Ok(())
}

async fn size(connection: &mut PgConnection) -> Result<(f64, f64), String> {
    sqlx::query_as(
        "SELECT pg_table_size('api_keys') / 1048576.0::float8,
                pg_indexes_size('api_keys') / 1048576.0::float8",
    )
    .fetch_one(connection)
    .await
    .map_err(|error| error.to_string())
}

async fn measure_first_uses(
    world: &BenchEnvironment,
    server: &Server,
    uses: &[&String],
) -> Result<Round, String> {
    let postgres = world.postgres.pid();
    wait_until_idle(postgres).await;
    let mut client = Client::connect(server.port).await.map_err(|error| error.to_string())?;
    let before = cpu_micros(postgres);
    let mut round = Round { latencies: Vec::new(), postgres_micros: 0, failed: 0 };
    for use_request in uses {
        let (answer, micros) = client.send_timed(use_request).await?;
        round.failed += u64::from(answer.status != 200);
        round.latencies.push(micros);
    }
    wait_until_idle(postgres).await;
    round.postgres_micros = cpu_micros(postgres).saturating_sub(before);
    Ok(round)
}

fn print(all: &[KeyDatabase]) {
    let mut table = Table::new(&[
        "keys in the table",
        "first uses",
        "p50 ms",
        "of 1,000",
        "p99 ms",
        "PostgreSQL µs",
        "failed",
        "table MiB",
        "indexes MiB",
    ]);
    let median_latency = |round: &Round| median(round.latencies.iter().copied());
    for database in all {
        let latencies: Vec<f64> =
            database.rounds.iter().flat_map(|round| round.latencies.iter().copied()).collect();
        let pairs = database.rounds.iter().zip(&all[0].rounds);
        let ratio = median(pairs.map(|(own, least)| median_latency(own) / median_latency(least)));
        let cpu: u64 = database.rounds.iter().map(|round| round.postgres_micros).sum();
        let failed: u64 = database.rounds.iter().map(|round| round.failed).sum();
        table.push_row([
            format_number(to_f64(database.keys as u64), 0),
            latencies.len().to_string(),
            format_millis(median(latencies.iter().copied())),
            format_number(ratio, 2) + " ×",
            format_millis(percentile(&latencies, 99)),
            format_number(to_f64(cpu) / to_f64(latencies.len() as u64), 0),
            failed.to_string(),
            format_number(database.size.0, 1),
            format_number(database.size.1, 1),
        ]);
    }
    table.print("First use of a key, by the number of keys");
    println!(
        "\nThe requests are sent one after the other over one connection, each with a key that the service \
         has not seen, from everywhere in the table. Rounds are interleaved; the ratio is the median of \
         the ratios of the rounds. The CPU time of PostgreSQL includes writing the audit log of these \
         requests and periodic work of the services. The kernel counts it in steps of 10 ms, so for \
         {USES} requests each step is about {} µs.",
        10_000 / USES
    );
}
