//! Email transports: SMTP, or the log in development.
//!
//! An email that the server has accepted is never sent again because of what follows on the
//! connection.

use std::time::Duration;

use lettre::{
    Message,
    message::Mailbox,
    transport::smtp::{
        Error,
        authentication::{Credentials, Mechanism},
        client::{AsyncSmtpConnection, TlsParameters},
        extension::ClientId,
    },
};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tracing::debug;

use super::SendError;
use crate::config::{MailTransport, Smtp, SmtpSecurity};

/// Timeout of the final QUIT. The server has accepted the email before.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) enum Transport {
    /// Writes emails to the log.
    Log,
    /// Sends emails to a mail server.
    Smtp(Box<SmtpServer>),
}

pub(super) struct SmtpServer {
    settings: Smtp,
    tls: Option<TlsParameters>,
    /// The host name that this service sends in EHLO.
    name: ClientId,
}

impl Transport {
    pub(super) fn new(settings: &MailTransport, from: &Mailbox) -> Result<Option<Self>, String> {
        Ok(match settings {
            MailTransport::None => None,
            MailTransport::Log => Some(Self::Log),
            MailTransport::Smtp(settings) => {
                let tls = match settings.security {
                    SmtpSecurity::None => None,
                    SmtpSecurity::StartTls | SmtpSecurity::Tls => {
                        let parameters = TlsParameters::new_rustls(settings.host.clone());
                        Some(parameters.map_err(|error| format!("cannot set up TLS: {error}"))?)
                    }
                };
                let name = ClientId::Domain(from.email.domain().to_owned());
                Some(Self::Smtp(Box::new(SmtpServer { settings: settings.clone(), tls, name })))
            }
        })
    }
}

impl SmtpServer {
    pub(super) async fn send(&self, message: &Message) -> Result<(), SendError> {
        self.deliver(message).await.map_err(|error| classify(&error))
    }

    /// Delivers an email over a new connection. This does not use lettre's own transport, which
    /// also waits for the response to QUIT: an accepted email must not be sent again because that
    /// response is late.
    async fn deliver(&self, message: &Message) -> Result<(), Error> {
        let Smtp { host, port, security, credentials } = &self.settings;
        let implicit = if *security == SmtpSecurity::Tls { self.tls.clone() } else { None };
        let address = (host.as_str(), *port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(address, None, &self.name, implicit, None).await?;
        if *security == SmtpSecurity::StartTls
            && let Some(tls) = &self.tls
        {
            connection.starttls(tls.clone(), &self.name).await?;
        }
        if let Some((user, password)) = credentials {
            let credentials = Credentials::new(user.clone(), password.expose_secret().to_owned());
            connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await?;
        }
        connection.send(message.envelope(), &message.formatted()).await?;
        if timeout(QUIT_TIMEOUT, connection.quit()).await.is_err() {
            debug!("the mail server did not respond to QUIT");
        }
        Ok(())
    }
}

/// Classifies an SMTP error. Only a permanent refusal of the email itself is final. A wrong
/// password or certificate is temporary: the operator can correct it.
fn classify(error: &Error) -> SendError {
    let code = error.status().map(u16::from);
    // 500-504 (syntax) and 530-538 (authentication) concern the connection, not the email.
    let is_final = error.is_permanent() && !matches!(code, Some(500..=504 | 530..=538));
    let why = error.to_string();
    if is_final { SendError::Permanent(why) } else { SendError::Temporary(why) }
}
