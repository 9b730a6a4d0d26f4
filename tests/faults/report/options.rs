//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Causes faults in real PostgreSQL servers and real nodes, and checks the responses of clients.
/// Writes the results to docs/faults.md.
#[derive(Debug, Parser)]
#[command(name = "faults")]
pub struct Options {
    /// Run only the scenarios with one of these texts in their names. Other rows stay as they are.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Few operations and one failover each, for development. Prints the results.
    #[arg(long)]
    pub quick: bool,
    /// Run the nodes with this binary of the service, such as that of an older commit. Prints the
    /// results.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Print the names of the scenarios.
    #[arg(long)]
    pub list: bool,
}

impl Options {
    /// True if a scenario is to run.
    pub fn includes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text.as_str()))
    }
}
