//! Device authorizations under way.

use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError, Tx};
use crate::model::{
    id::{ClientId, GrantId, Id},
    scope::Scope,
};

/// A device authorization to be stored.
#[derive(Debug)]
pub struct NewDevice<'a> {
    /// Its id, which the device code is derived from.
    pub id: Uuid,
    /// Who asks.
    pub client_id: ClientId,
    /// What is kept of the code that a person types in.
    pub user_code: [u8; 32],
    /// What for.
    pub scope: Scope,
    /// Against which resources.
    pub resources: &'a [String],
    /// When it is made.
    pub created_at: OffsetDateTime,
    /// Until when it can be answered.
    pub expires_at: OffsetDateTime,
    /// From where, as far as clients are told apart.
    pub subnet: IpNet,
}

/// Whether one could be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It was.
    Yes,
    /// Another one has the code.
    CodeTaken,
    /// There are too many.
    TooMany,
}

/// What a code is for that somebody typed in.
#[derive(Debug)]
pub struct WaitingDevice {
    /// Its id.
    pub id: Uuid,
    /// Who asks.
    pub client_id: ClientId,
    /// What for.
    pub scope: Scope,
    /// Against which resources.
    pub resources: Vec<String>,
}

/// How a device authorization stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// There is none, or it is another client's.
    Unknown,
    /// Nobody answered in time.
    Expired,
    /// The answer was no.
    Denied,
    /// The answer was this grant.
    Approved(GrantId),
    /// There is no answer yet.
    Pending,
    /// Nor may it be asked for so soon.
    SlowDown,
}

impl Store {
    /// Starts one, unless so many are under way, over all and from there.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn start_device(
        &self,
        device: &NewDevice<'_>,
        [at_most, at_most_from_there]: [i32; 2],
    ) -> Result<Started, StoreError> {
        let started = sqlx::query_scalar!(
            r#"SELECT start_device_code($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS "started""#,
            device.id,
            device.client_id.uuid(),
            &device.user_code,
            device.scope.as_str(),
            device.resources,
            device.created_at,
            device.expires_at,
            device.subnet as _,
            at_most,
            at_most_from_there,
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(match started {
            Some(true) => Started::Yes,
            Some(false) => Started::CodeTaken,
            None => Started::TooMany,
        })
    }

    /// What a code is for, while it waits for an answer.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_device(
        &self,
        user_code: &[u8; 32],
        now: OffsetDateTime,
    ) -> Result<Option<WaitingDevice>, StoreError> {
        Ok(sqlx::query_as!(
            WaitingDevice,
            r#"SELECT id AS "id!", client_id AS "client_id!: ClientId", scope AS "scope!: Scope",
                      resources AS "resources!"
               FROM find_device_code($1, $2)"#,
            user_code,
            now,
        )
        .fetch_optional(&self.pools.requests())
        .await?)
    }

    /// How one stands, for the client that asks with its device code.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn poll_device(
        &self,
        id: Uuid,
        client: ClientId,
        now: OffsetDateTime,
    ) -> Result<DeviceState, StoreError> {
        let row = sqlx::query!(
            r#"SELECT state AS "state!", answer AS "answer: GrantId" FROM poll_device_code($1, $2, $3)"#,
            id,
            client.uuid(),
            now,
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(match (&*row.state, row.answer) {
            ("approved", Some(grant)) => DeviceState::Approved(grant),
            ("pending", _) => DeviceState::Pending,
            ("slow_down", _) => DeviceState::SlowDown,
            ("denied", _) => DeviceState::Denied,
            ("expired", _) => DeviceState::Expired,
            _ => DeviceState::Unknown,
        })
    }
}

/// Answers one: with a grant, or no. False: it was answered before, or is over.
///
/// # Errors
/// When PostgreSQL cannot be reached.
pub async fn answer(
    tx: &mut Tx,
    id: Uuid,
    grant: Option<GrantId>,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT answer_device_code($1, $2, $3) AS "answered!""#,
        id,
        grant.map(Id::uuid),
        now,
    )
    .fetch_one(tx.conn())
    .await?)
}
