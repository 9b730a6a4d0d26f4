//! How long a revocation takes. `DELETE /v1/api-keys/{id}` answers once no node believes the key any
//! more, so with a second node it waits for that one too.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;
use sqlx::PgConnection;
use tokio::{task::JoinHandle, time::Duration};

use crate::{
    client::{Client, request},
    generator::{Load, Pace, Taken},
    options::Options,
    seed::{self, Account},
    stats::{float, median, millis, number, percentile},
    table::Table,
    world::{World, create_database},
};

const VERIFY: &str = "/v1/auth/verify";
const DATABASE: &str = "revoke";
/// Keys that are revoked in each situation, in each round.
const KEYS: usize = 100;
/// Requests a second with another key meanwhile, on each node, and over how many connections.
const RATE: u32 = 500;
const CONNECTIONS: u32 = 8;

/// A key to be revoked.
struct Key {
    id: String,
    verify: String,
}

/// What was measured in one situation.
#[derive(Default)]
struct Sample {
    /// Nodes that PostgreSQL knows of.
    nodes: i64,
    /// Microseconds of each `POST /v1/api-keys`, which is one commit too, and waits for nobody.
    minted: Vec<f64>,
    /// Microseconds of each `DELETE`.
    revoked: Vec<f64>,
    /// Answers with the key after the 204 that were a success: none is to be.
    successes: u64,
    /// The same that were a 401.
    refusals: u64,
    /// Answers that ought to have been others: of a warm-up, a revocation or a check.
    failed: u64,
    /// The load of each node.
    loads: Vec<Taken>,
}

impl Sample {
    fn add(&mut self, other: Self) {
        self.nodes = self.nodes.max(other.nodes);
        self.minted.extend(other.minted);
        self.revoked.extend(other.revoked);
        self.successes += other.successes;
        self.refusals += other.refusals;
        self.failed += other.failed;
        self.loads.extend(other.loads);
    }
}

/// Measures and prints the table. The second node comes and goes with each round.
pub(crate) async fn measure(options: &Options, world: &World) -> Result<(), String> {
    create_database(&world.postgres, DATABASE).await?;
    let first = world.service(DATABASE, "revoke-a", &[]).await?;
    let account = seed::account(first.port).await?;
    let mut samples = [Sample::default(), Sample::default()];
    for round in 1..=options.rounds() {
        eprintln!("round {round}: revocations, one node");
        samples[0].add(sample(world, &account, &[first.port]).await?);
        let second = world.service(DATABASE, "revoke-b", &[]).await?;
        eprintln!("round {round}: revocations, two nodes");
        samples[1].add(sample(world, &account, &[first.port, second.port]).await?);
    }
    print(&samples);
    Ok(())
}

/// Revokes through the first port, under load on all.
async fn sample(world: &World, account: &Account, ports: &[u16]) -> Result<Sample, String> {
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

/// A load that lasts until it is stopped: a second after the other.
fn start_load(
    port: u16,
    account: &Account,
    stop: &Arc<AtomicBool>,
) -> JoinHandle<Result<Taken, String>> {
    let (stop, verify) = (Arc::clone(stop), request("GET", VERIFY, Some(&account.key), None));
    tokio::spawn(async move {
        let mut all = Taken::default();
        while !stop.load(Ordering::Relaxed) {
            let load = Load {
                port,
                requests: vec![verify.clone()],
                pace: Pace::PerSecond(RATE),
                connections: CONNECTIONS,
                lasting: Some(Duration::from_secs(1)),
            };
            let taken = load.finish().await?;
            all.seconds += taken.seconds;
            all.add(taken);
        }
        Ok(all)
    })
}

async fn revoke_all(world: &World, account: &Account, ports: &[u16]) -> Result<Sample, String> {
    let mut clients = Vec::new();
    for port in ports {
        clients.push(Client::connect(*port).await.map_err(|error| error.to_string())?);
    }
    let mut sample = Sample::default();
    let mut keys = Vec::new();
    for _ in 0..KEYS {
        keys.push(mint(&mut clients[0], account, &mut sample).await?);
    }
    for client in &mut clients {
        // The first use looks the key up; the second shows that it works.
        for key in keys.iter().chain(&keys) {
            sample.failed += u64::from(client.timed(&key.verify).await?.0.status != 200);
        }
    }
    sample.nodes = nodes(&mut world.connect(DATABASE).await?).await?;
    for key in &keys {
        revoke(&mut clients, account, key, &mut sample).await?;
    }
    Ok(sample)
}

async fn mint(client: &mut Client, account: &Account, sample: &mut Sample) -> Result<Key, String> {
    let wanted = json!({ "name": "to be revoked", "scope": "read-only" });
    let question = request("POST", "/v1/api-keys", Some(&account.jwt), Some(&wanted));
    let (answer, micros) = client.timed(&question).await?;
    sample.minted.push(micros);
    let minted = answer.json()?;
    let key = seed::text(&minted["key"])?;
    Ok(Key { id: seed::text(&minted["id"])?, verify: request("GET", VERIFY, Some(&key), None) })
}

/// Revokes one key through the first node, and tries it at once on all, on the last node first.
async fn revoke(
    clients: &mut [Client],
    account: &Account,
    key: &Key,
    sample: &mut Sample,
) -> Result<(), String> {
    let path = format!("/v1/api-keys/{}", key.id);
    let question = request("DELETE", &path, Some(&account.jwt), None);
    let (answer, micros) = clients[0].timed(&question).await?;
    if answer.status != 204 {
        sample.failed += 1;
        return Ok(());
    }
    sample.revoked.push(micros);
    for client in clients.iter_mut().rev() {
        match client.timed(&key.verify).await?.0.status {
            401 => sample.refusals += 1,
            200..300 => sample.successes += 1,
            _ => sample.failed += 1,
        }
    }
    Ok(())
}

/// The nodes with a lease.
async fn nodes(connection: &mut PgConnection) -> Result<i64, String> {
    sqlx::query_scalar("SELECT count(*) FROM nodes WHERE lease_until > clock_timestamp()")
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
        "minting, p50 ms",
        "tried after",
        "refused",
        "successes",
        "failed",
        "beside it/s",
        "of these failed",
    ]);
    for sample in samples {
        let nodes = float(u64::try_from(sample.nodes).unwrap_or_default());
        let beside = median(sample.loads.iter().map(Taken::rate)) * nodes;
        let beside_failed: u64 = sample.loads.iter().map(|load| load.other_than(200)).sum();
        table.row([
            sample.nodes.to_string(),
            sample.revoked.len().to_string(),
            millis(median(sample.revoked.iter().copied())),
            millis(percentile(&sample.revoked, 99)),
            millis(percentile(&sample.revoked, 100)),
            millis(median(sample.minted.iter().copied())),
            number(float(sample.refusals + sample.successes), 0),
            number(float(sample.refusals), 0),
            sample.successes.to_string(),
            sample.failed.to_string(),
            number(beside, 0),
            beside_failed.to_string(),
        ]);
    }
    table.print("Revocations: `DELETE /v1/api-keys/{id}`");
    println!(
        "\nOne after the other through the first node, each key warm on every node, beside {RATE} \
         requests/s on each node with another key. After each 204 the key is tried at once, on the \
         last node first and then on the others: every success is one too many. Nodes are those with \
         a lease in the database. Minting a key is one commit that waits for no node. {KEYS} \
         keys a round; the second node starts and stops with each round."
    );
}
