//! Middleware around the handlers: few layers, each of which does one complete job.
//!
//! Every request passes [`Frame`], which sets the request id and the common response headers. Every
//! route of the API, OAuth and the dashboard is wrapped by [`guarded`] or [`protect_page`], which
//! authenticate, rate-limit, time and audit it. [`crate::http`] lists the order of the steps.

mod authenticate;
mod cors;
mod fallback;
mod frame;
mod guard;
mod rate_limit;
mod request_info;

pub(in crate::http) use authenticate::bearer;
pub use cors::{cors_for_any_origin, cors_for_origins, is_open_to_any_origin};
pub use fallback::{method_not_allowed, not_found};
pub use frame::Frame;
pub use guard::{CookieAuthenticated, guarded, protect_page};
pub use rate_limit::SignInLimit;
