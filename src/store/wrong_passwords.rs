//! How often somebody was wrong about a password.

use std::{net::IpAddr, time::Duration};

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Store, StoreError};
use crate::model::{address::subnet, email::Email};

impl Store {
    /// How long somebody has to wait before the next attempt at the password of an address, whether or not
    /// anybody has it; none where the last one was not wrong.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn password_pause(
        &self,
        email: &Email,
        ip: IpAddr,
        now: OffsetDateTime,
    ) -> Result<Option<Duration>, StoreError> {
        let pause = sqlx::query_scalar!(
            "SELECT password_pause($1, $2, $3)",
            account(email),
            subnet(ip),
            now
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(pause.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
    }

    /// Counts a wrong password.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn count_wrong_password(
        &self,
        email: &Email,
        ip: IpAddr,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            r#"SELECT count_wrong_password($1, $2, $3) AS "done""#,
            account(email),
            subnet(ip),
            now,
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(())
    }

    /// Notes that the last attempt was right.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn forget_wrong_passwords(
        &self,
        email: &Email,
        ip: IpAddr,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            r#"SELECT forget_wrong_passwords($1, $2) AS "done""#,
            account(email),
            subnet(ip)
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(())
    }

    /// Drops what is forgotten.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn prune_wrong_passwords(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        sqlx::query!(r#"SELECT prune_wrong_passwords($1) AS "done""#, now)
            .fetch_one(&self.pools.own())
            .await?;
        Ok(())
    }
}

fn account(email: &Email) -> Vec<u8> {
    Sha256::digest(email.key()).to_vec()
}
