//! Passkeys: made by who is signed in, and signing in by themselves, without a password or a code.

use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Auth, AuthError, check_password::UNCONFIRMED, login::TokenPair, recovery::address_of,
    sessions::own_session,
};
use crate::{
    model::{
        audit::{Action, Actor, RequestInfo},
        id::{Id, PasskeyId, WorkspaceId},
        mail::MailSubject,
        one_time_token::Purpose,
        passkey::{self, Ceremony, NotAPasskey, Passkey, RelyingParty},
        password::Password,
        principal::Caller,
        session::{EndReason, Which},
        text,
        user::User,
    },
    store::{self, Tx},
};

/// How long a challenge to sign in can be met: the page may have been open for a while.
const LIFETIME: Duration = Duration::from_mins(30);
/// How long a challenge to make one can be met, by who has just shown who they are.
/// Longer than [`PATIENCE`], or a device would keep one that is refused here.
const LIFETIME_TO_MAKE: Duration = Duration::from_mins(10);
/// How long a browser lets a person look for the device, in milliseconds (section 15.1).
const PATIENCE: u32 = 300_000;
/// Passkeys of a person.
const MAX_PASSKEYS: usize = 20;

const TOO_MANY: AuthError = AuthError::Conflict("there are too many passkeys: take one away first");
const UNVERIFIED: AuthError = AuthError::Conflict(
    "passkeys are for a verified address: verify yours first (POST /v1/auth/verify-email/send)",
);
const NO_NAME: AuthError =
    AuthError::Conflict("passkeys need the service to be reached by https under a host's name");
const SIGN_IN_AGAIN: AuthError = AuthError::InvalidSecondFactor(
    "the passkey does not work here; try again, or sign in otherwise",
);

/// What a browser made, as `PublicKeyCredential.toJSON()` has it.
#[derive(Debug, Deserialize)]
pub struct NewCredential {
    /// What the device answered.
    response: RegistrationResponse,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegistrationResponse {
    #[serde(rename = "clientDataJSON")]
    client_data: String,
    attestation_object: String,
}

/// What a passkey signed, as `PublicKeyCredential.toJSON()` has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedCredential {
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
    /// Nobody said who they are before, so the device does (section 7.2, step 6).
    user_handle: String,
}

impl From<NotAPasskey> for AuthError {
    fn from(why: NotAPasskey) -> Self {
        Self::Invalid { field: "credential", reason: format!("credential does not fit: {why}") }
    }
}

impl Auth {
    fn relying_party(&self) -> Result<RelyingParty, AuthError> {
        RelyingParty::of(&self.issuer).ok_or(NO_NAME)
    }

    /// What a browser is asked for to make a passkey (`PublicKeyCredentialCreationOptionsJSON`).
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a person who has neither just signed in nor given the password, or has
    /// not shown the passkey that there is; [`AuthError::Conflict`] for too many, for an address that is not
    /// verified, or where there can be none.
    pub async fn new_passkey_options(
        &self,
        caller: &Caller,
        password: Option<&Password>,
    ) -> Result<Value, AuthError> {
        let (session, user_id) = own_session(caller)?;
        let party = self.relying_party()?;
        if !self.is_confirmed(caller, password).await? {
            return Err(UNCONFIRMED);
        }
        let mut tx = self.store.begin_personal(user_id).await?;
        let (user, known) = self.lock_to_add_passkey(&mut tx, caller).await?;
        let known = known.iter().map(|(_, credential)| descriptor(credential));
        let algorithms = passkey::ALGORITHMS.iter();
        Ok(json!({
            "rp": { "id": party.id, "name": party.id },
            "user": {
                "id": passkey::text(user_id.uuid().as_bytes()), "name": user.email,
                "displayName": user.display_name(),
            },
            // For this session, which has shown whose it is: another's answer is none here.
            "challenge": self
                .token_key
                .derive_for(session.uuid(), Purpose::NewPasskey, self.env.new_uuid())
                .expose_secret(),
            "pubKeyCredParams": algorithms
                .map(|algorithm| json!({ "type": "public-key", "alg": algorithm }))
                .collect::<Vec<_>>(),
            "timeout": PATIENCE,
            "excludeCredentials": known.collect::<Vec<_>>(),
            "authenticatorSelection": {
                "residentKey": "required", "requireResidentKey": true, "userVerification": "required",
            },
            "attestation": "none",
        }))
    }

    /// The caller as a person who may have another passkey, and those that there are.
    async fn lock_to_add_passkey(
        &self,
        tx: &mut Tx,
        caller: &Caller,
    ) -> Result<(User, Vec<(Passkey, Vec<u8>)>), AuthError> {
        let user = self.lock_to_change_factors(tx, caller).await?;
        // Whoever signs up with somebody's address must not be let in once that is verified by its owner.
        if user.email_verified_at.is_none() {
            return Err(UNVERIFIED);
        }
        let known = store::passkeys::list(tx, user.id).await?;
        if known.len() >= MAX_PASSKEYS {
            return Err(TOO_MANY);
        }
        Ok((user, known))
    }

    /// Takes a passkey that a browser made. The session that asks has shown it then.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for one that is none, [`AuthError::Conflict`] for one that somebody has; those
    /// of [`Self::new_passkey_options`].
    pub async fn add_passkey(
        &self,
        caller: &Caller,
        name: &str,
        credential: &NewCredential,
    ) -> Result<Passkey, AuthError> {
        let (session, user_id) = own_session(caller)?;
        let party = self.relying_party()?;
        let name = text::name("name", name).map_err(|why| AuthError::invalid("name", why))?;
        let response = &credential.response;
        let client_data = passkey::bytes(&response.client_data)?;
        let challenge = passkey::challenge(&party, Ceremony::Registration, &client_data)?;
        let challenge = self.token_key.verify_for(session.uuid(), Purpose::NewPasskey, &challenge);
        let challenge = self.in_time(challenge, LIFETIME_TO_MAKE)?;
        let new = passkey::registered(&party, &passkey::bytes(&response.attestation_object)?)?;
        let mut tx = self.store.begin_personal(user_id).await?;
        let (user, _) = self.lock_to_add_passkey(&mut tx, caller).await?;
        if !store::passkeys::meet_challenge(&mut tx, challenge).await? {
            return Err(NotAPasskey("the answer came before").into());
        }
        let made = Passkey {
            id: self.env.new_id(),
            name,
            created_at: self.env.clock.now(),
            last_used_at: None,
        };
        store::passkeys::insert(&mut tx, user_id, &new, &made).await?;
        store::sessions::note_passkey(&mut tx, user_id, session, made.id).await?;
        let subject = MailSubject::PasskeyAdded { origin: self.origin(&caller.request) };
        self.mail(&mut tx, user.email.clone(), subject).await?;
        self.tell_workspaces(&mut tx, &user, Action::PasskeyAdded, &caller.request).await?;
        tx.commit().await?;
        // It is there, also where a node does not answer.
        self.fence.wait().await.ok();
        Ok(made)
    }

    /// The caller's passkeys, the newest first.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn passkeys(&self, caller: &Caller) -> Result<Vec<Passkey>, AuthError> {
        let (_, user_id) = own_session(caller)?;
        let mut tx = self.store.begin_personal(user_id).await?;
        let passkeys = store::passkeys::list(&mut tx, user_id).await?;
        Ok(passkeys.into_iter().map(|(passkey, _)| passkey).collect())
    }

    /// Takes one of the caller's passkeys away, which ends the person's other sessions. If it is the one that this
    /// session has shown, and there are others, what signs in can be changed after signing in with one of these.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] where there is none, [`AuthError::Forbidden`] as for making one.
    pub async fn remove_passkey(
        &self,
        caller: &Caller,
        id: PasskeyId,
        password: Option<&Password>,
    ) -> Result<(), AuthError> {
        let (session, user_id) = own_session(caller)?;
        if !self.is_confirmed(caller, password).await? {
            return Err(UNCONFIRMED);
        }
        let mut tx = self.store.begin_personal(user_id).await?;
        let user = self.lock_to_change_factors(&mut tx, caller).await?;
        if !store::passkeys::remove(&mut tx, user_id, id).await? {
            return Err(AuthError::NotFound("passkey"));
        }
        let subject = MailSubject::PasskeyRemoved { origin: self.origin(&caller.request) };
        self.mail(&mut tx, user.email.clone(), subject).await?;
        self.tell_workspaces(&mut tx, &user, Action::PasskeyRemoved, &caller.request).await?;
        // Whoever has its device may have signed in with it, and have made others there.
        let (others, reason) = (Which::AllBut(session), EndReason::PasskeyRemoved);
        let actor = Actor::from(&*caller.principal);
        self.end_sessions(&mut tx, user_id, others, reason, &actor, &caller.request).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// What a browser is asked for to sign somebody in, whoever it is
    /// (`PublicKeyCredentialRequestOptionsJSON`).
    ///
    /// # Errors
    /// [`AuthError::Conflict`] where there can be no passkeys.
    pub fn passkey_options(&self) -> Result<Value, AuthError> {
        Ok(json!({
            "challenge":
                self.token_key.derive(Purpose::Passkey, self.env.new_uuid()).expose_secret(),
            "rpId": self.relying_party()?.id,
            "timeout": PATIENCE,
            "userVerification": "required",
            "allowCredentials": [],
        }))
    }

    /// Signs in with a passkey. It takes the device and whoever may unlock it, so nothing else is asked.
    ///
    /// # Errors
    /// [`AuthError::InvalidSecondFactor`] for one that does not work, whatever is wrong with it;
    /// [`AuthError::Forbidden`] for a workspace that the person is no member of.
    pub async fn sign_in_by_passkey(
        &self,
        credential: &SignedCredential,
        wanted: Option<WorkspaceId>,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let party = self.relying_party()?;
        let response = &credential.response;
        // All of it is read before anybody is looked up: what is malformed is refused alike.
        let id = passkey::bytes(&credential.raw_id)?;
        let client_data = passkey::bytes(&response.client_data)?;
        let authenticator_data = passkey::bytes(&response.authenticator_data)?;
        let signature = passkey::bytes(&response.signature)?;
        let user_handle = passkey::bytes(&response.user_handle)?;
        let challenge = passkey::challenge(&party, Ceremony::Authentication, &client_data)?;
        let challenge = self.token_key.verify(Purpose::Passkey, &challenge);
        let challenge = self.in_time(challenge, LIFETIME)?;
        let user_id = self.store.find_passkey(&id).await?.ok_or(SIGN_IN_AGAIN)?;
        if user_handle != user_id.uuid().as_bytes() {
            return Err(SIGN_IN_AGAIN);
        }
        let user = self.person(user_id).await?;
        let account = self.store.find_sign_in(&address_of(&user.email)?).await?;
        let account = account.ok_or(SIGN_IN_AGAIN)?;
        let mut tx = self.store.begin_personal(user_id).await?;
        // The person first, as whoever deletes an account or resets a password has it.
        store::users::lock(&mut tx, user_id).await?.ok_or(SIGN_IN_AGAIN)?;
        let known = store::passkeys::lock(&mut tx, user_id, &id).await?.ok_or(SIGN_IN_AGAIN)?;
        let said = passkey::asserted(
            &party,
            &known.public_key,
            &client_data,
            &authenticator_data,
            &signature,
        );
        let counts = |said: &passkey::Assertion| {
            let (count, before) = (i64::from(said.sign_count), known.sign_count);
            // One that counts and does not go on is a copy (section 6.1.1).
            (count == 0 && before == 0) || count > before
        };
        let said = said.ok().filter(counts);
        let said = said.filter(|said| said.is_backup_eligible == known.backup_eligible);
        let Some(said) = said else {
            // The log may be slow to take it: nobody is to wait for this person's row meanwhile.
            drop(tx);
            self.note_failure(&account, request, "bad_passkey", 401).await?;
            return Err(SIGN_IN_AGAIN);
        };
        if !store::passkeys::meet_challenge(&mut tx, challenge).await? {
            return Err(SIGN_IN_AGAIN);
        }
        let now = self.env.clock.now();
        store::passkeys::note_use(&mut tx, user_id, known.id, said.sign_count, now).await?;
        let pair = self.enter(&mut tx, &account, wanted, request).await?;
        store::sessions::note_passkey(&mut tx, user_id, pair.session, known.id).await?;
        tx.commit().await?;
        Ok(pair)
    }

    /// The id of a challenge of ours, which holds its time, while it can be met.
    fn in_time(&self, challenge: Option<Uuid>, lifetime: Duration) -> Result<Uuid, AuthError> {
        let id = challenge.ok_or(NotAPasskey("the answer is to no question of ours"))?;
        let made = id.get_timestamp().map_or(0, |made| made.to_unix().0);
        let age = self.env.clock.now().unix_timestamp().saturating_sub_unsigned(made);
        if u64::try_from(age).is_ok_and(|age| age > lifetime.as_secs()) {
            return Err(NotAPasskey("the answer comes too late").into());
        }
        Ok(id)
    }
}

fn descriptor(credential_id: &[u8]) -> Value {
    json!({ "type": "public-key", "id": passkey::text(credential_id) })
}
