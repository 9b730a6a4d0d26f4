//! Histories of operations on credentials over several nodes, and their checker.
//!
//! A [`Client`] sends requests to one node and a [`Recorder`] stores each with its begin and end on
//! one clock. [`check`] reads the [`History`] afterwards and finds each response that breaks a
//! guarantee: a credential that was accepted after its revocation had been answered, a good
//! credential that was refused, an acknowledged request without its event.

mod checker;
#[cfg(test)]
mod checker_tests;
mod client;
mod recorder;

pub use checker::{Violation, check, longest_recovery, recovery_time};
pub use client::{Client, Credential};
pub use recorder::{Recorder, read_events};

use std::{collections::HashMap, time::Duration};

use uuid::Uuid;

/// A credential in a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialId(pub usize);

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Creates a key, signs in, or obtains a grant.
    Create,
    /// Presents a credential, and changes nothing.
    Use,
    /// Exchanges the refresh token of a session or grant.
    Refresh,
    /// Revokes a key, ends a session, or ends a grant.
    Revoke,
}

/// The response to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reply {
    /// A status of success. It acknowledges a change.
    Accepted,
    /// The credential is invalid: 401, or the error `invalid_grant`.
    Refused,
    /// 503: the operation may or may not have been done.
    Unavailable,
    /// The connection ended without a response, with the same consequence.
    Missing,
    /// Any other status.
    Other(u16),
}

impl Reply {
    /// True if the client does not know whether the operation was done.
    pub fn is_unknown(self) -> bool {
        matches!(self, Self::Unavailable | Self::Missing)
    }
}

/// A request and its response.
#[derive(Debug, Clone)]
pub struct Operation {
    pub action: Action,
    /// The credential that the request presents; `None` for a sign-in with a password.
    pub presented: Option<CredentialId>,
    /// The credential that is created, refreshed or revoked.
    pub target: Option<CredentialId>,
    /// The index of the node.
    pub node: usize,
    pub began: Duration,
    pub ended: Duration,
    pub reply: Reply,
    /// The id of the request. `None` if the request need not have an event, as a retry.
    pub request_id: Option<Uuid>,
}

/// All operations of a run.
#[derive(Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    /// Credentials about which nothing is known from a time on: an asynchronous failover or a
    /// restore has lost a change of them.
    pub undecided: HashMap<CredentialId, Duration>,
    /// The path of each credential in the API.
    pub paths: HashMap<CredentialId, String>,
}

impl History {
    /// True if the state of the credential is known during the whole operation.
    pub fn is_decided(&self, credential: CredentialId, operation: &Operation) -> bool {
        self.undecided.get(&credential).is_none_or(|since| operation.ended < *since)
    }

    /// Counts the keys, the sessions and the grants.
    pub fn count_kinds(&self) -> [usize; 3] {
        ["/v1/api-keys/", "/v1/auth/sessions/", "/v1/oauth/grants/"]
            .map(|folder| self.paths.values().filter(|path| path.starts_with(folder)).count())
    }

    /// Counts the operations with these replies.
    pub fn count(&self, matches: impl Fn(Reply) -> bool) -> usize {
        self.operations.iter().filter(|operation| matches(operation.reply)).count()
    }
}
