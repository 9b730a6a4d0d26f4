//! Extractors: the parameters of handlers.
//!
//! The first parameter of every handler is [`Authorized`] or [`Public`], which proves that the
//! access rule was applied. The others parse the request. Each rejects an invalid request with the
//! [`ApiError`](crate::http::ApiError) of the API contract. [`Access`] ties a rule to its
//! extractor.

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
    Access, Admin, Authorized, FirstPartyAdmin, FirstPartyWrite, RequiresAccess, Open, UserSession,
    Public, ReadOnly, Rule, SignIn, Write,
};
pub use body::{read_urlencoded_form, read_multipart_form, read as body_of};
pub use client_ip::client_ip;
pub use event_filter::EVENT_FILTERS;
pub use json::{Creation, Json};
pub use path::PathId;
pub use query::Query;
pub use standing::Standing;
pub use visitor::Visitor;
