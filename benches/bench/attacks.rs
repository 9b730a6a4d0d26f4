//! Latency of honest traffic beside attacks: `./scripts/bench --only attacks`.
//!
//! The service runs with the default rate limits behind a trusted proxy, which the load generators
//! play: each client has its own forwarded address. Honest requests are sent at a fixed rate, even
//! if earlier ones have no response yet. Each attack has a quiet phase of the same duration just
//! before it.

mod attacker;
mod deployment;
mod honest;

use std::time::Duration;

use tokio::time::sleep;

use self::{
    attacker::{Attack, AttackResult},
    deployment::Deployment,
    honest::{HonestResult, HonestTraffic},
};
use crate::{
    environment::BenchEnvironment,
    options::Options,
    process::wait_until_idle,
    stats::{format_millis, format_number, percentile, to_f64},
    table::Table,
};

/// The time that an attack gets to take effect before honest traffic is measured.
const HEAD_START: Duration = Duration::from_secs(1);

/// The results of one attack.
struct Sample {
    label: &'static str,
    connections: u16,
    /// Each honest operation without and with the attack.
    quiet: Vec<HonestResult>,
    attacked: Vec<HonestResult>,
    attack: AttackResult,
}

/// Runs each attack and prints the tables.
pub(crate) async fn measure(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let phase = Duration::from_secs(options.attack_seconds());
    let rounds = options.attack_rounds();
    let deployment = Deployment::start(options, world, rounds).await?;
    let honest = HonestTraffic::new(&deployment);
    let attacks = attacker::attacks(&deployment);
    let mut samples: Vec<Sample> = attacks.iter().map(Sample::new).collect();
    for round in 0..rounds {
        for (attack, sample) in attacks.iter().zip(&mut samples) {
            eprintln!("round {}: {}", round + 1, attack.label);
            wait_until_idle(world.postgres.pid()).await;
            wait_until_idle(deployment.server.process.pid()).await;
            sample.add_quiet(honest.run(phase).await?);
            let running = attack.start(deployment.server.port, round)?;
            sleep(HEAD_START).await;
            let attacked = honest.run(phase).await;
            sample.attack.add(&running.stop().await?);
            sample.add_attacked(attacked?);
        }
    }
    print_honest(&samples, deployment.events, phase, rounds);
    print_attacks(&samples);
    Ok(())
}

impl Sample {
    fn new(attack: &Attack) -> Self {
        Self {
            label: attack.label,
            connections: attack.connections,
            quiet: Vec::new(),
            attacked: Vec::new(),
            attack: AttackResult::default(),
        }
    }

    fn add_quiet(&mut self, results: Vec<HonestResult>) {
        honest::add(&mut self.quiet, results);
    }

    fn add_attacked(&mut self, results: Vec<HonestResult>) {
        honest::add(&mut self.attacked, results);
    }
}

fn print_honest(samples: &[Sample], events: i64, phase: Duration, rounds: u16) {
    let mut table = Table::new(&[
        "attack, and honest operation",
        "requests",
        "quiet p50 ms",
        "p99 ms",
        "failed",
        "attacked p50 ms",
        "p99 ms",
        "failed",
        "p99 ratio",
    ]);
    for Sample { label, quiet, attacked, .. } in samples {
        for (quiet, attacked) in quiet.iter().zip(attacked) {
            let at = |result: &HonestResult, percent| percentile(&result.latencies, percent);
            table.push_row([
                format!("{label}: {}", attacked.label),
                (attacked.failed + attacked.latencies.len()).to_string(),
                format_millis(at(quiet, 50)),
                format_millis(at(quiet, 99)),
                quiet.failed.to_string(),
                format_millis(at(attacked, 50)),
                format_millis(at(attacked, 99)),
                attacked.failed.to_string(),
                format_number(at(attacked, 99) / at(quiet, 99), 2) + " ×",
            ]);
        }
    }
    table.print("Honest traffic beside attacks");
    let events = format_number(u64::try_from(events).map(to_f64).unwrap_or_default(), 0);
    println!(
        "\nOpen loop, {}; each request over a new connection. Quiet and attacked phases of {} s, in \
         turn, {rounds} times; latencies of the expected responses of all phases. The workspace that \
         searches its audit log has {events} events. Attackers run at nice 19, because in reality \
         they do not share the cores of the service.",
        honest::describe_rates(),
        phase.as_secs()
    );
}

fn print_attacks(samples: &[Sample]) {
    let mut table = Table::new(&["attack", "connections", "responses/s", "responses by status"]);
    for Sample { label, connections, attack, .. } in samples {
        let responses: u64 = attack.statuses.values().sum();
        let statuses = attack.statuses.iter().map(|(status, count)| format!("{status}: {count}"));
        table.push_row([
            (*label).to_owned(),
            connections.to_string(),
            format_number(to_f64(responses) / attack.seconds, 1),
            statuses.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.print("The attacks");
}
