//! The platform's resources, as far as this service keeps them: real tenancy, stored documents.

pub mod billing;
pub mod branding;
pub mod document_rules;
pub mod documents;
pub mod people;

use crate::{env::Env, model::Invalid, store::Store, store::StoreError};

/// Everything that resources need. Cheap to clone.
#[derive(Clone)]
pub struct Resources {
    store: Store,
    env: Env,
    /// The greatest size of a stored document, in bytes of JSON: twice that of a body, since many
    /// small changes could add up to any size.
    max_document_bytes: usize,
}

impl Resources {
    /// Over a database.
    #[must_use]
    pub fn new(store: Store, env: Env, max_body_bytes: usize) -> Self {
        Self { store, env, max_document_bytes: max_body_bytes.saturating_mul(2) }
    }
}

/// Why a resource could not be had or changed. The texts are for clients.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// There is no such thing, or not in this workspace.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// A value is wrong.
    #[error("{reason}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A document grew too large.
    #[error("the document would be larger than {0} bytes")]
    TooLarge(usize),
    /// A fault of this service.
    #[error("{0}")]
    Internal(&'static str),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ResourceError {
    fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }
}

/// A refusal of one field.
fn refuse(field: &'static str) -> impl Fn(Invalid) -> ResourceError {
    move |why| ResourceError::invalid(field, why.0)
}
