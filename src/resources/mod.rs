//! The platform's resources that this service stores, each in exactly one workspace.
//!
//! [`documents`]: agents, calls, knowledge bases and campaigns. [`users`]: the workspace, its
//! members and the current user. [`branding`] and [`billing`]: settings and wallet of the
//! workspace.

pub mod billing;
pub mod branding;
pub mod document_rules;
pub mod documents;
pub mod users;

use crate::{
    config::{Documents, Settings},
    env::Env,
    model::ValidationError,
    store::{AdminLockError, Store, StoreError},
};

/// Access to the stored resources. Cheap to clone.
#[derive(Clone)]
pub struct Resources {
    store: Store,
    env: Env,
    /// Maximum size of a stored document, in bytes of JSON. This is twice the maximum size of a
    /// request body; without it, many small changes could add up to any size.
    max_document_bytes: usize,
    limits: Documents,
}

impl Resources {
    /// Creates the resources.
    #[must_use]
    pub fn new(store: Store, env: Env, settings: &Settings) -> Self {
        let max_document_bytes = settings.server.max_body_bytes.saturating_mul(2);
        Self { store, env, max_document_bytes, limits: settings.documents }
    }
}

/// An error of a resource. Its texts are for clients.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// The workspace has no such resource.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// A value is not valid.
    #[error("{reason}")]
    Invalid {
        /// The field's name.
        field: &'static str,
        /// The message for the client.
        reason: String,
    },
    /// The document would exceed this size, in bytes.
    #[error("the document would be larger than {0} bytes")]
    TooLarge(usize),
    /// The workspace has this many documents, which is the maximum.
    #[error("the workspace has {0} documents, which is the maximum: delete some first")]
    TooMany(i64),
    /// The documents of the workspace would exceed this size, in bytes.
    #[error("the documents of the workspace would have more than {0} bytes: delete some first")]
    StorageFull(i64),
    /// The caller has lost its access or its scope since it was authenticated.
    #[error("the credential has lost its access")]
    AccessLost(AdminLockError),
    /// An internal error of this service.
    #[error("{0}")]
    Internal(&'static str),
    /// A database error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<AdminLockError> for ResourceError {
    fn from(error: AdminLockError) -> Self {
        match error {
            AdminLockError::Store(error) => Self::Store(error),
            error => Self::AccessLost(error),
        }
    }
}

impl ResourceError {
    fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }
}

/// Returns a function that converts a validation error of this field.
fn invalid_field(field: &'static str) -> impl Fn(ValidationError) -> ResourceError {
    move |why| ResourceError::invalid(field, why.0)
}
