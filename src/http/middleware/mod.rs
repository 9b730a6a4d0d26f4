//! What wraps handlers. Few layers, each of which does one whole thing.

mod authenticate;
mod fallback;
mod frame;
mod guard;
mod rate_limit;
mod request_info;

pub(in crate::http) use authenticate::bearer;
pub use fallback::{method_not_allowed, not_found};
pub use frame::Frame;
pub use guard::{guarded, guarded_page};
pub use rate_limit::SignInLimit;
