//! Key verification next to other traffic, which must not slow it down: alone, next to sign-ins,
//! and next to a flood of unknown keys. A bare axum gets the same load. It has no part in sign-ins
//! and unknown keys, so its slowdown is the share of the machine.

use std::time::Duration;

use crate::{
    client::format_request,
    environment::BenchEnvironment,
    generator::{Load, LoadResult, Pace, join_load},
    options::Options,
    process::wait_until_idle,
    seed::{self, USER_COUNT},
    stats::{format_millis, format_number, median, percentile},
    table::Table,
};

const VERIFY_PATH: &str = "/v1/auth/verify";
/// The paces of valid keys, with their connections: slow, fast, and as fast as responses arrive.
const PACES: [(Pace, u32, &str); 3] = [
    (Pace::PerSecond(2_000), 16, "2,000/s"),
    (Pace::PerSecond(10_000), 16, "10,000/s"),
    (Pace::ClosedLoop, 48, "full speed"),
];
/// Concurrent sign-ins, each of another user.
const SIGN_INS: u32 = USER_COUNT;
/// Requests per second with unknown keys.
const FLOOD_RATE: u32 = 10_000;
const FLOOD_CONNECTIONS: u32 = 32;

/// The traffic that runs at the same time.
#[derive(Clone, Copy)]
enum BackgroundTraffic {
    Nothing,
    SignIns,
    Flood,
}

const SITUATIONS: [(BackgroundTraffic, &str, u16); 3] = [
    (BackgroundTraffic::Nothing, "alone", 0),
    (BackgroundTraffic::SignIns, "with 8 concurrent sign-ins", 200),
    (BackgroundTraffic::Flood, "with a flood of unknown keys", 401),
];

/// The server that is measured.
#[derive(Clone, Copy)]
enum Target {
    Service,
    Bare,
}

const TARGETS: [(Target, &str); 2] = [(Target::Service, "verify"), (Target::Bare, "bare axum")];

/// One round of one situation.
struct Sample {
    keys: LoadResult,
    background: Option<LoadResult>,
}

/// The rounds of each situation.
type Samples = [Vec<Sample>; SITUATIONS.len()];

/// Measures the situations and prints the table.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let mut samples: [[Samples; TARGETS.len()]; PACES.len()] = Default::default();
    for round in 1..=options.rounds() {
        for ((pace, connections, speed), samples) in PACES.iter().zip(&mut samples) {
            for ((target, target_name), samples) in TARGETS.iter().zip(samples) {
                for ((background, name, _), samples) in SITUATIONS.iter().zip(samples) {
                    eprintln!("round {round}: {target_name}, {speed}, {name}");
                    let sample =
                        measure_round(options, world, *target, *background, (*pace, *connections));
                    samples.push(sample.await?);
                    wait_until_idle(world.postgres.pid()).await;
                }
            }
        }
    }
    print(&samples);
    Ok(())
}

async fn measure_round(
    options: &Options,
    world: &BenchEnvironment,
    target: Target,
    background: BackgroundTraffic,
    (pace, connections): (Pace, u32),
) -> Result<Sample, String> {
    let service = world.service.port;
    let lasting = Duration::from_secs(options.seconds() + 1);
    let load = |port, requests, pace, connections| Load {
        port,
        requests,
        pace,
        connections,
        duration: Some(lasting),
    };
    let other = match background {
        BackgroundTraffic::Nothing => None,
        BackgroundTraffic::SignIns => {
            let logins = world.account.logins.iter();
            let logins =
                logins.map(|login| format_request("POST", "/v1/auth/login", None, Some(login)));
            Some(load(service, logins.collect(), Pace::ClosedLoop, SIGN_INS).start())
        }
        BackgroundTraffic::Flood => {
            let count = usize::try_from(lasting.as_secs()).unwrap_or(1) * FLOOD_RATE as usize;
            let keys = seed::generate_keys(&world.env, count)?;
            let flood =
                keys.iter().map(|key| format_request("GET", VERIFY_PATH, Some(key.reveal()), None));
            Some(
                load(service, flood.collect(), Pace::PerSecond(FLOOD_RATE), FLOOD_CONNECTIONS)
                    .start(),
            )
        }
    };
    let verify = format_request("GET", VERIFY_PATH, Some(&world.account.key), None);
    let port = match target {
        Target::Service => service,
        Target::Bare => world.bare.port,
    };
    let keys = load(port, vec![verify], pace, connections).run_to_end().await?;
    let background = match other {
        Some(other) => Some(join_load(other).await?),
        None => None,
    };
    Ok(Sample { keys, background })
}

fn print(samples: &[[Samples; TARGETS.len()]; PACES.len()]) {
    let mut table = Table::new(&[
        "one warm key",
        "requests/s",
        "p50 ms",
        "vs. alone",
        "p99 ms",
        "vs. alone",
        "failed",
        "other requests/s",
        "other failed",
    ]);
    for ((.., speed), samples) in PACES.iter().zip(samples) {
        for ((_, target_name), samples) in TARGETS.iter().zip(samples) {
            for ((_, name, expected), own) in SITUATIONS.iter().zip(samples) {
                table.push_row(row(
                    &format!("{target_name}, {speed}, {name}"),
                    *expected,
                    own,
                    &samples[0],
                ));
            }
        }
    }
    table.print("Key verification next to other traffic");
    println!(
        "\nAt a rate: open loop over 16 connections. Full speed: closed loop over 48 connections. The \
         flood is {FLOOD_RATE} requests/s, each with another key that has a valid checksum; every response must \
         be 401. The load generators share the cores with the service."
    );
}

fn row(name: &str, expected: u16, samples: &[Sample], alone_samples: &[Sample]) -> [String; 9] {
    let at = |sample: &Sample, percent| percentile(&sample.keys.latencies, percent);
    let of = |percent| median(samples.iter().map(|sample| at(sample, percent)));
    let ratio = |percent| {
        let pairs = samples.iter().zip(alone_samples);
        format_number(
            median(pairs.map(|(sample, alone)| at(sample, percent) / at(alone, percent))),
            2,
        ) + " ×"
    };
    let failed: u64 = samples.iter().map(|sample| sample.keys.count_other_than(200)).sum();
    let others: Vec<&LoadResult> =
        samples.iter().filter_map(|sample| sample.background.as_ref()).collect();
    let failed_others: u64 = others.iter().map(|other| other.count_other_than(expected)).sum();
    [
        name.to_owned(),
        format_number(median(samples.iter().map(|sample| sample.keys.rate())), 0),
        format_millis(of(50)),
        ratio(50),
        format_millis(of(99)),
        ratio(99),
        failed.to_string(),
        format_number(median(others.iter().map(|other| other.rate())), 0),
        if others.is_empty() { "–".to_owned() } else { failed_others.to_string() },
    ]
}
