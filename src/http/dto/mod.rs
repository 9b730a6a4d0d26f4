//! Bodies and parameters that several modules of `http` use.

pub mod parameters;
pub mod rotation;
