//! Integration tests of the service: real HTTP, real PostgreSQL and a test clock.
//!
//! Files mirror URLs. Rules for all routes have files of their own, such as `access_rules.rs`,
//! `contract.rs` and `isolation.rs`.

#![expect(
    clippy::unwrap_used,
    unreachable_pub,
    clippy::similar_names,
    reason = "a failed step must stop its test, and no other crate imports this one"
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
