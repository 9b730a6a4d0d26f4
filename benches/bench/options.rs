//! The command line.

use clap::{Parser, ValueEnum};

/// Measures the service beside a bare axum and nginx. Prints Markdown tables.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub(crate) struct Options {
    /// How long one round of one row is [default: 3; quick: 1].
    #[arg(long)]
    seconds: Option<u64>,
    /// How many rounds there are; medians of them are told [default: 5; quick: 3].
    #[arg(long)]
    rounds: Option<usize>,
    /// For development: short rounds, few keys.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Also what takes minutes to fill: a million keys, ten million events.
    #[arg(long)]
    pub(crate) full: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The table of all rows.
    Rows,
    /// The key path beside sign-ins and a flood.
    Mixed,
    /// How long a revocation takes, on one node and on two.
    Revoke,
    /// What ends a session and how fast, and sign-ins that fail.
    Sessions,
    /// The first use of a key, and memory, with many keys.
    Growth,
    /// Reading a long audit log.
    Log,
    /// Sealing and verifying it, and counting what keys do.
    Ledger,
}

impl Options {
    /// How long one round of one row is.
    pub(crate) fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 1 } else { 3 }).max(1)
    }

    /// How many rounds there are.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }

    /// Whether a part is to be measured.
    pub(crate) fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}
