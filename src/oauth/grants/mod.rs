//! Grants: the access of clients to workspaces.
//!
//! [`creation`] creates them, [`connected_apps`] lists and ends them.

pub mod connected_apps;
mod creation;

use super::{OAuth, OAuthError};
use crate::{
    model::{
        oauth::grant::GrantState,
        scope::{Role, Scope},
    },
    store::{self, Tx, oauth_grants::GrantParties},
};

pub(super) use creation::CreateGrantParams;

/// A user's grant, locked in a transaction of its workspace and user.
pub(super) struct LockedGrant {
    pub(super) tx: Tx,
    pub(super) parties: GrantParties,
    pub(super) grant: GrantState,
    /// The maximum scope of the user's current role; `None` if the user is no longer a member.
    pub(super) role_scope: Option<Scope>,
}

impl OAuth {
    /// Locks a user's grant. Returns `None` if the client holds it for itself, or if it was
    /// deleted.
    pub(super) async fn lock_grant(
        &self,
        parties: GrantParties,
    ) -> Result<Option<LockedGrant>, OAuthError> {
        let Some(user) = parties.user_id else { return Ok(None) };
        let workspace = parties.workspace_id;
        let mut tx = self.store.begin(workspace, Some(user)).await?;
        // Lock order: membership first, then the rows that depend on it.
        let role = store::members::lock_role_for_share(&mut tx, workspace, user).await?;
        let grant = store::oauth_grants::lock(&mut tx, workspace, parties.id).await?;
        Ok(grant.map(|grant| LockedGrant { tx, parties, grant, role_scope: role.map(Role::scope) }))
    }
}
