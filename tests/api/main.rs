//! The service from the outside: real HTTP, real PostgreSQL, a clock in the test's hand.
//!
//! Files mirror URLs; what concerns all of them (coverage, contract, isolation) stands beside.

#![expect(
    clippy::unwrap_used,
    unreachable_pub,
    clippy::similar_names,
    reason = "a test that cannot go on is to stop, and nobody imports it"
)]

mod fixture;

mod agents;
mod api_keys;
mod audit_export;
mod audit_log;
mod audit_stream;
mod auth;
mod bad_input;
mod calls;
mod coherence;
mod contract;
mod coverage;
mod dashboard;
mod dashboard_seen;
mod dev;
mod documentation;
mod factors;
mod farewell;
#[path = "../faults/mod.rs"]
mod faults;
mod gateway;
mod idempotency;
mod invitations;
mod isolation;
mod layering;
mod leaked_keys;
mod mail;
mod members;
mod metrics;
mod mfa;
mod oauth;
mod openapi;
mod pages;
mod pages_guarded;
mod passkeys;
mod passwords;
mod proof;
mod rate_limits;
mod resources;
mod rotation;
mod scripts;
mod sdk;
mod server;
mod sessions;
mod shared_limits;
mod throttling;
mod verify;
mod workspaces;
mod wycheproof;
