//! PostgreSQL: the only place that knows SQL.
//!
//! One file per group of tables. A function that reads or writes what belongs to a workspace takes
//! the [`WorkspaceId`] and names it in its SQL; behind that, [`Store::begin`] tells PostgreSQL which
//! workspace and person a transaction is for, and row-level security keeps it to them.

pub mod api_keys;
pub mod audit;
pub mod chains;
pub mod coherence;
pub mod connected_apps;
mod decode;
pub mod documents;
mod error;
pub mod invitations;
pub mod kept_answers;
pub mod ledger;
mod line;
pub mod mail;
pub mod members;
pub mod migrate;
pub mod oauth_clients;
pub mod oauth_devices;
pub mod oauth_grants;
pub mod one_time_tokens;
pub mod passkeys;
mod pools;
pub mod retention;
pub mod second_factor;
pub mod sessions;
pub mod signing_keys;
pub mod usage;
pub mod users;
pub mod wallet;
pub mod workspaces;
mod wrong_passwords;

use std::{future::Future, str::FromStr, time::Duration};

use sqlx::{
    AssertSqlSafe, PgConnection, Postgres, Transaction, error::DatabaseError,
    postgres::PgConnectOptions,
};

use tokio::time::timeout;

use crate::{
    config::Pool,
    model::id::{Id, UserId, WorkspaceId},
};

pub use error::{Constraint, StoreError};
pub use line::Line;
pub use pools::Connections;
use pools::Pools;

/// The role that the service works as. Migrations create it; it owns nothing.
pub const APP_ROLE: &str = "call2me_auth_app";

/// Connections that work as [`APP_ROLE`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pools: Pools,
    /// The longest that opening a transaction may take.
    begin_timeout: Duration,
}

impl Store {
    /// Connects, and makes sure that row-level security binds what is connected.
    ///
    /// A login that is not [`APP_ROLE`] itself takes that role at the start of every connection.
    ///
    /// # Errors
    /// With one line for the operator.
    pub async fn connect(url: &str, options: &Pool) -> Result<Self, String> {
        let mut connect = parse_url(url)?
            .application_name("call2me-auth")
            .options([("statement_timeout", millis(options.statement_timeout))])
            .options([("lock_timeout", millis(options.statement_timeout / 2))])
            .options([("idle_in_transaction_session_timeout", "60000")])
            // Compiling a plan that looks dearer than it is takes half a second.
            .options([("jit", "off")]);
        if connect.get_username() != APP_ROLE {
            connect = connect.options([("role", APP_ROLE)]);
        }
        let pools = Pools::new(connect, options);
        let mut connection = pools.requests().acquire().await.map_err(|error| {
            match error.as_database_error().and_then(DatabaseError::code) {
                Some(code) if code == "42501" => format!(
                    "the database's login may not become {APP_ROLE}: \
                     GRANT {APP_ROLE} TO it, as a superuser"
                ),
                _ => format!("cannot connect to PostgreSQL: {}", brief(&error)),
            }
        })?;
        let bound = sqlx::query_scalar!(
            r#"SELECT current_user = $1 AND NOT (rolsuper OR rolbypassrls) AS "bound!"
               FROM pg_roles WHERE rolname = current_user"#,
            APP_ROLE,
        )
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| format!("cannot query PostgreSQL: {}", brief(&error)))?;
        if !bound {
            return Err(format!(
                "the database's login must be the role {APP_ROLE} or be granted it, \
                 so that row-level security binds the service"
            ));
        }
        drop(connection);
        let begin_timeout = options.acquire_timeout + options.statement_timeout;
        Ok(Self { pools, begin_timeout })
    }

    /// A transaction for one workspace and, where the caller is or works for one, one person. Row-level
    /// security shows it nothing else. It is rolled back unless committed.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn begin(
        &self,
        workspace: WorkspaceId,
        person: Option<UserId>,
    ) -> Result<Tx, StoreError> {
        self.begin_for(Some(workspace), person).await
    }

    /// A transaction for one person, whatever the workspace.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn begin_personal(&self, person: UserId) -> Result<Tx, StoreError> {
        self.begin_for(None, Some(person)).await
    }

    /// A transaction of one workspace that only reads, all of it as it was at one moment.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn begin_snapshot(&self, workspace: WorkspaceId) -> Result<Tx, StoreError> {
        let how = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        self.begin_as(how, Some(workspace), None).await
    }

    async fn begin_for(
        &self,
        workspace: Option<WorkspaceId>,
        person: Option<UserId>,
    ) -> Result<Tx, StoreError> {
        self.begin_as("BEGIN", workspace, person).await
    }

    async fn begin_as(
        &self,
        how: &str,
        workspace: Option<WorkspaceId>,
        person: Option<UserId>,
    ) -> Result<Tx, StoreError> {
        let text = |id: Option<uuid::Uuid>| id.map_or_else(String::new, |id| id.to_string());
        // One message for all of it; UUIDs cannot break out of the quotes.
        let begin = format!(
            "{how}; SELECT set_config('call2me.workspace_id', '{}', true), \
             set_config('call2me.user_id', '{}', true)",
            text(workspace.map(Id::uuid)),
            text(person.map(Id::uuid)),
        );
        let (pool, within) = (self.pools.requests(), self.begin_timeout);
        // In a task of its own, which goes on when the caller is dropped half-way, as a handler is
        // when its client hangs up. sqlx 0.9 takes note of a transaction only once BEGIN has been
        // answered: dropped before, the connection would go back to the pool with a transaction open
        // on the server, into which others would write, for somebody to roll back.
        let opening =
            tokio::spawn(
                async move { timeout(within, pool.begin_with(AssertSqlSafe(begin))).await },
            );
        let inner =
            opening.await.map_err(|_| StoreError::Aborted)?.map_err(|_| StoreError::late())??;
        Ok(Tx { inner })
    }

    /// Whether PostgreSQL answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query!("SELECT 1 AS one").fetch_one(&self.pools.requests()).await?;
        Ok(())
    }

    /// The connections of requests, and those of the service's own work.
    #[must_use]
    pub fn connections(&self) -> [Connections; 2] {
        self.pools.connections()
    }

    /// Does what the service wants of PostgreSQL for itself, or gives up: a connection may hang
    /// without an end.
    ///
    /// # Errors
    /// Those of the work, or that it took too long.
    pub async fn within<T>(
        limit: Duration,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(limit, work).await.unwrap_or_else(|_| Err(StoreError::late()))
    }

    /// Closes all connections once they are idle.
    pub async fn close(&self) {
        self.pools.close().await;
    }
}

/// A transaction that sees one workspace and one person.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction<'static, Postgres>,
}

impl Tx {
    /// Makes everything done in it last.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached; then it may or may not have been committed.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.inner.commit().await?)
    }

    /// Makes a personal transaction one of a workspace too, once it is known which.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn enter(&mut self, workspace: WorkspaceId) -> Result<(), StoreError> {
        sqlx::query!(
            r#"SELECT set_config('call2me.workspace_id', $1, true) AS "set""#,
            workspace.uuid().to_string(),
        )
        .fetch_one(self.conn())
        .await?;
        Ok(())
    }

    /// Goes on for another person.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn act_for(&mut self, person: UserId) -> Result<(), StoreError> {
        sqlx::query!(
            r#"SELECT set_config('call2me.user_id', $1, true) AS "set""#,
            person.uuid().to_string(),
        )
        .fetch_one(self.conn())
        .await?;
        Ok(())
    }

    fn conn(&mut self) -> &mut PgConnection {
        &mut self.inner
    }
}

fn parse_url(url: &str) -> Result<PgConnectOptions, String> {
    PgConnectOptions::from_str(url).map_err(|_| "the database URL is malformed".to_owned())
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// An error of the driver in one line, without what it may quote of a URL.
fn brief(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::PoolTimedOut => "no connection in time".to_owned(),
        other => other.to_string(),
    }
}
