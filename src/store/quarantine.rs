//! The quarantine of a restored database, in which nodes get no lease and answer 503. The database
//! decides it: see `migrations/0017_quarantine.sql`. [`super::restore`] lifts it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use sqlx::PgConnection;

use super::{Store, StoreError};

/// The reason why no node can use the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseRefusal {
    /// The schema is that of another version.
    OtherSchema,
    /// The database was restored.
    Quarantine,
}

impl DatabaseRefusal {
    /// Returns the message for clients and for the log.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::OtherSchema => "the database has the schema of another version",
            Self::Quarantine => {
                "the database was restored and is in quarantine, until the operator runs \
                 `call2me-auth admin restore finish`"
            }
        }
    }
}

/// True while the database is in quarantine, as far as this node knows. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct QuarantineFlag(Arc<AtomicBool>);

impl QuarantineFlag {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(super) fn set(&self, is_set: bool) {
        self.0.store(is_set, Relaxed);
    }
}

/// Returns the reason why the database of a connection is in quarantine. `None`: it is not, or it
/// has no schema that knows.
pub(super) async fn find_reason(
    connection: &mut PgConnection,
) -> Result<Option<String>, sqlx::Error> {
    let reason = sqlx::query_scalar!("SELECT quarantine_reason()").fetch_one(connection).await;
    match reason {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42883") => Ok(None),
        reason => reason,
    }
}

impl Store {
    /// Returns the reason why this node cannot use the database, as of the last check and the last
    /// new connection.
    #[must_use]
    pub fn database_refusal(&self) -> Option<DatabaseRefusal> {
        if !self.is_schema_compatible() {
            Some(DatabaseRefusal::OtherSchema)
        } else if self.pools.quarantine().is_set() {
            Some(DatabaseRefusal::Quarantine)
        } else {
            None
        }
    }

    /// Checks whether the database is in quarantine, and returns the reason if it is.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails; the last result then holds.
    pub async fn check_quarantine(&self) -> Result<Option<String>, StoreError> {
        let mut connection = self.pools.background().acquire().await?;
        let reason = find_reason(&mut connection).await?;
        self.pools.quarantine().set(reason.is_some());
        Ok(reason)
    }
}
