//! Grants: the access of clients to workspaces.
//!
//! `creation` creates them, [`connected_apps`] lists and ends them.

pub mod connected_apps;
mod creation;

use std::{sync::Arc, time::Duration};

use super::OAuthError;
use crate::{
    auth::{AuthError, ServiceContext, passwords::Passwords, sealing::SealingKeys},
    model::{
        id::{GrantId, Id},
        oauth::grant::GrantState,
        refresh_token::RefreshSeed,
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
    /// The seed of the grant's refresh tokens.
    pub(super) seed: RefreshSeed,
    /// The maximum scope of the user's current role; `None` if the user is no longer a member.
    pub(super) role_scope: Option<Scope>,
}

/// Creates, locks, lists and ends grants.
pub struct Grants {
    pub(super) context: Arc<ServiceContext>,
    pub(super) passwords: Arc<Passwords>,
    /// Encrypts the seeds of refresh tokens.
    pub(super) seed_sealing: SealingKeys,
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
        // The client presents the token, and the user may have left: without the user's context.
        let mut tx = self.context.store.begin(workspace, None).await?;
        // Lock order: membership first, then the rows that depend on it.
        let role = store::members::lock_role_for_share(&mut tx, workspace, user).await?;
        let grant = store::oauth_grants::lock(&mut tx, workspace, parties.id).await?;
        let Some(grant) = grant else { return Ok(None) };
        let context = parties.id.uuid();
        let seed = self.seed_sealing.open_stored(context.as_bytes(), &grant.sealed_seed)?;
        let (seed, role_scope) = (RefreshSeed::new(seed), role.map(Role::scope));
        Ok(Some(LockedGrant { tx, parties, grant, seed, role_scope }))
    }

    /// Creates the seed of a grant's refresh tokens, in its sealed form.
    pub(super) fn generate_seed(&self, id: GrantId) -> Result<Vec<u8>, AuthError> {
        let (_, sealed) = self.seed_sealing.generate(&self.context.env, id.uuid().as_bytes())?;
        Ok(sealed)
    }
}
