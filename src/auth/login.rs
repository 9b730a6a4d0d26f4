//! Registration and sign-in.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::json;

use super::{Auth, AuthError, password::Verification};
use crate::{
    config::Registration,
    model::{
        address,
        audit::{Action, Actor, NewEvent, RequestInfo},
        email::Email,
        fields::Fields,
        id::{SessionId, UserId, WorkspaceId},
        mail::MailSubject,
        password::Password,
        refresh_token::RefreshSeed,
        scope::Role,
        session::NewSession,
        text,
        user::{Membership, User},
        workspace::Workspace,
    },
    store::{self, Tx, users::SignIn},
};

/// What a person gets for signing in.
#[derive(Debug)]
pub struct TokenPair {
    /// For the API, for an hour.
    pub access_token: SecretString,
    /// For the next pair, once.
    pub refresh_token: SecretString,
    /// The session that they are of.
    pub session: SessionId,
}

/// Who wants to register.
#[derive(Debug)]
pub struct NewAccount {
    /// The address to sign in with.
    pub email: String,
    /// The password.
    pub password: Password,
    /// The person's name.
    pub full_name: Option<String>,
    /// The name of the first workspace.
    pub workspace_name: Option<String>,
}

/// What registration made.
#[derive(Debug)]
pub struct Registered {
    /// Signed in already.
    pub tokens: TokenPair,
    /// The account.
    pub user: User,
    /// Its first workspace.
    pub workspace: Workspace,
}

impl Auth {
    /// Whether anybody may register.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] where not.
    pub fn check_registration(&self) -> Result<(), AuthError> {
        match self.registration {
            Registration::Open => Ok(()),
            Registration::Invite => Err(AuthError::Forbidden("registration takes an invitation")),
            Registration::Closed => Err(AuthError::Forbidden("registration is closed")),
        }
    }

    /// Makes an account and its first workspace, and signs in.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] where registration is not open, [`AuthError::Conflict`] where the
    /// address is known, [`AuthError::Invalid`] for bad values.
    pub async fn register(
        &self,
        account: NewAccount,
        request: &Arc<RequestInfo>,
    ) -> Result<Registered, AuthError> {
        self.check_registration()?;
        let (user, email, workspace) = self.check_account(&account)?;
        let name = user.full_name.as_deref();
        let hash = self.passwords.hash_chosen("password", &account.password, &email, name).await?;
        let mut tx = self.store.begin(workspace.id, Some(user.id)).await?;
        store::users::insert(&mut tx, &user, &email, &hash, workspace.id).await?;
        let (founded, actor) = (Action::WorkspaceCreated, Actor::user(&user));
        let event = self.witness(request, workspace.id, founded, actor, 201);
        self.found(&mut tx, &workspace, user.id, event).await?;
        let owner = Membership { workspace_id: workspace.id, role: Role::Owner };
        let tokens =
            self.open_session(&mut tx, user.id, Actor::user(&user), owner, request, 201).await?;
        self.mail_verification(&mut tx, &user, &email).await?;
        tx.commit().await?;
        Ok(Registered { tokens, user, workspace })
    }

    /// Makes an account and its first workspace without a session, as the operator does.
    ///
    /// # Errors
    /// As [`Self::register`], whoever may register.
    pub async fn create_account(
        &self,
        account: NewAccount,
    ) -> Result<(User, Workspace), AuthError> {
        let (user, email, workspace) = self.check_account(&account)?;
        let name = user.full_name.as_deref();
        let hash = self.passwords.hash_chosen("password", &account.password, &email, name).await?;
        let mut tx = self.store.begin(workspace.id, Some(user.id)).await?;
        store::users::insert(&mut tx, &user, &email, &hash, workspace.id).await?;
        let (founded, id) = (Action::WorkspaceCreated, self.env.new_id());
        let event = NewEvent::new(id, workspace.id, founded, Actor::system());
        self.found(&mut tx, &workspace, user.id, event).await?;
        tx.commit().await?;
        Ok((user, workspace))
    }

    fn check_account(&self, account: &NewAccount) -> Result<(User, Email, Workspace), AuthError> {
        let invalid = AuthError::invalid;
        let email = Email::parse(&account.email).map_err(|why| invalid("email", why))?;
        let user = self.new_user(&email, account.full_name.as_deref())?;
        let workspace_name = match &account.workspace_name {
            Some(name) => {
                text::name("workspace_name", name).map_err(|why| invalid("workspace_name", why))?
            }
            None => first_name(user.display_name()),
        };
        Ok((user, email, self.new_workspace(workspace_name)))
    }

    /// A person to be, whose address is not known to be theirs.
    pub(super) fn new_user(
        &self,
        email: &Email,
        full_name: Option<&str>,
    ) -> Result<User, AuthError> {
        let full_name = full_name.map(|name| text::name("full_name", name)).transpose();
        Ok(User {
            id: self.env.new_id(),
            email: email.as_str().to_owned(),
            full_name: full_name.map_err(|why| AuthError::invalid("full_name", why))?,
            profile: Fields::default(),
            created_at: self.env.clock.now(),
            email_verified_at: None,
        })
    }

    /// Signs a person in, to the workspace asked for, else the one last used, else the oldest.
    ///
    /// # Errors
    /// [`AuthError::InvalidCredentials`] for an unknown address and a wrong password alike,
    /// [`AuthError::TooManyAttempts`] for who guesses, [`AuthError::MfaRequired`] where the sign-in takes a
    /// code, [`AuthError::Forbidden`] for a workspace that the person is no member of.
    pub async fn login(
        &self,
        email: &str,
        password: &Password,
        workspace: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let Ok(email) = Email::parse(email) else {
            // No such account can be. It is hashed all the same, to take the same time.
            self.passwords.verify(password, None).await?;
            return Err(AuthError::InvalidCredentials);
        };
        let (account, verified) = self.verify_password(&email, password, request).await?;
        let Some(account) = account else { return Err(AuthError::InvalidCredentials) };
        if verified == Verification::Wrong {
            self.note_failure(&account, request, "wrong_password", 401).await?;
            return Err(AuthError::InvalidCredentials);
        }
        self.sign_in(&account, password, verified, workspace, request).await
    }

    async fn sign_in(
        &self,
        account: &SignIn,
        password: &Password,
        verified: Verification,
        wanted: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let renewed = match verified {
            Verification::RightButWeak => Some(self.passwords.hash(password).await?),
            _ => None,
        };
        let mut tx = self.store.begin_personal(account.user_id).await?;
        // Another one may have been chosen while this one was verified: what that ended stays so.
        let old = account.password_hash.as_ref().ok_or(AuthError::InvalidCredentials)?;
        if !store::users::pin_password_hash(&mut tx, old, renewed.as_ref()).await? {
            return Err(AuthError::InvalidCredentials);
        }
        // In a statement of its own: the pin may have waited for whoever set it up.
        if store::second_factor::exists(&mut tx, account.user_id).await? {
            let token = self.challenge(&mut tx, account.user_id, wanted).await?;
            tx.commit().await?;
            return Err(AuthError::MfaRequired(token));
        }
        let pair = self.enter(&mut tx, account, wanted, request).await?;
        tx.commit().await?;
        Ok(pair)
    }

    /// Opens a session for who has shown who they are, in a transaction of that person, which is to
    /// commit.
    pub(super) async fn enter(
        &self,
        tx: &mut Tx,
        account: &SignIn,
        wanted: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let memberships = store::members::of_person(tx, account.user_id).await?;
        let is = |id: WorkspaceId| memberships.iter().find(move |m| m.workspace_id == id);
        let membership = match wanted {
            Some(id) => is(id),
            None => account.last_workspace_id.and_then(is).or(memberships.first()),
        };
        let membership = match (membership, wanted) {
            (Some(membership), _) => *membership,
            // Taken out of the last one: nobody is left with an account that opens nothing.
            (None, None) => self.found_first(tx, account, request).await?,
            (None, Some(_)) => {
                self.note_failure(account, request, "not_a_member", 403).await?;
                return Err(AuthError::Forbidden("you are no member of this workspace"));
            }
        };
        let (network, client) = (address::network(request.ip), request.user_agent.as_deref());
        if store::sessions::enter(tx, membership.workspace_id, network, client).await? {
            let subject = MailSubject::NewDevice { origin: self.origin(request) };
            self.mail(tx, account.email.clone(), subject).await?;
        }
        let actor = Actor::person(account.user_id, account.display_name());
        self.open_session(tx, account.user_id, actor, membership, request, 200).await
    }

    /// Makes a workspace for a person who has none, in a transaction of that person.
    async fn found_first(
        &self,
        tx: &mut Tx,
        account: &SignIn,
        request: &Arc<RequestInfo>,
    ) -> Result<Membership, AuthError> {
        let name = first_name(account.full_name.as_deref().unwrap_or(&account.email));
        let workspace = self.new_workspace(name);
        tx.enter(workspace.id).await?;
        let (founded, actor) = (Action::WorkspaceCreated, Actor::system());
        let event = self.witness(request, workspace.id, founded, actor, 200);
        self.found(tx, &workspace, account.user_id, event).await?;
        Ok(Membership { workspace_id: workspace.id, role: Role::Owner })
    }

    /// Stores a session and its event, and makes its first pair of tokens.
    pub(super) async fn open_session(
        &self,
        tx: &mut Tx,
        user: UserId,
        actor: Actor,
        Membership { workspace_id, role }: Membership,
        request: &Arc<RequestInfo>,
        status: u16,
    ) -> Result<TokenPair, AuthError> {
        let now = self.env.clock.now();
        let session = NewSession {
            id: self.env.new_id(),
            user_id: user,
            workspace_id,
            created_at: now,
            expires_at: now + self.lifetimes.session,
            ip: request.ip,
            user_agent: request.user_agent.clone(),
            seed: RefreshSeed::new(self.env.entropy.bytes()),
        };
        store::sessions::insert(tx, &session).await?;
        let event = self
            .witness(request, workspace_id, Action::SessionCreated, actor, status)
            .on(session.id, None);
        store::audit::insert(tx, workspace_id, &event).await?;
        self.token_pair(user, workspace_id, session.id, role, 0, &session.seed)
    }

    pub(super) fn token_pair(
        &self,
        user: UserId,
        workspace: WorkspaceId,
        session: SessionId,
        role: Role,
        generation: u32,
        seed: &RefreshSeed,
    ) -> Result<TokenPair, AuthError> {
        Ok(TokenPair {
            access_token: self.issue_access_token(user, workspace, session, role)?.into(),
            refresh_token: self.refresh_key.derive(session, generation, seed),
            session,
        })
    }

    /// Through the queue, not in a transaction, and without waiting for its commit where durability is
    /// strict: a wrong password must not take longer than an unknown address.
    pub(super) async fn note_failure(
        &self,
        account: &SignIn,
        request: &Arc<RequestInfo>,
        reason: &str,
        status: u16,
    ) -> Result<(), AuthError> {
        let Some(workspace) = account.last_workspace_id else { return Ok(()) };
        let event = self
            .witness(request, workspace, Action::LoginFailed, Actor::anonymous(), status)
            .on(account.user_id, account.email.clone())
            .with(json!({ "reason": reason }));
        self.note(event).await
    }

    /// Has an event written that tells of no change, soon.
    ///
    /// # Errors
    /// [`AuthError::LogFull`].
    pub(crate) async fn note(&self, event: NewEvent) -> Result<(), AuthError> {
        self.audit.reserve().await.ok_or(AuthError::LogFull)?.send(event);
        Ok(())
    }

    /// An event of this request.
    pub(crate) fn witness(
        &self,
        request: &Arc<RequestInfo>,
        workspace: WorkspaceId,
        action: Action,
        actor: Actor,
        status: u16,
    ) -> NewEvent {
        NewEvent::new(self.env.new_id(), workspace, action, actor).in_request(
            request,
            status,
            self.env.clock.monotonic(),
        )
    }
}

/// What a person's first workspace is called, unless it is told.
fn first_name(person: &str) -> String {
    format!("{}'s workspace", text::shorten(person, 80))
}
