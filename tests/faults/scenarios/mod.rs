//! Scenarios of faults: real PostgreSQL servers, a proxy for each of two real nodes, and clients
//! that record a history. Each prints one line of figures.
//!
//! `./scripts/faults` runs all of them for the tables of docs/faults.md. Tests run some in a short
//! form and expect that no guarantee was broken.

mod catalogue;
mod connections;
mod database_clock;
mod deployment;
mod figures;
mod load;
mod node_clock;
mod outages;
mod patroni;
mod pooler;
mod promotion;
mod read_only;
mod restore;
mod results;
mod schema_damage;
mod slow_readers;
mod split_brain;
mod switchover;

pub use catalogue::{Scenario, scenarios};
pub use connections::{
    IdleEnd, run_with_few_descriptors, run_with_idle_connections, run_with_pooler,
};
pub use database_clock::{find_libfaketime, run_with_cut_off_node, run_with_killed_node};
pub use deployment::wait_for;
pub use figures::{Figures, Recovery};
pub use node_clock::run as run_with_skewed_node;
pub use outages::{Outage, run as run_with_outage};
pub use patroni::{PatroniFault, run as run_with_patroni};
pub use pooler::{PoolMode, Pooler};
pub use promotion::{run as run_with_promotions, run_with_lost_generation};
pub use read_only::{ReadOnlyTarget, run as run_with_read_only_spell};
pub use restore::{Backup, Nodes, run as run_with_restore};
pub use results::Results;
pub use schema_damage::{Damage, run as run_with_damage};
pub use slow_readers::run as run_with_slow_readers;
pub use split_brain::{run as run_with_split_brain, run_with_several_hosts};
pub use switchover::{OldPrimary, run as run_with_switchover};

/// The size of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// A test: some seconds, and only programs that each machine has.
    Test,
    /// As a test, with all programs.
    Quick,
    /// As many operations as figures need.
    Full,
}

impl Scale {
    /// Returns `short`, or `full` for a full run.
    fn pick<T>(self, short: T, full: T) -> T {
        match self {
            Self::Test | Self::Quick => short,
            Self::Full => full,
        }
    }
}
