//! How often somebody was wrong about a password.

use std::{net::IpAddr, time::Duration};

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Store, StoreError, users::SignIn};
use crate::model::{
    address::subnet,
    email::Email,
    id::{UserId, WorkspaceId},
};

impl Store {
    /// The account with an address, and how long somebody has to wait before the next attempt at its
    /// password, whether or not there is one; none where the last one was not wrong.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn find_attempt(
        &self,
        email: &Email,
        ip: IpAddr,
        now: OffsetDateTime,
    ) -> Result<(Option<SignIn>, Option<Duration>), StoreError> {
        let row = sqlx::query!(
            r#"SELECT password_pause($2, $3, $4) AS pause, user_id AS "user_id?: UserId",
                      email AS "email?", full_name AS "full_name?", password_hash AS "password_hash?",
                      last_workspace_id AS "last_workspace_id?: WorkspaceId"
               FROM (VALUES (1)) one LEFT JOIN find_sign_in($1) ON true"#,
            email.key(),
            account(email),
            subnet(ip),
            now,
        )
        .fetch_one(&self.pools.requests())
        .await?;
        let account = row.user_id.zip(row.email).map(|(user_id, email)| SignIn {
            user_id,
            email,
            full_name: row.full_name,
            password_hash: row.password_hash.map(Into::into),
            last_workspace_id: row.last_workspace_id,
        });
        let pause = row.pause;
        let pause = pause.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default());
        Ok((account, pause))
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
