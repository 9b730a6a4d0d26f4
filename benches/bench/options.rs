//! The command line.

use clap::{Parser, ValueEnum};

/// Measures the service next to a bare axum and nginx. Prints Markdown tables.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub(crate) struct Options {
    /// Duration of one round of one row, in seconds [default: 3; quick: 1].
    #[arg(long)]
    seconds: Option<u64>,
    /// Number of rounds; the tables show their medians [default: 5; quick: 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// Short rounds and few keys, for development.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also measure what takes minutes to fill: a million keys, ten million events.
    #[arg(long)]
    pub(crate) full: bool,
    /// Measure only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<BenchmarkPart>,
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

    /// Returns `true` if a part is to be measured.
    pub(crate) fn includes(&self, part: BenchmarkPart) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}
