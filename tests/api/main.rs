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

mod access_rules;
mod account_deletion;
mod account_reclaim;
mod agents;
mod api_keys;
mod audit_chain;
mod audit_export;
mod audit_log;
mod audit_stream;
mod auth;
mod bad_input;
mod bulk_revocation;
mod cache_invalidation;
mod calls;
mod cli;
mod clocks;
mod contract;
mod cors;
mod credential_replacement;
mod dashboard;
mod dashboard_browser;
mod database_errors;
mod document_limits;
mod documentation;
mod documented_commands;
mod factor_management;
#[path = "../faults/mod.rs"]
mod faults;
mod forward_auth;
mod gateway;
mod given_access;
mod idempotency;
mod injected_leases;
mod injected_sql;
mod injected_values;
mod invitations;
mod isolation;
mod key_networks;
mod key_revocation;
mod language;
mod late_bodies;
mod layering;
mod leaked_keys;
mod mail;
mod members;
mod metrics;
mod mfa;
mod migrations;
mod oauth;
mod openapi;
mod pages;
mod pages_security;
mod passkeys;
mod passwords;
mod rate_limits;
mod reencryption;
mod resources;
mod restore;
mod revocation_model;
mod rotation;
mod scripts;
mod server;
mod sessions;
mod shared_limits;
mod sign_in_throttling;
mod signing_keys;
mod static_content;
mod tasks;
mod third_party_clients;
mod workspaces;
mod wycheproof;
