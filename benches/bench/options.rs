//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures the service next to a bare axum and nginx. Prints Markdown tables.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub(crate) struct Options {
    /// Duration of one round of one row, in seconds [default: 3; quick: 1; attacks: 20, quick: 5].
    #[arg(long)]
    seconds: Option<u64>,
    /// Number of rounds; the tables show their medians [default: 5; quick: 3; attacks: 3, quick:
    /// 1].
    #[arg(long)]
    rounds: Option<usize>,
    /// Short rounds and few keys, for development.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also measure what takes minutes to fill: a million keys, ten million events.
    #[arg(long)]
    pub(crate) full: bool,
    /// Measure only these parts. Without this, all except `attacks`.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<BenchmarkPart>,
    /// Measure this binary of the service, such as that of an older commit.
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchmarkPart {
    /// The table of requests.
    Rows,
    /// Key verification next to sign-ins and a flood of unknown keys.
    Mixed,
    /// Time of a revocation, on one node and on two.
    Revoke,
    /// Time to end a session, and time of failed sign-ins.
    Sessions,
    /// First use of a key, and memory, with many keys.
    Growth,
    /// Reading a long audit log.
    Log,
    /// Sealing and verifying the audit log, and usage counts.
    Sealing,
    /// Honest traffic beside attacks. Not part of a run without `--only`.
    Attacks,
}

impl Options {
    /// Returns the duration of one round of one row, in seconds.
    pub(crate) fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 1 } else { 3 }).max(1)
    }

    /// Returns the number of rounds.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }

    /// Returns the duration of one phase of an attack, in seconds. It is longer than a round,
    /// because some attacks hold resources for fifteen seconds.
    pub(crate) fn attack_seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 5 } else { 20 }).max(1)
    }

    /// Returns the number of times that each attack runs.
    pub(crate) fn attack_rounds(&self) -> u16 {
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 3 });
        u16::try_from(rounds).unwrap_or(u16::MAX).max(1)
    }

    /// Returns `true` if a part is to be measured.
    pub(crate) fn includes(&self, part: BenchmarkPart) -> bool {
        match self.only.as_slice() {
            [] => part != BenchmarkPart::Attacks,
            only => only.contains(&part),
        }
    }

    /// Returns `true` if only the attacks are to be measured.
    pub(crate) fn includes_only_attacks(&self) -> bool {
        self.only == [BenchmarkPart::Attacks]
    }
}
