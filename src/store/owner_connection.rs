//! A connection of the owner of the tables, for commands of the operator: row-level security hides
//! other workspaces from the role of the service, and no function lets that role do such work.

use sqlx::PgConnection;

use super::migrate;

/// A connection of the owner of the tables.
pub struct OwnerConnection(pub(super) PgConnection);

impl OwnerConnection {
    /// Connects, and checks that the login owns the tables.
    ///
    /// # Errors
    /// A one-line message for the operator.
    pub async fn connect(owner_url: &str) -> Result<Self, String> {
        if !migrate::is_privileged_login(owner_url).await? {
            return Err("this command requires the role that owns the tables: set \
                        database.owner_url"
                .to_owned());
        }
        Ok(Self(migrate::connect(owner_url).await?))
    }
}
