use std::borrow::Cow;

use sqlx::error::DatabaseError;

/// An error of the database layer. Its text is for the operator, and names the SQLSTATE.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL cannot do the work now: it is unreachable, overloaded or restarting, or its state
    /// is not as it should be, such as during a restore. A retry may succeed.
    #[error("{}", describe(.0))]
    Unavailable(#[source] sqlx::Error),
    /// The data violates a constraint of the schema.
    #[error("a constraint is violated: {0:?}")]
    ConstraintViolated(Constraint),
    /// The text contains a character that PostgreSQL's `text` cannot store, such as NUL.
    #[error("the text contains a character that cannot be stored")]
    UnstorableText,
    /// The user of a transaction is not a member of its workspace.
    #[error("the user is not a member of the workspace")]
    NotAMember,
    /// The work was cancelled, usually because the service is shutting down.
    #[error("the service is shutting down")]
    Aborted,
    /// An unexpected error, which means a bug in this service.
    #[error("{}", describe(.0))]
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

    /// Returns the error of work that another task did for several callers and that failed with
    /// this text.
    #[must_use]
    pub fn shared(text: &str) -> Self {
        Self::Unavailable(sqlx::Error::InvalidArgument(text.to_owned()))
    }

    /// Returns the error for stored data that is not valid. `what` names the data.
    pub(super) fn corrupt(what: &str) -> Self {
        Self::Internal(sqlx::Error::Decode(format!("{what} is corrupt").into()))
    }

    /// Returns the error for a record that cannot be read.
    #[must_use]
    pub fn unreadable() -> Self {
        Self::corrupt("a record")
    }

    /// Returns true if a value of a row cannot be decoded. The same query without this row may
    /// succeed.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Internal(sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }))
    }

    /// Returns the SQLSTATE, if PostgreSQL reported one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<Cow<'_, str>> {
        self.database_error()?.code()
    }

    /// Returns true if PostgreSQL refused the data itself (SQLSTATE classes 22 and 23, and 54: too
    /// large), so that the same data is refused again. A partition that is missing is no such
    /// error.
    #[must_use]
    pub fn is_data_refused(&self) -> bool {
        match self {
            Self::UnstorableText | Self::ConstraintViolated(_) => true,
            Self::Internal(_) => self.has_class(&["22", "23", "54"]),
            Self::Unavailable(_) | Self::Aborted | Self::NotAMember => false,
        }
    }

    /// Returns true if a statement took longer than `statement_timeout`.
    #[must_use]
    pub fn is_statement_timeout(&self) -> bool {
        self.sqlstate().as_deref() == Some("57014")
    }

    /// Returns true if the work took too long, or PostgreSQL had too little memory for it. A part
    /// of it may succeed.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Unavailable(sqlx::Error::PoolTimedOut))
            || self.is_statement_timeout()
            || self.sqlstate().as_deref() == Some("53200")
    }

    /// Returns true if a row with the same unique key exists.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.sqlstate().as_deref() == Some("23505")
    }

    /// Returns true if the table has no partition for a row.
    #[must_use]
    pub fn is_partition_missing(&self) -> bool {
        self.database_error().is_some_and(is_partition_missing)
    }

    /// Returns true if a table, column or function is missing, or the right to use it.
    pub(super) fn is_schema_unusable(&self) -> bool {
        self.has_class(&["3F", "42"])
    }

    fn has_class(&self, classes: &[&str]) -> bool {
        self.sqlstate().is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
    }

    fn database_error(&self) -> Option<&dyn DatabaseError> {
        match self {
            Self::Unavailable(error) | Self::Internal(error) => error.as_database_error(),
            _ => None,
        }
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
                    Some("MC002") => Self::NotAMember,
                    Some(code) if is_permanent(code) && !is_partition_missing(&**database) => {
                        Self::Internal(error)
                    }
                    _ => Self::Unavailable(error),
                }
            }
            _ => Self::Internal(error),
        }
    }
}

/// Returns true for an SQLSTATE that the data or the statement itself causes, so that a retry
/// fails too: a wrong number of rows or value (20, 21, 22), a violated constraint (23, 27, 44), a
/// value that is too large (54), an error that a function raises (P0).
///
/// All others report the state of the server. Statements are checked against the schema at build
/// time, so a missing table, column, function or right (42) means that the schema is another one,
/// such as during a restore. Other examples are failures of disks and files (58, F0, XX), lost
/// connections (08), failovers (25), a lack of resources (53), timeouts (57), and the time of a
/// context or a change of the clock (MC).
fn is_permanent(code: &str) -> bool {
    ["20", "21", "22", "23", "27", "44", "54", "P0"].iter().any(|class| code.starts_with(class))
}

/// PostgreSQL reports it as a violated check, with the table but without a constraint.
fn is_partition_missing(error: &(impl DatabaseError + ?Sized)) -> bool {
    error.code().as_deref() == Some("23514")
        && error.table().is_some()
        && error.constraint().is_none()
}

/// Describes an error with its source, for a command of the operator.
pub fn with_source(error: impl std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Formats a driver error for the operator: without PostgreSQL's detail, which may contain a row.
fn describe(error: &sqlx::Error) -> String {
    let database = error.as_database_error();
    database
        .and_then(|database| Some(format!("SQLSTATE {}: {}", database.code()?, database.message())))
        .unwrap_or_else(|| error.to_string())
}

/// True if PostgreSQL or a proxy has closed the connection, so that another one may work. The
/// SQLSTATEs are those of a session that an administrator, a crash or a timeout ended.
pub(super) fn is_closed(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("57P01" | "57P02" | "57P05"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_data_and_statements_are_permanent() {
        for code in ["21000", "22001", "22P02", "23505", "23514", "44000", "54000", "P0001"] {
            assert!(is_permanent(code), "{code}");
        }
        for code in [
            "08006", "0A000", "25006", "26000", "28000", "3D000", "3F000", "40001", "42501",
            "42703", "42883", "42P01", "53100", "55006", "57014", "58030", "58P01", "72000",
            "F0000", "HV000", "MC001", "MC003", "XX000", "XX001", "XX002",
        ] {
            assert!(!is_permanent(code), "{code}");
        }
    }
}
