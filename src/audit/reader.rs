use crate::{
    model::{
        audit::{Event, EventFilter},
        page::{Items, Page},
        principal::Caller,
    },
    store::{self, Store, StoreError},
};

/// The log, to be read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditLog {
    store: Store,
}

impl AuditLog {
    /// Over a database.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Events of the caller's workspace, newest first.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn list(
        &self,
        caller: &Caller,
        filter: &EventFilter,
        page: Page,
    ) -> Result<Items<Event>, StoreError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        store::audit::list(&mut tx, caller.workspace(), filter, page).await
    }
}
