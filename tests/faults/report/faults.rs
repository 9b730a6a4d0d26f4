//! The parts of the fault tests that `./scripts/faults` shares with them.

#[path = "../fixture/mod.rs"]
pub mod fixture;
#[path = "../histories/mod.rs"]
pub mod histories;
#[path = "../scenarios/mod.rs"]
pub mod scenarios;
