//! Email: writes and sends the emails in the email outbox.
//!
//! An action puts its email into the outbox in its own transaction (`store::email_outbox`), so the
//! email is sent if and only if the action is committed. One task per node empties the outbox. An
//! email is sent once. It is sent again, with the same message id, only if the result of an attempt
//! is unknown: the mail server did not respond, or the node or PostgreSQL failed before the result
//! was stored.

mod content;
mod transport;

use std::{fmt, sync::Arc, time::Duration};

use lettre::{
    Message,
    message::{Mailbox, MultiPart},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use self::{content::EmailContent, transport::Transport};
use crate::{
    config,
    env::Env,
    model::{
        email::Email,
        id::InvitationId,
        mail::{EmailKind, OutgoingEmail},
        one_time_token::{BoundTokenPurpose, TokenKey, TokenOwner},
    },
    store::{Store, StoreError, email_outbox::ClaimedMail},
};

/// Interval at which the outbox is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which expired emails are deleted.
const PRUNE_INTERVAL: Duration = Duration::from_mins(1);
/// Number of emails that a node claims at a time.
const BATCH: u32 = 10;
/// Time for which a node has claimed emails to itself: longer than sending all of them can take.
const LEASE: Duration = Duration::from_mins(10);
/// Time after its claim in which an email may be sent. The lease covers it and the sending.
const CLAIM_LIFETIME: Duration = Duration::from_mins(5);
/// Timeout for sending one email.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(30);
/// First pause after the result of an email could not be stored; it doubles up to
/// [`MAX_STORE_PAUSE`].
const FIRST_STORE_PAUSE: Duration = Duration::from_millis(100);
const MAX_STORE_PAUSE: Duration = Duration::from_secs(10);
/// Timeout of one attempt to store it.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// Lifetime of a password reset link.
const RESET_LIFETIME: Duration = Duration::from_hours(1);

/// Sends the emails in the email outbox.
pub struct Mailer {
    store: Store,
    env: Env,
    from: Mailbox,
    /// `None` if no emails are sent.
    transport: Option<Transport>,
    public_url: Arc<str>,
    token_key: TokenKey,
}

/// A failure to send an email.
enum SendError {
    /// A temporary failure: the email is retried.
    Temporary(String),
    /// A permanent failure: the email is given up.
    Permanent(String),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temporary(why) | Self::Permanent(why) => f.write_str(why),
        }
    }
}

impl From<StoreError> for SendError {
    fn from(error: StoreError) -> Self {
        Self::Temporary(error.to_string())
    }
}

impl Mailer {
    /// Creates the mailer; [`Self::run`] sends.
    ///
    /// # Errors
    /// A one-line message for the operator if a mail setting is not valid or TLS cannot be set up.
    pub fn new(
        store: Store,
        env: Env,
        settings: &config::Mail,
        public_url: &str,
        token_key: TokenKey,
    ) -> Result<Self, String> {
        let from: Mailbox =
            settings.from.parse().map_err(|_| "mail.from must be an email address")?;
        let transport = Transport::new(&settings.transport, &from)?;
        if transport.is_none() {
            warn!("mail.url is not set: no emails are sent, so users cannot reset their passwords");
        }
        Ok(Self { store, env, from, transport, public_url: public_url.into(), token_key })
    }

    /// Sends emails until `stopping` is cancelled; then finishes the current one.
    pub async fn run(self: Arc<Self>, stopping: CancellationToken) {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut prunings = interval(PRUNE_INTERVAL);
        loop {
            let done = tokio::select! {
                biased;
                () = stopping.cancelled() => return,
                _ = prunings.tick() => self.prune().await,
                _ = polls.tick(), if self.transport.is_some() => {
                    self.send_pending(&stopping).await
                }
            };
            if let Err(error) = done {
                warn!(%error, "cannot read the email outbox; retrying");
            }
        }
    }

    async fn prune(&self) -> Result<(), StoreError> {
        if self.store.database_refusal().is_some() {
            return Ok(());
        }
        let expired = self.store.prune_mails().await?;
        if expired > 0 {
            error!(mails = expired, "emails were given up: they could not be sent within a day");
        }
        Ok(())
    }

    /// Sends all emails that are due, or until `stopping` is cancelled.
    async fn send_pending(&self, stopping: &CancellationToken) -> Result<(), StoreError> {
        loop {
            if self.store.database_refusal().is_some() {
                return Ok(());
            }
            let claimed_at = Instant::now();
            let claimed = self.store.claim_mails(BATCH, LEASE, MAX_PAUSE).await?;
            let has_more = claimed.len() == BATCH as usize;
            let mut claimed = claimed.into_iter();
            for mail in claimed.by_ref() {
                if claimed_at.elapsed() > CLAIM_LIFETIME {
                    // Another node may claim the rest before they are sent.
                    return Ok(());
                }
                self.handle(mail, stopping).await?;
                // Release the rest, so that another node can send it before the lease ends.
                if stopping.is_cancelled() {
                    for left in claimed.filter(|left| !left.is_dropped) {
                        self.store.postpone_mail(left.id, Duration::ZERO).await?;
                    }
                    return Ok(());
                }
            }
            if !has_more {
                return Ok(());
            }
        }
    }

    async fn handle(
        &self,
        claimed: ClaimedMail,
        stopping: &CancellationToken,
    ) -> Result<(), StoreError> {
        let ClaimedMail { id, mail, attempts, is_dropped } = claimed;
        if is_dropped {
            let kind = mail.map_or("unknown", |mail| mail.subject.as_str());
            info!(mail = %id, kind, "an email was dropped: too many to one or unverified address");
            return Ok(());
        }
        let Some(mail) = mail else {
            // Only a newer version of this service knows this kind of email, and will send it.
            return self.store.postpone_mail(id, MAX_PAUSE).await;
        };
        let kind = mail.subject.as_str();
        let sent = timeout(SEND_TIMEOUT, self.send(id, &mail)).await;
        let sent = sent.unwrap_or_else(|_| Err(SendError::Temporary("timeout".to_owned())));
        match sent {
            Ok(()) => self.remove_sent(id, stopping).await,
            Err(SendError::Permanent(why)) => {
                error!(mail = %id, kind, why, "an email was refused and is given up");
                self.store.remove_mail(id).await
            }
            Err(SendError::Temporary(why)) => {
                warn!(mail = %id, kind, why, attempts, "cannot send an email; retrying");
                let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1).min(16));
                self.store.postpone_mail(id, (FIRST_PAUSE * doubled).min(MAX_PAUSE)).await
            }
        }
    }

    /// Deletes an email that was sent, however long PostgreSQL cannot do it: otherwise it would be
    /// sent again. Fails only if `stopping` is cancelled.
    async fn remove_sent(&self, id: Uuid, stopping: &CancellationToken) -> Result<(), StoreError> {
        let mut pause = FIRST_STORE_PAUSE;
        loop {
            let remove = Store::with_timeout(STORE_TIMEOUT, self.store.remove_mail(id));
            let Err(error) = remove.await else { return Ok(()) };
            warn!(mail = %id, %error, "cannot store that an email was sent; retrying");
            if stopping.run_until_cancelled(sleep(pause)).await.is_none() {
                return Err(error);
            }
            pause = (pause * 2).min(MAX_STORE_PAUSE);
        }
    }

    async fn send(&self, id: Uuid, mail: &OutgoingEmail) -> Result<(), SendError> {
        // `None`: no account has this address, so there is nothing to send.
        let Some(content) = self.write(id, mail).await? else { return Ok(()) };
        let text = content.text().map_err(|error| SendError::Permanent(error.to_string()))?;
        let server = match &self.transport {
            None => return Err(SendError::Temporary("mail.url is not set".to_owned())),
            Some(Transport::Log) => {
                info!("mail to {}: {}\n\n{text}", mail.to, content.subject);
                return Ok(());
            }
            Some(Transport::Smtp(server)) => server,
        };
        let html = content.html().map_err(|error| SendError::Permanent(error.to_string()))?;
        let message = self
            .message(id, mail, &content, text, html)
            .map_err(|error| SendError::Permanent(error.to_string()))?;
        server.send(&message).await
    }

    /// Writes the content of an email. `None` if it must not be sent, because a password reset was
    /// requested for an address without an account.
    ///
    /// SQL that an attacker injects can add any email to the outbox. So a link is written only for
    /// the address in the row of its token, and is bound to this address and to the account or
    /// workspace in the row.
    async fn write(
        &self,
        id: Uuid,
        mail: &OutgoingEmail,
    ) -> Result<Option<EmailContent>, SendError> {
        let link = |page: &str, owner: TokenOwner<'_>, purpose, id| {
            let token = self.token_key.derive_for(owner, purpose, id);
            content::link_with_token(&self.public_url, page, &token)
        };
        Ok(Some(match &mail.subject {
            EmailKind::ForgotPassword => {
                let email = Email::parse(&mail.to).map_err(|why| SendError::Permanent(why.0))?;
                // The email's id is also the token's id, so that all attempts send the same link.
                let (token, now) = (id, self.env.clock.now());
                let until = now + RESET_LIFETIME;
                let account = self.store.start_password_reset(token, &email, now, until).await?;
                let Some(account) = account else { return Ok(None) };
                let owner = TokenOwner::Account(account, &email);
                let purpose = BoundTokenPurpose::PasswordReset;
                EmailContent::reset_password(link("reset-password", owner, purpose, token))
            }
            EmailKind::PasswordGuesses { origin } => {
                let email = Email::parse(&mail.to).map_err(|why| SendError::Permanent(why.0))?;
                if self.store.find_account(&email).await?.is_none() {
                    return Ok(None);
                }
                EmailContent::password_guesses(&self.public_url, origin)
            }
            EmailKind::VerifyEmail { token } => {
                let purpose = BoundTokenPurpose::EmailVerification;
                let bound_to = self.store.find_one_time_token(purpose, *token).await?;
                let bound_to = bound_to.ok_or_else(foreign_link)?;
                let email = check_recipient(&mail.to, &bound_to.email)?;
                let owner = TokenOwner::Account(bound_to.user, &email);
                EmailContent::verify_email(link("verify-email", owner, purpose, *token))
            }
            EmailKind::Invitation { token, workspace } => {
                let bound_to = self.store.find_invitation(InvitationId::from(*token)).await?;
                let bound_to = bound_to.ok_or_else(foreign_link)?;
                let email = check_recipient(&mail.to, &bound_to.email)?;
                let owner = TokenOwner::Invitee(bound_to.workspace, &email);
                let purpose = BoundTokenPurpose::Invitation;
                EmailContent::invitation(
                    link("accept-invitation", owner, purpose, *token),
                    workspace,
                )
            }
            EmailKind::PasswordChanged { origin, passkeys, apps, disconnected_apps } => {
                let (url, disconnected) = (&self.public_url, disconnected_apps);
                EmailContent::password_changed(url, origin, passkeys, apps, disconnected)
            }
            EmailKind::PriorSetupEnded { origin, ended } => {
                EmailContent::prior_setup_ended(&self.public_url, origin, ended)
            }
            EmailKind::SecondFactorAdded { origin } => {
                EmailContent::second_factor_changed(&self.public_url, true, origin)
            }
            EmailKind::PasskeyAdded { origin } => {
                EmailContent::passkey_changed(&self.public_url, true, origin)
            }
            EmailKind::PasskeyRemoved { origin } => {
                EmailContent::passkey_changed(&self.public_url, false, origin)
            }
            EmailKind::RecoveryCodesRenewed { origin } => {
                EmailContent::recovery_codes_renewed(&self.public_url, origin)
            }
            EmailKind::SecondFactorRemoved { origin } => {
                EmailContent::second_factor_changed(&self.public_url, false, origin)
            }
            EmailKind::FactorsTakenAway => EmailContent::factors_removed(),
            EmailKind::NewDeviceAuthorization { origin } => {
                EmailContent::new_sign_in(&self.public_url, origin)
            }
            EmailKind::AdminKey { key, workspace, by, origin } => {
                EmailContent::admin_key_created(key, workspace, by, origin)
            }
            EmailKind::AdminClient { client, workspace, by, origin } => {
                EmailContent::admin_client_created(client, workspace, by, origin)
            }
            EmailKind::AdminInvitation { email, workspace, by, origin } => {
                EmailContent::admin_invited(&self.public_url, email, workspace, by, origin)
            }
            EmailKind::KeyRevoked { key, workspace, by, origin, remaining } => {
                let origin = origin.as_ref();
                EmailContent::key_revoked(&self.public_url, key, workspace, by, origin, remaining)
            }
            EmailKind::MemberLostAccess { member, role, workspace, by, origin, remaining } => {
                EmailContent::member_lost_access(
                    &self.public_url,
                    (member, *role),
                    workspace,
                    by,
                    origin,
                    remaining,
                )
            }
            EmailKind::AccountDeleted { origin } => EmailContent::account_deleted(origin),
            EmailKind::SessionReuse { origin } => {
                EmailContent::session_ended(&self.public_url, origin)
            }
        }))
    }

    fn message(
        &self,
        id: Uuid,
        mail: &OutgoingEmail,
        content: &EmailContent,
        text: String,
        html: String,
    ) -> Result<Message, lettre::error::Error> {
        let to = Mailbox::new(None, mail.to.parse().map_err(|_| lettre::error::Error::MissingTo)?);
        Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(&*content.subject)
            .date(self.env.clock.now().into())
            // The same for each attempt, so that mailboxes recognize a duplicate.
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .multipart(MultiPart::alternative_plain_html(text, html))
    }
}

/// Returns the recipient of an email. Refuses one that has another address than the token of the
/// link, in lower case, is for.
fn check_recipient(recipient: &str, expected: &str) -> Result<Email, SendError> {
    let email = Email::parse(recipient).map_err(|why| SendError::Permanent(why.0))?;
    if email.normalized() == expected { Ok(email) } else { Err(foreign_link()) }
}

fn foreign_link() -> SendError {
    SendError::Permanent("its link is not for this address".to_owned())
}
