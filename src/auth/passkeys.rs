//! Passkeys: registering them, and signing in with one instead of a password and a code.
//!
//! Section numbers refer to Web Authentication Level 3. A challenge is used once;
//! [`crate::model::passkey`] verifies what browsers send.

use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    AuthError,
    context::ServiceContext,
    passwords::{Passwords, REAUTHENTICATION_REQUIRED, parse_stored_email},
    second_factors::{EMAIL_NOT_VERIFIED, SecondFactors},
    sessions::{SessionCredentials, Sessions},
    sign_in::SignIn,
};
use crate::{
    auth::caller::SessionCaller,
    model::{
        audit::{Action, RequestInfo},
        id::{Id, PasskeyId, WorkspaceId},
        mail::EmailKind,
        one_time_token::{BoundTokenPurpose, TokenOwner, TokenPurpose},
        passkey,
        passkey::{Ceremony, Passkey, PasskeyError, RelyingParty},
        password::Password,
        session::SessionEndReason,
        text,
        user::User,
    },
    store::{self, Tx},
};

/// Lifetime of a sign-in challenge. Long, because a sign-in page may stay open for a while.
const SIGN_IN_CHALLENGE_LIFETIME: Duration = Duration::from_mins(30);

/// Lifetime of a registration challenge, which follows a reauthentication. Longer than
/// [`BROWSER_TIMEOUT_MS`]; otherwise a device could keep a passkey that is refused here.
const REGISTRATION_CHALLENGE_LIFETIME: Duration = Duration::from_mins(10);

/// The time that a browser gives the user for the ceremony, in milliseconds (section 15.1).
const BROWSER_TIMEOUT_MS: u32 = 300_000;

/// Maximum number of passkeys of a user.
const MAX_PASSKEYS: usize = 20;

const TOO_MANY_PASSKEYS: AuthError =
    AuthError::Conflict("you have too many passkeys: remove one first");

const PASSKEYS_UNAVAILABLE: AuthError = AuthError::Conflict(
    "passkeys require that this service is reached over HTTPS and under a host name",
);

const PASSKEY_REJECTED: AuthError = AuthError::InvalidSecondFactor(
    "the passkey does not work here; try again, or sign in another way",
);

/// A new credential from a browser, in the format of `PublicKeyCredential.toJSON()`.
#[derive(Debug, Deserialize)]
pub struct RegistrationCredential {
    /// The authenticator's response.
    response: RegistrationResponse,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegistrationResponse {
    #[serde(rename = "clientDataJSON")]
    client_data: String,
    attestation_object: String,
}

/// An assertion from a browser, in the format of `PublicKeyCredential.toJSON()`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthenticationCredential {
    raw_id: String,
    response: AuthenticationResponse,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationResponse {
    #[serde(rename = "clientDataJSON")]
    client_data: String,
    authenticator_data: String,
    signature: String,
    /// Identifies the user, since no user was named before (section 7.2, step 6).
    user_handle: String,
}

impl From<PasskeyError> for AuthError {
    fn from(reason: PasskeyError) -> Self {
        Self::Invalid { field: "credential", reason: format!("credential is not valid: {reason}") }
    }
}

/// Registers passkeys, and signs users in with them.
pub struct Passkeys {
    pub(super) context: Arc<ServiceContext>,
    pub(super) passwords: Arc<Passwords>,
    pub(super) second_factors: Arc<SecondFactors>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) sign_in: Arc<SignIn>,
}

impl Passkeys {
    fn relying_party(&self) -> Result<RelyingParty, AuthError> {
        RelyingParty::from_public_url(&self.context.issuer).ok_or(PASSKEYS_UNAVAILABLE)
    }

    /// Returns the options for a browser to create a passkey
    /// (`PublicKeyCredentialCreationOptionsJSON`).
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the user neither signed in recently nor gave the password, has
    /// not used an existing passkey as required, or has an unverified email address;
    /// [`AuthError::Conflict`] if there are too many passkeys, or this deployment cannot have
    /// passkeys.
    #[tracing::instrument(
        name = "auth.passkeys.registration_options",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn registration_options(
        &self,
        caller: &SessionCaller,
        password: Option<&Password>,
    ) -> Result<Value, AuthError> {
        let (session, user_id) = (caller.session(), caller.user());
        let party = self.relying_party()?;
        if !self.passwords.has_reauthenticated(caller, password).await? {
            return Err(REAUTHENTICATION_REQUIRED);
        }
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        let (user, known) = self.lock_user_to_add(&mut tx, caller).await?;
        let known = known.iter().map(|(_, credential)| descriptor(credential));
        let algorithms = passkey::ALGORITHMS.iter();
        // The challenge is bound to this session; it is not valid in another one.
        let challenge = self.context.token_key.derive_for(
            TokenOwner::Session(session),
            BoundTokenPurpose::PasskeyRegistration,
            self.context.env.new_uuid(),
        );
        Ok(json!({
            "rp": { "id": party.id, "name": party.id },
            "user": {
                "id": passkey::encode_base64url(user_id.uuid().as_bytes()), "name": user.email,
                "displayName": user.display_name(),
            },
            "challenge": challenge.expose_secret(),
            "pubKeyCredParams": algorithms
                .map(|algorithm| json!({ "type": "public-key", "alg": algorithm }))
                .collect::<Vec<_>>(),
            "timeout": BROWSER_TIMEOUT_MS,
            "excludeCredentials": known.collect::<Vec<_>>(),
            "authenticatorSelection": {
                "residentKey": "required", "requireResidentKey": true, "userVerification": "required",
            },
            "attestation": "none",
        }))
    }

    /// Locks the caller's user, checks that another passkey may be added, and returns the existing
    /// ones.
    async fn lock_user_to_add(
        &self,
        tx: &mut Tx,
        caller: &SessionCaller,
    ) -> Result<(User, Vec<(Passkey, Vec<u8>)>), AuthError> {
        let user = self.second_factors.lock_user_for_change(tx, caller).await?;
        if user.email_verified_at.is_none() {
            return Err(EMAIL_NOT_VERIFIED);
        }
        let known = store::passkeys::list(tx, user.id).await?;
        if known.len() >= MAX_PASSKEYS {
            return Err(TOO_MANY_PASSKEYS);
        }
        Ok((user, known))
    }

    /// Registers a passkey that a browser created. The caller's session counts as signed in with
    /// it, and gets the returned credentials.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for an invalid credential; [`AuthError::Conflict`] if it is already
    /// registered; otherwise as [`Self::registration_options`].
    #[tracing::instrument(
        name = "auth.passkeys.register",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn register(
        &self,
        caller: &SessionCaller,
        name: &str,
        credential: &RegistrationCredential,
    ) -> Result<(Passkey, SessionCredentials), AuthError> {
        let (session, user_id) = (caller.session(), caller.user());
        let party = self.relying_party()?;
        let name = text::validate_name("name", name)
            .map_err(|reason| AuthError::invalid("name", reason))?;
        let response = &credential.response;
        let client_data = passkey::decode_base64url(&response.client_data)?;
        let challenge = passkey::verify_client_data(&party, Ceremony::Registration, &client_data)?;
        let challenge = self.context.token_key.verify_for(
            TokenOwner::Session(session),
            BoundTokenPurpose::PasskeyRegistration,
            &challenge,
        );
        let challenge = self.check_challenge_age(challenge, REGISTRATION_CHALLENGE_LIFETIME)?;
        let new = passkey::verify_registration(
            &party,
            &passkey::decode_base64url(&response.attestation_object)?,
        )?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        let (user, _) = self.lock_user_to_add(&mut tx, caller).await?;
        if !store::passkeys::mark_challenge_used(&mut tx, challenge).await? {
            return Err(PasskeyError("the response was already used").into());
        }
        let added = Passkey {
            id: self.context.env.new_id(),
            name,
            created_at: self.context.env.clock.now(),
            last_used_at: None,
        };
        store::passkeys::insert(&mut tx, user_id, &new, &added).await?;
        store::sessions::record_passkey(&mut tx, user_id, session, added.id).await?;
        let subject =
            EmailKind::PasskeyAdded { origin: self.context.request_origin(&caller.request) };
        self.context.enqueue_email(&mut tx, user.email.clone(), subject).await?;
        let audited = self
            .context
            .audit_in_all_workspaces(&mut tx, &user, Action::PasskeyAdded, &caller.request)
            .await?;
        // The other sessions stay: one of them may be the owner's, if a thief adds the passkey, and
        // the only one that can remove it.
        let credentials = self.sessions.replace_credentials(&mut tx, caller).await?;
        let committed = tx.commit(audited).await?;
        // Ignore a fence error: the passkey is committed.
        self.context.fence.wait(committed).await.ok();
        Ok((added, credentials))
    }

    /// Lists the passkeys of the caller's user, newest first.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] if the caller is not a user session.
    #[tracing::instrument(
        name = "auth.passkeys.list",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn list(&self, caller: &SessionCaller) -> Result<Vec<Passkey>, AuthError> {
        let user_id = caller.user();
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        let passkeys = store::passkeys::list(&mut tx, user_id).await?;
        Ok(passkeys.into_iter().map(|(passkey, _)| passkey).collect())
    }

    /// Removes a passkey, and ends the user's other sessions. The caller's session gets the
    /// returned credentials.
    ///
    /// If this session was signed in with that passkey and others remain, the user must sign in
    /// with one of them before changing the sign-in methods again.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] if the user has no such passkey; [`AuthError::Forbidden`] as for
    /// [`Self::registration_options`].
    #[tracing::instrument(
        name = "auth.passkeys.remove",
        level = "debug",
        skip_all,
        fields(workspace = %caller.workspace()),
        err(level = "debug")
    )]
    pub async fn remove(
        &self,
        caller: &SessionCaller,
        id: PasskeyId,
        password: Option<&Password>,
    ) -> Result<SessionCredentials, AuthError> {
        let user_id = caller.user();
        if !self.passwords.has_reauthenticated(caller, password).await? {
            return Err(REAUTHENTICATION_REQUIRED);
        }
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        let user = self.second_factors.lock_user_for_change(&mut tx, caller).await?;
        if !store::passkeys::remove(&mut tx, user_id, id).await? {
            return Err(AuthError::NotFound("passkey"));
        }
        let subject =
            EmailKind::PasskeyRemoved { origin: self.context.request_origin(&caller.request) };
        self.context.enqueue_email(&mut tx, user.email.clone(), subject).await?;
        let audited = self
            .context
            .audit_in_all_workspaces(&mut tx, &user, Action::PasskeyRemoved, &caller.request)
            .await?;
        // The device's holder may have signed in with the passkey and added others.
        let reason = SessionEndReason::PasskeyRemoved;
        let credentials = self.sessions.renew_after_change(&mut tx, caller, reason).await?;
        self.context.fence.wait(tx.commit(audited).await?).await?;
        Ok(credentials)
    }

    /// Returns the options for a browser to sign in any user
    /// (`PublicKeyCredentialRequestOptionsJSON`).
    ///
    /// # Errors
    /// [`AuthError::Conflict`] if this deployment cannot have passkeys.
    pub fn authentication_options(&self) -> Result<Value, AuthError> {
        let id = self.context.env.new_uuid();
        let challenge = self.context.token_key.derive(TokenPurpose::PasskeyAuthentication, id);
        Ok(json!({
            "challenge": challenge.expose_secret(),
            "rpId": self.relying_party()?.id,
            "timeout": BROWSER_TIMEOUT_MS,
            "userVerification": "required",
            "allowCredentials": [],
        }))
    }

    /// Signs in with a passkey. No other factor is required: this takes the device and its
    /// unlocking.
    ///
    /// # Errors
    /// [`AuthError::InvalidSecondFactor`] for an assertion that is not accepted; it does not say
    /// why. [`AuthError::Invalid`] for a malformed one; [`AuthError::Forbidden`] if the user is
    /// not a member of the requested workspace.
    #[tracing::instrument(
        name = "auth.passkeys.sign_in",
        level = "debug",
        skip_all,
        err(level = "debug")
    )]
    pub async fn sign_in(
        &self,
        credential: &AuthenticationCredential,
        requested: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<SessionCredentials, AuthError> {
        let party = self.relying_party()?;
        let response = &credential.response;
        // Decode everything before looking up a user, so that malformed input is always refused in
        // the same way.
        let id = passkey::decode_base64url(&credential.raw_id)?;
        let client_data = passkey::decode_base64url(&response.client_data)?;
        let authenticator_data = passkey::decode_base64url(&response.authenticator_data)?;
        let signature = passkey::decode_base64url(&response.signature)?;
        let user_handle = passkey::decode_base64url(&response.user_handle)?;
        let challenge =
            passkey::verify_client_data(&party, Ceremony::Authentication, &client_data)?;
        let challenge =
            self.context.token_key.verify(TokenPurpose::PasskeyAuthentication, &challenge);
        let challenge = self.check_challenge_age(challenge, SIGN_IN_CHALLENGE_LIFETIME)?;
        let user_id = self.context.store.find_passkey_user(&id).await?.ok_or(PASSKEY_REJECTED)?;
        if user_handle != user_id.uuid().as_bytes() {
            return Err(PASSKEY_REJECTED);
        }
        let user = self.context.user(user_id).await?;
        let account = self.context.store.find_account(&parse_stored_email(&user.email)?).await?;
        let account = account.ok_or(PASSKEY_REJECTED)?;
        let mut tx = self.context.store.begin_for_user(user_id).await?;
        // Lock the user's row first, as account deletion and password reset do.
        store::users::lock(&mut tx, user_id).await?.ok_or(PASSKEY_REJECTED)?;
        let known = store::passkeys::lock(&mut tx, user_id, &id).await?.ok_or(PASSKEY_REJECTED)?;
        let assertion = passkey::verify_assertion(
            &party,
            &known.public_key,
            &client_data,
            &authenticator_data,
            &signature,
        );
        let counter_advanced = |assertion: &passkey::Assertion| {
            let (count, before) = (i64::from(assertion.sign_count), known.sign_count);
            // A counter that does not increase indicates a cloned device (section 6.1.1).
            (count == 0 && before == 0) || count > before
        };
        let assertion = assertion.ok().filter(counter_advanced);
        let assertion =
            assertion.filter(|assertion| assertion.is_backup_eligible == known.backup_eligible);
        let Some(assertion) = assertion else {
            // Release the user's row first: the audit queue may be slow.
            drop(tx);
            self.sign_in.record_failure(&account, request, "bad_passkey", 401).await?;
            return Err(PASSKEY_REJECTED);
        };
        if !store::passkeys::mark_challenge_used(&mut tx, challenge).await? {
            return Err(PASSKEY_REJECTED);
        }
        let now = self.context.env.clock.now();
        store::passkeys::record_use(&mut tx, user_id, known.id, assertion.sign_count, now).await?;
        let (credentials, audited) =
            self.sign_in.complete(&mut tx, &account, requested, request).await?;
        let session = credentials.tokens.session;
        store::sessions::record_passkey(&mut tx, user_id, session, known.id).await?;
        tx.commit(audited).await?.unfenced("a new session, which no node has cached");
        Ok(credentials)
    }

    /// Checks that a challenge was issued here and has not expired. Its id, a UUIDv7, holds its
    /// creation time.
    fn check_challenge_age(
        &self,
        challenge: Option<Uuid>,
        lifetime: Duration,
    ) -> Result<Uuid, AuthError> {
        let id = challenge.ok_or(PasskeyError("the challenge is not one of this service"))?;
        let created_at = id.get_timestamp().map_or(0, |time| time.to_unix().0);
        let age = self.context.env.clock.now().unix_timestamp().saturating_sub_unsigned(created_at);
        if u64::try_from(age).is_ok_and(|age| age > lifetime.as_secs()) {
            return Err(PasskeyError("the challenge has expired").into());
        }
        Ok(id)
    }
}

fn descriptor(credential_id: &[u8]) -> Value {
    json!({ "type": "public-key", "id": passkey::encode_base64url(credential_id) })
}
