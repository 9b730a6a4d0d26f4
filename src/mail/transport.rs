//! How a mail leaves: over SMTP, or into the log.

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

use super::Failure;
use crate::config::{MailTransport, Smtp, SmtpSecurity};

/// How long a server may take to say good-bye. The mail is its own by then.
const FAREWELL: Duration = Duration::from_secs(2);

pub(super) enum Transport {
    /// Mails are printed.
    Log,
    /// Mails go to a server.
    Smtp(Box<SmtpServer>),
}

pub(super) struct SmtpServer {
    settings: Smtp,
    tls: Option<TlsParameters>,
    /// What this service calls itself.
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
    pub(super) async fn send(&self, message: &Message) -> Result<(), Failure> {
        self.converse(message).await.map_err(|error| failure(&error))
    }

    /// By hand, since lettre's own transport also waits for the end of the conversation: a mail that the
    /// server has taken must not be sent again because its farewell is late.
    async fn converse(&self, message: &Message) -> Result<(), Error> {
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
        if timeout(FAREWELL, connection.quit()).await.is_err() {
            debug!("the mail server did not say good-bye");
        }
        Ok(())
    }
}

/// Only a server's own final refusal of the mail ends it: a wrong password of ours, or a certificate, is
/// mended by the operator.
fn failure(error: &Error) -> Failure {
    let code = error.status().map(u16::from);
    // 535 and the like are about us, not about the mail.
    let is_final = error.is_permanent() && !matches!(code, Some(500..=504 | 530..=538));
    let why = error.to_string();
    if is_final { Failure::Final(why) } else { Failure::Passing(why) }
}
