//! The `[mail]` settings and the parser of `mail.url`.

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

/// `[mail]`
#[derive(Debug, Clone)]
pub struct Mail {
    /// The transport of outgoing email.
    pub transport: MailTransport,
    /// The sender: an address, with or without a display name.
    pub from: String,
}

/// The transport of outgoing email.
#[derive(Debug, Clone)]
pub enum MailTransport {
    /// Email is disabled.
    None,
    /// Emails are printed to the log, including the links in them.
    Log,
    /// Emails are sent to an SMTP server.
    Smtp(Smtp),
}

/// An SMTP server.
#[derive(Debug, Clone)]
pub struct Smtp {
    /// The host name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The encryption of the connection.
    pub security: SmtpSecurity,
    /// User name and password, if the server requires them.
    pub credentials: Option<(String, SecretString)>,
}

/// The encryption of an SMTP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpSecurity {
    /// No encryption.
    None,
    /// STARTTLS, which must succeed (RFC 3207).
    StartTls,
    /// Implicit TLS (RFC 8314, section 3.3).
    Tls,
}

impl Mail {
    /// The sender if `mail.from` is not set: `no-reply@` the host of the public URL.
    pub(super) fn default_from(public_url: &str) -> String {
        let url = public_url.parse::<Url>().ok();
        match url.as_ref().and_then(Url::host) {
            Some(Host::Domain(domain)) => format!("no-reply@{domain}"),
            _ => "no-reply@localhost".to_owned(),
        }
    }
}

impl MailTransport {
    /// Parses `mail.url`; `None` if it is invalid. Without `?tls=…`, STARTTLS is required unless
    /// the host is this machine.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "" => return Some(Self::None),
            "log" => return Some(Self::Log),
            _ => {}
        }
        let url: Url = text.parse().ok()?;
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let is_local = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let security = match (url.scheme(), url.query()) {
            ("smtps", None) => SmtpSecurity::Tls,
            ("smtp", None) if is_local => SmtpSecurity::None,
            ("smtp", None | Some("tls=required")) => SmtpSecurity::StartTls,
            ("smtp", Some("tls=none")) => SmtpSecurity::None,
            _ => return None,
        };
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return None;
        }
        let default_port = match security {
            SmtpSecurity::None => 25,
            SmtpSecurity::StartTls => 587,
            SmtpSecurity::Tls => 465,
        };
        let decoded = |text| percent_decode_str(text).decode_utf8().ok().map(String::from);
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) => Some((decoded(user)?, decoded(password)?.into())),
            (_, None) => return None,
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        Some(Self::Smtp(Smtp {
            host,
            port: url.port().unwrap_or(default_port),
            security,
            credentials,
        }))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    type ParsedServer = (String, u16, SmtpSecurity, Option<(String, String)>);

    fn server(text: &str) -> Option<ParsedServer> {
        let Some(MailTransport::Smtp(smtp)) = MailTransport::parse(text) else { return None };
        let login =
            smtp.credentials.map(|(user, password)| (user, password.expose_secret().to_owned()));
        Some((smtp.host, smtp.port, smtp.security, login))
    }

    #[test]
    fn smtp_url_sets_encryption_and_port() {
        let login = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (text, host, port, security, credentials) in [
            (
                "smtps://a%40b:p%2Fw@mail.example",
                "mail.example",
                465,
                SmtpSecurity::Tls,
                login("a@b", "p/w"),
            ),
            (
                "smtp://u:p@mail.example",
                "mail.example",
                587,
                SmtpSecurity::StartTls,
                login("u", "p"),
            ),
            (
                "smtp://mail.example:25?tls=required",
                "mail.example",
                25,
                SmtpSecurity::StartTls,
                None,
            ),
            ("smtp://mail.example?tls=none", "mail.example", 25, SmtpSecurity::None, None),
            ("smtp://127.0.0.1:2525", "127.0.0.1", 2525, SmtpSecurity::None, None),
            ("smtp://localhost:2525/", "localhost", 2525, SmtpSecurity::None, None),
            ("smtp://[::1]:2525", "::1", 2525, SmtpSecurity::None, None),
        ] {
            let expected = Some((host.to_owned(), port, security, credentials));
            assert_eq!(server(text), expected, "{text}");
        }
    }

    #[test]
    fn invalid_mail_url_is_rejected() {
        for text in [
            "mail.example",
            "http://mail.example",
            "smtp://",
            "smtp://user@mail.example",
            "smtp://mail.example?tls=opportunistic",
            "smtps://mail.example?tls=none",
            "smtps://mail.example/path",
            "smtps://mail.example#insecure",
            "Log",
        ] {
            assert!(MailTransport::parse(text).is_none(), "{text}");
        }
        assert!(matches!(MailTransport::parse("log"), Some(MailTransport::Log)));
        assert!(matches!(MailTransport::parse(""), Some(MailTransport::None)));
    }

    #[test]
    fn default_sender_uses_host_of_public_url() {
        assert_eq!(Mail::default_from("https://auth.example.com"), "no-reply@auth.example.com");
        assert_eq!(Mail::default_from("http://127.0.0.1:8080"), "no-reply@localhost");
    }
}
