//! `[mail]`.

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

/// `[mail]`
#[derive(Debug, Clone)]
pub struct Mail {
    /// How mails leave.
    pub transport: MailTransport,
    /// Who they are from: an address, with or without a name.
    pub from: String,
}

/// How mails leave.
#[derive(Debug, Clone)]
pub enum MailTransport {
    /// Not at all.
    None,
    /// They are printed, with the links in them.
    Log,
    /// To a server.
    Smtp(Smtp),
}

/// A server that takes mails.
#[derive(Debug, Clone)]
pub struct Smtp {
    /// Its name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the way to it is kept private.
    pub security: SmtpSecurity,
    /// How to log in.
    pub credentials: Option<(String, SecretString)>,
}

/// How the way to a mail server is kept private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpSecurity {
    /// Not at all.
    None,
    /// By STARTTLS, which must succeed (RFC 3207).
    StartTls,
    /// By TLS from the start (RFC 8314, section 3.3).
    Tls,
}

impl Mail {
    /// Who mails are from, unless that is set.
    pub(super) fn default_from(public_url: &str) -> String {
        let url = public_url.parse::<Url>().ok();
        match url.as_ref().and_then(Url::host) {
            Some(Host::Domain(domain)) => format!("no-reply@{domain}"),
            _ => "no-reply@localhost".to_owned(),
        }
    }
}

impl MailTransport {
    /// Reads `mail.url`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "" => return Some(Self::None),
            "log" => return Some(Self::Log),
            _ => {}
        }
        let url: Url = text.parse().ok()?;
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let is_here = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let security = match (url.scheme(), url.query()) {
            ("smtps", None) => SmtpSecurity::Tls,
            ("smtp", None) if is_here => SmtpSecurity::None,
            ("smtp", None | Some("tls=required")) => SmtpSecurity::StartTls,
            ("smtp", Some("tls=none")) => SmtpSecurity::None,
            _ => return None,
        };
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return None;
        }
        let default = match security {
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
        Some(Self::Smtp(Smtp { host, port: url.port().unwrap_or(default), security, credentials }))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    type Read = (String, u16, SmtpSecurity, Option<(String, String)>);

    fn server(text: &str) -> Option<Read> {
        let Some(MailTransport::Smtp(smtp)) = MailTransport::parse(text) else { return None };
        let login = smtp.credentials.map(|(user, word)| (user, word.expose_secret().to_owned()));
        Some((smtp.host, smtp.port, smtp.security, login))
    }

    #[test]
    fn the_way_to_a_server_is_private_unless_it_is_here() {
        let login = |user: &str, word: &str| Some((user.to_owned(), word.to_owned()));
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
    fn what_is_no_way_is_refused() {
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
    fn mails_are_from_the_host_that_links_lead_to() {
        assert_eq!(Mail::default_from("https://auth.example.com"), "no-reply@auth.example.com");
        assert_eq!(Mail::default_from("http://127.0.0.1:8080"), "no-reply@localhost");
    }
}
