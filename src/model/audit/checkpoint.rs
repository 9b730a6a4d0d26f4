//! Checkpoints: signed statements of the end of a hash chain.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::ChainHash;
use crate::model::{id::WorkspaceId, timestamp};

/// The state of an audit log's hash chain at one sequence number. Keep checkpoints outside this
/// service to prove later that the log has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// The workspace of the chain.
    pub workspace_id: WorkspaceId,
    /// The sequence number: how many events the chain had.
    pub sequence: i64,
    /// The chain's hash at this sequence number.
    #[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
    pub hash: ChainHash,
    /// The time at which that event was sealed; the current time for an empty chain.
    #[serde(serialize_with = "timestamp::serialize", deserialize_with = "timestamp::deserialize")]
    pub at: OffsetDateTime,
}

/// A checkpoint with the signature of this service.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SignedCheckpoint {
    /// The checkpoint.
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
    /// A JWS in compact form (RFC 7515, section 3.1) whose payload is the checkpoint. Its key is
    /// in `/.well-known/audit-checkpoint-keys.json` and stays there.
    pub signature: String,
}

/// The metadata of the event [`super::Action::LogPruned`], by which retention records that it
/// dropped events.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PruneRecord {
    /// All events before this time were dropped.
    #[serde(serialize_with = "timestamp::serialize", deserialize_with = "timestamp::deserialize")]
    pub before: OffsetDateTime,
    /// The sequence number after which the remaining chain begins; 0 if no sealed event was
    /// dropped.
    pub sequence: i64,
    /// The chain's hash at this sequence number.
    pub hash: ChainHash,
}
