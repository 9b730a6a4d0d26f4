//! Production faults, caused on purpose: real `serve` processes on a real PostgreSQL that is
//! killed, disconnected or suspended. Clients must see nothing worse than a 503.
//!
//! These tests measure no times. They wait for a condition and fail after a timeout that no machine
//! needs.

mod client_documents;
mod cut_off;
mod fixture;
mod flood;
mod ledger;
mod lost_answers;
mod mail_tls;
mod outage;
mod revocation;
mod sign_ins;
mod signing_keys;

pub use fixture::admin;
