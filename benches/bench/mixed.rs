//! What else goes on must not slow keys down: verification at a fixed rate, alone and beside sign-ins
//! and a flood of keys that nobody knows. Beside it a bare axum, to which the same happens: by how much
//! that becomes slower is the machine's part, since it has no part in sign-ins and unknown keys.

use std::time::Duration;

use crate::{
    client::request,
    generator::{Load, Pace, Taken, taken},
    options::Options,
    process::settle,
    seed::{self, PEOPLE},
    stats::{median, millis, number, percentile},
    table::Table,
    world::World,
};

const VERIFY: &str = "/v1/auth/verify";
/// How fast good keys come, over how many connections: rarely, often, and as fast as they are answered.
const PACES: [(Pace, u32, &str); 3] = [
    (Pace::PerSecond(2_000), 16, "2,000/s"),
    (Pace::PerSecond(10_000), 16, "10,000/s"),
    (Pace::Loop, 48, "full speed"),
];
/// Sign-ins at once, each of another person.
const SIGN_INS: u32 = PEOPLE;
/// Requests a second with unknown keys.
const FLOOD: u32 = 10_000;
const FLOOD_CONNECTIONS: u32 = 32;

/// What goes on beside it.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    SignIns,
    Flood,
}

const SITUATIONS: [(Beside, &str, u16); 3] = [
    (Beside::Nothing, "alone", 0),
    (Beside::SignIns, "beside 8 sign-ins at once", 200),
    (Beside::Flood, "beside a flood of unknown keys", 401),
];

/// Who is asked meanwhile.
#[derive(Clone, Copy)]
enum Asked {
    Service,
    Bare,
}

const ASKED: [(Asked, &str); 2] = [(Asked::Service, "verify"), (Asked::Bare, "bare axum")];

/// A round of a situation.
struct Sample {
    keys: Taken,
    beside: Option<Taken>,
}

/// The rounds of each situation.
type Samples = [Vec<Sample>; SITUATIONS.len()];

/// Measures and prints the table.
pub(crate) async fn measure(options: &Options, world: &World) -> Result<(), String> {
    let mut samples: [[Samples; ASKED.len()]; PACES.len()] = Default::default();
    for round in 1..=options.rounds() {
        for ((pace, connections, speed), samples) in PACES.iter().zip(&mut samples) {
            for ((asked, who), samples) in ASKED.iter().zip(samples) {
                for ((beside, name, _), samples) in SITUATIONS.iter().zip(samples) {
                    eprintln!("round {round}: {who}, {speed}, {name}");
                    let sample = one(options, world, *asked, *beside, (*pace, *connections));
                    samples.push(sample.await?);
                    settle(world.postgres.pid()).await;
                }
            }
        }
    }
    print(&samples);
    Ok(())
}

async fn one(
    options: &Options,
    world: &World,
    asked: Asked,
    beside: Beside,
    (pace, connections): (Pace, u32),
) -> Result<Sample, String> {
    let service = world.service.port;
    let lasting = Duration::from_secs(options.seconds() + 1);
    let load = |port, requests, pace, connections| Load {
        port,
        requests,
        pace,
        connections,
        lasting: Some(lasting),
    };
    let other = match beside {
        Beside::Nothing => None,
        Beside::SignIns => {
            let logins = world.account.logins.iter();
            let logins = logins.map(|login| request("POST", "/v1/auth/login", None, Some(login)));
            Some(load(service, logins.collect(), Pace::Loop, SIGN_INS).start())
        }
        Beside::Flood => {
            let count = usize::try_from(lasting.as_secs()).unwrap_or(1) * FLOOD as usize;
            let keys = seed::generate(&world.env, count)?;
            let flood = keys.iter().map(|key| request("GET", VERIFY, Some(key.reveal()), None));
            Some(load(service, flood.collect(), Pace::PerSecond(FLOOD), FLOOD_CONNECTIONS).start())
        }
    };
    let verify = request("GET", VERIFY, Some(&world.account.key), None);
    let port = match asked {
        Asked::Service => service,
        Asked::Bare => world.bare.port,
    };
    let keys = load(port, vec![verify], pace, connections).finish().await?;
    let beside = match other {
        Some(other) => Some(taken(other).await?),
        None => None,
    };
    Ok(Sample { keys, beside })
}

fn print(samples: &[[Samples; ASKED.len()]; PACES.len()]) {
    let mut table = Table::new(&[
        "one warm key",
        "requests/s",
        "p50 ms",
        "of alone",
        "p99 ms",
        "of alone",
        "failed",
        "beside it/s",
        "of these failed",
    ]);
    for ((.., speed), samples) in PACES.iter().zip(samples) {
        for ((_, who), samples) in ASKED.iter().zip(samples) {
            for ((_, name, expected), own) in SITUATIONS.iter().zip(samples) {
                table.row(row(&format!("{who}, {speed}, {name}"), *expected, own, &samples[0]));
            }
        }
    }
    table.print("The key path beside other traffic");
    println!(
        "\nAt a rate: open loop over 16 connections. Full speed: closed loop over 48. The flood asks for \
         {FLOOD} requests/s, each with another key of a right checksum, all of which are to be 401. The \
         generators share the cores with the service."
    );
}

fn row(name: &str, expected: u16, own: &[Sample], alone: &[Sample]) -> [String; 9] {
    let at = |sample: &Sample, percent| percentile(&sample.keys.latencies, percent);
    let of = |percent| median(own.iter().map(|sample| at(sample, percent)));
    let ratio = |percent| {
        let pairs = own.iter().zip(alone);
        number(median(pairs.map(|(own, alone)| at(own, percent) / at(alone, percent))), 2) + " ×"
    };
    let failed: u64 = own.iter().map(|sample| sample.keys.other_than(200)).sum();
    let others: Vec<&Taken> = own.iter().filter_map(|sample| sample.beside.as_ref()).collect();
    let failed_others: u64 = others.iter().map(|other| other.other_than(expected)).sum();
    [
        name.to_owned(),
        number(median(own.iter().map(|sample| sample.keys.rate())), 0),
        millis(of(50)),
        ratio(50),
        millis(of(99)),
        ratio(99),
        failed.to_string(),
        number(median(others.iter().map(|other| other.rate())), 0),
        if others.is_empty() { "–".to_owned() } else { failed_others.to_string() },
    ]
}
