//! The hash chain that makes the audit log tamper-evident.
//!
//! Each workspace has its own chain. It begins with a hash of the workspace's id, and each event
//! adds its digest: `hash(n) = SHA-256(hash(n − 1) ‖ digest(n))`. The hash at a sequence number
//! therefore depends on all earlier events and on their order.
//!
//! `docs/audit-log.md` describes how to verify a chain.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::model::id::{EventId, WorkspaceId};

/// Length of a hash in bytes.
const HASH_LEN: usize = 32;

/// The text that is hashed before the workspace's id for the start of a chain.
const GENESIS: &str = "call2me audit chain v1 ";

/// The SHA-256 of an event's canonical form; see [`super::Event::digest`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EventDigest([u8; HASH_LEN]);

impl EventDigest {
    /// Returns the digest of a canonical form.
    #[must_use]
    pub fn of(canonical: &[u8]) -> Self {
        Self(Sha256::digest(canonical).into())
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; HASH_LEN] {
        &self.0
    }
}

impl From<[u8; HASH_LEN]> for EventDigest {
    fn from(bytes: [u8; HASH_LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for EventDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The hash of a chain at one sequence number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChainHash([u8; HASH_LEN]);

impl ChainHash {
    /// Returns the hash at the start of a workspace's chain, which has sequence number 0.
    #[must_use]
    pub fn genesis(workspace: WorkspaceId) -> Self {
        Self(Sha256::digest(format!("{GENESIS}{workspace}")).into())
    }

    /// Returns the hash after one more event.
    #[must_use]
    pub fn append(self, event: EventDigest) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(event.0).finalize().into())
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; HASH_LEN] {
        &self.0
    }
}

impl From<[u8; HASH_LEN]> for ChainHash {
    fn from(bytes: [u8; HASH_LEN]) -> Self {
        Self(bytes)
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for ChainHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        let hash: Option<[u8; HASH_LEN]> = bytes.try_into().ok();
        hash.map(Self).ok_or_else(|| serde::de::Error::custom("a hash must have 64 digits"))
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A segment of a workspace's chain: consecutive events that are sealed together.
#[derive(Debug, Clone)]
pub struct ChainSegment {
    /// The workspace of the chain.
    pub workspace_id: WorkspaceId,
    /// The sequence number of the segment's first event; a chain's first event has 1.
    pub first_sequence: i64,
    /// The chain's hash before the segment.
    pub previous_hash: ChainHash,
    /// The events, each with the chain's hash after it.
    pub events: Vec<(EventId, ChainHash)>,
}

impl ChainSegment {
    /// Creates an empty segment after the end of a chain, which has this sequence number and hash.
    #[must_use]
    pub fn after(workspace_id: WorkspaceId, sequence: i64, hash: ChainHash) -> Self {
        Self { workspace_id, first_sequence: sequence + 1, previous_hash: hash, events: Vec::new() }
    }

    /// Creates an empty segment at the start of a chain.
    #[must_use]
    pub fn genesis(workspace_id: WorkspaceId) -> Self {
        Self::after(workspace_id, 0, ChainHash::genesis(workspace_id))
    }

    /// Appends an event.
    pub fn push(&mut self, id: EventId, digest: EventDigest) {
        self.events.push((id, self.hash().append(digest)));
    }

    /// Returns the chain's hash after the segment.
    #[must_use]
    pub fn hash(&self) -> ChainHash {
        self.events.last().map_or(self.previous_hash, |(_, hash)| *hash)
    }

    /// Returns the sequence number of the segment's last event.
    #[must_use]
    pub fn last_sequence(&self) -> i64 {
        self.first_sequence - 1 + i64::try_from(self.events.len()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn chain_hashes_match_the_documented_values() {
        // Computed with `printf 'call2me audit chain v1 ws_00000000000000000000000001' | sha256sum`
        // and so on.
        let genesis = ChainHash::genesis(Uuid::from_u128(1).into());
        assert_eq!(
            genesis.to_string(),
            "b0eb6c69f3745c0a0f9326420724a754238ef0d9470722277e59fa40e9c64829"
        );
        let first = genesis.append(EventDigest::of(b"{}"));
        assert_eq!(
            first.to_string(),
            "67a4208295d23cd8eea0a9702817bccbb5f912161ca596d8c868e8182b19762a"
        );
        assert_ne!(first, genesis.append(EventDigest::of(b"[]")));
    }
}
