//! Mail: what waits in the outbox is written and sent.
//!
//! Whatever causes a mail puts it into the outbox in its own transaction (`store::mail`), so that it is
//! sent if and only if what it tells of has happened. One task of each node empties the outbox. A mail
//! is sent once, and again under the same id only where nobody could take note of the sending: the server
//! did not tell, or the node or PostgreSQL went away in between.

mod letter;
mod transport;

use std::{fmt, sync::Arc, time::Duration};

use lettre::{
    Message,
    message::{Mailbox, MultiPart},
};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{error, info, warn};
use uuid::Uuid;

use self::{letter::Letter, transport::Transport};
use crate::{
    config,
    env::Env,
    model::{
        email::Email,
        mail::{Mail, MailSubject},
        one_time_token::{Purpose, TokenKey},
    },
    store::{Store, StoreError, mail::Claimed},
};

/// How often it is looked for mails.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often mails that nobody waits for any more are dropped.
const PRUNE_EVERY: Duration = Duration::from_mins(1);
/// Mails that a node takes at a time.
const BATCH: u32 = 10;
/// How long a node has the mails that it took to itself: more than it may need to send them all.
const LEASE: Duration = Duration::from_mins(10);
/// The longest that the sending of one mail may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause after a first failure; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(30);
/// How long a mail is worth sending.
const WORTH: Duration = Duration::from_hours(24);
/// How long a link to choose a new password works.
const RESET_LIFETIME: Duration = Duration::from_hours(1);
/// How long the task may take to finish the mail that it is at.
const FINISH: Duration = Duration::from_secs(5);

/// The task that sends.
#[derive(Debug)]
pub struct MailTask {
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

impl MailTask {
    /// Starts it.
    ///
    /// # Errors
    /// With one line for the operator.
    pub fn start(
        store: Store,
        env: Env,
        settings: &config::Mail,
        public_url: &str,
        token_key: TokenKey,
    ) -> Result<Self, String> {
        let from: Mailbox = settings.from.parse().map_err(|_| "mail.from must be an address")?;
        let transport = Transport::new(&settings.transport, &from)?;
        if transport.is_none() {
            warn!("mail.url is not set: nobody is mailed anything, so no password can be reset");
        }
        let public_url = public_url.into();
        let mailer = Mailer { store, env, from, transport, public_url, token_key };
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(mailer.run(stopped));
        Ok(Self { stop, done })
    }

    /// Sends the mail that it is at, and ends.
    pub async fn finish(self) {
        self.stop.send(()).ok();
        let abort = self.done.abort_handle();
        if timeout(FINISH, self.done).await.is_err() {
            abort.abort();
        }
    }
}

struct Mailer {
    store: Store,
    env: Env,
    from: Mailbox,
    /// None: nothing is sent.
    transport: Option<Transport>,
    public_url: Arc<str>,
    token_key: TokenKey,
}

/// Why a mail was not sent.
enum Failure {
    /// It will be tried again.
    Passing(String),
    /// It never will be.
    Final(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing(why) | Self::Final(why) => f.write_str(why),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Passing(error.to_string())
    }
}

impl Mailer {
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut prunings = interval(PRUNE_EVERY);
        loop {
            let done = tokio::select! {
                biased;
                _ = &mut stopped => return,
                _ = prunings.tick() => self.prune().await,
                _ = looks.tick(), if self.transport.is_some() => self.look(&mut stopped).await,
            };
            if let Err(error) = done {
                warn!(%error, "cannot look for mails to be sent");
            }
        }
    }

    async fn prune(&self) -> Result<(), StoreError> {
        let stale = self.store.prune_mails(WORTH).await?;
        if stale > 0 {
            error!(mails = stale, "mails were given up: they could not be sent for a day");
        }
        Ok(())
    }

    async fn look(&self, stopped: &mut oneshot::Receiver<()>) -> Result<(), StoreError> {
        loop {
            let claimed = self.store.claim_mails(BATCH, LEASE).await?;
            let more = claimed.len() == BATCH as usize;
            let mut claimed = claimed.into_iter();
            for mail in claimed.by_ref() {
                self.handle(mail).await?;
                // Another node need not wait for the rest.
                if !matches!(stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                    for left in claimed {
                        self.store.put_mail_off(left.id, Duration::ZERO).await?;
                    }
                    return Ok(());
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn handle(&self, claimed: Claimed) -> Result<(), StoreError> {
        let Claimed { id, mail, attempts } = claimed;
        let Some(mail) = mail else {
            // Of a newer version of this service, which will send it.
            return self.store.put_mail_off(id, MAX_PAUSE).await;
        };
        let kind = mail.subject.kind();
        let sent = timeout(PATIENCE, self.send(id, &mail)).await;
        let sent = sent.unwrap_or_else(|_| Err(Failure::Passing("it took too long".to_owned())));
        match sent {
            Ok(()) => self.store.remove_mail(id).await,
            Err(Failure::Final(why)) => {
                error!(mail = %id, kind, why, "a mail was refused");
                self.store.remove_mail(id).await
            }
            Err(Failure::Passing(why)) => {
                warn!(mail = %id, kind, why, attempts, "a mail could not be sent yet");
                let doubled = 2_u32.saturating_pow(attempts.saturating_sub(1).min(16));
                self.store.put_mail_off(id, (FIRST_PAUSE * doubled).min(MAX_PAUSE)).await
            }
        }
    }

    async fn send(&self, id: Uuid, mail: &Mail) -> Result<(), Failure> {
        // Nobody has the address: there is nothing to say to anyone.
        let Some(letter) = self.write(id, mail).await? else { return Ok(()) };
        let text = letter.text().map_err(|error| Failure::Final(error.to_string()))?;
        let server = match &self.transport {
            None => return Err(Failure::Passing("mail.url is not set".to_owned())),
            Some(Transport::Log) => {
                info!("mail to {}: {}\n\n{text}", mail.to, letter.subject);
                return Ok(());
            }
            Some(Transport::Smtp(server)) => server,
        };
        let html = letter.html().map_err(|error| Failure::Final(error.to_string()))?;
        let message = self
            .message(id, mail, &letter, text, html)
            .map_err(|error| Failure::Final(error.to_string()))?;
        server.send(&message).await
    }

    /// What a mail says; none: nothing, to nobody.
    async fn write(&self, id: Uuid, mail: &Mail) -> Result<Option<Letter>, Failure> {
        let link = |page: &str, purpose, token| {
            letter::link(&self.public_url, page, &self.token_key.derive(purpose, token))
        };
        Ok(Some(match &mail.subject {
            MailSubject::ForgotPassword => {
                let email = Email::parse(&mail.to).map_err(|why| Failure::Final(why.0))?;
                // One token for a mail, however often it is tried.
                let (token, now) = (id, self.env.clock.now());
                let until = now + RESET_LIFETIME;
                if !self.store.start_password_reset(token, &email, now, until).await? {
                    return Ok(None);
                }
                Letter::reset_password(link("reset-password", Purpose::ResetPassword, token))
            }
            MailSubject::VerifyEmail { token } => {
                Letter::verify_email(link("verify-email", Purpose::VerifyEmail, *token))
            }
            MailSubject::Invitation { token, workspace } => {
                let link = link("accept-invitation", Purpose::Invitation, *token);
                Letter::invitation(link, workspace)
            }
            MailSubject::PasswordChanged { origin, passkeys, apps } => {
                Letter::password_changed(&self.public_url, origin, passkeys, apps)
            }
            MailSubject::SecondFactorAdded { origin } => {
                Letter::second_factor(&self.public_url, true, origin)
            }
            MailSubject::PasskeyAdded { origin } => Letter::passkey(&self.public_url, true, origin),
            MailSubject::PasskeyRemoved { origin } => {
                Letter::passkey(&self.public_url, false, origin)
            }
            MailSubject::RecoveryCodesRenewed { origin } => {
                Letter::recovery_codes_renewed(&self.public_url, origin)
            }
            MailSubject::SecondFactorRemoved { origin } => {
                Letter::second_factor(&self.public_url, false, origin)
            }
            MailSubject::FactorsTakenAway => Letter::factors_taken_away(),
            MailSubject::NewDevice { origin } => Letter::new_device(&self.public_url, origin),
            MailSubject::AdminKey { key, workspace, by, origin } => {
                Letter::admin_key(key, workspace, by, origin)
            }
            MailSubject::AccountDeleted { origin } => Letter::account_deleted(origin),
            MailSubject::SessionReuse { origin } => Letter::session_reuse(&self.public_url, origin),
        }))
    }

    fn message(
        &self,
        id: Uuid,
        mail: &Mail,
        letter: &Letter,
        text: String,
        html: String,
    ) -> Result<Message, lettre::error::Error> {
        let to = Mailbox::new(None, mail.to.parse().map_err(|_| lettre::error::Error::MissingTo)?);
        Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(&*letter.subject)
            .date(self.env.clock.now().into())
            // The same at each try, so that a mailbox can tell a repeated one.
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .multipart(MultiPart::alternative_plain_html(text, html))
    }
}
