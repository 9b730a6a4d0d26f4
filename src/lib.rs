//! The authentication service of a voice-AI platform.
//!
//! Workspaces call an API with Bearer keys (`sk_call2me_live_…`), people sign in to a dashboard, every
//! call is rate limited and lands in an audit log. This crate is that service: one binary over
//! PostgreSQL, and nodes of it that keep nothing.
//!
//! # Where things are
//!
//! Imports run one way, from the top of this table to its bottom; a test reads the `use` lines and
//! keeps it so. Only [`store`] names sqlx; only [`http`], [`app`] and [`server`] name axum.
//!
//! | module | what it is for |
//! |---|---|
//! | [`cli`] | the command line: `dev` with its embedded PostgreSQL, `serve`, `admin` … |
//! | [`app`] | the composition root: parts are made, put together, started and stopped |
//! | [`server`] | the accept loop: time-outs, a cap on connections, a graceful end |
//! | [`http`] | routes, guards, errors, the OpenAPI document |
//! | [`oauth`] | the authorization server: who lets which program in |
//! | [`auth`] | who is calling, and how one becomes somebody |
//! | [`resources`] | agents, calls, knowledge bases, campaigns, billing, people |
//! | [`audit`] | the audit log: the queue, the writer, the sealer, the verifier, the reader |
//! | [`idempotency`] | creating requests that may come again |
//! | [`mail`](mod@mail) | mail: what waits in the outbox is written and sent |
//! | [`limit`] | rate limits: GCRA buckets, of this node or shared over Valkey |
//! | [`store`] | PostgreSQL: all SQL, a file for each group of tables |
//! | [`config`], [`telemetry`] | settings, checked all at once; logs without secrets |
//! | [`model`] | plain types that are valid by construction |
//! | [`env`](mod@env) | time and randomness, injected |
//!
//! # The questions that one comes with
//!
//! - Where is a key verified? [`auth::verify_key`]
//! - Where is scope checked? [`auth::check_scope`], by the handler's first parameter,
//!   [`http::extract::Authorized`]
//! - Where are errors mapped? [`http::error`]
//! - Where does a program get its tokens? [`oauth::token`], after [`oauth::authorize`]
//! - Which routes are there, and what do they ask? [`http::routes`]
//! - In which order does a request pass what? [`http`]
//! - Where does the audit log get its proof? [`audit::Sealer`]; who checks it? [`audit::verifier`]
//! - Where is it decided that a rotated key may go? [`model::rotation`]
//! - What keeps workspaces apart? [`store`], and the policies of `migrations/0001_foundation.sql`

pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod coherence;
pub mod config;
pub mod env;
pub mod http;
pub mod idempotency;
pub mod limit;
pub mod mail;
pub mod metrics;
pub mod model;
pub mod oauth;
mod observe;
pub mod resources;
pub mod server;
pub mod store;
pub mod telemetry;
