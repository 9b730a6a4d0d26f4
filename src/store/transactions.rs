//! Transactions: they see one workspace and one user, and take permits of both.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Audited, Committed, Store, StoreError,
    context::{self, ContextIds, ContextSigner, TimedMac},
    error,
    pooled_transaction::PooledTransaction,
    pools::{PoolUsage, Pools, ServerBinding},
};
use crate::{
    env::Clock as _,
    keyed_semaphores::KeyedPermit,
    model::{
        id::{Id, UserId, WorkspaceId},
        principal::{Caller, Credential},
    },
};

/// The longest time that a commit may take. PostgreSQL's `statement_timeout` does not limit it.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The statements that begin a transaction for one user. It waits for the user's row for less time
/// than others wait for a connection, which it must not keep from them.
const BEGIN_FOR_USER: &str = "BEGIN; SET LOCAL lock_timeout = 2000";

/// The context of a transaction without a workspace and a user.
const NONE: ContextIds = ContextIds { workspace: None, user: None, is_joining: false };

impl Store {
    /// Begins a transaction for one workspace and, if the caller is a user or acts for one, for
    /// that user. Row-level security hides all other rows. The transaction is rolled back unless it
    /// is committed.
    ///
    /// A workspace may have a quarter of the pool's connections in such transactions, and so may a
    /// user; they wait for more. So a caller must not hold one while it begins another for the same
    /// workspace or user.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it cannot be opened in time. [`StoreError::Aborted`] if the
    /// runtime is shutting down. [`StoreError::NotAMember`] if the user is not a member of the
    /// workspace.
    pub async fn begin(
        &self,
        workspace: WorkspaceId,
        user: Option<UserId>,
    ) -> Result<Tx, StoreError> {
        let ids =
            ContextIds { workspace: Some(workspace.uuid()), user: user.map(Id::uuid), ..NONE };
        self.begin_with_permits("BEGIN", ids, ids.user).await
    }

    /// Begins a transaction for the workspace of a caller, without its user. It counts for both.
    ///
    /// That of an API key counts for the workspace alone. The key belongs to it, and its creator
    /// may have left: with transactions of its own, it would delay those of the key.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_for(&self, caller: &Caller) -> Result<Tx, StoreError> {
        self.begin_with_permits("BEGIN", workspace_of(caller), acting_user(caller)).await
    }

    /// As [`Self::begin_for`], also for the user of the caller's session.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_as(&self, caller: &Caller) -> Result<Tx, StoreError> {
        let user = caller.principal.context_user().map(Id::uuid);
        let ids = ContextIds { user, ..workspace_of(caller) };
        self.begin_with_permits("BEGIN", ids, acting_user(caller)).await
    }

    /// Begins a transaction as [`Self::begin`] does, in which the user creates the workspace, or
    /// joins it with an invitation whose token was verified.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_joining(
        &self,
        workspace: WorkspaceId,
        user: UserId,
    ) -> Result<Tx, StoreError> {
        let (workspace, user) = (Some(workspace.uuid()), Some(user.uuid()));
        self.begin_with_permits("BEGIN", ContextIds { workspace, user, is_joining: true }, user)
            .await
    }

    async fn begin_with_permits(
        &self,
        begin_statement: &str,
        ids: ContextIds,
        user: Option<Uuid>,
    ) -> Result<Tx, StoreError> {
        let acquire = async {
            // That of the user first: while it waits, the workspace has all of its own.
            let user = match user {
                Some(user) => Some(self.permits.acquire(user).await),
                None => None,
            };
            let workspace = match ids.workspace {
                Some(workspace) => Some(self.permits.acquire(workspace).await),
                None => None,
            };
            [user, workspace]
        };
        let permits = timeout(self.begin_timeout, acquire).await;
        let permits = permits.map_err(|_| StoreError::timed_out())?;
        let tx = self.open_transaction(begin_statement, ids).await?;
        Ok(Tx { _permits: Some(Box::new(permits)), ..tx })
    }

    /// Begins a transaction for one workspace, for work of the service itself: requests of the
    /// workspace do not delay it.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_in_background(&self, workspace: WorkspaceId) -> Result<Tx, StoreError> {
        let ids = ContextIds { workspace: Some(workspace.uuid()), ..NONE };
        self.open_transaction("BEGIN", ids).await
    }

    /// Begins a transaction for one user, without a workspace. It sees the user's own rows in all
    /// workspaces.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_for_user(&self, user: UserId) -> Result<Tx, StoreError> {
        let ids = ContextIds { user: Some(user.uuid()), ..NONE };
        self.begin_with_permits(BEGIN_FOR_USER, ids, ids.user).await
    }

    /// Begins a read-only transaction as [`Self::begin_for`] does. All its queries see one snapshot
    /// of the data.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_snapshot(&self, caller: &Caller) -> Result<Tx, StoreError> {
        let begin_statement = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        self.begin_with_permits(begin_statement, workspace_of(caller), acting_user(caller)).await
    }

    pub(super) async fn open_transaction(
        &self,
        begin_statement: &str,
        ids: ContextIds,
    ) -> Result<Tx, StoreError> {
        let begin = || self.context.begin_statement(begin_statement, ids);
        let mut is_renewed = false;
        // Each attempt removes a closed connection from the pool, and all idle ones may be closed.
        let [PoolUsage { idle, .. }, _] = self.pools.usage();
        let mut retries = idle.max(1);
        let (inner, binding) = loop {
            match self.send_begin(begin()).await {
                Err(BeginError::Refused(error)) if context::is_expired(&error) && !is_renewed => {
                    self.context.renew(&self.pools, self.clock.monotonic()).await?;
                    is_renewed = true;
                }
                Err(BeginError::Refused(error)) if retries > 0 && error::is_closed(&error) => {
                    retries -= 1;
                }
                result => break result?,
            }
        };
        let (pools, context) = (self.pools.clone(), self.context.clone());
        Ok(Tx { inner, pools, binding, context, ids, _permits: None })
    }

    async fn send_begin(
        &self,
        begin: String,
    ) -> Result<(PooledTransaction, ServerBinding), BeginError> {
        let pair = self.pools.fresh().await.map_err(BeginError::Failed)?;
        let (pool, limit) = (pair.requests().clone(), self.begin_timeout);
        // The task continues if the caller is dropped, as a handler is when its client disconnects.
        // sqlx 0.9 records a transaction only after the reply to BEGIN. If this future were dropped
        // earlier, the connection would return to its pool with a transaction open on the server.
        // Other callers would write into it, and their writes could be rolled back.
        let opening =
            tokio::spawn(
                async move { timeout(limit, PooledTransaction::begin(&pool, begin)).await },
            );
        let opened = opening.await.map_err(|_| BeginError::Failed(StoreError::Aborted))?;
        let opened = opened.map_err(|_| BeginError::Failed(StoreError::timed_out()))?;
        Ok((opened.map_err(BeginError::Refused)?, pair.binding()))
    }
}

fn workspace_of(caller: &Caller) -> ContextIds {
    ContextIds { workspace: Some(caller.workspace().uuid()), ..NONE }
}

/// Returns the user that acts, in a session or through an OAuth client.
fn acting_user(caller: &Caller) -> Option<Uuid> {
    match &caller.principal.credential {
        Credential::ApiKey { .. } => None,
        Credential::Session { user_id, .. } => Some(user_id.uuid()),
        Credential::Grant { user, .. } => user.map(|(user, _)| user.uuid()),
    }
}

/// The reason why a transaction was not opened.
enum BeginError {
    /// The statement failed.
    Refused(sqlx::Error),
    Failed(StoreError),
}

impl From<BeginError> for StoreError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Refused(error) => error.into(),
            BeginError::Failed(error) => error,
        }
    }
}

/// A transaction that sees one workspace and one user.
#[derive(Debug)]
pub struct Tx {
    pub(super) inner: PooledTransaction,
    pub(super) pools: Pools,
    pub(super) binding: ServerBinding,
    pub(super) context: ContextSigner,
    pub(super) ids: ContextIds,
    /// Those of its user and its workspace.
    _permits: Option<Box<[Option<KeyedPermit<Uuid>>; 2]>>,
}

impl Tx {
    /// Commits the transaction, which contains the audit event of its change. The caller then waits
    /// at the fence, or states why it need not. After a failover, waits until all leases of the
    /// earlier server are over.
    ///
    /// # Errors
    /// [`StoreError`] if the commit fails. If the connection is lost or its server replaced
    /// meanwhile, or the commit takes too long, as on a primary without its synchronous standby,
    /// the transaction may or may not be committed.
    pub async fn commit(self, _: Audited) -> Result<Committed, StoreError> {
        // A change on a server that was replaced would be lost, or not reach the nodes.
        let server = self.binding.server()?;
        let commit = self.pools.until_replaced(&self.binding, self.inner.commit());
        Store::with_timeout(COMMIT_TIMEOUT, commit).await?;
        self.pools.wait_until_settled(&self.binding, &self.context).await?;
        Ok(Committed::new(server))
    }

    /// Ends the transaction without its changes. A transaction that is dropped ends some time
    /// later, with its locks.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn rollback(self) -> Result<(), StoreError> {
        Ok(self.inner.rollback().await?)
    }

    /// Changes the workspace of the transaction.
    ///
    /// # Errors
    /// [`StoreError::NotAMember`] if the transaction has a user that is not a member.
    pub async fn set_workspace(&mut self, workspace: WorkspaceId) -> Result<(), StoreError> {
        self.ids = ContextIds { workspace: Some(workspace.uuid()), is_joining: false, ..self.ids };
        self.set_context().await
    }

    /// Changes the workspace of the transaction to one that this user creates or joins in it.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn set_joining(
        &mut self,
        workspace: WorkspaceId,
        user: UserId,
    ) -> Result<(), StoreError> {
        let (workspace, user) = (Some(workspace.uuid()), Some(user.uuid()));
        self.ids = ContextIds { workspace, user, is_joining: true };
        self.set_context().await
    }

    /// Signs the context of this transaction with another workspace, for a statement that sets it.
    pub(super) fn sign_workspace(&mut self, workspace: WorkspaceId) -> TimedMac {
        self.ids = ContextIds { workspace: Some(workspace.uuid()), is_joining: false, ..self.ids };
        self.context.sign(self.ids)
    }

    async fn set_context(&mut self) -> Result<(), StoreError> {
        Ok(self.context.set(&mut self.inner, self.ids).await?)
    }

    pub(super) fn conn(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}
