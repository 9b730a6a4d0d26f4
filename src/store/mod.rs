//! The database layer. All SQL of the service is in this module.
//!
//! Each file covers one group of tables. A function on workspace data takes a [`WorkspaceId`] and
//! names it in its SQL. Row-level security is the second barrier: [`Store::begin`] sets the
//! workspace and the user of a transaction in PostgreSQL, with a MAC (`context.rs`), and row-level
//! security hides all other rows from it.
//!
//! [`Tx::commit`] requires an [`Audited`], so a change commits with its audit event, or with the
//! reason why it has none. It returns a [`Committed`]: a commit ends at the fence, or with the
//! reason why the change restricts no access.
//!
//! Changes to what administrators manage take an [`AdminTx`], which checks the rights of the caller
//! under the lock of the workspace.
//!
//! Some functions say that `tx` must belong to a user or a workspace: they need a transaction that
//! was opened with it. Otherwise row-level security hides the rows.
//!
//! A lookup that runs before the caller is authenticated is a method of [`Store`] or
//! [`DedicatedConnection`]. It calls a `SECURITY DEFINER` function, to which row-level security
//! does not apply.
//!
//! The schema and these functions are in `migrations/`. `docs/architecture.md` explains the design.
//!
//! # Errors
//! When PostgreSQL cannot be reached, or does not answer in time, the error is
//! [`StoreError::Unavailable`]. The `# Errors` section of a function names only what is particular
//! to it.

mod admin_tx;
pub mod api_keys;
pub mod audit;
pub mod audit_chains;
pub mod audit_outbox;
mod audited;
pub mod backup;
pub mod cache_invalidation;
pub mod client_additions;
pub mod clock;
mod committed;
pub mod connected_apps;
mod context;
mod decode;
mod dedicated_connection;
pub mod documents;
pub mod email_outbox;
mod error;
mod hosts;
pub mod idempotency_keys;
pub mod invitations;
pub mod key_descendants;
mod lost_generation;
pub mod members;
pub mod migrate;
pub mod oauth_clients;
pub mod oauth_devices;
pub mod oauth_grants;
pub mod one_time_tokens;
pub mod owner_connection;
pub mod passkeys;
mod pooled_transaction;
mod pools;
mod quarantine;
pub mod reencryption;
mod report;
pub mod restore;
pub mod retention;
mod schema_version;
pub mod second_factor;
mod server;
pub mod sessions;
mod settlement;
pub mod sign_in_throttling;
pub mod signing_keys;
pub mod usage;
pub mod users;
pub mod wallet;
pub mod workspaces;

use std::{future::Future, time::Duration};

use sqlx::{PgConnection, error::DatabaseError, postgres::PgConnectOptions};

use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    config::Pool,
    env::{Clock as _, DatabaseClock},
    keyed_semaphores::{KeyedPermit, KeyedSemaphores},
    model::{
        id::{Id, UserId, WorkspaceId},
        key_ring::KeyRing,
    },
};

pub use admin_tx::{AdminLockError, AdminRights, AdminTx};
pub use audited::Audited;
pub use committed::Committed;
use context::{ContextIds, ContextSigner, SignedContext};
pub use context::{ContextKey, ServiceLogin};
pub use dedicated_connection::DedicatedConnection;
pub use error::{Constraint, StoreError, with_source};
use pooled_transaction::PooledTransaction;
pub use pools::{PoolUsage, max_open_connections};
use pools::{Pools, ServerBinding};
pub use quarantine::DatabaseRefusal;
use schema_version::SchemaFlag;
pub use schema_version::SchemaMismatch;
pub use server::{History, Server};

/// The PostgreSQL role that the service works as. Migrations create it; it owns no objects.
pub const APP_ROLE: &str = "call2me_auth_app";

/// The longest time that a commit may take. PostgreSQL's `statement_timeout` does not limit it.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of transactions that one workspace may have open on a node, if the pool has at most 16
/// connections.
const PER_WORKSPACE: u32 = 4;

/// The connection pools of the service. Their connections work as [`APP_ROLE`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pools: Pools,
    /// The longest time that opening a transaction may take.
    begin_timeout: Duration,
    context: ContextSigner,
    clock: DatabaseClock,
    /// Requests of one workspace wait for each other, such as for the lock on its row. Without a
    /// permit they hold no connection meanwhile, which requests of other workspaces need.
    workspace_permits: KeyedSemaphores<Uuid>,
    schema: SchemaFlag,
}

impl Store {
    /// Connects, and checks that row-level security applies to the connection. `login` replaces the
    /// user and password of the URL. `lease_duration` is that of all nodes. `clock` follows that of
    /// PostgreSQL from then on.
    ///
    /// If the login is another role than [`APP_ROLE`], every connection switches to that role when
    /// it opens. SQL that an attacker injects could switch back, so the login may not have more
    /// rights: superusers, roles with `BYPASSRLS` and owners of the tables are refused.
    ///
    /// # Errors
    /// A one-line message for the operator.
    pub async fn connect(
        url: &str,
        login: Option<&ServiceLogin>,
        options: &Pool,
        lease_duration: Duration,
        keys: KeyRing<ContextKey>,
        clock: &DatabaseClock,
    ) -> Result<Self, String> {
        let hosts = hosts::parse(url)?.into_iter().map(|host| {
            let host = match login {
                Some(login) => login.apply(host),
                None => host,
            };
            session_options(host, options)
        });
        let describe =
            |error: sqlx::Error| match error.as_database_error().and_then(DatabaseError::code) {
                Some(code) if code == "42501" => format!(
                    "the database user cannot switch to the role {APP_ROLE}; \
                     run `GRANT {APP_ROLE} TO <user>` as a superuser"
                ),
                _ => format!("cannot connect to PostgreSQL: {}", brief(&error)),
            };
        let pools =
            Pools::connect(hosts.collect(), options, lease_duration).await.map_err(describe)?;
        let mut connection = pools.requests().acquire().await.map_err(describe)?;
        let role = sqlx::query!(
            r#"SELECT session_user::text AS "login!", current_user = $1 AS "is_app_role!",
                      EXISTS (SELECT FROM pg_roles WHERE rolname IN (session_user, current_user)
                              AND (rolsuper OR rolbypassrls))
                      OR pg_has_role(session_user,
                             (SELECT relowner FROM pg_class WHERE oid = 'workspaces'::regclass),
                             'MEMBER') AS "is_privileged!""#,
            APP_ROLE,
        )
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| format!("cannot query PostgreSQL: {}", brief(&error)))?;
        if !role.is_app_role || role.is_privileged {
            let name = role.login;
            return Err(format!(
                "the login {name} is a superuser, has BYPASSRLS or owns the tables, so injected SQL \
                 could read every workspace: log in as {APP_ROLE} in database.url, and as {name} \
                 only in database.owner_url"
            ));
        }
        let context = ContextSigner::start(keys, clock.clone(), &mut connection).await?;
        drop(connection);
        let begin_timeout = options.acquire_timeout + options.statement_timeout;
        let workspace_permits = KeyedSemaphores::new(max_per_workspace(options.max_connections));
        let (clock, schema) = (clock.clone(), SchemaFlag::default());
        Ok(Self { pools, begin_timeout, context, clock, workspace_permits, schema })
    }

    /// Begins a transaction for one workspace and, if the caller is a user or acts for one, for
    /// that user. Row-level security hides all other rows. The transaction is rolled back unless it
    /// is committed.
    ///
    /// A workspace may have a quarter of the pool's connections in such transactions, and waits for
    /// more. So a caller must not hold one while it begins another for the same workspace.
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
        self.begin_with_permit("BEGIN", workspace, user, false).await
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
        self.begin_with_permit("BEGIN", workspace, Some(user), true).await
    }

    async fn begin_with_permit(
        &self,
        begin_statement: &str,
        workspace: WorkspaceId,
        user: Option<UserId>,
        is_joining: bool,
    ) -> Result<Tx, StoreError> {
        let ids =
            ContextIds { workspace: Some(workspace.uuid()), user: user.map(Id::uuid), is_joining };
        let acquire = self.workspace_permits.acquire(workspace.uuid());
        let permit = timeout(self.begin_timeout, acquire).await;
        let permit = permit.map_err(|_| StoreError::timed_out())?;
        let tx = self.open_transaction(begin_statement, ids).await?;
        Ok(Tx { _permit: Some(Box::new(permit)), ..tx })
    }

    /// Begins a transaction for one workspace, for work of the service itself: requests of the
    /// workspace do not delay it.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_in_background(&self, workspace: WorkspaceId) -> Result<Tx, StoreError> {
        let ids = ContextIds { workspace: Some(workspace.uuid()), ..ContextIds::default() };
        self.open_transaction("BEGIN", ids).await
    }

    /// Begins a transaction for one user, without a workspace. It sees the user's own rows in all
    /// workspaces.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_for_user(&self, user: UserId) -> Result<Tx, StoreError> {
        let ids = ContextIds { user: Some(user.uuid()), ..ContextIds::default() };
        self.open_transaction("BEGIN", ids).await
    }

    /// Begins a read-only transaction for one workspace. All its queries see one snapshot of the
    /// data.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_snapshot(&self, workspace: WorkspaceId) -> Result<Tx, StoreError> {
        let begin_statement = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        self.begin_with_permit(begin_statement, workspace, None, false).await
    }

    async fn open_transaction(
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
        let (pools, context, permit) = (self.pools.clone(), self.context.clone(), None);
        Ok(Tx { inner, pools, binding, context, ids, _permit: permit })
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

    /// Checks that PostgreSQL answers.
    ///
    /// # Errors
    /// [`StoreError`] if it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query!("SELECT 1 AS one").fetch_one(&self.pools.requests()).await?;
        Ok(())
    }

    /// Returns the state of the request pool and of the background pool, in this order.
    #[must_use]
    pub fn pool_usage(&self) -> [PoolUsage; 2] {
        self.pools.usage()
    }

    /// Runs work on PostgreSQL with a time limit, because a connection may hang forever.
    ///
    /// # Errors
    /// The error of `work`, or [`StoreError::Unavailable`] if it exceeds `limit`.
    pub async fn with_timeout<T>(
        limit: Duration,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(limit, work).await.unwrap_or_else(|_| Err(StoreError::timed_out()))
    }

    /// Closes all connections once they are idle.
    pub async fn close(&self) {
        self.pools.close().await;
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
    inner: PooledTransaction,
    pools: Pools,
    binding: ServerBinding,
    context: ContextSigner,
    ids: ContextIds,
    /// That of its workspace.
    _permit: Option<Box<KeyedPermit<Uuid>>>,
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
        self.pools.wait_until_settled(&self.binding).await?;
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
    fn sign_workspace(&mut self, workspace: WorkspaceId) -> SignedContext {
        self.ids = ContextIds { workspace: Some(workspace.uuid()), is_joining: false, ..self.ids };
        self.context.sign(self.ids)
    }

    async fn set_context(&mut self) -> Result<(), StoreError> {
        Ok(self.context.set(&mut self.inner, self.ids).await?)
    }

    fn conn(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

/// Returns the number of transactions that one workspace may have open: a quarter of the pool, but
/// never all of it.
fn max_per_workspace(max_connections: u32) -> usize {
    let max =
        (max_connections / 4).max(PER_WORKSPACE).min(max_connections.saturating_sub(1)).max(1);
    max.try_into().unwrap_or(usize::MAX)
}

/// Adds the settings of a session.
fn session_options(connect: PgConnectOptions, options: &Pool) -> PgConnectOptions {
    let connect = connect
        .application_name("call2me-auth")
        .options([("statement_timeout", millis(options.statement_timeout))])
        .options([("lock_timeout", millis(options.statement_timeout / 2))])
        .options([("idle_in_transaction_session_timeout", "60000")])
        // The pools keep idle connections. Those of a lookup or a lease are not tested before use.
        .options([("idle_session_timeout", "0")])
        // No schema of the role's name comes first, and temporary objects shadow no others.
        .options([("search_path", "public,pg_temp")])
        // JIT compilation of a plan whose cost is overestimated takes half a second.
        .options([("jit", "off")]);
    match connect.get_username() {
        APP_ROLE => connect,
        _ => connect.options([("role", APP_ROLE)]),
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// Formats a driver error in one line, without the parts of a URL that it may quote.
fn brief(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::PoolTimedOut => "timed out waiting for a connection".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspace_never_has_all_connections() {
        for (connections, max) in [(1, 1), (2, 1), (4, 3), (5, 4), (16, 4), (19, 4), (100, 25)] {
            assert_eq!(max_per_workspace(connections), max, "{connections}");
        }
    }
}
