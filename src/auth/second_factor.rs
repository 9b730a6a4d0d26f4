//! The second factor of a sign-in: an authenticator's codes, and recovery codes in its stead.
//!
//! Guesses are few: five for a right password, and ten an hour for an account. Only who knows the password
//! comes to guess, so no stranger can use them up.

use std::{sync::Arc, time::Duration};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::{
    Auth, AuthError,
    check_password::UNCONFIRMED,
    login::TokenPair,
    recovery::address_of,
    sessions::{ENDED, own_session},
};
use crate::{
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        email::Email,
        id::{UserId, WorkspaceId},
        mail::MailSubject,
        one_time_token::Purpose,
        password::Password,
        principal::Caller,
        second_factor::STEP_SECONDS,
        session::{EndReason, Which},
        user::User,
    },
    store::{self, Tx, second_factor::Factor},
};

/// How long a challenge can be met.
const CHALLENGE_LIFETIME: Duration = Duration::from_mins(5);
/// How long an authenticator waits for its first code.
const ENROLMENT_LIFETIME: Duration = Duration::from_mins(15);
/// Wrong codes to a challenge, or in place of a first one.
const MAX_WRONG_CODES: i32 = 5;
/// Wrong codes of a person within [`PERIOD`].
const MAX_WRONG_IN_PERIOD: i64 = 10;
const PERIOD: Duration = Duration::from_hours(1);

/// The refusal of a challenge's token, whatever is wrong with it.
const SIGN_IN_AGAIN: AuthError = AuthError::InvalidSecondFactor("sign in again, then give a code");
const SHOW_PASSKEY: AuthError = AuthError::Forbidden(
    "you have a passkey: sign in with it to change what signs you in; who has lost it asks the operator",
);
const WRONG_CODE: AuthError = AuthError::InvalidSecondFactor("the code is wrong");

/// What an authenticator is set up with, shown once.
#[derive(Debug)]
pub struct Enrolment {
    /// The secret, base32.
    pub secret: SecretString,
    /// The same as a URI, of which a QR code is made.
    pub uri: SecretString,
}

impl Auth {
    /// The caller as a person, who stays as they are until the transaction ends, if they may change what signs
    /// them in. The session that asks has to live still; and where a passkey is all that the person has beside
    /// the password, it has to have shown that: the password alone would get round it otherwise.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session or has not shown the passkey,
    /// [`AuthError::InvalidCredential`] for a session that has ended.
    pub(super) async fn lock_to_change_factors(
        &self,
        tx: &mut Tx,
        caller: &Caller,
    ) -> Result<User, AuthError> {
        let (session, user) = own_session(caller)?;
        let person = store::users::lock(tx, user).await?.ok_or(ENDED)?;
        store::sessions::created_at(tx, user, session).await?.ok_or(ENDED)?;
        if !store::second_factor::is_shown(tx, user, session).await? {
            return Err(SHOW_PASSKEY);
        }
        Ok(person)
    }

    /// Whether the caller has shown whatever there is beside the password, and may change it.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn has_shown_factor(&self, caller: &Caller) -> Result<bool, AuthError> {
        let (session, user) = own_session(caller)?;
        let mut tx = self.store.begin_personal(user).await?;
        Ok(store::second_factor::is_shown(&mut tx, user, session).await?)
    }

    /// Begins with an authenticator. Codes are asked for once a first one was shown.
    ///
    /// # Errors
    /// [`AuthError::Conflict`] where there is one, [`AuthError::Forbidden`] for a person who has neither
    /// just signed in nor given the password, or has not shown their passkey, [`AuthError::Invalid`] for a
    /// wrong password.
    pub async fn enrol_totp(
        &self,
        caller: &Caller,
        password: Option<&Password>,
    ) -> Result<Enrolment, AuthError> {
        let (_, user_id) = own_session(caller)?;
        if !self.is_confirmed(caller, password).await? {
            return Err(UNCONFIRMED);
        }
        let (factor, now) = (self.env.new_uuid(), self.env.clock.now());
        let mut tx = self.store.begin_personal(user_id).await?;
        let user = self.lock_to_change_factors(&mut tx, caller).await?;
        if !store::second_factor::start(&mut tx, user_id, factor, now).await? {
            return Err(AuthError::Conflict("there is an authenticator already"));
        }
        tx.commit().await?;
        let secret = self.second_factor_key.secret(factor).to_base32();
        let uri = otpauth_uri(&self.issuer, &user.email, &secret);
        Ok(Enrolment { secret, uri })
    }

    /// Shows a first code of an authenticator, from when on codes are asked for; answers the recovery
    /// codes, this once.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong code, [`AuthError::Conflict`] where nothing is to be confirmed,
    /// [`AuthError::Forbidden`] for who has not shown their passkey.
    pub async fn confirm_totp(
        &self,
        caller: &Caller,
        code: &str,
    ) -> Result<Vec<SecretString>, AuthError> {
        let (session, user_id) = own_session(caller)?;
        let now = self.env.clock.now();
        let mut tx = self.store.begin_personal(user_id).await?;
        // A sign-in under way ends before this, or finds the factor.
        let user = self.lock_to_change_factors(&mut tx, caller).await?;
        let factor = store::second_factor::lock(&mut tx, user_id).await?;
        let factor = factor
            .filter(|factor| !factor.confirmed && now < factor.created_at + ENROLMENT_LIFETIME)
            .filter(|factor| factor.wrong_codes < MAX_WRONG_CODES)
            .ok_or(AuthError::Conflict("there is no authenticator to be confirmed"))?;
        let secret = self.second_factor_key.secret(factor.id);
        let step = secret.matching_step(code, now.unix_timestamp(), factor.last_step);
        let Some(step) = step else {
            store::second_factor::count_wrong_first_code(&mut tx, user_id).await?;
            tx.commit().await?;
            return Err(AuthError::Invalid { field: "code", reason: "code is wrong".to_owned() });
        };
        store::second_factor::accept_step(&mut tx, user_id, step, now).await?;
        let origin = self.origin(&caller.request);
        let subject = MailSubject::SecondFactorAdded { origin };
        self.mail(&mut tx, user.email.clone(), subject).await?;
        self.tell_workspaces(&mut tx, &user, Action::SecondFactorAdded, &caller.request).await?;
        // Other sessions were begun with less; somebody else's may be among them.
        let (others, reason) = (Which::AllBut(session), EndReason::SecondFactorAdded);
        let actor = Actor::from(&*caller.principal);
        self.end_sessions(&mut tx, user_id, others, reason, &actor, &caller.request).await?;
        tx.commit().await?;
        // What is done is done, and the codes are shown this once, also where a node does not answer.
        self.fence.wait().await.ok();
        Ok(self.second_factor_key.recovery_codes(factor.id, 0))
    }

    /// Makes new recovery codes, and those so far worth nothing; answers the new ones, this once.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password, [`AuthError::NotFound`] without an authenticator.
    pub async fn renew_recovery_codes(
        &self,
        caller: &Caller,
        password: &Password,
    ) -> Result<Vec<SecretString>, AuthError> {
        let (_, user_id) = own_session(caller)?;
        let user = self.person(user_id).await?;
        self.check_password(&user, "password", password, &caller.request).await?;
        let mut tx = self.store.begin_personal(user_id).await?;
        self.lock_to_change_factors(&mut tx, caller).await?;
        let renewed = store::second_factor::renew_recovery_codes(&mut tx, user_id).await?;
        let (factor, round) = renewed.ok_or(AuthError::NotFound("authenticator"))?;
        let origin = self.origin(&caller.request);
        let subject = MailSubject::RecoveryCodesRenewed { origin };
        self.mail(&mut tx, user.email.clone(), subject).await?;
        self.tell_workspaces(&mut tx, &user, Action::RecoveryCodesRenewed, &caller.request).await?;
        tx.commit().await?;
        Ok(self.second_factor_key.recovery_codes(factor, round.unsigned_abs()))
    }

    /// Whether the caller has a second factor.
    ///
    /// # Errors
    /// [`AuthError::Forbidden`] for a caller that is no session.
    pub async fn has_second_factor(&self, caller: &Caller) -> Result<bool, AuthError> {
        let (_, user_id) = own_session(caller)?;
        let mut tx = self.store.begin_personal(user_id).await?;
        Ok(store::second_factor::exists(&mut tx, user_id).await?)
    }

    /// Takes the caller's authenticator away.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] for a wrong password, [`AuthError::NotFound`] where there is none,
    /// [`AuthError::Conflict`] where there are passkeys, none of which this session has shown.
    pub async fn remove_totp(&self, caller: &Caller, password: &Password) -> Result<(), AuthError> {
        let (session, user_id) = own_session(caller)?;
        let user = self.person(user_id).await?;
        self.check_password(&user, "password", password, &caller.request).await?;
        let mut tx = self.store.begin_personal(user_id).await?;
        self.lock_to_change_factors(&mut tx, caller).await?;
        if !store::second_factor::remove(&mut tx, user_id).await? {
            return Err(AuthError::NotFound("authenticator"));
        }
        // Nobody is to be left with passkeys that this session cannot change any more.
        if !store::second_factor::is_shown(&mut tx, user_id, session).await? {
            return Err(AuthError::Conflict(
                "you have passkeys: sign in with one first, or take them away",
            ));
        }
        let now = self.env.clock.now();
        store::second_factor::discard_challenges(&mut tx, user_id, now).await?;
        let origin = self.origin(&caller.request);
        let subject = MailSubject::SecondFactorRemoved { origin };
        self.mail(&mut tx, user.email.clone(), subject).await?;
        self.tell_workspaces(&mut tx, &user, Action::SecondFactorRemoved, &caller.request).await?;
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Takes the authenticator and the passkeys of whoever has an address away and ends their sessions, as the
    /// operator does for who has lost them.
    ///
    /// # Errors
    /// [`AuthError::NotFound`] where there are none, [`AuthError::Invalid`] for what is no address.
    pub async fn remove_factors_as_operator(&self, email: &str) -> Result<(), AuthError> {
        let email = Email::parse(email).map_err(|why| AuthError::invalid("email", why))?;
        let account = self.store.find_sign_in(&email).await?;
        let user = account.ok_or(AuthError::NotFound("account"))?.user_id;
        let mut tx = self.store.begin_personal(user).await?;
        let person = store::users::lock(&mut tx, user).await?;
        let person = person.ok_or(AuthError::NotFound("account"))?;
        let now = self.env.clock.now();
        // Somebody else may have the device, and have signed in with it.
        let (all, reason) = (Which::All, EndReason::SecondFactorRemoved);
        let ended = store::sessions::end_of_person(&mut tx, user, all, now, reason).await?;
        store::second_factor::discard_challenges(&mut tx, user, now).await?;
        let mut removed = Vec::new();
        if store::second_factor::remove(&mut tx, user).await? {
            removed.push(Action::SecondFactorRemoved);
        }
        if store::passkeys::remove_all(&mut tx, user).await? {
            removed.push(Action::PasskeyRemoved);
        }
        if removed.is_empty() {
            return Err(AuthError::NotFound("second factor"));
        }
        self.mail(&mut tx, person.email.clone(), MailSubject::FactorsTakenAway).await?;
        let event = |workspace, action| {
            NewEvent::new(self.env.new_id(), workspace, action, Actor::system())
        };
        for (id, workspace) in ended {
            let event = event(workspace, Action::SessionEnded).on(id, None);
            let event = event.with(json!({ "reason": reason.as_str() }));
            tx.enter(workspace).await?;
            store::audit::insert(&mut tx, workspace, &event).await?;
        }
        for membership in store::members::of_person(&mut tx, user).await? {
            let workspace = membership.workspace_id;
            tx.enter(workspace).await?;
            for action in &removed {
                let event = event(workspace, *action).on(user, person.email.clone());
                store::audit::insert(&mut tx, workspace, &event).await?;
            }
        }
        tx.commit().await?;
        Ok(self.fence.wait().await?)
    }

    /// Stores a challenge to a person whose sign-in takes a code; answers its token.
    pub(super) async fn challenge(
        &self,
        tx: &mut Tx,
        user: UserId,
        wanted: Option<WorkspaceId>,
    ) -> Result<SecretString, AuthError> {
        let (id, now) = (self.env.new_uuid(), self.env.clock.now());
        let until = now + CHALLENGE_LIFETIME;
        store::second_factor::insert_challenge(tx, user, id, wanted, now, until).await?;
        Ok(self.token_key.derive(Purpose::SecondFactor, id))
    }

    /// Completes a sign-in by a code of the authenticator, or a recovery code.
    ///
    /// # Errors
    /// [`AuthError::InvalidSecondFactor`] for a wrong code, or a token that does not work;
    /// [`AuthError::TooManyAttempts`] after too many wrong ones.
    pub async fn meet_challenge(
        &self,
        token: &str,
        code: &str,
        request: &Arc<RequestInfo>,
    ) -> Result<TokenPair, AuthError> {
        let id = self.token_key.verify(Purpose::SecondFactor, token).ok_or(SIGN_IN_AGAIN)?;
        let user_id = self.store.find_mfa_challenge(id).await?.ok_or(SIGN_IN_AGAIN)?;
        let user = self.person(user_id).await?;
        let account = self.store.find_sign_in(&address_of(&user.email)?).await?;
        let account = account.ok_or(SIGN_IN_AGAIN)?;
        let now = self.env.clock.now();
        let mut tx = self.store.begin_personal(user_id).await?;
        // The person first, as whoever changes a password has it; and guesses for a person take turns,
        // whatever the challenge.
        store::users::lock(&mut tx, user_id).await?.ok_or(SIGN_IN_AGAIN)?;
        let factor = store::second_factor::lock(&mut tx, user_id).await?;
        // The challenge may be to one that is gone; another that waits for its first code meets none.
        let factor = factor.filter(|factor| factor.confirmed).ok_or(SIGN_IN_AGAIN)?;
        let challenge = store::second_factor::lock_challenge(&mut tx, user_id, id, now).await?;
        let challenge = challenge
            .filter(|challenge| challenge.wrong_codes < MAX_WRONG_CODES)
            .ok_or(SIGN_IN_AGAIN)?;
        let (wrong, first) =
            store::second_factor::wrong_codes(&mut tx, user_id, now - PERIOD).await?;
        if wrong >= MAX_WRONG_IN_PERIOD {
            let left = first.map_or(time::Duration::ZERO, |first| first + PERIOD - now);
            let seconds = u64::try_from(left.whole_seconds()).unwrap_or_default() + 1;
            return Err(AuthError::TooManyAttempts(seconds));
        }
        if !self.accept_code(&mut tx, user_id, &factor, code).await? {
            store::second_factor::count_wrong_code(&mut tx, user_id, id).await?;
            tx.commit().await?;
            self.note_failure(&account, request, "wrong_code", 401).await?;
            return Err(WRONG_CODE);
        }
        store::second_factor::use_challenge(&mut tx, user_id, id, now).await?;
        let pair = self.enter(&mut tx, &account, challenge.workspace, request).await?;
        tx.commit().await?;
        Ok(pair)
    }

    /// Uses a code up, if it is one.
    async fn accept_code(
        &self,
        tx: &mut Tx,
        user: UserId,
        factor: &Factor,
        code: &str,
    ) -> Result<bool, AuthError> {
        let now = self.env.clock.now();
        let secret = self.second_factor_key.secret(factor.id);
        let code = code.trim();
        let step = secret.matching_step(code, now.unix_timestamp(), factor.last_step);
        if let Some(step) = step {
            store::second_factor::accept_step(tx, user, step, now).await?;
            return Ok(true);
        }
        let recovery = self.second_factor_key.find_recovery_code(
            factor.id,
            factor.recovery_round.unsigned_abs(),
            code,
        );
        let unused = |number: &u8| factor.used_recovery_codes & (1 << number) == 0;
        match recovery.filter(unused) {
            Some(number) => {
                store::second_factor::use_recovery_code(tx, user, number).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// The URI of Google Authenticator's "key URI format", which all others read.
fn otpauth_uri(public_url: &str, email: &str, secret: &SecretString) -> SecretString {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let host = public_url.split("//").last().unwrap_or(public_url);
    let (issuer, account, secret) = (encode(host), encode(email), secret.expose_secret());
    format!(
        "otpauth://totp/{issuer}:{account}?secret={secret}&issuer={issuer}&period={STEP_SECONDS}"
    )
    .into()
}
