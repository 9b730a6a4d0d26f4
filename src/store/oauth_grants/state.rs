//! The state of a grant at the token endpoint: decodes its columns into a flow and a stage.

use time::OffsetDateTime;

use crate::{
    model::{
        id::{ClientId, GrantId, Id, WorkspaceId},
        oauth::{
            grant::{GrantFlow, GrantStage, GrantState},
            pkce::CodeChallenge,
        },
        scope::Scope,
    },
    store::{StoreError, Tx},
};

/// Returns a user's grant and locks it until the transaction ends, so that requests about it take
/// turns.
///
/// # Errors
/// [`StoreError`] if the query fails.
pub async fn lock(
    tx: &mut Tx,
    workspace: WorkspaceId,
    id: GrantId,
) -> Result<Option<GrantState>, StoreError> {
    let row = sqlx::query!(
        r#"SELECT client_id AS "client_id: ClientId", scope AS "scope: Scope", resources,
                  redirect_uri, code_challenge, redeem_by, redeemed_at, last_used_at, refresh_seed,
                  refresh_generation, ended_at
           FROM oauth_grants WHERE id = $1 AND workspace_id = $2 FOR UPDATE"#,
        id.uuid(),
        workspace.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(row.and_then(|row| {
        let columns = StageColumns {
            redeem_by: row.redeem_by,
            redeemed_at: row.redeemed_at,
            last_used_at: row.last_used_at,
            refresh_generation: row.refresh_generation,
            ended_at: row.ended_at,
        };
        Some(GrantState {
            client_id: row.client_id,
            scope: row.scope,
            resources: row.resources,
            flow: decode_flow(row.redirect_uri, row.code_challenge)?,
            stage: columns.decode()?,
            sealed_seed: row.refresh_seed,
        })
    }))
}

/// Decodes the flow of a grant. `None` if a code lacks its challenge or redirect URI.
fn decode_flow(redirect_uri: Option<String>, challenge: Option<Vec<u8>>) -> Option<GrantFlow> {
    match (redirect_uri, challenge) {
        (Some(redirect_uri), Some(bytes)) => {
            let challenge = CodeChallenge::new(bytes.try_into().ok()?);
            Some(GrantFlow::AuthorizationCode { redirect_uri, challenge })
        }
        (None, None) => Some(GrantFlow::Device),
        _ => None,
    }
}

/// The columns that hold the stage of a grant.
struct StageColumns {
    redeem_by: OffsetDateTime,
    redeemed_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
    refresh_generation: i32,
    ended_at: Option<OffsetDateTime>,
}

impl StageColumns {
    /// Decodes the stage. `None` for columns that no change of a grant leaves: the first tokens set
    /// both `redeemed_at` and `last_used_at`.
    fn decode(self) -> Option<GrantStage> {
        let was_redeemed = self.redeemed_at.is_some();
        match (self.ended_at, self.last_used_at) {
            (Some(_), _) => Some(GrantStage::Ended { was_redeemed }),
            (None, Some(last_used_at)) if was_redeemed => {
                let generation = self.refresh_generation.try_into().ok()?;
                Some(GrantStage::Redeemed { last_used_at, generation })
            }
            (None, None) if !was_redeemed => {
                Some(GrantStage::Approved { redeem_by: self.redeem_by })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_is_decoded_or_refused() {
        let time = OffsetDateTime::UNIX_EPOCH;
        let decode = |is_redeemed: bool, is_used: bool, is_ended: bool| {
            let columns = StageColumns {
                redeem_by: time,
                redeemed_at: is_redeemed.then_some(time),
                last_used_at: is_used.then_some(time),
                refresh_generation: 3,
                ended_at: is_ended.then_some(time),
            };
            columns.decode()
        };
        assert_eq!(decode(false, false, false), Some(GrantStage::Approved { redeem_by: time }));
        let redeemed = GrantStage::Redeemed { last_used_at: time, generation: 3 };
        assert_eq!(decode(true, true, false), Some(redeemed));
        for was_redeemed in [false, true] {
            let ended = Some(GrantStage::Ended { was_redeemed });
            assert_eq!(decode(was_redeemed, was_redeemed, true), ended);
        }
        assert_eq!(decode(true, false, false), None);
        assert_eq!(decode(false, true, false), None);
    }

    #[test]
    fn flow_is_decoded_or_refused() {
        let (uri, bytes) = ("https://c.example/cb".to_owned(), vec![7; 32]);
        let code = decode_flow(Some(uri.clone()), Some(bytes.clone())).unwrap();
        assert_eq!(code.redirect_uri(), Some(uri.as_str()));
        assert_eq!(code.challenge(), Some(&CodeChallenge::new([7; 32])));
        assert_eq!(decode_flow(None, None), Some(GrantFlow::Device));
        assert_eq!(decode_flow(Some(uri.clone()), None), None);
        assert_eq!(decode_flow(None, Some(bytes)), None);
        assert_eq!(decode_flow(Some(uri), Some(vec![7; 31])), None);
    }
}
