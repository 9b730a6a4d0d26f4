//! The authentication service of a voice-AI platform.
//!
//! x
pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod env;
pub mod http;
pub mod limit;
pub mod model;
pub mod resources;
pub mod server;
pub mod store;
pub mod telemetry;
