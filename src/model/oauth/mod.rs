//! OAuth 2.1, in the words of RFC 6749: clients, grants, and what their requests are made of.

pub mod client;
pub mod grant;
pub mod parameters;
pub mod pkce;
pub mod redirect_uri;
pub mod resource;
pub mod user_code;
