//! What handlers are given.
//!
//! The first parameter of every handler is its guard: [`Authorized`] or [`Public`]. The rest parse
//! the request; each answers a refusal of the contract by itself.

mod authorized;
mod body;
mod client_ip;
mod event_filter;
mod json;
mod path;
mod query;
mod standing;
mod visitor;

pub use authorized::{
    Access, Admin, Authorized, FirstPartyAdmin, FirstPartyWrite, GuardedBy, Open, OwnSession,
    Public, ReadOnly, Rule, SignIn, Write,
};
pub use body::{form_fields, form_with_file, read as body_of};
pub use client_ip::client_ip;
pub use event_filter::EVENT_FILTERS;
pub use json::{Creation, Json};
pub use path::PathId;
pub use query::Query;
pub use standing::Standing;
pub use visitor::Visitor;
