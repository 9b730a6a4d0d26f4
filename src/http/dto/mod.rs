//! Bodies and parameters that several modules of `http` use.

pub mod agents;
pub mod calls;
pub mod campaigns;
pub mod knowledge_bases;
pub mod parameters;
pub mod rotation;
