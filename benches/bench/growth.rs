//! Whether the service slows down as keys become many: the first use of a key, by the number of keys
//! that there are, each number in a database of its own. See [`memory`] for what it keeps of them.

mod memory;

use call2me_auth::model::api_key::ApiKeySecret;
use sqlx::PgConnection;

use crate::{
    client::{Client, request},
    options::Options,
    process::{cpu_micros, settle},
    seed::{self, Account},
    stats::{float, median, millis, number, percentile},
    table::Table,
    world::{Server, World, create_database},
};

const VERIFY: &str = "/v1/auth/verify";
/// First uses in each database.
const USES: usize = 500;
/// Keys that are made at a time.
const CHUNK: usize = 100_000;
/// The databases and how many keys each holds.
const SIZES: [(&str, usize); 3] =
    [("growth_1k", 1000), ("growth_100k", 100_000), ("growth_1m", 1_000_000)];

/// A database of many keys, and what was measured of it.
struct Grown {
    name: &'static str,
    keys: usize,
    server: Server,
    account: Account,
    /// A request with each of the keys to be used.
    uses: Vec<String>,
    /// MiB of the table and of its indexes.
    size: (f64, f64),
    rounds: Vec<Round>,
}

/// One round of first uses.
struct Round {
    latencies: Vec<f64>,
    postgres_micros: u64,
    failed: u64,
}

/// Measures and prints both tables.
pub(crate) async fn measure(options: &Options, world: &World) -> Result<(), String> {
    let mut all = Vec::new();
    // What the memory is filled with: the keys of the database that has as many.
    let mut known = Vec::new();
    for (name, keys) in SIZES {
        if keys <= CHUNK || options.full {
            let (grown, last) = grow(world, name, keys).await?;
            if keys == CHUNK {
                known = last;
            }
            all.push(grown);
        }
    }
    for round in 0..options.rounds() {
        for grown in &mut all {
            eprintln!("round {}: first uses, {} keys", round + 1, grown.keys);
            let step = options.rounds();
            let uses: Vec<&String> = grown.uses.iter().skip(round).step_by(step).collect();
            let sample = first_uses(world, &grown.server, &uses).await?;
            grown.rounds.push(sample);
        }
    }
    print(&all);
    let grown = all.into_iter().find(|grown| grown.keys == CHUNK);
    let Grown { name, account, .. } = grown.ok_or("the database of many keys is missing")?;
    memory::measure(options, world, name, &account, &known).await
}

/// Makes a database of so many keys and starts a service over it. Also tells the keys made last.
async fn grow(
    world: &World,
    name: &'static str,
    keys: usize,
) -> Result<(Grown, Vec<ApiKeySecret>), String> {
    eprintln!("making {keys} keys");
    create_database(&world.postgres, name).await?;
    let server = world.service(name, name, &[]).await.map_err(String::from)?;
    let account = seed::account(server.port).await?;
    let mut connection = world.connect(name).await?;
    let (mut uses, mut last) = (Vec::new(), Vec::new());
    for first in (0..keys).step_by(CHUNK) {
        last = seed::generate(&world.env, CHUNK.min(keys - first))?;
        seed::store_keys(&mut connection, &world.env, account.workspace, &last).await?;
        // From everywhere in the table.
        let chosen = last.iter().step_by(keys / USES);
        uses.extend(chosen.map(|key| request("GET", VERIFY, Some(key.reveal()), None)));
    }
    let size = size(&mut connection).await?;
    warm_up(world, &server).await?;
    Ok((Grown { name, keys, server, account, uses, size, rounds: Vec::new() }, last))
}

/// Opens the connection of look-ups and prepares their statement, with keys that nobody knows.
async fn warm_up(world: &World, server: &Server) -> Result<(), String> {
    let mut client = Client::connect(server.port).await.map_err(|error| error.to_string())?;
    for key in seed::generate(&world.env, 20)? {
        client.timed(&request("GET", VERIFY, Some(key.reveal()), None)).await?;
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

async fn first_uses(world: &World, server: &Server, uses: &[&String]) -> Result<Round, String> {
    let postgres = world.postgres.pid();
    settle(postgres).await;
    let mut client = Client::connect(server.port).await.map_err(|error| error.to_string())?;
    let before = cpu_micros(postgres);
    let mut round = Round { latencies: Vec::new(), postgres_micros: 0, failed: 0 };
    for question in uses {
        let (answer, micros) = client.timed(question).await?;
        round.failed += u64::from(answer.status != 200);
        round.latencies.push(micros);
    }
    settle(postgres).await;
    round.postgres_micros = cpu_micros(postgres).saturating_sub(before);
    Ok(round)
}

fn print(all: &[Grown]) {
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
    let middle = |round: &Round| median(round.latencies.iter().copied());
    for grown in all {
        let latencies: Vec<f64> =
            grown.rounds.iter().flat_map(|round| round.latencies.iter().copied()).collect();
        let pairs = grown.rounds.iter().zip(&all[0].rounds);
        let ratio = median(pairs.map(|(own, least)| middle(own) / middle(least)));
        let cpu: u64 = grown.rounds.iter().map(|round| round.postgres_micros).sum();
        let failed: u64 = grown.rounds.iter().map(|round| round.failed).sum();
        table.row([
            number(float(grown.keys as u64), 0),
            latencies.len().to_string(),
            millis(median(latencies.iter().copied())),
            number(ratio, 2) + " ×",
            millis(percentile(&latencies, 99)),
            number(float(cpu) / float(latencies.len() as u64), 0),
            failed.to_string(),
            number(grown.size.0, 1),
            number(grown.size.1, 1),
        ]);
    }
    table.print("The first use of a key, by how many there are");
    println!(
        "\nOne request after the other over one connection, each with a key that the service has not \
         seen, from everywhere in the table; rounds interleaved, the ratio is the median of those of \
         the rounds. PostgreSQL's CPU includes writing the audit log of these requests and what the \
         services do every few seconds; the kernel counts it in steps of 10 ms, so for {USES} \
         requests it is exact to about {} µs for each step.",
        10_000 / USES
    );
}
