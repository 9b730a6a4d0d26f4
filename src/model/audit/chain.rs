//! The hash chain that makes the log tamper-evident; `docs/audit-log.md` tells how to check it.
//!
//! Each workspace has a chain of its own. It begins with a hash of the workspace's id, and each event
//! adds its digest: `hash(n) = SHA-256(hash(n − 1) ‖ digest(n))`. So the hash at one place depends on
//! every event before, and on their order.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::model::id::{EventId, WorkspaceId};

/// Bytes of a hash.
const LEN: usize = 32;

/// What a chain begins with, before the workspace's id.
const GENESIS: &str = "call2me audit chain v1 ";

/// SHA-256 of an event in its canonical form; see [`super::Event::digest`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EventDigest([u8; LEN]);

impl EventDigest {
    /// Of an event in its canonical form.
    #[must_use]
    pub fn of(canonical: &[u8]) -> Self {
        Self(Sha256::digest(canonical).into())
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl EventDigest {
    /// Of an event that was gone before it was sealed: the chain tells that it was there.
    pub const GONE: Self = Self([0; LEN]);
}

impl From<[u8; LEN]> for EventDigest {
    fn from(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for EventDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// The hash of a chain at one place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChainHash([u8; LEN]);

impl ChainHash {
    /// What the chain of a workspace begins with, at place 0.
    #[must_use]
    pub fn genesis(workspace: WorkspaceId) -> Self {
        Self(Sha256::digest(format!("{GENESIS}{workspace}")).into())
    }

    /// The hash at the next place.
    #[must_use]
    pub fn then(self, event: EventDigest) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(event.0).finalize().into())
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl From<[u8; LEN]> for ChainHash {
    fn from(bytes: [u8; LEN]) -> Self {
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
        let hash: Option<[u8; LEN]> = bytes.try_into().ok();
        hash.map(Self).ok_or_else(|| serde::de::Error::custom("a hash has 64 digits"))
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

/// Events that are sealed together: a piece of a workspace's chain.
#[derive(Debug, Clone)]
pub struct Run {
    /// Whose chain.
    pub workspace_id: WorkspaceId,
    /// The place of its first event; the first of all has 1.
    pub first: i64,
    /// The chain's hash before it.
    pub previous: ChainHash,
    /// Its events, each with the chain's hash after it.
    pub events: Vec<(EventId, ChainHash)>,
}

impl Run {
    /// An empty one, where a chain ends: at this place, with this hash.
    #[must_use]
    pub fn behind(workspace_id: WorkspaceId, sequence: i64, hash: ChainHash) -> Self {
        Self { workspace_id, first: sequence + 1, previous: hash, events: Vec::new() }
    }

    /// The first of a chain.
    #[must_use]
    pub fn genesis(workspace_id: WorkspaceId) -> Self {
        Self::behind(workspace_id, 0, ChainHash::genesis(workspace_id))
    }

    /// Adds an event.
    pub fn push(&mut self, id: EventId, digest: EventDigest) {
        self.events.push((id, self.hash().then(digest)));
    }

    /// The chain's hash after its last event.
    #[must_use]
    pub fn hash(&self) -> ChainHash {
        self.events.last().map_or(self.previous, |(_, hash)| *hash)
    }

    /// The place of its last event.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.first - 1 + i64::try_from(self.events.len()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_chain_is_as_it_is_published() {
        // By `printf 'call2me audit chain v1 ws_00000000000000000000000001' | sha256sum` and so on.
        let genesis = ChainHash::genesis(Uuid::from_u128(1).into());
        assert_eq!(
            genesis.to_string(),
            "b0eb6c69f3745c0a0f9326420724a754238ef0d9470722277e59fa40e9c64829"
        );
        let first = genesis.then(EventDigest::of(b"{}"));
        assert_eq!(
            first.to_string(),
            "67a4208295d23cd8eea0a9702817bccbb5f912161ca596d8c868e8182b19762a"
        );
        assert_ne!(first, genesis.then(EventDigest::of(b"[]")));
    }
}
