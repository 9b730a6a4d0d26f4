//! The configuration: `config/default.toml`, `config/<profile>.toml`, then the environment.
//!
//! `default.toml` names every setting and gives it its type, so a misspelt name or a value of the
//! wrong type is noticed whatever it comes from, and all problems are reported at once.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::Path,
    str::FromStr,
    time::Duration,
};

use data_encoding::BASE64;
use ipnet::IpNet;
use secrecy::SecretString;
use toml::{Table, Value};
use zeroize::Zeroizing;

use crate::model::api_key::Environment;

/// What the names of environment variables begin with.
const ENV_PREFIX: &str = "CALL2ME_AUTH__";

const DEFAULT: &str = include_str!("../config/default.toml");
const DEVELOPMENT: &str = include_str!("../config/development.toml");
const PRODUCTION: &str = include_str!("../config/production.toml");

/// Settings whose values are never printed.
const SECRETS: [&str; 3] = ["database.url", "database.owner_url", "keys.encryption_key"];

/// Which file comes after `default.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// `call2me-auth dev`.
    Development,
    /// Everything else.
    Production,
}

impl Profile {
    const fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Development => ("development.toml", DEVELOPMENT),
            Self::Production => ("production.toml", PRODUCTION),
        }
    }
}

/// Everything that can be set, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[database]`
    pub database: Database,
    /// `[keys]`
    pub keys: Keys,
    /// `[sessions]`
    pub sessions: Sessions,
    /// `[passwords]`
    pub passwords: Passwords,
    /// `[rate_limit]`
    pub rate_limit: RateLimit,
    /// `[audit]`
    pub audit: Audit,
    /// `[log]`
    pub log: Log,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// Where the API listens.
    pub address: SocketAddr,
    /// Where clients reach it, without a slash at the end.
    pub public_url: String,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The largest request body.
    pub max_body_bytes: usize,
    /// The longest that a handler may take.
    pub handler_timeout: Duration,
    /// The longest that a request's head or body may take, and an idle connection may stay.
    pub header_timeout: Duration,
    /// The longest that a client may not read.
    pub write_timeout: Duration,
    /// Connections at most.
    pub max_connections: usize,
    /// Connections of one client at most.
    pub max_connections_per_address: usize,
    /// How long requests under way may take to finish at the end.
    pub shutdown_timeout: Duration,
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// How the service logs in.
    pub url: SecretString,
    /// The owner of the tables.
    pub owner_url: Option<SecretString>,
    /// The pool.
    pub pool: Pool,
}

/// The pool of connections to PostgreSQL.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Connections at most.
    pub max_connections: u32,
    /// How long a request waits for a connection before it is answered 503.
    pub acquire_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
}

/// `[keys]`
#[derive(Debug, Clone)]
pub struct Keys {
    /// The label in API keys.
    pub environment: Environment,
    /// Seals signing keys, derives refresh tokens.
    pub encryption_key: EncryptionKey,
}

/// The deployment's secret: 32 bytes, never printed, wiped when dropped.
#[derive(Clone)]
pub struct EncryptionKey(Zeroizing<[u8; 32]>);

impl EncryptionKey {
    /// A key of 32 secret bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, to derive keys from.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(…)")
    }
}

/// Who may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Anybody.
    Open,
    /// Whoever was invited.
    Invite,
    /// Nobody.
    Closed,
}

/// `[sessions]`
#[derive(Debug, Clone)]
pub struct Sessions {
    /// Who may register.
    pub registration: Registration,
    /// An access token's life.
    pub access_token: Duration,
    /// A refresh token's life since its last use.
    pub refresh_token: Duration,
    /// A session's life.
    pub absolute: Duration,
    /// How long a just-used refresh token may be used again.
    pub refresh_reuse: Duration,
}

/// `[passwords]`
#[derive(Debug, Clone, Copy)]
pub struct Passwords {
    /// Threads that hash.
    pub threads: usize,
    /// Sign-ins that wait for one at most.
    pub queue: usize,
}

/// `[rate_limit]`
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {
    /// For each key and session.
    pub per_key_per_minute: NonZeroU32,
    /// For each address, of requests without a good credential.
    pub per_address_per_minute: NonZeroU32,
    /// For each address and account, of sign-ins.
    pub sign_in_per_minute: NonZeroU32,
}

/// `[audit]`
#[derive(Debug, Clone, Copy)]
pub struct Audit {
    /// Events that may wait to be written.
    pub queue: usize,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// As `RUST_LOG` has it.
    pub filter: String,
    /// Whether lines are JSON.
    pub json: bool,
    /// Requests that take longer are logged.
    pub slow_request: Duration,
}

/// The merged layers, before they are checked.
pub struct Raw {
    values: BTreeMap<String, (Value, String)>,
    problems: Vec<String>,
}

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad configuration: {}", self.0.join("; "))
    }
}

impl Raw {
    /// Reads all layers. The files in `folder` come after those in the binary; variables of the
    /// environment come last.
    #[must_use]
    pub fn read(
        profile: Profile,
        folder: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut raw = Self { values: BTreeMap::new(), problems: Vec::new() };
        // The binary's own files are part of the program; a test reads them.
        for (key, value) in flatten(&DEFAULT.parse().unwrap_or_default()) {
            raw.values.insert(key, (value, "the defaults".to_owned()));
        }
        let (file, embedded) = profile.file();
        raw.merge_file(embedded, file);
        for file in folder
            .into_iter()
            .flat_map(|folder| ["default.toml", file].map(|file| folder.join(file)))
        {
            match std::fs::read_to_string(&file) {
                Ok(text) => raw.merge_file(&text, &file.display().to_string()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => raw.problems.push(format!("cannot read {}: {error}", file.display())),
            }
        }
        for (name, text) in environment {
            if name == "DATABASE_URL" {
                raw.set("database.url", Value::String(text), &name);
            } else if let Some(key) = name.strip_prefix(ENV_PREFIX) {
                let key = key.to_ascii_lowercase().replace("__", ".");
                raw.set_text(&key, text, &name);
            }
        }
        raw
    }

    /// Overrides a setting, as a command-line flag does.
    pub fn set(&mut self, key: &str, value: Value, origin: &str) {
        match self.values.get_mut(key) {
            Some(slot) if slot.0.same_type(&value) => *slot = (value, origin.to_owned()),
            Some((old, _)) => {
                self.problems.push(format!("{key} must be {} (from {origin})", type_name(old)));
            }
            None => self.problems.push(format!("{key} is no setting (from {origin})")),
        }
    }

    /// The text of a setting, if it is set.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        let (value, _) = self.values.get(key)?;
        value.as_str().filter(|text| !text.is_empty())
    }

    fn merge_file(&mut self, text: &str, origin: &str) {
        match text.parse::<Table>() {
            Ok(table) => {
                for (key, value) in flatten(&table) {
                    self.set(&key, value, origin);
                }
            }
            Err(error) => self.problems.push(format!("{origin}: {}", error.message())),
        }
    }

    /// A variable is text; the default tells what it must be read as.
    fn set_text(&mut self, key: &str, text: String, origin: &str) {
        let value = match self.values.get(key) {
            Some((Value::Integer(_), _)) => text.trim().parse().map(Value::Integer).ok(),
            Some((Value::Boolean(_), _)) => text.trim().parse().map(Value::Boolean).ok(),
            Some((Value::Array(_), _)) if text.trim_start().starts_with('[') => {
                format!("list = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("list"))
            }
            Some((Value::Array(_), _)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
            _ => None,
        };
        self.set(key, value.unwrap_or(Value::String(text)), origin);
    }

    /// The settings, as `call2me-auth config` prints them: TOML with origins, secrets redacted.
    #[must_use]
    pub fn describe(&self) -> String {
        use fmt::Write as _;
        let mut text = String::new();
        let mut section = "";
        for (key, (value, origin)) in &self.values {
            let (head, name) = key.split_once('.').unwrap_or(("", key));
            if head != section {
                text.push_str(if section.is_empty() { "" } else { "\n" });
                writeln!(text, "[{head}]").ok();
                section = head;
            }
            let shown = match value {
                Value::String(secret) if SECRETS.contains(&key.as_str()) && !secret.is_empty() => {
                    "\"[redacted]\"".to_owned()
                }
                value => value.to_string(),
            };
            writeln!(text, "{name} = {shown}  # from {origin}").ok();
        }
        text
    }

    /// Checks the settings of the database alone: migrations need no others.
    ///
    /// # Errors
    /// With everything that is wrong with them.
    pub fn check_database(&self) -> Result<Database, Problems> {
        let mut check = Check { raw: self, problems: Vec::new() };
        check.database().ok_or(Problems(check.problems))
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn check(&self) -> Result<Settings, Problems> {
        let mut check = Check { raw: self, problems: self.problems.clone() };
        let settings = check.settings();
        match settings {
            Some(settings) if check.problems.is_empty() => Ok(settings),
            _ => Err(Problems(check.problems)),
        }
    }
}

/// Reads typed values and gathers what is wrong with them. A value that is wrong is `None`, and
/// reading goes on.
struct Check<'a> {
    raw: &'a Raw,
    problems: Vec<String>,
}

impl Check<'_> {
    fn settings(&mut self) -> Option<Settings> {
        // Every section is read before any is given up.
        let server = self.server();
        let database = self.database();
        let keys = self.keys();
        let sessions = self.sessions();
        let passwords = self.passwords();
        let rate_limit = self.rate_limit();
        let audit = self.audit();
        let log = self.log();
        Some(Settings {
            server: server?,
            database: database?,
            keys: keys?,
            sessions: sessions?,
            passwords: passwords?,
            rate_limit: rate_limit?,
            audit: audit?,
            log: log?,
        })
    }

    fn server(&mut self) -> Option<Server> {
        let address = self.parse("server.address", "an address such as 127.0.0.1:8080");
        let metrics = self.text("server.metrics_address");
        if !metrics.is_empty() && metrics.parse::<SocketAddr>().is_err() {
            self.problem("server.metrics_address", "must be an address such as 127.0.0.1:9090");
        }
        let public_url = self.public_url();
        let trusted_proxies = self.trusted_proxies();
        let max_body_bytes = self.number("server.max_body_bytes", 1024, 1 << 30);
        let handler_timeout = self.seconds("server.handler_timeout_seconds", 3600);
        let header_timeout = self.seconds("server.header_timeout_seconds", 3600);
        let write_timeout = self.seconds("server.write_timeout_seconds", 3600);
        let max_connections = self.number("server.max_connections", 1, 1_000_000);
        let per_address = self.number("server.max_connections_per_address", 1, 1_000_000);
        let shutdown_timeout = self.seconds("server.shutdown_timeout_seconds", 3600);
        Some(Server {
            address: address?,
            public_url: public_url?,
            trusted_proxies: trusted_proxies?,
            max_body_bytes: max_body_bytes?,
            handler_timeout: handler_timeout?,
            header_timeout: header_timeout?,
            write_timeout: write_timeout?,
            max_connections: max_connections?,
            max_connections_per_address: per_address?,
            shutdown_timeout: shutdown_timeout?,
        })
    }

    fn public_url(&mut self) -> Option<String> {
        let text = self.required("server.public_url")?;
        let url = text.parse::<axum::http::Uri>().ok();
        let fits = url.is_some_and(|url| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && url.path() == "/"
                && url.query().is_none()
        });
        if !fits {
            self.problem(
                "server.public_url",
                "must be an http or https URL without a path, such as https://auth.example.com",
            );
            return None;
        }
        Some(text.trim_end_matches('/').to_owned())
    }

    fn trusted_proxies(&mut self) -> Option<Vec<IpNet>> {
        let key = "server.trusted_proxies";
        let Some(Value::Array(items)) = self.value(key).cloned() else { return None };
        let network = |item: &Value| {
            let text = item.as_str()?;
            text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
        };
        let networks: Option<Vec<_>> = items.iter().map(network).collect();
        if networks.is_none() {
            self.problem(key, "must be CIDR networks such as 10.0.0.0/8");
        }
        networks
    }

    fn database(&mut self) -> Option<Database> {
        let url = self.required("database.url");
        let owner_url = self.text("database.owner_url");
        for (key, url) in
            [("database.url", url.as_deref()), ("database.owner_url", Some(&*owner_url))]
        {
            let url = url.unwrap_or_default();
            if !url.is_empty()
                && !["postgres://", "postgresql://"].iter().any(|s| url.starts_with(s))
            {
                self.problem(key, "must be a URL such as postgres://user:password@host/database");
            }
        }
        let max_connections = self.number("database.max_connections", 2, 10_000);
        let acquire_timeout = self.seconds("database.acquire_timeout_seconds", 60);
        let statement_timeout = self.seconds("database.statement_timeout_seconds", 600);
        Some(Database {
            url: url?.into(),
            owner_url: Some(owner_url).filter(|url| !url.is_empty()).map(Into::into),
            pool: Pool {
                max_connections: max_connections?,
                acquire_timeout: acquire_timeout?,
                statement_timeout: statement_timeout?,
            },
        })
    }

    fn keys(&mut self) -> Option<Keys> {
        let environment = self.parse("keys.environment", "1 to 16 lower-case letters or digits");
        let encryption_key = self.required("keys.encryption_key").and_then(|text| {
            let bytes = BASE64.decode(text.trim().as_bytes()).ok();
            let key = bytes.and_then(|bytes| bytes.try_into().ok()).map(EncryptionKey::new);
            if key.is_none() {
                self.problem(
                    "keys.encryption_key",
                    "must be 32 bytes in base64, such as `openssl rand -base64 32` prints",
                );
            }
            key
        });
        Some(Keys { environment: environment?, encryption_key: encryption_key? })
    }

    fn sessions(&mut self) -> Option<Sessions> {
        let registration = self.choice(
            "sessions.registration",
            &[
                ("open", Registration::Open),
                ("invite", Registration::Invite),
                ("closed", Registration::Closed),
            ],
        );
        let access_token = self.seconds("sessions.access_token_seconds", 86_400);
        let refresh_token = self.seconds("sessions.refresh_token_seconds", 366 * 86_400);
        let absolute = self.seconds("sessions.absolute_seconds", 10 * 366 * 86_400);
        let refresh_reuse = self.number("sessions.refresh_reuse_seconds", 0, 600);
        Some(Sessions {
            registration: registration?,
            access_token: access_token?,
            refresh_token: refresh_token?,
            absolute: absolute?,
            refresh_reuse: Duration::from_secs(refresh_reuse?),
        })
    }

    fn passwords(&mut self) -> Option<Passwords> {
        let threads = self.number("passwords.threads", 1, 64);
        let queue = self.number("passwords.queue", 1, 100_000);
        Some(Passwords { threads: threads?, queue: queue? })
    }

    fn rate_limit(&mut self) -> Option<RateLimit> {
        let per_key = self.rate("rate_limit.per_key_per_minute");
        let per_address = self.rate("rate_limit.per_address_per_minute");
        let sign_in = self.rate("rate_limit.sign_in_per_minute");
        self.choice("rate_limit.store", &[("memory", ())]);
        Some(RateLimit {
            per_key_per_minute: per_key?,
            per_address_per_minute: per_address?,
            sign_in_per_minute: sign_in?,
        })
    }

    fn audit(&mut self) -> Option<Audit> {
        self.choice("audit.durability", &[("batched", ())]);
        let queue = self.number("audit.queue", 1, 10_000_000);
        Some(Audit { queue: queue? })
    }

    fn log(&mut self) -> Option<Log> {
        let filter = self.text("log.filter");
        if filter.parse::<tracing_subscriber::EnvFilter>().is_err() {
            self.problem("log.filter", "must be a filter such as info or warn,call2me_auth=debug");
        }
        let json = self.choice("log.format", &[("text", false), ("json", true)]);
        let slow_request: Option<u64> = self.number("log.slow_request_ms", 1, 3_600_000);
        Some(Log { filter, json: json?, slow_request: Duration::from_millis(slow_request?) })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.raw.values.get(key).map(|(value, _)| value)
    }

    fn text(&self, key: &str) -> String {
        self.value(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    fn required(&mut self, key: &str) -> Option<String> {
        let text = self.text(key);
        if text.is_empty() {
            let variable = key.to_ascii_uppercase().replace('.', "__");
            self.problems.push(format!("{key} is not set (variable {ENV_PREFIX}{variable})"));
            return None;
        }
        Some(text)
    }

    fn parse<T: FromStr>(&mut self, key: &str, what: &str) -> Option<T> {
        let parsed = self.text(key).parse().ok();
        if parsed.is_none() {
            self.problem(key, &format!("must be {what}"));
        }
        parsed
    }

    fn number<T: TryFrom<i64>>(&mut self, key: &str, min: i64, max: i64) -> Option<T> {
        let number = self.value(key).and_then(Value::as_integer);
        let number = number.filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.problem(key, &format!("must be a whole number from {min} to {max}"));
        }
        number.and_then(|number| number.try_into().ok())
    }

    fn rate(&mut self, key: &str) -> Option<NonZeroU32> {
        self.number(key, 1, 1_000_000_000).and_then(NonZeroU32::new)
    }

    fn seconds(&mut self, key: &str, max: i64) -> Option<Duration> {
        self.number(key, 1, max).map(Duration::from_secs)
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key);
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.problem(key, &format!("must be one of: {}", names.join(", ")));
        }
        chosen
    }

    fn problem(&mut self, key: &str, what: &str) {
        let origin = self.raw.values.get(key).map_or("", |(_, origin)| origin);
        self.problems.push(format!("{key} {what} (from {origin})"));
    }
}

/// `[section] key = …` as `section.key`.
fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (section, value) in table {
        match value {
            Value::Table(keys) => {
                for (key, value) in keys {
                    flat.push((format!("{section}.{key}"), value.clone()));
                }
            }
            value => flat.push((section.clone(), value.clone())),
        }
    }
    flat
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list of texts",
        _ => "a text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn read(variables: &[(&str, &str)]) -> Raw {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Raw::read(Profile::Production, None, variables)
    }

    const ENOUGH: [(&str, &str); 3] = [
        ("DATABASE_URL", "postgres://localhost/x"),
        ("CALL2ME_AUTH__SERVER__PUBLIC_URL", "https://auth.example.com/"),
        ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", KEY),
    ];

    #[test]
    fn three_settings_are_enough() {
        let settings = read(&ENOUGH).check().unwrap();
        assert_eq!(settings.server.public_url, "https://auth.example.com");
        assert_eq!(settings.server.address.port(), 8080);
        assert_eq!(settings.sessions.access_token, Duration::from_hours(1));
    }

    #[test]
    fn the_embedded_files_have_no_problems_of_their_own() {
        for profile in [Profile::Development, Profile::Production] {
            assert_eq!(Raw::read(profile, None, []).problems, Vec::<String>::new());
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let problems = read(&[
            ("CALL2ME_AUTH__SERVER__ADDRESS", "nowhere"),
            ("CALL2ME_AUTH__SERVER__MAX_BODY_BYTES", "many"),
            ("CALL2ME_AUTH__SESSIONS__REGISTRATION", "sometimes"),
            ("CALL2ME_AUTH__SERVER__PORT", "80"),
            ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", "short"),
        ])
        .check()
        .unwrap_err()
        .0;
        for expected in [
            "server.address must be",
            "server.max_body_bytes must be a whole number",
            "server.public_url is not set",
            "database.url is not set",
            "server.port is no setting",
            "sessions.registration must be one of: open, invite, closed",
            "keys.encryption_key must be 32 bytes",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(expected)), "{expected}: {problems:#?}");
        }
        assert_eq!(problems.len(), 7, "{problems:#?}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let raw = read(&ENOUGH);
        let text = format!("{} {:?}", raw.describe(), raw.check().unwrap());
        assert!(!text.contains(KEY) && !text.contains("localhost/x"), "{text}");
        assert!(text.contains("url = \"[redacted]\"  # from DATABASE_URL"), "{text}");
    }
}
