/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL is away, overloaded or restarting: worth a retry.
    #[error("PostgreSQL is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// A rule of the schema says no.
    #[error("a constraint was violated: {0:?}")]
    Violated(Constraint),
    /// The text cannot be stored: PostgreSQL's `text` has no NUL.
    #[error("a text cannot be stored")]
    BadText,
    /// The runtime is shutting down.
    #[error("the service is stopping")]
    Aborted,
    /// A fault of this service.
    #[error("a query failed")]
    Internal(#[source] sqlx::Error),
}

/// The constraints that a client can run into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constraint {
    /// Another account has the address.
    EmailTaken,
    /// The key already has a successor that lives.
    LiveSuccessor,
    /// The address has an invitation to the workspace that is open.
    OpenInvitation,
    /// Somebody has the passkey already.
    PasskeyKnown,
    /// The OAuth client is gone.
    ClientGone,
}

impl Constraint {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "users_email_key_key" => Some(Self::EmailTaken),
            "passkeys_credential_id_key" => Some(Self::PasskeyKnown),
            "invitations_open_key" => Some(Self::OpenInvitation),
            "oauth_grants_client_id_fkey" | "oauth_device_codes_client_id_fkey" => {
                Some(Self::ClientGone)
            }
            "api_keys_live_successor_key" => Some(Self::LiveSuccessor),
            _ => None,
        }
    }
}

impl StoreError {
    /// PostgreSQL does not answer in time.
    #[must_use]
    pub fn late() -> Self {
        Self::Unavailable(sqlx::Error::PoolTimedOut)
    }

    /// Something that is stored is not what it must be.
    pub(super) fn damaged(what: &str) -> Self {
        Self::Internal(sqlx::Error::Decode(format!("{what} is damaged").into()))
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
                    return Self::Violated(constraint);
                }
                match database.code().as_deref() {
                    Some("22021" | "22P05") => Self::BadText,
                    Some(code) if is_passing(code) => Self::Unavailable(error),
                    _ => Self::Internal(error),
                }
            }
            _ => Self::Internal(error),
        }
    }
}

/// SQLSTATEs that may be gone at the next try: connection trouble (08), a login that the operator is
/// changing (28, 3D), resources (53), object state and lock time-out (55), operator intervention and
/// time-outs (57), deadlock and serialization (40), a transaction that was ended from outside or a
/// standby that is not promoted yet (25).
fn is_passing(code: &str) -> bool {
    ["08", "25", "28", "3D", "40", "53", "55", "57"].iter().any(|class| code.starts_with(class))
}
