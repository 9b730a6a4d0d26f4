//! Reads the audit log: lists, exports, and the events of the hash chain.
//!
//! Only a few of these queries run at a time, because a filter may read many rows. The others wait
//! here instead of occupying the connections that authentication needs. Each workspace has its own
//! share, so the queries of one never keep those of another waiting for long. One query reads a
//! bounded number of rows, and its page may be the start of the search only.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::StreamSubscriptions;
use crate::{
    config::Pool,
    keyed_semaphores::{KeyedPermit, KeyedSemaphores},
    model::{
        audit::{Event, EventFilter},
        id::{EventId, Id as _, WorkspaceId},
        page::{ListPage, PageRequest},
        principal::Caller,
    },
    store::{self, Store, StoreError, audit_chains::SealedEvent},
};

/// Number of events that an export reads at a time.
const EXPORT_PAGE: i64 = 1000;

/// Read access to the audit log, with a limit on concurrent queries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditLog {
    store: Store,
    query_permits: Arc<Semaphore>,
    workspace_permits: KeyedSemaphores<WorkspaceId>,
    subscriptions: StreamSubscriptions,
}

/// The permit to run a query, until it is dropped.
#[derive(Debug)]
pub struct QueryPermit {
    _of_node: OwnedSemaphorePermit,
    _of_workspace: KeyedPermit<WorkspaceId>,
}

impl AuditLog {
    /// Creates a reader that uses at most a quarter of the pool's connections, and a quarter of
    /// those for one workspace.
    #[must_use]
    pub fn new(store: Store, pool: &Pool) -> Self {
        let permits = usize::try_from(pool.max_connections / 4).unwrap_or(1).max(1);
        Self {
            store,
            query_permits: Arc::new(Semaphore::new(permits)),
            workspace_permits: KeyedSemaphores::new((permits / 4).max(1)),
            subscriptions: StreamSubscriptions::default(),
        }
    }

    /// Waits for the permit to run a query on the log of this workspace.
    ///
    /// # Errors
    /// [`StoreError::Aborted`] if the service stops.
    pub async fn acquire_query_permit(
        &self,
        workspace: WorkspaceId,
    ) -> Result<QueryPermit, StoreError> {
        // First the one of the workspace: its queries wait for each other without a permit of the
        // node.
        let of_workspace = self.workspace_permits.acquire(workspace).await;
        let of_node = Arc::clone(&self.query_permits).acquire_owned().await;
        let of_node = of_node.map_err(|_| StoreError::Aborted)?;
        Ok(QueryPermit { _of_node: of_node, _of_workspace: of_workspace })
    }

    /// Lists events of the caller's workspace, newest first. A page may have fewer items than the
    /// limit, or none, although another page follows.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list(
        &self,
        caller: &Caller,
        filter: &EventFilter,
        page: PageRequest,
    ) -> Result<ListPage<Event<'static>>, StoreError> {
        let _permit = self.acquire_query_permit(caller.workspace()).await?;
        let mut tx = self.store.begin_for(caller).await?;
        store::audit::list(&mut tx, caller.workspace(), filter, page).await
    }

    /// Returns an event of the caller's workspace.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_event(
        &self,
        caller: &Caller,
        id: EventId,
    ) -> Result<Option<Event<'static>>, StoreError> {
        // The newest event whose id is not greater than this one.
        let next_id = Uuid::from_u128(id.uuid().as_u128().saturating_add(1));
        let page = PageRequest { limit: 1, before: Some(next_id), offset: 0 };
        let newest = self.list(caller, &EventFilter::default(), page).await?;
        Ok(newest.items.into_iter().next().filter(|event| event.id == id))
    }

    /// Returns the next page of an export: events of the caller's workspace before this id, newest
    /// first. Applies only the times of the filter, so that every page takes the same time, however
    /// rare the matching events are; the caller applies the rest.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn export_page(
        &self,
        caller: &Caller,
        filter: &EventFilter,
        before: Option<Uuid>,
    ) -> Result<ListPage<Event<'static>>, StoreError> {
        let _permit = self.acquire_query_permit(caller.workspace()).await?;
        let mut tx = self.store.begin_for(caller).await?;
        let times =
            EventFilter { since: filter.since, until: filter.until, ..EventFilter::default() };
        let page = PageRequest { limit: EXPORT_PAGE, before, offset: 0 };
        store::audit::list(&mut tx, caller.workspace(), &times, page).await
    }

    /// Returns the sequence number of the last sealed event of the caller's workspace; 0 if there
    /// is none.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn chain_end(&self, caller: &Caller) -> Result<i64, StoreError> {
        let mut tx = self.store.begin_for(caller).await?;
        let head = store::audit_chains::get_head(&mut tx, caller.workspace()).await?;
        Ok(head.map_or(0, |head| head.sequence))
    }

    /// Returns the sealed events of the caller's workspace after sequence number `behind`, up to
    /// and including `until`: the next `limit` at most.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_sealed_events(
        &self,
        caller: &Caller,
        behind: i64,
        until: i64,
        limit: usize,
    ) -> Result<Vec<SealedEvent>, StoreError> {
        let _permit = self.acquire_query_permit(caller.workspace()).await?;
        let mut tx = self.store.begin_for(caller).await?;
        store::audit_chains::list_sealed_events_after(
            &mut tx,
            caller.workspace(),
            behind,
            until,
            limit,
        )
        .await
    }

    /// Returns the subscriptions of event streams on this node.
    #[must_use]
    pub fn subscriptions(&self) -> &StreamSubscriptions {
        &self.subscriptions
    }
}
