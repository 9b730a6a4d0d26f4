//! The database layer. All SQL of the service is in this module.
//!
//! Each file covers one group of tables. A function on workspace data takes a `WorkspaceId` and
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

pub mod added_access;
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
pub mod given_access;
mod hosts;
pub mod idempotency_keys;
pub mod invitations;
pub mod key_descendants;
mod leases;
mod lost_generation;
pub mod members;
pub mod migrate;
pub mod oauth_clients;
pub mod oauth_devices;
pub mod oauth_grants;
pub mod oauth_requests;
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
mod transactions;
pub mod usage;
pub mod users;
pub mod wallet;
pub mod workspaces;

use std::{future::Future, time::Duration};

use sqlx::{error::DatabaseError, postgres::PgConnectOptions};
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    config::Pool, env::DatabaseClock, keyed_semaphores::KeyedSemaphores, model::key_ring::KeyRing,
};

pub use admin_tx::{AdminLockError, AdminRights, AdminTx};
pub use audited::Audited;
pub use committed::Committed;
use context::ContextSigner;
pub use context::{ContextKey, ServiceLogin};
pub use dedicated_connection::DedicatedConnection;
pub use error::{Constraint, StoreError, with_source};
use pools::Pools;
pub use pools::{PoolUsage, max_open_connections};
pub use quarantine::DatabaseRefusal;
use schema_version::SchemaFlag;
pub use schema_version::SchemaMismatch;
pub use server::{History, Server};
pub use transactions::Tx;

/// The PostgreSQL role that the service works as. Migrations create it; it owns no objects.
pub const APP_ROLE: &str = "call2me_auth_app";

/// Number of transactions that one workspace, and one user, may have open on a node, if the pool
/// has at most 16 connections.
const PER_TENANT: u32 = 4;

/// The connection pools of the service. Their connections work as [`APP_ROLE`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pools: Pools,
    /// The longest time that opening a transaction may take.
    begin_timeout: Duration,
    context: ContextSigner,
    clock: DatabaseClock,
    /// Requests of one workspace or user wait for each other, such as for the lock on its row.
    /// Without a permit they hold no connection meanwhile, which other requests need. One user may
    /// have many workspaces, so there are permits of both.
    permits: KeyedSemaphores<Uuid>,
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
        let permits = KeyedSemaphores::new(max_per_tenant(options.max_connections));
        let (clock, schema) = (clock.clone(), SchemaFlag::default());
        Ok(Self { pools, begin_timeout, context, clock, permits, schema })
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

/// Returns the number of transactions that one workspace, and one user, may have open: a quarter of
/// the pool, but never all of it.
fn max_per_tenant(max_connections: u32) -> usize {
    let max = (max_connections / 4).max(PER_TENANT).min(max_connections.saturating_sub(1)).max(1);
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
    fn tenant_never_has_all_connections() {
        for (connections, max) in [(1, 1), (2, 1), (4, 3), (5, 4), (16, 4), (19, 4), (100, 25)] {
            assert_eq!(max_per_tenant(connections), max, "{connections}");
        }
    }
}
