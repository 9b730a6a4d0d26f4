//! What nodes believe of credentials, and how they hear that it is no longer so.

use std::time::Duration;

use sqlx::postgres::{PgListener, types::PgInterval};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::model::{
    api_key::KeyDigest,
    id::{ClientId, GrantId, SessionId, UserId, WorkspaceId},
    invalidation::Invalidation,
};

/// What there is to know since a generation.
#[derive(Debug)]
pub struct News {
    /// The newest generation.
    pub head: i64,
    /// What is not to be believed any more; `None`: too much to tell, so nothing is.
    pub invalidations: Option<Vec<Invalidation>>,
    /// How long ago, by PostgreSQL's clock, each was announced.
    pub lags: Vec<Duration>,
}

/// Wakes up when another node, or this one, has something to tell.
pub struct Listener(PgListener);

/// What a [`Listener`] woke up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// There are invalidations.
    Invalidations,
    /// A node has acknowledged some, or renewed its lease.
    Acknowledgements,
}

const INVALIDATIONS: &str = "call2me_invalidations";
const ACKNOWLEDGEMENTS: &str = "call2me_acknowledgements";

impl Listener {
    /// Waits for the next wake-up.
    ///
    /// # Errors
    /// When the connection is lost, and whatever was told meanwhile with it.
    pub async fn next(&mut self) -> Result<Wake, StoreError> {
        match self.0.try_recv().await? {
            Some(told) if told.channel() == ACKNOWLEDGEMENTS => Ok(Wake::Acknowledgements),
            Some(_) => Ok(Wake::Invalidations),
            None => Err(StoreError::late()),
        }
    }
}

impl Store {
    /// Listens from now on.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let mut listener = PgListener::connect_with(&self.pools.own()).await?;
        // The caller makes a new one, on whatever pool there is then.
        listener.eager_reconnect(false);
        listener.listen_all([INVALIDATIONS, ACKNOWLEDGEMENTS]).await?;
        Ok(Listener(listener))
    }

    /// Registers a node that has nothing cached; the generation from which on it has to hear.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn register_node(
        &self,
        node: Uuid,
        lease: Duration,
        written_until: OffsetDateTime,
    ) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT register_node($1, $2, $3) AS "head!""#,
            node,
            interval(lease),
            written_until,
        )
        .fetch_one(&self.pools.own())
        .await?)
    }

    /// Renews a node's lease, and tells until when all that it logs is written; false if the node is not
    /// registered any more.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn renew_lease(
        &self,
        node: Uuid,
        applied: i64,
        lease: Duration,
        written_until: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT renew_lease($1, $2, $3, $4) AS "is!""#,
            node,
            applied,
            interval(lease),
            written_until,
        )
        .fetch_one(&self.pools.own())
        .await?)
    }

    /// Tells that a node believes nothing older than this generation.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn acknowledge(&self, node: Uuid, applied: i64) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT acknowledge($1, $2) AS "done""#, node, applied)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }

    /// Takes a node out: it serves no longer.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn unregister_node(&self, node: Uuid) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT unregister_node($1) AS "done""#, node)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }

    /// What was announced after a generation.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn news_since(&self, applied: i64) -> Result<News, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT head AS "head!", generation, key_digest, session_id AS "session: SessionId",
                      user_id AS "user: UserId", workspace_id AS "workspace: WorkspaceId",
                      grant_id AS "grant: GrantId", client_id AS "client: ClientId", age
               FROM invalidations_since($1)"#,
            applied,
        )
        .fetch_all(&self.pools.own())
        .await?;
        let head = rows.first().map_or(applied, |row| row.head);
        let told = rows.iter().filter(|row| row.generation.is_some()).count();
        // Pruned, or set back by a restored backup: then nobody knows what is missing.
        if i64::try_from(told).ok() != Some(head - applied) {
            return Ok(News { head, invalidations: None, lags: Vec::new() });
        }
        let lags =
            rows.iter().filter_map(|row| Duration::try_from_secs_f64(row.age?).ok()).collect();
        let invalidations = rows.into_iter().filter_map(|row| {
            let digest = row.key_digest.and_then(|digest| digest.try_into().ok());
            let key = digest.map(KeyDigest::new).map(Invalidation::Key);
            let workspace = row.workspace;
            let person = row.user.map(|user| Invalidation::Person { user, workspace });
            key.or(row.session.map(Invalidation::Session))
                .or(row.grant.map(Invalidation::Grant))
                .or(row.client.map(Invalidation::Client))
                .or(person)
                .or(workspace.map(Invalidation::Workspace))
        });
        Ok(News { head, invalidations: Some(invalidations.collect()), lags })
    }

    /// The newest generation, which is at least that of any change committed before.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn newest_generation(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT newest_generation() AS "generation!""#)
            .fetch_one(&self.pools.requests())
            .await?)
    }

    /// Whether every node that may have something cached has acknowledged a generation.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn is_acknowledged(&self, generation: i64) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT is_acknowledged($1) AS "is!""#, generation)
            .fetch_one(&self.pools.requests())
            .await?)
    }

    /// Drops invalidations that every node has long heard of.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_invalidations(&self) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_invalidations() AS "done""#)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }

    /// Leaves all connections behind for new ones; for when they fail or hang.
    pub fn reconnect(&self) {
        self.pools.replace();
    }
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}
