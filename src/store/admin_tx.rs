use std::ops::{Deref, DerefMut};

use ipnet::IpNet;

use super::{StoreError, Tx, api_keys, members, oauth_grants, sessions};
use crate::model::{
    principal::{Caller, Credential},
    scope::{Role, Scope},
    session::PresentedSession,
};

/// A transaction that may change what administrators manage: the API keys, OAuth clients, members,
/// invitations and settings of a workspace.
///
/// The functions that change these take it. [`AdminTx::lock`] checks the rights of the caller of a
/// request again, after it has locked the workspace: the caller may have lost them since
/// authentication. While the lock is held, no other request changes them.
///
/// ```
/// use call2me_auth::{
///     model::{fields::Fields, principal::Caller},
///     store::{AdminLockError, AdminTx, Tx, workspaces},
/// };
///
/// async fn rename(mut tx: Tx, caller: &Caller, fields: &Fields) -> Result<(), AdminLockError> {
///     let (mut admin, _) = AdminTx::lock(&mut tx, caller).await?;
///     workspaces::set_branding(&mut admin, caller.workspace(), fields).await?;
///     Ok(())
/// }
/// ```
///
/// A forgotten check does not compile:
///
/// ```compile_fail,E0308
/// use call2me_auth::{
///     model::{fields::Fields, principal::Caller},
///     store::{AdminLockError, Tx, workspaces},
/// };
///
/// async fn rename(mut tx: Tx, caller: &Caller, fields: &Fields) -> Result<(), AdminLockError> {
///     workspaces::set_branding(&mut tx, caller.workspace(), fields).await?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct AdminTx<'tx>(&'tx mut Tx);

/// The rights of a caller at the time of its change.
#[derive(Debug, Clone)]
pub struct AdminRights {
    /// The current role of the caller's user. For an API key, and for a client that acts for
    /// itself, admin.
    pub role: Role,
    /// The networks that the caller's key is restricted to. Empty if it is not restricted, or if
    /// the caller is no key.
    pub networks: Vec<IpNet>,
}

/// The reason why a caller may not change a workspace, or not any more.
#[derive(Debug)]
pub enum AdminLockError {
    /// The user is not a member of the workspace, or the workspace was deleted.
    NotAMember,
    /// The session has ended, or its credentials were replaced.
    SessionEnded,
    /// The API key is revoked or disabled.
    KeyNotActive,
    /// The grant has ended, or its access token was revoked.
    GrantEnded,
    /// The API key may not be used from the address of the request.
    AddressNotAllowed,
    /// The workspace requires a second factor that the user has not set up.
    MissingSecondFactor,
    /// The scope that the caller has is below admin.
    InsufficientScope(Scope),
    /// A database error.
    Store(StoreError),
}

impl From<StoreError> for AdminLockError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl<'tx> AdminTx<'tx> {
    /// Locks the workspace of a caller until the transaction ends, and checks that the caller still
    /// has the admin scope in it. `tx` must belong to that workspace.
    ///
    /// # Errors
    /// [`AdminLockError`] if the caller has lost its access or its scope.
    pub async fn lock(
        tx: &'tx mut Tx,
        caller: &Caller,
    ) -> Result<(Self, AdminRights), AdminLockError> {
        if !members::lock_workspace(tx, caller.workspace()).await? {
            return Err(AdminLockError::NotAMember);
        }
        let rights = current_rights(tx, caller).await?;
        let scope = caller.principal.scope.min(rights.role.scope());
        if scope < Scope::Admin {
            return Err(AdminLockError::InsufficientScope(scope));
        }
        Ok((Self(tx), rights))
    }

    /// Allows changes that no administrator requests, such as those of the operator. The reason is
    /// for readers of the code.
    pub fn exempt(tx: &'tx mut Tx, _reason: &'static str) -> Self {
        Self(tx)
    }
}

impl Deref for AdminTx<'_> {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        self.0
    }
}

impl DerefMut for AdminTx<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        self.0
    }
}

/// Reads the rights of a caller in a transaction that has locked the workspace.
///
/// Sessions and grants are not locked. Every transaction locks memberships first, then users, then
/// sessions, so that no two wait for each other. This one may still have to lock a user.
async fn current_rights(tx: &mut Tx, caller: &Caller) -> Result<AdminRights, AdminLockError> {
    let workspace = caller.workspace();
    let (user, lacks_second_factor) = match &caller.principal.credential {
        Credential::ApiKey { id, .. } => {
            let networks = api_keys::lock_for_share(tx, workspace, *id).await?;
            let networks = networks.ok_or(AdminLockError::KeyNotActive)?;
            let is_allowed = |network: &IpNet| network.contains(&caller.request.ip);
            if !networks.is_empty() && !networks.iter().any(is_allowed) {
                return Err(AdminLockError::AddressNotAllowed);
            }
            return Ok(AdminRights { role: Role::Admin, networks });
        }
        Credential::Session { id, user_id, credential_generation, .. } => {
            let credential_generation = *credential_generation;
            let session = PresentedSession { id: *id, credential_generation };
            let lacks = sessions::lacks_second_factor_if_active(tx, session).await?;
            (Some(*user_id), lacks.ok_or(AdminLockError::SessionEnded)?)
        }
        Credential::Grant { id, token_id, user, .. } => {
            let lacks = oauth_grants::lacks_second_factor_if_active(tx, workspace, *id, *token_id);
            (user.map(|(user, _)| user), lacks.await?.ok_or(AdminLockError::GrantEnded)?)
        }
    };
    let role = match user {
        Some(user) => {
            let role = members::lock_role_for_share(tx, workspace, user).await?;
            role.ok_or(AdminLockError::NotAMember)?
        }
        None => Role::Admin,
    };
    if lacks_second_factor {
        return Err(AdminLockError::MissingSecondFactor);
    }
    Ok(AdminRights { role, networks: Vec::new() })
}
