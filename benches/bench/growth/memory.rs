//! Memory of the service under load, once many keys are cached.

use call2me_auth::model::api_key::ApiKeySecret;
use tokio::time::{Duration, interval};

use crate::{
    client::{self, format_request},
    environment::{BenchEnvironment, Server},
    keys,
    options::Options,
    process::{free_port, resident_kilobytes},
    seed::{self, Account},
    stats::{format_number, to_f64},
    table::Table,
    wrk::{self, Traffic, WrkResult},
};

use super::VERIFY_PATH;

/// Connections of the load.
const CONNECTIONS: usize = 48;
/// The interval at which the resident memory is read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// The memory in one situation.
struct Memory {
    label: String,
    /// The number of cached keys, as the service's metrics report it.
    cached: Option<u64>,
    /// The maximum resident memory, in kilobytes.
    kilobytes: u64,
    load: Option<WrkResult>,
}

/// Starts a new service on a database, lets it cache the keys and prints the table.
pub(super) async fn measure(
    options: &Options,
    world: &BenchEnvironment,
    database: &str,
    account: &Account,
    known: &[ApiKeySecret],
) -> Result<(), String> {
    let metrics = free_port()?;
    let address = format!("127.0.0.1:{metrics}");
    let variables = [("CALL2ME_AUTH__SERVER__METRICS_ADDRESS", &*address)];
    let server = world.start_another_service(database, "memory", &variables).await?;
    let mut all = Vec::new();
    eprintln!("memory, with few keys");
    let kilobytes = resident_kilobytes(server.process.pid()).unwrap_or_default();
    let cached = read_cached_keys(metrics).await;
    all.push(Memory { label: "idle, after the start".to_owned(), cached, kilobytes, load: None });

    let one = Traffic::SameRequest { path: VERIFY_PATH, bearer: account.key.clone() };
    let (load, kilobytes) = run_and_watch_memory(world, &server, &one, options.seconds()).await?;
    let cached_now = self::read_cached_keys(metrics).await;
    let label = "one key, under load".to_owned();
    all.push(Memory { label, cached: cached_now, kilobytes, load: Some(load) });

    eprintln!("memory, with {} keys", known.len());
    let verify_request =
        |key: &ApiKeySecret| format_request("GET", VERIFY_PATH, Some(key.reveal()), None);
    keys::send_each_once(server.port, known.iter().map(verify_request).collect()).await?;
    let kilobytes = resident_kilobytes(server.process.pid()).unwrap_or_default();
    let label = format!("{} keys used once", format_number(to_f64(known.len() as u64), 0));
    all.push(Memory {
        label,
        cached: self::read_cached_keys(metrics).await,
        kilobytes,
        load: None,
    });
    let (load, kilobytes) = second_pass(options, world, &server, known).await?;
    let label = "all keys again, under load".to_owned();
    all.push(Memory {
        label,
        cached: self::read_cached_keys(metrics).await,
        kilobytes,
        load: Some(load),
    });
    print(&all);
    Ok(())
}

/// Uses all keys once more in the same order, with as many runs of `wrk` as necessary.
async fn second_pass(
    options: &Options,
    world: &BenchEnvironment,
    server: &Server,
    known: &[ApiKeySecret],
) -> Result<(WrkResult, u64), String> {
    let file = world.folder().join("memory.keys");
    seed::write_keys(&file, known)?;
    let (mut all, mut maximum) = (WrkResult::default(), 0);
    loop {
        let first = usize::try_from(all.requests).unwrap_or(usize::MAX);
        let keys = known.len().saturating_sub(first);
        if keys == 0 {
            return Ok((all, maximum));
        }
        let traffic = Traffic::SequentialKeys { file: file.clone(), first, keys };
        let (load, kilobytes) =
            run_and_watch_memory(world, server, &traffic, options.seconds().max(3)).await?;
        if load.requests == 0 {
            return Err("wrk got no response".to_owned());
        }
        maximum = maximum.max(kilobytes);
        all.requests += load.requests;
        all.micros += load.micros;
        all.error_responses += load.error_responses;
        all.connection_errors += load.connection_errors;
    }
}

/// Runs a load. Also returns the maximum resident memory meanwhile, in kilobytes.
async fn run_and_watch_memory(
    world: &BenchEnvironment,
    server: &Server,
    traffic: &Traffic,
    seconds: u64,
) -> Result<(WrkResult, u64), String> {
    let pid = server.process.pid();
    let mut load =
        std::pin::pin!(wrk::run(world.folder(), server.port, traffic, CONNECTIONS, seconds));
    let (mut ticks, mut maximum) = (interval(SAMPLE_INTERVAL), 0);
    loop {
        tokio::select! {
            done = &mut load => return Ok((done?, maximum)),
            _ = ticks.tick() => maximum = maximum.max(resident_kilobytes(pid).unwrap_or_default()),
        }
    }
}

/// Reads the number of cached keys from the service's metrics.
async fn read_cached_keys(metrics: u16) -> Option<u64> {
    let answer =
        client::send_once(metrics, &format_request("GET", "/metrics", None, None)).await.ok()?;
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
        "above idle",
        "requests",
        "requests/s",
        "failed",
    ]);
    let idle = all.first().map_or(0, |first| first.kilobytes);
    let mib = |kilobytes| to_f64(kilobytes) / 1024.0;
    for Memory { label, cached, kilobytes, load } in all {
        let of =
            |value: fn(&WrkResult) -> f64| format_number(load.as_ref().map_or(f64::NAN, value), 0);
        table.push_row([
            label.clone(),
            format_number(cached.map_or(f64::NAN, to_f64), 0),
            format_number(mib(*kilobytes), 1),
            format_number(mib(*kilobytes) - mib(idle), 1),
            of(|load| to_f64(load.requests)),
            of(|load| to_f64(load.requests) / to_f64(load.micros) * 1e6),
            of(|load| to_f64(load.error_responses + load.connection_errors)),
        ]);
    }
    table.print("Memory of the service");
    println!(
        "\nA new service on the database of 100,000 keys. Each key is used \
         once, and then all keys again in the same order. Under load, RSS is the maximum of VmRSS, read \
         every {} ms. The number of cached keys is from the service's metrics afterwards.",
        SAMPLE_INTERVAL.as_millis()
    );
}
