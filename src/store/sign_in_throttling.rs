//! Sign-in throttling: counts of wrong passwords, by account and by subnet of the caller.
//!
//! Counting by subnet keeps a stranger from locking the owner out. An account is stored as the
//! SHA-256 digest of the entered address, whether or not such an account exists. The policy is in
//! [`crate::model::sign_in_throttling`].

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Store, StoreError, users::SignInAccount};
use crate::model::{
    address::client_subnet,
    email::Email,
    id::{UserId, WorkspaceId},
    sign_in_throttling::{FailedAttempts, expiry_cutoff},
};

impl Store {
    /// Finds the account with an address, and the failed attempts at its password from the caller's
    /// subnet. The failed attempts do not depend on the existence of the account. They may be
    /// expired.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_account_and_failed_attempts(
        &self,
        email: &Email,
        ip: IpAddr,
    ) -> Result<(Option<SignInAccount>, Option<FailedAttempts>), StoreError> {
        let row = sqlx::query!(
            r#"SELECT failed_attempts AS "failed_attempts?", last_failed_at AS "last_failed_at?",
                      user_id AS "user_id?: UserId", email AS "email?", full_name AS "full_name?",
                      password_hash AS "password_hash?",
                      last_workspace_id AS "last_workspace_id?: WorkspaceId"
               FROM (VALUES (1)) one LEFT JOIN find_account_by_email($1) ON true
                                     LEFT JOIN find_sign_in_failures($2, $3) ON true"#,
            email.normalized(),
            account_digest(email),
            client_subnet(ip),
        )
        .fetch_one(&self.pools.requests())
        .await?;
        let account = row.user_id.zip(row.email).map(|(user_id, email)| SignInAccount {
            user_id,
            email,
            full_name: row.full_name,
            password_hash: row.password_hash.map(Into::into),
            last_workspace_id: row.last_workspace_id,
        });
        let failed = row.failed_attempts.zip(row.last_failed_at).map(|(count, last_at)| {
            FailedAttempts { count: count.try_into().unwrap_or_default(), last_at }
        });
        Ok((account, failed))
    }

    /// Counts a wrong password. Concurrent attempts on several nodes all count.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn record_wrong_password(
        &self,
        email: &Email,
        ip: IpAddr,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query!(
            r#"SELECT record_sign_in_failure($1, $2, $3, $4) AS "done""#,
            account_digest(email),
            client_subnet(ip),
            now,
            expiry_cutoff(now),
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(())
    }

    /// Resets the count of an account and subnet after a correct password.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn reset_wrong_passwords(&self, email: &Email, ip: IpAddr) -> Result<(), StoreError> {
        sqlx::query!(
            r#"SELECT reset_sign_in_failures($1, $2) AS "done""#,
            account_digest(email),
            client_subnet(ip)
        )
        .fetch_one(&self.pools.requests())
        .await?;
        Ok(())
    }

    /// Deletes counts that no longer cause a pause.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn prune_wrong_passwords(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let cutoff = expiry_cutoff(now);
        sqlx::query!(r#"SELECT prune_sign_in_failures($1) AS "done""#, cutoff)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

fn account_digest(email: &Email) -> Vec<u8> {
    Sha256::digest(email.normalized()).to_vec()
}
