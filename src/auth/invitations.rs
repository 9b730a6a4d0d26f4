//! Invitations: somebody is asked by mail to join a workspace, and does.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    Auth, AuthError,
    check_password::UNCONFIRMED,
    login::TokenPair,
    recovery::{address_of, bad_link},
    sessions::own_session,
};
use crate::{
    audit,
    config::Registration,
    model::{
        audit::{Action, Actor, RequestInfo},
        email::Email,
        id::{Id, InvitationId, WorkspaceId},
        invitation::Invitation,
        mail::MailSubject,
        one_time_token::Purpose,
        page::{Items, Page},
        password::Password,
        principal::Caller,
        scope::Role,
        user::{Membership, User},
    },
    store::{self, Tx},
};

/// How long an invitation can be accepted.
const LIFETIME: Duration = Duration::from_hours(7 * 24);
/// Invitations of a workspace that may be open.
const MAX_OPEN: i64 = 200;
/// Invitations that an address is mailed within a day, by all workspaces.
const MAX_TO_AN_ADDRESS: i64 = 10;

/// What an invitation is about.
#[derive(Debug)]
pub struct Invited {
    /// Who is invited.
    pub email: String,
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its name.
    pub workspace: String,
    /// Whether there is an account with the address.
    pub has_account: bool,
}

/// How a person without an account accepts.
#[derive(Debug)]
pub struct NewMember {
    /// The password to be.
    pub password: Option<Password>,
    /// The person's name.
    pub full_name: Option<String>,
}

impl Auth {
    /// Invites whoever has an address, in the transaction of the request. `confirmed`: it is certainly the
    /// person themselves who asks.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a role above the caller's, and for an owner to be where that is not confirmed; [`AuthError::Conflict`] for somebody who
    /// is a member or invited already, or where there are too many invitations.
    pub async fn invite(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        email: &str,
        role: Role,
        confirmed: bool,
    ) -> Result<Invitation, AuthError> {
        let email = Email::parse(email).map_err(|why| AuthError::invalid("email", why))?;
        let (workspace, now) = (caller.workspace(), self.env.clock.now());
        if role > self.lock_members(tx, caller).await? {
            return Err(AuthError::Forbidden("nobody invites above their own role"));
        }
        if role == Role::Owner && !confirmed {
            return Err(UNCONFIRMED);
        }
        if store::members::has_address(tx, workspace, &email).await? {
            return Err(AuthError::Conflict("the person is a member already"));
        }
        if store::invitations::count(tx, workspace, now).await? >= MAX_OPEN {
            return Err(AuthError::Conflict("too many invitations are open"));
        }
        let day_ago = now - Duration::from_hours(24);
        if store::invitations::count_to(tx, &email, day_ago).await? >= MAX_TO_AN_ADDRESS {
            return Err(AuthError::Conflict("this address was invited too often today"));
        }
        let invitation = Invitation {
            id: self.env.new_id(),
            email: email.as_str().to_owned(),
            role,
            invited_by: caller.principal.subject(),
            created_at: now,
            expires_at: now + LIFETIME,
        };
        store::invitations::insert(tx, workspace, &invitation, &email).await?;
        let event = audit::event(&self.env, caller, Action::InvitationCreated, 201)
            .on(invitation.id, invitation.email.clone())
            .with(json!({ "role": role }));
        store::audit::insert(tx, workspace, &event).await?;
        let named = store::workspaces::get(tx, workspace).await?;
        let workspace = named.ok_or(AuthError::NotFound("workspace"))?.name;
        let subject = MailSubject::Invitation { token: invitation.id.uuid(), workspace };
        self.mail(tx, invitation.email.clone(), subject).await?;
        Ok(invitation)
    }

    /// The open invitations to the caller's workspace, and how many there are.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn invitations(
        &self,
        caller: &Caller,
        page: Page,
    ) -> Result<(Items<Invitation>, i64), AuthError> {
        let (workspace, now) = (caller.workspace(), self.env.clock.now());
        let mut tx = self.store.begin(workspace, None).await?;
        let items = store::invitations::list(&mut tx, workspace, now, page).await?;
        let total = store::invitations::count(&mut tx, workspace, now).await?;
        Ok((items, total))
    }

    /// Withdraws an invitation.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] where it is not open, [`AuthError::Forbidden`] for one above the caller.
    pub async fn withdraw_invitation(
        &self,
        caller: &Caller,
        id: InvitationId,
    ) -> Result<(), AuthError> {
        let (workspace, now) = (caller.workspace(), self.env.clock.now());
        let mut tx = self.store.begin(workspace, None).await?;
        let acting = self.lock_members(&mut tx, caller).await?;
        let open = store::invitations::get(&mut tx, workspace, id, now).await?;
        let open = open.ok_or(AuthError::NotFound("invitation"))?;
        if open.role > acting {
            return Err(AuthError::Forbidden(
                "nobody withdraws an invitation above their own role",
            ));
        }
        if !store::invitations::close(&mut tx, workspace, id, now).await? {
            return Err(AuthError::NotFound("invitation"));
        }
        let event =
            audit::event(&self.env, caller, Action::InvitationRevoked, 204).on(id, open.email);
        store::audit::insert(&mut tx, workspace, &event).await?;
        Ok(tx.commit().await?)
    }

    /// Accepts an invitation, as the person whose session asks: it moves to the workspace.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a token that does not work, [`AuthError::Forbidden`] for the invitation
    /// of somebody else, [`AuthError::Conflict`] for a member.
    pub async fn accept_invitation(
        &self,
        caller: &Caller,
        token: &str,
    ) -> Result<TokenPair, AuthError> {
        let (_, user_id) = own_session(caller)?;
        let user = self.person(user_id).await?;
        let (workspace, id) = self.find_invitation(token).await?;
        let mut tx = self.store.begin(workspace, Some(user_id)).await?;
        let open = self.open_invitation(&mut tx, workspace, id).await?;
        if address_of(&open.email)?.key() != address_of(&user.email)?.key() {
            return Err(AuthError::Forbidden("this invitation is for another address"));
        }
        if store::members::pin_role(&mut tx, workspace, user_id).await?.is_some() {
            return Err(AuthError::Conflict("you are a member already"));
        }
        self.join(&mut tx, workspace, &user, &open, &caller.request).await?;
        let pair = self.move_session(&mut tx, caller, workspace, open.role).await?;
        tx.commit().await?;
        self.fence.wait().await?;
        Ok(pair)
    }

    /// Accepts an invitation as somebody who has no account yet, and signs in. Who has read the mail has
    /// the address.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a token that does not work and for bad values,
    /// [`AuthError::SignInFirst`] where there is an account with the address,
    /// [`AuthError::Forbidden`] where nobody may register.
    pub async fn accept_invitation_anew(
        &self,
        token: &str,
        new: &NewMember,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let (workspace, id) = self.find_invitation(token).await?;
        let mut tx = self.store.begin(workspace, None).await?;
        let now = self.env.clock.now();
        let open = store::invitations::get(&mut tx, workspace, id, now).await?;
        let email = address_of(&open.ok_or_else(bad_link)?.email)?;
        drop(tx);
        if self.store.find_sign_in(&email).await?.is_some() {
            return Err(AuthError::SignInFirst);
        }
        if self.registration == Registration::Closed {
            return Err(AuthError::Forbidden("registration is closed"));
        }
        let user = self.new_user(&email, new.full_name.as_deref())?;
        let password = new.password.as_ref().ok_or_else(|| AuthError::Invalid {
            field: "password",
            reason: "password is required: there is no account with this address yet".to_owned(),
        })?;
        let name = user.full_name.as_deref();
        let hash = self.passwords.hash_chosen("password", password, &email, name).await?;
        let mut tx = self.store.begin(workspace, Some(user.id)).await?;
        let open = self.open_invitation(&mut tx, workspace, id).await?;
        store::users::insert(&mut tx, &user, &email, &hash, workspace).await?;
        self.join(&mut tx, workspace, &user, &open, request).await?;
        let (actor, role) = (Actor::user(&user), open.role);
        let member = Membership { workspace_id: workspace, role };
        let pair = self.open_session(&mut tx, user.id, actor, member, request, 201).await?;
        tx.commit().await?;
        Ok(pair)
    }

    /// What a link invites to, for whoever has it.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a token that does not work.
    pub async fn look_at_invitation(&self, token: &str) -> Result<Invited, AuthError> {
        let (workspace, id) = self.find_invitation(token).await?;
        let mut tx = self.store.begin(workspace, None).await?;
        let now = self.env.clock.now();
        let open = store::invitations::get(&mut tx, workspace, id, now).await?;
        let email = open.ok_or_else(bad_link)?.email;
        let workspace = store::workspaces::get(&mut tx, workspace).await?.ok_or_else(bad_link)?;
        drop(tx);
        let account = self.store.find_sign_in(&address_of(&email)?).await?;
        let (workspace_id, workspace) = (workspace.id, workspace.name);
        Ok(Invited { email, workspace_id, workspace, has_account: account.is_some() })
    }

    async fn find_invitation(&self, token: &str) -> Result<(WorkspaceId, InvitationId), AuthError> {
        let id = self.token_key.verify(Purpose::Invitation, token).ok_or_else(bad_link)?;
        let id = InvitationId::from(id);
        let workspace = self.store.find_invitation(id).await?.ok_or_else(bad_link)?;
        Ok((workspace, id))
    }

    /// An invitation, which this transaction closes. Members stay as they are meanwhile.
    async fn open_invitation(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: InvitationId,
    ) -> Result<Invitation, AuthError> {
        let now = self.env.clock.now();
        store::members::lock(tx, workspace).await?;
        let open = store::invitations::get(tx, workspace, id, now).await?.ok_or_else(bad_link)?;
        if store::invitations::close(tx, workspace, id, now).await? {
            Ok(open)
        } else {
            Err(bad_link())
        }
    }

    async fn join(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        user: &User,
        open: &Invitation,
        request: &Arc<RequestInfo>,
    ) -> Result<(), AuthError> {
        let now = self.env.clock.now();
        store::members::insert(tx, workspace, user.id, open.role, now).await?;
        store::users::set_email_verified(tx, user.id, now).await?;
        let event = self
            .witness(request, workspace, Action::MemberJoined, Actor::user(user), 201)
            .on(user.id, user.email.clone())
            .with(json!({ "role": open.role, "invitation_id": open.id }));
        Ok(store::audit::insert(tx, workspace, &event).await?)
    }
}
