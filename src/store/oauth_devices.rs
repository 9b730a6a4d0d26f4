//! Pending device authorizations (RFC 8628).
//!
//! They belong to no workspace until a user approves them, so only functions of the schema read and
//! write them.

use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Audited, Store, StoreError, Tx, context::ContextIds};
use crate::{
    env::Clock,
    model::{
        id::{ClientId, GrantId, Id},
        oauth::device::{DeviceDecision, DeviceState, INITIAL_POLL_SECONDS, PolledAuthorization},
        scope::Scope,
    },
};

/// A device authorization to be stored.
#[derive(Debug)]
pub struct NewDeviceAuthorization<'a> {
    /// The id. The device code is derived from it.
    pub id: Uuid,
    /// The client that requests authorization.
    pub client_id: ClientId,
    /// The MAC of the code that the user enters.
    pub user_code: [u8; 32],
    /// The requested scope.
    pub scope: Scope,
    /// The requested resources (RFC 8707).
    pub resources: &'a [String],
    /// The time of creation.
    pub created_at: OffsetDateTime,
    /// The time after which it can no longer be approved or denied.
    pub expires_at: OffsetDateTime,
    /// The subnet of the request, for the limit on pending authorizations.
    pub subnet: IpNet,
}

/// The outcome of a device authorization request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartOutcome {
    /// The authorization is stored.
    Stored,
    /// Another authorization has the same user code.
    CodeTaken,
    /// Too many authorizations are pending.
    TooMany,
}

/// A device authorization that waits for the user's decision.
#[derive(Debug)]
pub struct PendingDeviceAuthorization {
    /// The id.
    pub id: Uuid,
    /// The client that requests authorization.
    pub client_id: ClientId,
    /// The requested scope.
    pub scope: Scope,
    /// The requested resources (RFC 8707).
    pub resources: Vec<String>,
}

impl Store {
    /// Stores a device authorization, unless `max_total` are pending overall or `max_from_subnet`
    /// from the same subnet.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn start_device_authorization(
        &self,
        device: &NewDeviceAuthorization<'_>,
        [max_total, max_from_subnet]: [i32; 2],
    ) -> Result<StartOutcome, StoreError> {
        let started = sqlx::query_scalar!(
            r#"SELECT start_device_authorization($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
               AS "started""#,
            device.id,
            device.client_id.uuid(),
            &device.user_code,
            device.scope.as_str(),
            device.resources,
            device.created_at,
            device.expires_at,
            device.subnet as _,
            stored_seconds(INITIAL_POLL_SECONDS),
            max_total,
            max_from_subnet,
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(match started {
            Some(true) => StartOutcome::Stored,
            Some(false) => StartOutcome::CodeTaken,
            None => StartOutcome::TooMany,
        })
    }

    /// Finds the pending authorization whose user code has one of these MACs.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_device_authorization(
        &self,
        user_code_macs: &[Vec<u8>],
        now: OffsetDateTime,
    ) -> Result<Option<PendingDeviceAuthorization>, StoreError> {
        Ok(sqlx::query_as!(
            PendingDeviceAuthorization,
            r#"SELECT id AS "id!", client_id AS "client_id!: ClientId", scope AS "scope!: Scope",
                      resources AS "resources!"
               FROM find_device_authorization($1, $2)"#,
            user_code_macs,
            now,
        )
        .fetch_optional(&self.pools.requests())
        .await?)
    }

    /// Returns the state of an authorization for a client that polls with its device code, and
    /// records the poll. Concurrent polls take turns.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn poll_device_authorization(
        &self,
        id: Uuid,
        client: ClientId,
        clock: &dyn Clock,
    ) -> Result<DeviceState, StoreError> {
        let mut tx = self.open_transaction("BEGIN", ContextIds::default()).await?;
        let Some(device) = lock(&mut tx, id, client).await? else {
            return Ok(DeviceState::Unknown);
        };
        let since_poll = device.last_polled_at.map(|last| clock.elapsed_since(last));
        let state = device.state(clock.now(), since_poll);
        if let Some(seconds) = device.next_poll_seconds(state) {
            record_poll(&mut tx, id, clock.now(), seconds).await?;
            tx.commit(Audited::exempt("polls are not audited"))
                .await?
                .unfenced("a poll, which no node caches");
        }
        Ok(state)
    }
}

async fn lock(
    tx: &mut Tx,
    id: Uuid,
    client: ClientId,
) -> Result<Option<PolledAuthorization>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT expires_at AS "expires_at!", poll_interval AS "poll_interval!", last_polled_at,
                  denied_at, grant_id AS "grant: GrantId"
           FROM lock_device_authorization($1, $2)"#,
        id,
        client.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.map(|row| PolledAuthorization {
        expires_at: row.expires_at,
        poll_seconds: row.poll_interval.unsigned_abs(),
        last_polled_at: row.last_polled_at,
        decision: match (row.denied_at, row.grant) {
            (Some(_), _) => Some(DeviceDecision::Denied),
            (None, Some(grant)) => Some(DeviceDecision::Approved(grant)),
            (None, None) => None,
        },
    }))
}

async fn record_poll(
    tx: &mut Tx,
    id: Uuid,
    now: OffsetDateTime,
    seconds: u32,
) -> Result<(), StoreError> {
    sqlx::query!(
        r#"SELECT record_device_poll($1, $2, $3) AS "done""#,
        id,
        now,
        stored_seconds(seconds),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(())
}

fn stored_seconds(seconds: u32) -> i32 {
    seconds.try_into().unwrap_or(i32::MAX)
}

/// Records the user's decision. False if it was decided before or has expired.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn record_decision(
    tx: &mut Tx,
    id: Uuid,
    decision: DeviceDecision,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let grant = match decision {
        DeviceDecision::Approved(grant) => Some(grant),
        DeviceDecision::Denied => None,
    };
    Ok(sqlx::query_scalar!(
        r#"SELECT decide_device_authorization($1, $2, $3) AS "decided!""#,
        id,
        grant.map(Id::uuid),
        now,
    )
    .fetch_one(tx.conn())
    .await?)
}
