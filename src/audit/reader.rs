use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use super::Followers;
use crate::{
    config::Pool,
    model::{
        audit::{Event, EventFilter},
        id::{EventId, Id as _},
        page::{Items, Page},
        principal::Caller,
    },
    store::{self, Store, StoreError, chains::Sealed},
};

/// Events of an export that are read at a time.
const EXPORT_PAGE: i64 = 1000;
/// Events in their places of the chain that are read at a time.
const SEALED_PAGE: usize = 500;

/// The log, to be read. Cheap to clone.
///
/// A filter that finds little may read much. So few of these queries run at a time: the others wait
/// here, and not for the connections that authentication needs.
#[derive(Debug, Clone)]
pub struct AuditLog {
    store: Store,
    places: Arc<Semaphore>,
    followers: Followers,
}

impl AuditLog {
    /// Over a database.
    #[must_use]
    pub fn new(store: Store, pool: &Pool) -> Self {
        let places = usize::try_from(pool.max_connections / 4).unwrap_or(1).max(1);
        let followers = Followers::default();
        Self { store, places: Arc::new(Semaphore::new(places)), followers }
    }

    /// A place among those who may read much.
    ///
    /// # Errors
    /// When the service stops.
    pub async fn place(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.places.acquire().await.map_err(|_| StoreError::Aborted)
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
        let _place = self.place().await?;
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        store::audit::list(&mut tx, caller.workspace(), filter, page).await
    }

    /// An event of the caller's workspace.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn event(
        &self,
        caller: &Caller,
        id: EventId,
    ) -> Result<Option<Event<'static>>, StoreError> {
        // The newest that is not behind it.
        let behind = Uuid::from_u128(id.uuid().as_u128().saturating_add(1));
        let page = Page { limit: 1, before: Some(behind), offset: 0 };
        let found = self.list(caller, &EventFilter::default(), page).await?;
        Ok(found.items.into_iter().next().filter(|event| event.id == id))
    }

    /// A further part of an export: events of the caller's workspace before this one, newest first. Of the filter
    /// the times alone are looked at: a part takes as long as any other, however rare it is what is looked for.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn export(
        &self,
        caller: &Caller,
        filter: &EventFilter,
        before: Option<Uuid>,
    ) -> Result<Items<Event<'static>>, StoreError> {
        let _place = self.place().await?;
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let times =
            EventFilter { since: filter.since, until: filter.until, ..EventFilter::default() };
        let page = Page { limit: EXPORT_PAGE, before, offset: 0 };
        store::audit::list(&mut tx, caller.workspace(), &times, page).await
    }

    /// Where the chain of the caller's workspace ends.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn end(&self, caller: &Caller) -> Result<i64, StoreError> {
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        let head = store::chains::head(&mut tx, caller.workspace()).await?;
        Ok(head.map_or(0, |head| head.sequence))
    }

    /// What is behind a place of the chain of the caller's workspace, up to another: a part of it.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn sealed(
        &self,
        caller: &Caller,
        behind: i64,
        until: i64,
    ) -> Result<Vec<Sealed>, StoreError> {
        let _place = self.place().await?;
        let mut tx = self.store.begin(caller.workspace(), None).await?;
        store::chains::sealed_behind(&mut tx, caller.workspace(), behind, until, SEALED_PAGE).await
    }

    /// Those who follow logs as they grow.
    #[must_use]
    pub fn followers(&self) -> &Followers {
        &self.followers
    }
}
