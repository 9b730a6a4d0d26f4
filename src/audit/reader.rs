use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::{
    config::Pool,
    model::{
        audit::{Event, EventFilter},
        page::{Items, Page},
        principal::Caller,
    },
    store::{self, Store, StoreError},
};

/// The log, to be read. Cheap to clone.
///
/// A filter that finds little may read much. So few of these queries run at a time: the others wait
/// here, and not for the connections that authentication needs.
#[derive(Debug, Clone)]
pub struct AuditLog {
    store: Store,
    places: Arc<Semaphore>,
}

impl AuditLog {
    /// Over a database.
    #[must_use]
    pub fn new(store: Store, pool: &Pool) -> Self {
        let places = usize::try_from(pool.max_connections / 4).unwrap_or(1).max(1);
        Self { store, places: Arc::new(Semaphore::new(places)) }
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
    ) -> Result<Items<Event<'static>>, StoreError> {
        let _place = self.places.acquire().await.map_err(|_| StoreError::Aborted)?;
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        store::audit::list(&mut tx, caller.workspace(), filter, page).await
    }
}
