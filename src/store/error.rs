/// An error of the database layer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL is unreachable, overloaded or restarting. A retry may succeed.
    #[error("PostgreSQL is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The data violates a constraint of the schema.
    #[error("a constraint is violated: {0:?}")]
    ConstraintViolated(Constraint),
    /// The text contains a character that PostgreSQL's `text` cannot store, such as NUL.
    #[error("the text contains a character that cannot be stored")]
    UnstorableText,
    /// The work was cancelled, usually because the service is shutting down.
    #[error("the service is shutting down")]
    Aborted,
    /// An unexpected error, which means a bug in this service.
    #[error("a database query failed")]
    Internal(#[source] sqlx::Error),
}

/// The constraints that a client's request can violate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constraint {
    /// Another account has this email address.
    EmailTaken,
    /// The API key already has an active successor.
    SuccessorExists,
    /// The address already has an open invitation to the workspace.
    OpenInvitation,
    /// The passkey is already registered.
    PasskeyRegistered,
    /// The OAuth client was deleted.
    ClientDeleted,
}

impl Constraint {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "users_normalized_email_key" => Some(Self::EmailTaken),
            "passkeys_credential_id_key" => Some(Self::PasskeyRegistered),
            "invitations_open_key" => Some(Self::OpenInvitation),
            "oauth_grants_client_id_fkey" | "oauth_device_authorizations_client_id_fkey" => {
                Some(Self::ClientDeleted)
            }
            "api_keys_active_successor_key" => Some(Self::SuccessorExists),
            _ => None,
        }
    }
}

impl StoreError {
    /// Returns the error for work that exceeded its time limit.
    #[must_use]
    pub fn timed_out() -> Self {
        Self::Unavailable(sqlx::Error::PoolTimedOut)
    }

    /// Returns the error for stored data that is not valid. `what` names the data.
    pub(super) fn corrupt(what: &str) -> Self {
        Self::Internal(sqlx::Error::Decode(format!("{what} is corrupt").into()))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Io(_)
            | E::Tls(_)
            | E::PoolTimedOut
            | E::PoolClosed
            | E::WorkerCrashed
            | E::Protocol(_)
            | E::BeginFailed => Self::Unavailable(error),
            E::Database(database) => {
                if let Some(constraint) = database.constraint().and_then(Constraint::from_name) {
                    return Self::ConstraintViolated(constraint);
                }
                match database.code().as_deref() {
                    Some("22021" | "22P05") => Self::UnstorableText,
                    Some(code) if is_transient(code) => Self::Unavailable(error),
                    _ => Self::Internal(error),
                }
            }
            _ => Self::Internal(error),
        }
    }
}

/// Returns true for an SQLSTATE that a retry may clear. Its classes are connection failure (08), a
/// transaction ended from outside or a standby not promoted yet (25), a login that the operator is
/// changing (28, 3D), deadlock and serialization failure (40), insufficient resources (53), object
/// state and lock timeout (55), operator intervention and timeouts (57), the time of a context
/// (MC).
fn is_transient(code: &str) -> bool {
    ["08", "25", "28", "3D", "40", "53", "55", "57", "MC"]
        .iter()
        .any(|class| code.starts_with(class))
}
