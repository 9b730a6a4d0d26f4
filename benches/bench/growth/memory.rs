//! What the service holds in memory once it knows many keys, under load.

use call2me_auth::model::api_key::ApiKeySecret;
use tokio::time::{Duration, interval};

use crate::{
    client::{self, request},
    keys,
    options::Options,
    process::{free_port, resident_kilobytes},
    seed::{self, Account},
    stats::{float, number},
    table::Table,
    world::{Server, World},
    wrk::{self, Outcome, Traffic},
};

use super::VERIFY;

/// Connections of the load.
const CONNECTIONS: usize = 48;
/// How often the resident memory is read.
const LOOK: Duration = Duration::from_millis(50);

/// Memory in one situation.
struct Memory {
    what: String,
    /// What the service says that it has cached.
    cached: Option<u64>,
    /// The most kilobytes that were seen.
    kilobytes: u64,
    load: Option<Outcome>,
}

/// Starts a fresh service over a database, lets it learn the keys, and prints the table.
pub(super) async fn measure(
    options: &Options,
    world: &World,
    database: &str,
    account: &Account,
    known: &[ApiKeySecret],
) -> Result<(), String> {
    let metrics = free_port()?;
    let address = format!("127.0.0.1:{metrics}");
    let variables = [("CALL2ME_AUTH__SERVER__METRICS_ADDRESS", &*address)];
    let server = world.service(database, "memory", &variables).await?;
    let mut all = Vec::new();
    eprintln!("memory, with few keys");
    let kilobytes = resident_kilobytes(server.process.pid()).unwrap_or_default();
    let cached = cached(metrics).await;
    all.push(Memory { what: "at rest, after the start".to_owned(), cached, kilobytes, load: None });

    let one = Traffic::Same { path: VERIFY, bearer: account.key.clone() };
    let (load, kilobytes) = watched(world, &server, &one, options.seconds()).await?;
    let cached_now = self::cached(metrics).await;
    let what = "one key, under load".to_owned();
    all.push(Memory { what, cached: cached_now, kilobytes, load: Some(load) });

    eprintln!("memory, with {} keys", known.len());
    let ask = |key: &ApiKeySecret| request("GET", VERIFY, Some(key.reveal()), None);
    keys::pass(server.port, known.iter().map(ask).collect()).await?;
    let kilobytes = resident_kilobytes(server.process.pid()).unwrap_or_default();
    let what = format!("{} keys used once", number(float(known.len() as u64), 0));
    all.push(Memory { what, cached: self::cached(metrics).await, kilobytes, load: None });
    let (load, kilobytes) = second_pass(options, world, &server, known).await?;
    let what = "all of them again, under load".to_owned();
    all.push(Memory { what, cached: self::cached(metrics).await, kilobytes, load: Some(load) });
    print(&all);
    Ok(())
}

/// All keys once more, in their order: as many turns of `wrk` as it takes.
async fn second_pass(
    options: &Options,
    world: &World,
    server: &Server,
    known: &[ApiKeySecret],
) -> Result<(Outcome, u64), String> {
    let file = world.folder().join("memory.keys");
    seed::write_keys(&file, known)?;
    let (mut all, mut most) = (Outcome::default(), 0);
    loop {
        let first = usize::try_from(all.requests).unwrap_or(usize::MAX);
        let keys = known.len().saturating_sub(first);
        if keys == 0 {
            return Ok((all, most));
        }
        let traffic = Traffic::NextKey { file: file.clone(), first, keys };
        let (load, kilobytes) = watched(world, server, &traffic, options.seconds().max(3)).await?;
        if load.requests == 0 {
            return Err("wrk got no answer".to_owned());
        }
        most = most.max(kilobytes);
        all.requests += load.requests;
        all.micros += load.micros;
        all.refused += load.refused;
        all.broken += load.broken;
    }
}

/// A load, and the most memory that was resident meanwhile.
async fn watched(
    world: &World,
    server: &Server,
    traffic: &Traffic,
    seconds: u64,
) -> Result<(Outcome, u64), String> {
    let pid = server.process.pid();
    let mut load =
        std::pin::pin!(wrk::run(world.folder(), server.port, traffic, CONNECTIONS, seconds));
    let (mut look, mut most) = (interval(LOOK), 0);
    loop {
        tokio::select! {
            done = &mut load => return Ok((done?, most)),
            _ = look.tick() => most = most.max(resident_kilobytes(pid).unwrap_or_default()),
        }
    }
}

/// How many keys the service has cached, as its metrics tell.
async fn cached(metrics: u16) -> Option<u64> {
    let answer = client::once(metrics, &request("GET", "/metrics", None, None)).await.ok()?;
    let text = String::from_utf8(answer.body).ok()?;
    let name = "call2me_auth_cache_entries{cache=\"keys\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split('.').next()?.trim().parse().ok()
}

fn print(all: &[Memory]) {
    let mut table = Table::new(&[
        "service",
        "keys cached",
        "RSS MiB",
        "more than at rest",
        "requests",
        "requests/s",
        "failed",
    ]);
    let rest = all.first().map_or(0, |first| first.kilobytes);
    let mib = |kilobytes| float(kilobytes) / 1024.0;
    for Memory { what, cached, kilobytes, load } in all {
        let of = |value: fn(&Outcome) -> f64| number(load.as_ref().map_or(f64::NAN, value), 0);
        table.row([
            what.clone(),
            number(cached.map_or(f64::NAN, float), 0),
            number(mib(*kilobytes), 1),
            number(mib(*kilobytes) - mib(rest), 1),
            of(|load| float(load.requests)),
            of(|load| float(load.requests) / float(load.micros) * 1e6),
            of(|load| float(load.refused + load.broken)),
        ]);
    }
    table.print("Memory of the service");
    println!(
        "\nA fresh service over the database of 100,000 keys. Each key is first \
         used once, then all again in their order. Under load the greatest VmRSS of those read every \
         {} ms is told. Keys cached are what the service's metrics say after it.",
        LOOK.as_millis()
    );
}
