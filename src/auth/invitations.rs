//! Invitations to a workspace, sent by email.
//!
//! An invitation is accepted once, only by its email address, and never grants a role above the
//! inviter's.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    AuthError,
    accounts::Accounts,
    context::ServiceContext,
    members::{require_settled_account, require_unrestricted},
    passwords::{Passwords, REAUTHENTICATION_REQUIRED, invalid_link, parse_stored_email},
    sessions::{SessionCredentials, Sessions, TokenPair},
};
use crate::{
    audit,
    auth::caller::{AdminCaller, SessionCaller},
    config::Registration,
    model::{
        audit::{Action, Actor, RequestInfo},
        email::Email,
        id::{Id, InvitationId, WorkspaceId},
        invitation::Invitation,
        mail::EmailKind,
        one_time_token::{BoundTokenPurpose, TokenOwner, unverified_id},
        page::{ListPage, PageRequest},
        password::Password,
        principal::Caller,
        scope::{Role, Scope},
        user::{Membership, User},
    },
    store::{self, AdminTx, Audited, Tx},
};

/// Lifetime of an invitation.
pub(super) const INVITATION_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// Maximum number of open invitations of a workspace.
const MAX_OPEN_INVITATIONS: i64 = 200;

/// Maximum number of invitations of a workspace per day, also if they are revoked.
const MAX_PER_WORKSPACE_AND_DAY: i64 = 100;

/// Maximum number of invitations of a user or API key per day, to all workspaces.
const MAX_PER_INVITER_AND_DAY: i64 = 50;

/// Maximum number of invitations of a workspace to one address per day, also if they are revoked.
const MAX_PER_WORKSPACE_ADDRESS_AND_DAY: i64 = 3;

/// Number of invitations to one address per day, from all workspaces, above which no further one is
/// emailed.
const MAX_EMAILS_PER_ADDRESS_AND_DAY: i64 = 10;

/// The content of an invitation, shown before it is accepted.
#[derive(Debug)]
pub struct InvitationPreview {
    /// The invited email address.
    pub email: String,
    /// The workspace's id.
    pub workspace_id: WorkspaceId,
    /// The workspace's name.
    pub workspace: String,
    /// True if the address is already registered.
    pub has_account: bool,
}

/// The details of a new user that accepts an invitation.
#[derive(Debug)]
pub struct NewMember {
    /// The chosen password.
    pub password: Option<Password>,
    /// The user's name.
    pub full_name: Option<String>,
}

/// Invitations to workspaces.
pub struct Invitations {
    pub(super) context: Arc<ServiceContext>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) registration: Registration,
    pub(super) accounts: Arc<Accounts>,
    pub(super) sessions: Arc<Sessions>,
}

impl Invitations {
    /// Invites an email address to the caller's workspace, in the request's transaction.
    /// `is_confirmed` says that the caller has reauthenticated, which inviting an owner requires.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a role above the caller's, for an owner without confirmation or
    /// by an account that may still be reclaimed, without a verified address, or for a key that is
    /// restricted to networks;
    /// [`AuthError::Conflict`] if the user is already a member or invited, or if there are too many
    /// invitations.
    #[tracing::instrument(
        name = "auth.invitations.create",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn create(
        &self,
        tx: &mut Tx,
        caller: &AdminCaller,
        email: &str,
        role: Role,
        is_confirmed: bool,
    ) -> Result<(Invitation, Audited), AuthError> {
        let email = Email::parse(email).map_err(|reason| AuthError::invalid("email", reason))?;
        let (workspace, now) = (caller.workspace(), self.context.env.clock.now());
        let (mut admin, rights) = AdminTx::lock(tx, caller).await?;
        let tx = &mut admin;
        if role > rights.role {
            return Err(AuthError::Forbidden("you cannot invite to a role above your own"));
        }
        if role == Role::Owner && !is_confirmed {
            return Err(REAUTHENTICATION_REQUIRED);
        }
        require_unrestricted(&rights)?;
        self.require_verified_inviter(tx, caller).await?;
        if role == Role::Owner {
            require_settled_account(tx, caller, now).await?;
        }
        if store::members::has_member_with_email(tx, workspace, &email).await? {
            return Err(AuthError::Conflict("this user is already a member"));
        }
        if store::invitations::count(tx, workspace, now).await? >= MAX_OPEN_INVITATIONS {
            return Err(AuthError::Conflict("this workspace has too many open invitations"));
        }
        let day_ago = now - Duration::from_hours(24);
        let inviter = caller.principal.subject();
        if store::invitations::count_since(tx, workspace, day_ago).await?
            >= MAX_PER_WORKSPACE_AND_DAY
            || store::invitations::count_by_inviter(tx, workspace, &inviter, day_ago).await?
                >= MAX_PER_INVITER_AND_DAY
        {
            return Err(AuthError::Conflict(
                "too many invitations were sent today; try again tomorrow",
            ));
        }
        if store::invitations::count_to_email(tx, workspace, &email, day_ago).await?
            >= MAX_PER_WORKSPACE_ADDRESS_AND_DAY
        {
            return Err(AuthError::Conflict(
                "this email address was invited too often today; try again tomorrow",
            ));
        }
        let invitation = Invitation {
            id: self.context.env.new_id(),
            email: email.as_str().to_owned(),
            role,
            invited_by: inviter,
            created_at: now,
            expires_at: now + INVITATION_LIFETIME,
        };
        // Counted before the insert. Invitations of other workspaces must neither prevent this one
        // nor show in the response, so only the email is left out.
        let is_emailed = store::invitations::count_by_email(tx, &email, day_ago).await?
            < MAX_EMAILS_PER_ADDRESS_AND_DAY;
        let inviter_key = caller.principal.api_key();
        store::invitations::insert(tx, workspace, &invitation, &email, inviter_key).await?;
        let event = audit::event(&self.context.env, caller, Action::InvitationCreated, 201)
            .with_target(invitation.id, invitation.email.clone())
            .with_metadata(json!({ "role": role }));
        let audited = store::audit::insert(tx, workspace, &event).await?;
        let row = store::workspaces::get(tx, workspace).await?;
        let workspace = row.ok_or(AuthError::NotFound("workspace"))?.name;
        let subject = EmailKind::Invitation { token: invitation.id.uuid(), workspace };
        if is_emailed {
            self.context.enqueue_email(tx, invitation.email.clone(), subject).await?;
        }
        if inviter_key.is_some() && role.scope() == Scope::Admin {
            self.email_owners(tx, caller, &invitation.email).await?;
        }
        Ok((invitation, audited))
    }

    /// Emails the workspace's owners that an API key has invited an administrator.
    async fn email_owners(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        email: &str,
    ) -> Result<(), AuthError> {
        let origin = self.context.request_origin(&caller.request);
        let subject = |workspace| EmailKind::AdminInvitation {
            email: email.to_owned(),
            workspace,
            by: caller.principal.name().to_string(),
            origin: origin.clone(),
        };
        self.context.email_owners(tx, caller.workspace(), subject).await
    }

    /// Requires that the address of the caller's user is verified or, for an API key, that of an
    /// owner of the workspace: others must not make the service send emails to strangers.
    async fn require_verified_inviter(
        &self,
        tx: &mut Tx,
        caller: &AdminCaller,
    ) -> Result<(), AuthError> {
        let is_verified = match caller.principal.session() {
            Some((_, user)) => {
                let user = store::users::get(tx, user).await?;
                user.is_some_and(|user| user.email_verified_at.is_some())
            }
            None => store::members::has_verified_owner(tx, caller.workspace()).await?,
        };
        if is_verified {
            return Ok(());
        }
        Err(AuthError::Forbidden("verify your email address before you invite others"))
    }

    /// Lists the open invitations to the caller's workspace, and counts them.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    #[tracing::instrument(
        name = "auth.invitations.list",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn list(
        &self,
        caller: &Caller,
        page: PageRequest,
    ) -> Result<(ListPage<Invitation>, i64), AuthError> {
        let (workspace, now) = (caller.workspace(), self.context.env.clock.now());
        let mut tx = self.context.store.begin_for(caller).await?;
        let items = store::invitations::list(&mut tx, workspace, now, page).await?;
        let total = store::invitations::count(&mut tx, workspace, now).await?;
        Ok((items, total))
    }

    /// Revokes an invitation.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if it is not open; [`AuthError::Forbidden`] if its role is above the
    /// caller's.
    #[tracing::instrument(
        name = "auth.invitations.revoke",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn revoke(&self, caller: &AdminCaller, id: InvitationId) -> Result<(), AuthError> {
        let (workspace, now) = (caller.workspace(), self.context.env.clock.now());
        let mut tx = self.context.store.begin_for(caller).await?;
        let (mut admin, rights) = AdminTx::lock(&mut tx, caller).await?;
        let invitation = store::invitations::get(&mut admin, workspace, id, now).await?;
        let invitation = invitation.ok_or(AuthError::NotFound("invitation"))?;
        if invitation.role > rights.role {
            return Err(AuthError::Forbidden(
                "you cannot revoke an invitation to a role above your own",
            ));
        }
        if !store::invitations::close(&mut admin, workspace, id, now).await? {
            return Err(AuthError::NotFound("invitation"));
        }
        let event = audit::event(&self.context.env, caller, Action::InvitationRevoked, 204)
            .with_target(id, invitation.email);
        let audited = store::audit::insert(&mut admin, workspace, &event).await?;
        tx.commit(audited).await?.unfenced("no node caches invitations");
        Ok(())
    }

    /// Accepts an invitation as the caller's user, and moves the caller's session to the workspace.
    /// This verifies the email address, since the token was sent there.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for an invalid token; [`AuthError::Forbidden`] if the invitation is
    /// for another address; [`AuthError::Conflict`] if the user is already a member.
    #[tracing::instrument(
        name = "auth.invitations.accept",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn accept(
        &self,
        caller: &SessionCaller,
        token: &str,
    ) -> Result<TokenPair, AuthError> {
        let user_id = caller.user();
        let user = self.context.user(user_id).await?;
        let (workspace, id, invitee) = self.verify_token(token).await?;
        // Before the transaction: no other user enters the workspace, or waits for it.
        if invitee.normalized() != parse_stored_email(&user.email)?.normalized() {
            return Err(AuthError::Forbidden("this invitation is for another email address"));
        }
        let mut tx = self.context.store.begin_joining(workspace, user_id).await?;
        let invitation = self.lock(&mut tx, workspace, id).await?;
        if store::members::lock_role_for_share(&mut tx, workspace, user_id).await?.is_some() {
            return Err(AuthError::Conflict("you are already a member of this workspace"));
        }
        let audited =
            self.add_member(&mut tx, workspace, &user, &invitation, &caller.request).await?;
        if store::users::set_email_verified(&mut tx, user_id, self.context.env.clock.now()).await? {
            self.context
                .audit_in_all_workspaces(&mut tx, &user, Action::EmailVerified, &caller.request)
                .await?;
        }
        let (pair, _) = self.sessions.move_to(&mut tx, caller, workspace, invitation.role).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(pair)
    }

    /// Registers a new user with an invitation, and signs the user in. This verifies the email
    /// address, since the token was sent there.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for an invalid token or invalid values; [`AuthError::SignInRequired`]
    /// if the address is already registered; [`AuthError::Forbidden`] if registration is
    /// closed.
    #[tracing::instrument(
        name = "auth.invitations.accept_with_new_account",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn accept_with_new_account(
        &self,
        token: &str,
        new: &NewMember,
        request: &Arc<RequestInfo>,
    ) -> Result<SessionCredentials, AuthError> {
        let (workspace, id, email) = self.verify_token(token).await?;
        let now = self.context.env.clock.now();
        if self.context.store.find_account(&email).await?.is_some() {
            return Err(AuthError::SignInRequired);
        }
        if self.registration == Registration::Closed {
            return Err(AuthError::Forbidden("registration is closed"));
        }
        let user = self.accounts.build(&email, new.full_name.as_deref())?;
        let password = new.password.as_ref().ok_or_else(|| AuthError::Invalid {
            field: "password",
            reason: "password is required: this email address has no account yet".to_owned(),
        })?;
        let name = user.full_name.as_deref();
        let hash =
            self.passwords.hasher.hash_new_password("password", password, &email, name).await?;
        let mut tx = self.context.store.begin_joining(workspace, user.id).await?;
        let invitation = self.lock(&mut tx, workspace, id).await?;
        store::users::insert(&mut tx, &user, &email, &hash, workspace).await?;
        let audited = self.add_member(&mut tx, workspace, &user, &invitation, request).await?;
        store::users::set_email_verified(&mut tx, user.id, now).await?;
        let (actor, role) = (Actor::user(&user), invitation.role);
        let member = Membership { workspace_id: workspace, role };
        let (credentials, _) =
            self.sessions.create(&mut tx, user.id, actor, member, request, 201).await?;
        tx.commit(audited).await?.unfenced("a new session, which no node has cached");
        Ok(credentials)
    }

    /// Returns the content of an invitation, for the page that a mailed link opens.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for an invalid token.
    #[tracing::instrument(
        name = "auth.invitations.preview",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn preview(&self, token: &str) -> Result<InvitationPreview, AuthError> {
        let (workspace, id, _) = self.verify_token(token).await?;
        let mut tx = self.context.store.begin(workspace, None).await?;
        let now = self.context.env.clock.now();
        let invitation = store::invitations::get_acceptable(&mut tx, workspace, id, now).await?;
        let email = invitation.ok_or_else(invalid_link)?.email;
        let workspace =
            store::workspaces::get(&mut tx, workspace).await?.ok_or_else(invalid_link)?;
        drop(tx);
        let account = self.context.store.find_account(&parse_stored_email(&email)?).await?;
        let (workspace_id, workspace) = (workspace.id, workspace.name);
        Ok(InvitationPreview { email, workspace_id, workspace, has_account: account.is_some() })
    }

    /// Verifies the token of an open invitation, and returns it with its workspace and address.
    /// Afterwards a transaction may belong to that workspace, which a former member with an old
    /// link must not enter.
    async fn verify_token(
        &self,
        token: &str,
    ) -> Result<(WorkspaceId, InvitationId, Email), AuthError> {
        let id = unverified_id(token).ok_or_else(invalid_link)?;
        let invited = self.context.store.find_invitation(InvitationId::from(id)).await?;
        let now = self.context.env.clock.now();
        let invited = invited.filter(|invited| invited.open_until.is_some_and(|end| end > now));
        let invited = invited.ok_or_else(invalid_link)?;
        let email = parse_stored_email(&invited.email)?;
        let owner = TokenOwner::Invitee(invited.workspace, &email);
        let verified =
            self.context.token_key.verify_for(owner, BoundTokenPurpose::Invitation, token);
        Ok((invited.workspace, verified.ok_or_else(invalid_link)?.into(), email))
    }

    /// Returns an invitation that can be accepted. Locks the workspace until the transaction ends,
    /// and with it the state of an inviting key, so that concurrent calls take turns.
    async fn lock(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        id: InvitationId,
    ) -> Result<Invitation, AuthError> {
        let now = self.context.env.clock.now();
        store::members::lock_workspace(tx, workspace).await?;
        let invitation = store::invitations::get_acceptable(tx, workspace, id, now).await?;
        invitation.ok_or_else(invalid_link)
    }

    /// Makes the transaction's user a member, and closes the invitation.
    async fn add_member(
        &self,
        tx: &mut Tx,
        workspace: WorkspaceId,
        user: &User,
        invitation: &Invitation,
        request: &Arc<RequestInfo>,
    ) -> Result<Audited, AuthError> {
        let now = self.context.env.clock.now();
        if !store::invitations::accept(tx, invitation, now).await? {
            return Err(invalid_link());
        }
        let event = self
            .context
            .audit_event(request, workspace, Action::MemberJoined, Actor::user(user), 201)
            .with_target(user.id, user.email.clone())
            .with_metadata(json!({ "role": invitation.role, "invitation_id": invitation.id }));
        Ok(store::audit::insert(tx, workspace, &event).await?)
    }
}
