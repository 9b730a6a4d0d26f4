//! The context of transactions: the workspace and the user that row-level security lets them see.
//!
//! A context is set with a MAC, so that SQL which an attacker injects cannot set one. The key of
//! the MAC is derived from `keys.encryption_key`. The database stores it where the service's role
//! cannot read it. See `migrations/0001_roles_and_functions.sql`.
//!
//! The first node stores its key. While `keys.encryption_key` is rotated, a node adds the key of
//! the new one, and proves with a MAC that it knows the previous one. The stored ids are also the
//! register of the encryption keys that the data may need, so a node that lacks one does not start.
//!
//! The user of a context must be a member of its workspace, so that no id which the service reads
//! from a row or from a request opens a foreign workspace. The MAC says so if the user becomes a
//! member only in this transaction. Decisions that the database cannot check itself, such as that a
//! user has presented a mailed token, have MACs too.
//!
//! A MAC is valid for 30 seconds of PostgreSQL's clock, as the node estimates it (`clock.rs`).
//! After a failover or a change of that clock, the first transaction is refused, and reads it
//! again.

use std::{fmt, sync::Arc, time::Duration};

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac::{self, HMAC_SHA256},
};
use data_encoding::{BASE64, HEXLOWER};
use secrecy::ExposeSecret;
use sqlx::{PgConnection, error::DatabaseError, postgres::PgConnectOptions};
use uuid::Uuid;

use super::{Store, StoreError, brief, clock, pools::Pools};
use crate::{
    env::{Clock as _, DatabaseClock},
    model::{
        key_ring::{KEY_ID_LEN, KeyId, KeyRing},
        timestamp,
    },
};

/// Block size of HMAC-SHA-256 (RFC 2104).
const BLOCK: usize = 64;

/// The SQLSTATE of a MAC that is not valid at this time.
const EXPIRED: &str = "MC001";

/// The key that authenticates contexts. Its `Debug` output hides it.
pub struct ContextKey {
    secret: zeroize::Zeroizing<[u8; 32]>,
    mac: hmac::Key,
}

impl fmt::Debug for ContextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContextKey(…)")
    }
}

impl ContextKey {
    /// Wraps 32 secret bytes.
    #[must_use]
    pub fn new(secret: zeroize::Zeroizing<[u8; 32]>) -> Self {
        let mac = hmac::Key::new(HMAC_SHA256, &*secret);
        Self { secret, mac }
    }

    /// Returns the id of the key, which is no secret. It also identifies the encryption key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&digest(&SHA256, &*self.secret).as_ref()[..KEY_ID_LEN]);
        id
    }

    /// Computes the MAC of a context; `issued_at` is in microseconds since 1970. The user must be a
    /// member of the workspace.
    #[must_use]
    pub fn sign(&self, workspace: Option<Uuid>, user: Option<Uuid>, issued_at: i64) -> [u8; 32] {
        self.sign_context(ContextIds { workspace, user, is_joining: false }, issued_at)
    }

    fn sign_context(&self, ids: ContextIds, issued_at: i64) -> [u8; 32] {
        let ContextIds { workspace, user, is_joining } = ids;
        let joining: &[u8] = if is_joining { &[1] } else { &[] };
        self.sign_parts(&[
            workspace.unwrap_or_default().as_bytes(),
            user.unwrap_or_default().as_bytes(),
            &issued_at.to_be_bytes(),
            joining,
        ])
    }

    fn sign_parts(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.mac);
        for part in parts {
            context.update(part);
        }
        let mut mac = [0; 32];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    /// Computes the MAC of a decision of the service: a purpose with its values.
    #[must_use]
    pub fn sign_decision(&self, purpose: &str, values: &[&[u8]]) -> [u8; 32] {
        let purpose = digest(&SHA256, purpose.as_bytes());
        self.sign_parts(&[&[purpose.as_ref()][..], values].concat())
    }

    /// Returns the inner and the outer block of HMAC, with which PostgreSQL computes the MAC.
    fn blocks(&self) -> [zeroize::Zeroizing<[u8; BLOCK]>; 2] {
        [0x36, 0x5c].map(|pad| {
            let mut block = zeroize::Zeroizing::new([pad; BLOCK]);
            block.iter_mut().zip(self.secret.iter()).for_each(|(byte, key)| *byte ^= key);
            block
        })
    }

    /// Stores the key in the database if it has none, as the role of the service. Returns false if
    /// the database has another key and not this one.
    async fn store_first(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let [inner, outer] = self.blocks();
        sqlx::query_scalar!(
            r#"SELECT store_first_context_key($1, $2, $3) AS "is_known!""#,
            &self.id(),
            &inner[..],
            &outer[..],
        )
        .fetch_one(connection)
        .await
    }

    /// Adds a key to the database, with a MAC under this one, which the database knows.
    async fn add(&self, key: &Self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let [inner, outer] = key.blocks();
        let mac = self.sign_parts(&[&key.id(), &inner[..], &outer[..]]);
        sqlx::query!(
            r#"SELECT add_context_key($1, $2, $3, $4, $5) AS "done""#,
            &key.id(),
            &inner[..],
            &outer[..],
            &self.id(),
            &mac,
        )
        .fetch_one(connection)
        .await
        .map(drop)
    }
}

impl KeyRing<ContextKey> {
    /// Makes the current key known to the database. Checks that the ring has all keys of the
    /// database: its data may need them.
    async fn register(&self, connection: &mut PgConnection) -> Result<(), String> {
        let describe = |error| format!("cannot check the encryption key: {}", brief(&error));
        let discarded: Vec<Vec<u8>> =
            sqlx::query_scalar!(r#"SELECT list_discarded_context_keys() AS "id!""#)
                .fetch_all(&mut *connection)
                .await
                .map_err(describe)?;
        if let Some(id) =
            self.iter().map(ContextKey::id).find(|id| discarded.contains(&id.to_vec()))
        {
            return Err(format!(
                "the encryption key with the id {} was discarded, because it may have leaked: \
                 remove it from keys.encryption_key and keys.previous_encryption_keys",
                HEXLOWER.encode(&id)
            ));
        }
        let is_known = self.current().store_first(&mut *connection).await.map_err(describe)?;
        let stored: Vec<Vec<u8>> = sqlx::query_scalar!(r#"SELECT list_context_keys() AS "id!""#)
            .fetch_all(&mut *connection)
            .await
            .map_err(describe)?;
        if let Some(missing) = stored.iter().find(|id| self.iter().all(|key| key.id() != ***id)) {
            return Err(format!(
                "the database has data of another encryption key (id {}): it must be \
                 keys.encryption_key or one of keys.previous_encryption_keys",
                HEXLOWER.encode(missing)
            ));
        }
        // A key that is not missing is a previous one.
        if !is_known
            && let Some(known) = self.previous().find(|key| stored.iter().any(|id| *id == key.id()))
        {
            known.add(self.current(), connection).await.map_err(describe)?;
        }
        Ok(())
    }
}

impl Store {
    /// Returns the ids of the encryption keys that the data may need.
    ///
    /// # Errors
    /// [`StoreError`] if the query fails.
    pub async fn list_encryption_keys(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        Ok(sqlx::query_scalar!(r#"SELECT list_context_keys() AS "id!""#)
            .fetch_all(&self.pools.background())
            .await?)
    }
}

/// Signs the contexts of a node's transactions. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ContextSigner(Arc<Signer>);

#[derive(Debug)]
struct Signer {
    key: ContextKey,
    clock: DatabaseClock,
    /// Held while the clock is read again.
    renewal: tokio::sync::Mutex<()>,
    /// Spaces that move a MAC out of the part of a statement that `pg_stat_activity` shows.
    padding: String,
}

/// The workspace and the user of a context.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ContextIds {
    pub(super) workspace: Option<Uuid>,
    pub(super) user: Option<Uuid>,
    /// True if the user becomes a member of the workspace in this transaction. Otherwise the user
    /// must be one.
    pub(super) is_joining: bool,
}

/// A MAC that is valid for 30 seconds: of a context, or of a decision of the service.
pub(super) struct TimedMac {
    /// In microseconds since 1970.
    pub(super) issued_at: i64,
    pub(super) key_id: KeyId,
    pub(super) mac: [u8; 32],
}

/// The MAC of a decision of the service, for a function that injected SQL must not call.
pub(super) struct SignedDecision {
    pub(super) key_id: KeyId,
    pub(super) mac: [u8; 32],
}

impl ContextSigner {
    /// Reads the clock of PostgreSQL, and checks that the database and the node know the same keys.
    ///
    /// # Errors
    /// A one-line message for the operator.
    pub(super) async fn start(
        keys: KeyRing<ContextKey>,
        clock: DatabaseClock,
        connection: &mut PgConnection,
    ) -> Result<Self, String> {
        let describe = |error| format!("cannot query PostgreSQL: {}", brief(&error));
        let shown = sqlx::query_scalar!(
            r#"SELECT pg_size_bytes(current_setting('track_activity_query_size')) AS "size!""#
        )
        .fetch_one(&mut *connection)
        .await
        .map_err(describe)?;
        keys.register(&mut *connection).await?;
        let padding = " ".repeat(usize::try_from(shown).unwrap_or_default());
        clock::read_first(&mut *connection, &clock).await.map_err(describe)?;
        let renewal = tokio::sync::Mutex::default();
        Ok(Self(Arc::new(Signer { key: keys.into_current(), clock, renewal, padding })))
    }

    /// Reads the clock of PostgreSQL again, unless it was read after the refusal of a context, at
    /// this time of the monotonic clock.
    pub(super) async fn renew(
        &self,
        pools: &Pools,
        refused_at: Duration,
    ) -> Result<(), StoreError> {
        let _turn = self.0.renewal.lock().await;
        if self.0.clock.last_read_at().is_none_or(|read_at| read_at < refused_at) {
            let mut connection = pools.requests().acquire().await?;
            clock::synchronize(&mut connection, self, &self.0.clock, None).await?;
        }
        Ok(())
    }

    /// Returns the statements that begin a transaction and set its context, in one message.
    pub(super) fn begin_statement(&self, begin: &str, ids: ContextIds) -> String {
        let TimedMac { issued_at, key_id, mac } = self.sign(ids);
        let id = |id: Option<Uuid>| id.unwrap_or_default().to_string();
        // Formatting is safe: ids, numbers and hexadecimal digits contain no quotes. The MAC is
        // at the end: other sessions of the same login see the start of this text in
        // `pg_stat_activity`. Its prefix lets `telemetry` redact it: sqlx logs slow statements.
        format!(
            "{begin};{} SELECT set_context('{}', '{}', {issued_at}, '\\x{}', \
             decode(substr('mac_call2me_{}', 13), 'hex'){})",
            self.0.padding,
            id(ids.workspace),
            id(ids.user),
            HEXLOWER.encode(&key_id),
            HEXLOWER.encode(&mac),
            if ids.is_joining { ", true" } else { "" },
        )
    }

    /// Sets the context of the current transaction.
    pub(super) async fn set(
        &self,
        connection: &mut PgConnection,
        ids: ContextIds,
    ) -> Result<(), sqlx::Error> {
        let TimedMac { issued_at, key_id, mac } = self.sign(ids);
        sqlx::query!(
            "SELECT set_context($1, $2, $3, $4, $5, $6)",
            ids.workspace,
            ids.user,
            issued_at,
            &key_id,
            &mac,
            ids.is_joining,
        )
        .fetch_one(connection)
        .await
        .map(drop)
    }

    /// Signs a context for the present time.
    pub(super) fn sign(&self, ids: ContextIds) -> TimedMac {
        let issued_at = timestamp::to_micros(self.0.clock.now());
        let (key_id, mac) = (self.0.key.id(), self.0.key.sign_context(ids, issued_at));
        TimedMac { issued_at, key_id, mac }
    }

    /// Signs a decision: a purpose with its values.
    pub(super) fn sign_decision(&self, purpose: &str, values: &[&[u8]]) -> SignedDecision {
        let Signer { key, .. } = &*self.0;
        SignedDecision { key_id: key.id(), mac: key.sign_decision(purpose, values) }
    }

    /// Signs a decision that counts for 30 seconds only.
    pub(super) fn sign_fresh_decision(&self, purpose: &str, values: &[&[u8]]) -> TimedMac {
        self.sign_decision_at(purpose, values, timestamp::to_micros(self.0.clock.now()))
    }

    /// As [`Self::sign_fresh_decision`], for a time of PostgreSQL that the caller has read.
    pub(super) fn sign_decision_at(
        &self,
        purpose: &str,
        values: &[&[u8]],
        issued_at: i64,
    ) -> TimedMac {
        let time = issued_at.to_be_bytes();
        let SignedDecision { key_id, mac } =
            self.sign_decision(purpose, &[values, &[&time[..]]].concat());
        TimedMac { issued_at, key_id, mac }
    }

    /// Signs the value of a setting, for maintenance functions that must not take any value.
    /// Returns it in seconds.
    pub(super) fn sign_setting(&self, name: &str, value: Duration) -> (i64, SignedDecision) {
        let seconds = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
        (seconds, self.sign_decision(name, &[&seconds.to_be_bytes()]))
    }
}

/// True if PostgreSQL refused a MAC because of its time.
pub(super) fn is_expired(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some(EXPIRED)
}

/// A login of the service that the owner of the tables creates.
#[derive(Debug, Clone)]
pub struct ServiceLogin {
    /// The name of the role.
    pub name: String,
    /// The password of the role.
    pub password: secrecy::SecretString,
}

impl ServiceLogin {
    /// Derives a login for this database from a secret. Two services in one cluster have different
    /// ones.
    #[must_use]
    pub fn derive(secret: &[u8; 32], database: &str) -> Self {
        let key = hmac::Key::new(HMAC_SHA256, secret);
        let part = |purpose: &str| {
            HEXLOWER.encode(hmac::sign(&key, format!("{purpose} {database}").as_bytes()).as_ref())
        };
        let name = format!("call2me_auth_{}", &part("name")[..16]);
        Self { name, password: part("password").into() }
    }

    /// Returns what PostgreSQL stores to verify the password (SCRAM-SHA-256, RFC 7677). The
    /// password itself is not sent, so it does not get into PostgreSQL's logs. One iteration is
    /// enough for a random key of 256 bits; 4,096, the default, cost milliseconds per connection.
    pub(super) fn scram_verifier(&self) -> String {
        let password = hmac::Key::new(HMAC_SHA256, self.password.expose_secret().as_bytes());
        let salt = digest(&SHA256, self.name.as_bytes());
        let salt = salt.as_ref();
        let salted = hmac::sign(&password, &[salt, &1_u32.to_be_bytes()].concat());
        let salted = hmac::Key::new(HMAC_SHA256, salted.as_ref());
        let key = |name: &str| hmac::sign(&salted, name.as_bytes());
        let stored_key = digest(&SHA256, key("Client Key").as_ref());
        format!(
            "SCRAM-SHA-256$1:{}${}:{}",
            BASE64.encode(salt),
            BASE64.encode(stored_key.as_ref()),
            BASE64.encode(key("Server Key").as_ref()),
        )
    }

    /// Returns the options of a connection with this login.
    pub(super) fn apply(&self, options: PgConnectOptions) -> PgConnectOptions {
        options.username(&self.name).password(self.password.expose_secret())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_key_compute_its_hmac() {
        let key = ContextKey::new(zeroize::Zeroizing::new([7; 32]));
        let (workspace, user) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let message = [workspace.as_bytes(), user.as_bytes(), &3_i64.to_be_bytes()[..]].concat();
        let [inner, outer] = key.blocks();
        let hash = |block: &[u8], text: &[u8]| digest(&SHA256, &[block, text].concat());
        let expected = hash(&outer[..], hash(&inner[..], &message).as_ref());
        assert_eq!(key.sign(Some(workspace), Some(user), 3), expected.as_ref());
        assert_ne!(key.sign(Some(workspace), Some(user), 4), expected.as_ref());
        assert_ne!(key.sign(Some(user), Some(workspace), 3), expected.as_ref());
        assert_ne!(key.sign(Some(workspace), None, 3), expected.as_ref());
        let (workspace, user) = (Some(workspace), Some(user));
        let joining = ContextIds { workspace, user, is_joining: true };
        assert_ne!(key.sign_context(joining, 3), expected.as_ref());
    }

    #[tokio::test]
    async fn begin_statement_in_log_is_redacted() {
        let clock = crate::env::Env::system().database_clock;
        let key = ContextKey::new(zeroize::Zeroizing::new([7; 32]));
        let renewal = tokio::sync::Mutex::default();
        let signer =
            ContextSigner(Arc::new(Signer { key, clock, renewal, padding: String::new() }));
        let workspace = Some(Uuid::from_u128(1));
        let ids = ContextIds { workspace, user: None, is_joining: false };
        let statement = signer.begin_statement("BEGIN", ids);
        let (_, mac) = statement.split_once("mac_call2me_").unwrap();
        assert_eq!(mac.find(|c: char| !c.is_ascii_hexdigit()), Some(64), "{statement}");
        let logged = crate::telemetry::redact(&statement);
        assert!(!logged.contains(&mac[..64]), "{logged}");
        assert!(logged.ends_with("substr('[redacted]', 13), 'hex'))"), "{logged}");
    }

    #[test]
    fn login_depends_on_secret_and_database() {
        let login = |secret: u8, database| ServiceLogin::derive(&[secret; 32], database);
        assert_eq!(login(1, "a").name, login(1, "a").name);
        assert_ne!(login(1, "a").name, login(1, "b").name);
        assert_ne!(login(1, "a").name, login(2, "a").name);
        assert!(!format!("{:?}", login(1, "a")).contains(login(1, "a").password.expose_secret()));
    }
}
