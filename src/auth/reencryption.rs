//! The end of a rotation of `keys.encryption_key`: encrypts everything under the current key, and
//! removes the previous ones when nothing needs them any more.
//!
//! - Sealed values (signing keys, seeds of refresh tokens, keys of authenticator apps) are
//!   encrypted again, in batches. Nodes keep running: they read with every key of their ring, and a
//!   value that changes meanwhile is tried again. An interrupted run is continued by the next one.
//! - Values that this service cannot encrypt again expire: what it has given to others, such as
//!   mailed links, and stored responses, whose key it does not have. All do within
//!   `DERIVED_LIFETIME`.
//! - The database remembers the keys that its data may need. A key leaves it when no node has used
//!   it for that time, or when the operator discards it. Nodes stop reading with a key that has
//!   left the database: see [`super::master_key`].

use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::Serialize;
use tokio::time::sleep;
use tracing::info;
use uuid::Uuid;

use super::{
    email_verification::VERIFICATION_LIFETIME, invitations::INVITATION_LIFETIME,
    master_key::MasterKeys, sealing::SealingKeys,
};
use crate::{
    env::Env,
    idempotency,
    model::timestamp,
    store::{
        StoreError, migrate,
        owner_connection::OwnerConnection,
        reencryption::{
            FACTOR_KEYS, GRANT_SEEDS, PreviousKeyUse, ResealedValue, SESSION_SEEDS, SIGNING_KEYS,
            SealedColumn,
        },
        with_source,
    },
};

/// The longest lifetime of a value that is derived from the encryption key and not stored sealed.
const DERIVED_LIFETIME: Duration = Duration::from_hours(7 * 24);
const _: () = {
    let longest = DERIVED_LIFETIME.as_secs();
    assert!(INVITATION_LIFETIME.as_secs() <= longest);
    assert!(VERIFICATION_LIFETIME.as_secs() <= longest);
    assert!(idempotency::RETENTION.as_secs() <= longest);
};

/// The number of values that are read and written at once.
const BATCH: i64 = 500;
/// The number of times that values are tried whose rows are locked.
const MAX_PASSES: u32 = 100;
/// The pause before they are tried again.
const PASS_PAUSE: Duration = Duration::from_millis(200);

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct ReencryptionReport {
    /// The number of values that were encrypted again.
    pub reencrypted: Reencrypted,
    /// The number of values that no configured key decrypts: they were damaged, or inserted by
    /// another party.
    pub unreadable: u64,
    /// The keys besides `keys.encryption_key` that the database knew at the start.
    pub previous_keys: Vec<PreviousKey>,
    /// True if `keys.previous_encryption_keys` must stay configured.
    pub previous_keys_needed: bool,
    /// One line for the operator.
    pub summary: String,
}

/// The number of values that were encrypted again, by kind.
#[derive(Debug, Default, Serialize)]
pub struct Reencrypted {
    /// Private signing keys.
    pub signing_keys: u64,
    /// Seeds of sessions' refresh tokens.
    pub sessions: u64,
    /// Seeds of grants' refresh tokens.
    pub oauth_grants: u64,
    /// Keys of authenticator apps and recovery codes.
    pub authenticator_apps: u64,
}

/// A key that is not the current one.
#[derive(Debug, Serialize)]
pub struct PreviousKey {
    /// The id of the key.
    pub id: String,
    /// The number of running nodes with this `keys.encryption_key`.
    pub nodes: i64,
    /// The time until which values of this key are valid. `None` if nodes still create them, or if
    /// the key was removed.
    pub needed_until: Option<String>,
    /// True if the database no longer accepts the key.
    pub removed: bool,
}

/// Encrypts everything under the current key, and removes the previous keys that are not needed. If
/// `discard_previous` is set, removes all of them at once, also if nodes still use one: mailed
/// links, codes and stored responses of these keys become invalid, and such nodes fail until they
/// are restarted.
///
/// # Errors
/// A message of one line for the operator. The next run continues.
pub async fn reencrypt(
    owner_url: &str,
    keys: &MasterKeys,
    env: &Env,
    discard_previous: bool,
) -> Result<ReencryptionReport, String> {
    let mut owner = OwnerConnection::connect(owner_url).await?;
    let ids = keys.ids()?;
    let failed = |error: StoreError| {
        format!("cannot re-encrypt: {}; run the command again", with_source(error))
    };
    // Before the values: a node that stops using a key meanwhile may have written some since.
    let uses = owner.record_previous_keys(*ids.current(), DERIVED_LIFETIME).await;
    let uses = uses.map_err(failed)?;
    let mut run = Reencryption { owner: &mut owner, env, unreadable: 0 };
    let reencrypted = Reencrypted {
        signing_keys: run.reencrypt(&SIGNING_KEYS, &keys.signing_key_sealing()?).await?,
        sessions: run.reencrypt(&SESSION_SEEDS, &keys.session_seed_sealing()?).await?,
        oauth_grants: run.reencrypt(&GRANT_SEEDS, &keys.grant_seed_sealing()?).await?,
        authenticator_apps: run.reencrypt(&FACTOR_KEYS, &keys.second_factor_sealing()?).await?,
    };
    let unreadable = run.unreadable;
    let discarded = if discard_previous {
        let others: Vec<_> = ids.previous().copied().collect();
        owner.discard_keys_except(*ids.current(), &others).await.map_err(failed)?
    } else {
        Vec::new()
    };
    let mut previous_keys = Vec::new();
    for PreviousKeyUse { id, nodes, needed_until, is_expired } in uses {
        let is_unused = needed_until.is_some() && is_expired;
        let removed =
            discard_previous || is_unused && owner.remove_key(&id).await.map_err(failed)?;
        if removed {
            let logins = keys.service_logins(&migrate::database_name(owner_url)?)?;
            for (_, login) in ids.iter().zip(logins.iter()).filter(|(other, _)| other[..] == id) {
                owner.drop_service_login(login).await?;
            }
        }
        let needed_until = needed_until.filter(|_| !removed).map(timestamp::format);
        previous_keys.push(PreviousKey { id: HEXLOWER.encode(&id), nodes, needed_until, removed });
    }
    // A key that was added since the first query.
    for id in discarded.into_iter().map(|id| HEXLOWER.encode(&id)) {
        if previous_keys.iter().all(|key| key.id != id) {
            previous_keys.push(PreviousKey { id, nodes: 0, needed_until: None, removed: true });
        }
    }
    let previous_keys_needed = previous_keys.iter().any(|key| !key.removed);
    let summary = summarize(&previous_keys);
    Ok(ReencryptionReport { reencrypted, unreadable, previous_keys, previous_keys_needed, summary })
}

/// Says whether the previous keys are still needed.
fn summarize(keys: &[PreviousKey]) -> String {
    let nodes: i64 = keys.iter().map(|key| key.nodes).sum();
    if nodes > 0 && keys.iter().all(|key| key.removed) {
        return format!(
            "the previous keys were removed while nodes used them ({nodes}): restart these nodes \
             with the new key, and remove keys.previous_encryption_keys"
        );
    }
    if nodes > 0 {
        return format!(
            "the previous keys are still needed (running nodes with another key: {nodes}): restart \
             all nodes with the new key, then run this command again"
        );
    }
    let needed = keys.iter().filter(|key| !key.removed);
    match needed.filter_map(|key| key.needed_until.as_deref()).max() {
        Some(until) => format!(
            "everything is encrypted under the current key; the previous keys are still needed \
             until {until}, for mailed links and stored responses: run this command again then"
        ),
        None if keys.iter().any(|key| !key.removed) => {
            "the previous keys are still needed: a node has just started with one; run this \
             command again"
                .to_owned()
        }
        None => "the previous keys are not needed: remove keys.previous_encryption_keys".to_owned(),
    }
}

/// A run of the command.
struct Reencryption<'a> {
    owner: &'a mut OwnerConnection,
    env: &'a Env,
    unreadable: u64,
}

/// The result of one pass over a column.
#[derive(Default)]
struct Pass {
    reencrypted: u64,
    /// Values that were locked or changed meanwhile.
    skipped: u64,
    unreadable: u64,
}

impl Reencryption<'_> {
    /// Encrypts the values of a column again. Returns their number.
    async fn reencrypt(
        &mut self,
        column: &SealedColumn,
        keys: &SealingKeys,
    ) -> Result<u64, String> {
        let mut total = 0;
        for _ in 0..MAX_PASSES {
            let pass = self.pass(column, keys).await?;
            total += pass.reencrypted;
            if pass.skipped == 0 {
                self.unreadable += pass.unreadable;
                return Ok(total);
            }
            sleep(PASS_PAUSE).await;
        }
        Err(format!("cannot re-encrypt {column}: rows stay locked; run the command again"))
    }

    async fn pass(&mut self, column: &SealedColumn, keys: &SealingKeys) -> Result<Pass, String> {
        let failed = |error: StoreError| {
            format!("cannot re-encrypt {column}: {}; run the command again", with_source(error))
        };
        let (mut pass, mut after) = (Pass::default(), Uuid::nil());
        loop {
            let batch = self.owner.list_sealed(column, after, BATCH).await.map_err(failed)?;
            let Some(last) = batch.last().map(|value| value.key) else { return Ok(pass) };
            after = last;
            let mut changes = Vec::new();
            for value in batch.into_iter().filter(|value| !keys.is_current(&value.sealed)) {
                let Some(secret) = keys.open(&value.context, &value.sealed) else {
                    pass.unreadable += 1;
                    continue;
                };
                let new = keys.seal(self.env, &value.context, &secret);
                let new = new.map_err(|error| error.to_string())?;
                changes.push(ResealedValue { key: value.key, old: value.sealed, new });
            }
            if changes.is_empty() {
                continue;
            }
            let tried = changes.len() as u64;
            let replaced = self.owner.replace_sealed(column, changes).await.map_err(failed)?;
            pass.reencrypted += replaced;
            pass.skipped += tried.saturating_sub(replaced);
            info!(%column, reencrypted = pass.reencrypted, "re-encrypting");
        }
    }
}
