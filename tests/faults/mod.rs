//! Production faults, caused on purpose: real `serve` processes on a real PostgreSQL that is
//! killed, disconnected or suspended. Clients must see nothing worse than a 503.
//!
//! These tests measure no times, except for the deadline of `forward_auth.rs`. They wait for a
//! condition and fail after a timeout that no machine needs.

mod client_metadata_documents;
mod clocks;
mod database_clock;
mod database_errors;
mod descriptors;
mod failover;
mod fixture;
mod forward_auth;
mod histories;
mod lost_commit_responses;
mod mail_tls;
mod network_partition;
mod node_loss;
mod outage;
mod read_only_spell;
mod restore;
mod revocation;
#[expect(dead_code, unused_imports, reason = "`./scripts/faults` runs those without a test")]
mod scenarios;
mod sign_in_burst;
mod signing_keys;
mod slow_readers;
mod unknown_key_flood;

pub use fixture::{PatroniCluster, acquire_test_lock, issue_certificate, run_admin_command};
