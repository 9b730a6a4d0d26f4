//! Authorization requests that are kept while the user signs in.
//!
//! They belong to no workspace until the user consents, so only functions of the schema read and
//! write them.

use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError};

/// Maximum length of the query of a kept request, in bytes.
pub const MAX_QUERY: usize = 16 * 1024;

/// An authorization request to be kept.
#[derive(Debug)]
pub struct KeptRequest<'a> {
    /// The id, which must not be guessable.
    pub id: Uuid,
    /// The query, of at most [`MAX_QUERY`] bytes.
    pub query: &'a str,
    /// The time of the request.
    pub created_at: OffsetDateTime,
    /// The time until which it is kept.
    pub expires_at: OffsetDateTime,
    /// The subnet of the browser.
    pub subnet: IpNet,
}

impl Store {
    /// Keeps a request. Of 100 requests of its subnet, the oldest is deleted to make room. False if
    /// 10,000 are kept overall.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn keep_authorization_request(
        &self,
        request: &KeptRequest<'_>,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT keep_oauth_authorization_request($1, $2, $3, $4, $5) AS "kept!""#,
            request.id,
            request.query,
            request.created_at,
            request.expires_at,
            request.subnet as _,
        )
        .fetch_one(&self.pools.requests())
        .await?)
    }

    /// Returns the query of a request that is kept.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn find_authorization_request(
        &self,
        id: Uuid,
        now: OffsetDateTime,
    ) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT find_oauth_authorization_request($1, $2) AS "query""#,
            id,
            now,
        )
        .fetch_one(&self.pools.requests())
        .await?)
    }
}
