//! Grants: the access of clients to workspaces.
//!
//! `creation` creates them, [`connected_apps`] lists and ends them.

pub mod connected_apps;
mod creation;

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;

use super::OAuthError;
use crate::{
    auth::{ServiceContext, passwords::Passwords},
    model::{
        id::GrantId,
        oauth::grant::GrantState,
        refresh_token::{PresentedToken, RefreshKey, RefreshSeed},
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

/// Creates, locks, lists and ends grants.
pub struct Grants {
    pub(super) context: Arc<ServiceContext>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) refresh_key: RefreshKey<GrantId>,
    pub(super) idle_timeout: Duration,
}

impl Grants {
    /// Idle timeout of a grant: after this time without a new token it no longer works.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Locks a user's grant. Returns `None` if the client holds it for itself, or if it was
    /// deleted.
    pub(super) async fn lock(
        &self,
        parties: GrantParties,
    ) -> Result<Option<LockedGrant>, OAuthError> {
        let Some(user) = parties.user_id else { return Ok(None) };
        let workspace = parties.workspace_id;
        let mut tx = self.context.store.begin(workspace, Some(user)).await?;
        // Lock order: membership first, then the rows that depend on it.
        let role = store::members::lock_role_for_share(&mut tx, workspace, user).await?;
        let grant = store::oauth_grants::lock(&mut tx, workspace, parties.id).await?;
        Ok(grant.map(|grant| LockedGrant { tx, parties, grant, role_scope: role.map(Role::scope) }))
    }

    /// Returns the generation of a refresh token of this grant, or `None` if the token is not
    /// genuine.
    pub(super) fn verify_refresh_token(
        &self,
        token: &PresentedToken<GrantId>,
        grant: &GrantState,
    ) -> Option<u32> {
        token.verify(&self.refresh_key, &grant.seed)
    }

    /// Returns a refresh token of a grant.
    pub(super) fn refresh_token(
        &self,
        id: GrantId,
        generation: u32,
        seed: &RefreshSeed,
    ) -> SecretString {
        self.refresh_key.derive(id, generation, seed)
    }
}
