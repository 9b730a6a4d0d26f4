//! The platform's resources, as far as this service keeps them: real tenancy, stored documents.

pub mod billing;
pub mod branding;
pub mod documents;
pub mod people;

use crate::{env::Env, model::Invalid, store::Store, store::StoreError};

/// Everything that resources need. Cheap to clone.
#[derive(Clone)]
pub struct Resources {
    store: Store,
    env: Env,
}

impl Resources {
    /// Over a database.
    #[must_use]
    pub fn new(store: Store, env: Env) -> Self {
        Self { store, env }
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
