//! The authentication service of a voice-AI platform.
//!
//! Servers call an API with the API keys of a workspace (`sk_call2me_live_…`), and users sign in to
//! a dashboard. Every request is rate limited and recorded in an audit log. This crate is that
//! service: one binary with stateless nodes over PostgreSQL.
//!
//! # Modules
//!
//! Imports run in one direction, from the top of this table to its bottom; tests check the `use`
//! lines. Only [`store`] uses sqlx; only [`http`], [`app`], [`server`] and [`config`] use axum.
//!
//! | module | purpose |
//! |---|---|
//! | [`cli`] | the command line: `dev` with a private PostgreSQL, `serve`, `admin` … |
//! | [`app`] | the composition root: creates, connects, starts and stops the components |
//! | [`server`] | the accept loop: timeouts, connection limits, graceful shutdown |
//! | [`http`] | routes, middleware, extractors, errors, the dashboard, the OpenAPI document |
//! | [`oauth`] | the authorization server: clients, consent, grants, tokens |
//! | [`auth`] | authentication: keys, sessions, sign-in, second factors, members |
//! | [`resources`] | agents, calls, knowledge bases, campaigns, billing, users |
//! | [`audit`] | the audit log: queue, writer, sealer, verifier, reader |
//! | [`idempotency`] | idempotency keys: stored responses for retried requests |
//! | [`mail`](mod@mail) | email: renders and sends the outbox |
//! | [`limit`] | rate limits: GCRA buckets, on this node or shared over Valkey |
//! | [`cache_invalidation`] | cache invalidation: leases, and the fence that revocations wait at |
//! | [`store`] | PostgreSQL: all SQL, one file for each group of tables |
//! | [`config`], [`telemetry`] | validated settings; logging with secrets redacted |
//! | [`metrics`], [`tasks`] | Prometheus metrics; background tasks, stopped group by group |
//! | [`model`] | plain types that are valid by construction |
//! | [`keyed_semaphores`] | limits on concurrent work for each account, workspace or address |
//! | [`env`](mod@env) | time and randomness, injected |
//!
//! # Entry points
//!
//! - Verification of an API key: [`auth::authenticator`]
//! - Check of the scope: [`auth::check_scope::check_access`], called by the handler's first
//!   parameter, [`http::extract::Authorized`]
//! - Rate limit of a request: [`limit::Limits`]
//! - Audit event of a request: `http::middleware::access_layer`; of a change:
//!   [`store::audit::insert`]
//! - Mapping of errors to responses: [`http::error`], then `http::surface`
//! - Revocation that all nodes apply: [`cache_invalidation::Fence::wait`]
//! - Refresh of tokens: [`auth::sessions`]; of those of OAuth clients: [`oauth::token_endpoint`]
//! - CSRF tokens of forms: [`http::dashboard::form`]
//! - Email: [`mail`](mod@mail)
//! - Authorization and tokens of an OAuth client: [`oauth::authorization`], then
//!   [`oauth::token_endpoint`]
//! - Routes and their access rules: [`http::routes`]
//! - Order of the steps that a request passes: [`http`]
//! - Hash chain of the audit log: [`audit::Sealer`]; its verification: [`audit::verifier`]
//! - Decision that a rotated key is safe to revoke: [`model::rotation`]
//! - Isolation of workspaces: [`store`], and the policies in `migrations/`

pub mod app;
pub mod audit;
pub mod auth;
pub mod cache_invalidation;
pub mod cli;
pub mod config;
mod database_check;
pub mod env;
pub mod http;
pub mod idempotency;
pub mod keyed_semaphores;
pub mod limit;
pub mod mail;
mod maintenance;
pub mod metrics;
pub mod model;
pub mod oauth;
pub mod resources;
pub mod server;
mod service_metrics;
pub mod store;
pub mod tasks;
pub mod telemetry;
