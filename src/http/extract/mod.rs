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
mod live_authorization;
mod optional_session;
mod path;
mod query;

pub use authorized::{
    Access, AccessRule, AddressLimited, Admin, AdminSession, Authorized, ClientRegistration,
    DeviceAuthorization, FirstPartyAdmin, FirstPartyWrite, MailedLink, Open, ProtectedAccess,
    Public, ReadOnly, SignIn, SignUp, UserCode, UserSession, Write,
};
pub use body::{
    has_media_type, read_body, read_body_up_to, read_multipart_form, read_urlencoded_form,
};
pub use client_ip::client_ip;
pub use event_filter::EVENT_FILTERS;
pub use json::{IdempotentJson, Json};
pub use live_authorization::{LiveAuthorization, RequestAuthorization};
pub use optional_session::OptionalSession;
pub use path::PathId;
pub use query::{AcceptedParameters, Query};
