//! Files with signed checkpoints of audit logs.

use std::path::Path;

use crate::{
    auth::checkpoints::Checkpoints,
    model::audit::{Checkpoint, SignedCheckpoint},
};

/// Reads the checkpoints of a file: one or more JSON objects. Verifies their signatures.
///
/// # Errors
/// A message for the operator if the file has no checkpoint, or one that is not genuine.
pub(super) fn read(checkpoints: &Checkpoints, path: &Path) -> Result<Vec<Checkpoint>, String> {
    let at = path.display();
    let text = std::fs::read(path).map_err(|error| format!("cannot read {at}: {error}"))?;
    let mut verified = Vec::new();
    for signed in serde_json::Deserializer::from_slice(&text).into_iter::<SignedCheckpoint>() {
        let signed = signed.map_err(|error| format!("{at} is not a checkpoint: {error}"))?;
        verified.push(checkpoints.verify(&signed).map_err(|error| format!("{at}: {error}"))?);
    }
    if verified.is_empty() {
        return Err(format!("{at} is not a checkpoint: it is empty"));
    }
    Ok(verified)
}
