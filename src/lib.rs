//! x
pub mod audit;
pub mod auth;
pub mod config;
pub mod env;
pub mod limit;
pub mod model;
pub mod resources;
pub mod store;
