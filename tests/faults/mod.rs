//! What goes wrong in production, done on purpose: real `serve` processes on a real PostgreSQL that
//! is killed, cut off or made to hang, and clients that must not notice more than a 503.
//!
//! Nothing here is timed. Tests wait for what has to come about and give up after a time that no
//! machine needs.

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
