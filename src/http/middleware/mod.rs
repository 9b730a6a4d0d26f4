//! Middleware around the handlers: few layers, each of which does one complete job.
//!
//! Every request passes [`HttpService`], which sets the request id and the common response headers,
//! and answers the preflight requests of CORS.
//! Every route of the API, OAuth and the dashboard is wrapped by [`protect_route`] or
//! [`protect_page`], which authenticate, rate-limit, time and audit it. [`crate::http`] lists the
//! order of the steps.

mod access_layer;
mod cors;
mod http_service;
mod open_route_ceiling;
pub(super) mod rate_limit_response;
mod redaction;
mod request_info;

pub(super) use access_layer::serve_static;
pub use access_layer::{protect_page, protect_route};
pub use http_service::HttpService;
pub use open_route_ceiling::OpenRouteCeiling;
