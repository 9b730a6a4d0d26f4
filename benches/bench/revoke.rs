//! Time of a revocation. `DELETE /v1/api-keys/{id}` responds once no node accepts the key any more,
//! so with a second node it waits for that node, too.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;
use sqlx::PgConnection;
use tokio::{task::JoinHandle, time::Duration};

use crate::{
    client::{Client, format_request},
    environment::{BenchEnvironment, create_database},
    generator::{Load, LoadResult, Pace},
    options::Options,
    seed::{self, Account},
    stats::{format_millis, format_number, median, percentile, to_f64},
    table::Table,
};

const VERIFY_PATH: &str = "/v1/auth/verify";
const DATABASE: &str = "revoke";
/// Keys that are revoked in each situation, in each round.
const KEYS: usize = 100;
/// Requests per second with another key on each node, and their connections.
const RATE: u32 = 500;
const CONNECTIONS: u32 = 8;

/// A key to be revoked.
struct Key {
    id: String,
    verify: String,
}

/// The measurements of one situation.
#[derive(Default)]
struct Sample {
    /// Nodes with a lease in PostgreSQL.
    nodes: i64,
    /// Microseconds of each `POST /v1/api-keys`, which is one commit too, but waits for no node.
    create_micros: Vec<f64>,
    /// Microseconds of each `DELETE`.
    revoke_micros: Vec<f64>,
    /// Successful requests with the key after the 204. There must be none.
    successes: u64,
    /// Requests with the key after the 204 that got 401.
    rejections: u64,
    /// Unexpected responses to a warm-up, a revocation or a check.
    failed: u64,
    /// The load of each node.
    loads: Vec<LoadResult>,
}

impl Sample {
    fn add(&mut self, other: Self) {
        self.nodes = self.nodes.max(other.nodes);
        self.create_micros.extend(other.create_micros);
        self.revoke_micros.extend(other.revoke_micros);
        self.successes += other.successes;
        self.rejections += other.rejections;
        self.failed += other.failed;
        self.loads.extend(other.loads);
    }
}

/// Measures and prints the table. The second node starts and stops in each round.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    create_database(&world.postgres, DATABASE).await?;
    let first = world.start_another_service(DATABASE, "revoke-a", &[]).await?;
    let account = seed::create_account(first.port).await?;
    let mut samples = [Sample::default(), Sample::default()];
    for round in 1..=options.rounds() {
        eprintln!("round {round}: revocations, one node");
        samples[0].add(measure_situation(world, &account, &[first.port]).await?);
        let second = world.start_another_service(DATABASE, "revoke-b", &[]).await?;
        eprintln!("round {round}: revocations, two nodes");
        samples[1].add(measure_situation(world, &account, &[first.port, second.port]).await?);
    }
    print(&samples);
    Ok(())
}

/// Revokes keys through the first port, under load on all ports.
async fn measure_situation(
    world: &BenchEnvironment,
    account: &Account,
    ports: &[u16],
) -> Result<Sample, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = ports.iter().map(|port| start_load(*port, account, &stop)).collect();
    let revoked = revoke_all(world, account, ports).await;
    stop.store(true, Ordering::Relaxed);
    let mut sample = revoked?;
    for load in loads {
        sample.loads.push(load.await.map_err(|error| error.to_string())??);
    }
    Ok(sample)
}

/// Starts a load that lasts until it is stopped, one second after the other.
fn start_load(
    port: u16,
    account: &Account,
    stop: &Arc<AtomicBool>,
) -> JoinHandle<Result<LoadResult, String>> {
    let (stop, verify) =
        (Arc::clone(stop), format_request("GET", VERIFY_PATH, Some(&account.key), None));
    tokio::spawn(async move {
        let mut all = LoadResult::default();
        while !stop.load(Ordering::Relaxed) {
            let load = Load {
                port,
                requests: vec![verify.clone()],
                pace: Pace::PerSecond(RATE),
                connections: CONNECTIONS,
                duration: Some(Duration::from_secs(1)),
            };
            let result = load.run_to_end().await?;
            all.seconds += result.seconds;
            all.add(result);
        }
        Ok(all)
    })
}

async fn revoke_all(
    world: &BenchEnvironment,
    account: &Account,
    ports: &[u16],
) -> Result<Sample, String> {
    let mut clients = Vec::new();
    for port in ports {
        clients.push(Client::connect(*port).await.map_err(|error| error.to_string())?);
    }
    let mut sample = Sample::default();
    let mut keys = Vec::new();
    for _ in 0..KEYS {
        keys.push(create_key(&mut clients[0], account, &mut sample).await?);
    }
    for client in &mut clients {
        // The first use looks the key up; the second shows that it is accepted.
        for key in keys.iter().chain(&keys) {
            sample.failed += u64::from(client.send_timed(&key.verify).await?.0.status != 200);
        }
    }
    sample.nodes = count_nodes(&mut world.connect(DATABASE).await?).await?;
    for key in &keys {
        revoke_key(&mut clients, account, key, &mut sample).await?;
    }
    Ok(sample)
}

async fn create_key(
    client: &mut Client,
    account: &Account,
    sample: &mut Sample,
) -> Result<Key, String> {
    let body = json!({ "name": "to be revoked", "scope": "read-only" });
    let create_request = format_request("POST", "/v1/api-keys", Some(&account.jwt), Some(&body));
    let (answer, micros) = client.send_timed(&create_request).await?;
    sample.create_micros.push(micros);
    let created = answer.json()?;
    let key = seed::json_string(&created["key"])?;
    Ok(Key {
        id: seed::json_string(&created["id"])?,
        verify: format_request("GET", VERIFY_PATH, Some(&key), None),
    })
}

/// Revokes one key through the first node and tries it at once on all nodes, on the last node
/// first.
async fn revoke_key(
    clients: &mut [Client],
    account: &Account,
    key: &Key,
    sample: &mut Sample,
) -> Result<(), String> {
    let path = format!("/v1/api-keys/{}", key.id);
    let revoke_request = format_request("DELETE", &path, Some(&account.jwt), None);
    let (answer, micros) = clients[0].send_timed(&revoke_request).await?;
    if answer.status != 204 {
        sample.failed += 1;
        return Ok(());
    }
    sample.revoke_micros.push(micros);
    for client in clients.iter_mut().rev() {
        match client.send_timed(&key.verify).await?.0.status {
            401 => sample.rejections += 1,
            200..300 => sample.successes += 1,
            _ => sample.failed += 1,
        }
    }
    Ok(())
}

/// Counts the nodes with a lease.
async fn count_nodes(connection: &mut PgConnection) -> Result<i64, String> {
    sqlx::query_scalar("SELECT count(*) FROM nodes WHERE NOT is_expired")
        .fetch_one(connection)
        .await
        .map_err(|error| error.to_string())
}

fn print(samples: &[Sample]) {
    let mut table = Table::new(&[
        "nodes",
        "revoked",
        "p50 ms",
        "p99 ms",
        "max ms",
        "create, p50 ms",
        "tries after",
        "rejected",
        "successes",
        "failed",
        "other requests/s",
        "other failed",
    ]);
    for sample in samples {
        let nodes = to_f64(u64::try_from(sample.nodes).unwrap_or_default());
        let load_rate = median(sample.loads.iter().map(LoadResult::rate)) * nodes;
        let load_failures: u64 = sample.loads.iter().map(|load| load.count_other_than(200)).sum();
        table.push_row([
            sample.nodes.to_string(),
            sample.revoke_micros.len().to_string(),
            format_millis(median(sample.revoke_micros.iter().copied())),
            format_millis(percentile(&sample.revoke_micros, 99)),
            format_millis(percentile(&sample.revoke_micros, 100)),
            format_millis(median(sample.create_micros.iter().copied())),
            format_number(to_f64(sample.rejections + sample.successes), 0),
            format_number(to_f64(sample.rejections), 0),
            sample.successes.to_string(),
            sample.failed.to_string(),
            format_number(load_rate, 0),
            load_failures.to_string(),
        ]);
    }
    table.print("Revocations: `DELETE /v1/api-keys/{id}`");
    println!(
        "\nThe keys are revoked one after the other through the first node. Each key is cached on every \
         node, and each node serves {RATE} requests/s with another key. After each 204 the key is tried \
         at once, on the last node first and then on the others; no try may succeed. Nodes are those \
         with a lease in the database. Creating a key is one commit that waits for no node. {KEYS} \
         keys per round; the second node starts and stops in each round."
    );
}
