//! Types of OAuth 2.1, in the terms of RFC 6749: clients, grants and request parameters.
//!
//! The authorization server itself is in `crate::oauth`.

pub mod client;
pub mod device;
pub mod grant;
pub mod parameters;
pub mod pkce;
pub mod redirect_uri;
pub mod resource;
pub mod user_code;
