use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ChainHash;
use crate::model::{id::WorkspaceId, timestamp};

/// What a chain was at one place, for its owner to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Whose chain.
    pub workspace_id: WorkspaceId,
    /// The place: how many events it had.
    pub sequence: i64,
    /// The hash there.
    #[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
    pub hash: ChainHash,
    /// When the event there was sealed; of an empty chain, now.
    #[serde(serialize_with = "timestamp::serialize", deserialize_with = "timestamp::deserialize")]
    pub at: OffsetDateTime,
}

/// A checkpoint, and the proof that this service made it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SignedCheckpoint {
    /// The checkpoint.
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
    /// A JWS in compact form (RFC 7515, section 3.1) whose payload is the checkpoint, by a key of the JWKS that
    /// stays there.
    pub signature: String,
}

/// What the log tells of events that retention has dropped, in the event that it leaves behind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pruned {
    /// All events from before then.
    #[serde(serialize_with = "timestamp::serialize", deserialize_with = "timestamp::deserialize")]
    pub before: OffsetDateTime,
    /// The chain begins behind this place; 0: at its beginning.
    pub sequence: i64,
    /// The hash there.
    pub hash: ChainHash,
}
