//! Sign-in throttling: counts of sign-in attempts and wrong passwords, by account and by subnet of
//! the caller.
//!
//! Counting by subnet keeps a stranger from locking the owner out. An account is stored as the
//! SHA-256 digest of the entered address, whether or not such an account exists. The policy is in
//! [`crate::model::sign_in_throttling`].

use std::net::IpAddr;

use time::OffsetDateTime;

use super::{Store, StoreError, users::SignInAccount};
use crate::model::{
    address::{client_subnet, site_subnet},
    email::Email,
    id::{UserId, WorkspaceId},
    sign_in_throttling::{
        FailedAttempts, NOTIFICATION_INTERVAL, NOTIFIED_FOREIGN_ATTEMPTS, expiry_cutoff,
    },
};

/// The state of an account, as far as a sign-in depends on it.
#[derive(Debug)]
pub struct SignInState {
    /// The account, if it exists.
    pub account: Option<SignInAccount>,
    /// The failed attempts from the caller's subnet. They do not depend on the existence of the
    /// account, and may be expired.
    pub failed: Option<FailedAttempts>,
    /// True if the account has signed in from the caller's network before.
    pub is_known_network: bool,
}

impl Store {
    /// Returns the state of the account with an address, for a sign-in from `ip`.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn get_sign_in_state(
        &self,
        email: &Email,
        ip: IpAddr,
    ) -> Result<SignInState, StoreError> {
        let row = sqlx::query!(
            r#"SELECT failed_attempts AS "failed_attempts?", last_failed_at AS "last_failed_at?",
                      user_id AS "user_id?: UserId", email AS "email?", full_name AS "full_name?",
                      password_hash AS "password_hash?",
                      last_workspace_id AS "last_workspace_id?: WorkspaceId",
                      has_signed_in_from(user_id, $4) AS "is_known_network!"
               FROM (VALUES (1)) one LEFT JOIN find_account_by_email($1) ON true
                                     LEFT JOIN find_sign_in_failures($2, $3) ON true"#,
            email.normalized(),
            account_digest(email),
            client_subnet(ip),
            site_subnet(ip),
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
        Ok(SignInState { account, failed, is_known_network: row.is_known_network })
    }

    /// Counts an attempt before its password is verified. `observed` is the count on which the
    /// caller decided; expired attempts count as 0. False if the count has changed: then nothing is
    /// counted, and the caller must decide again.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn reserve_sign_in_attempt(
        &self,
        email: &Email,
        ip: IpAddr,
        observed: u32,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT reserve_sign_in_attempt($1, $2, $3, $4, $5) AS "is_reserved!""#,
            account_digest(email),
            client_subnet(ip),
            i32::try_from(observed).unwrap_or(i32::MAX - 1),
            now,
            expiry_cutoff(now),
        )
        .fetch_one(&self.pools.requests())
        .await?)
    }

    /// Counts a wrong password from a network that the account never signed in from. True if its
    /// owner must be notified now.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn record_foreign_wrong_password(
        &self,
        email: &Email,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT record_foreign_sign_in_failure($1, $2, $3, $4, $5) AS "must_notify!""#,
            account_digest(email),
            now,
            expiry_cutoff(now),
            i32::try_from(NOTIFIED_FOREIGN_ATTEMPTS).unwrap_or(i32::MAX),
            now - NOTIFICATION_INTERVAL,
        )
        .fetch_one(&self.pools.requests())
        .await?)
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
        sqlx::query!(r#"SELECT prune_sign_in_failures($1) AS "done""#, now)
            .fetch_one(&self.pools.background())
            .await?;
        Ok(())
    }
}

fn account_digest(email: &Email) -> Vec<u8> {
    email.digest().to_vec()
}
