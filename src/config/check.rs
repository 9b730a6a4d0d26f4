//! Validation: turns the merged values into [`Settings`], or reports all errors.

use std::{net::IpAddr, num::NonZeroU32, str::FromStr, time::Duration};

use data_encoding::BASE64;
use ipnet::IpNet;
use toml::Value;
use url::Url;

use crate::model::{oauth::resource, signing_key::SigningAlgorithm};

use super::{
    Audit, Cache, Database, Documents, Durability, EncryptionKey, Keys, Log, Mail, MailTransport,
    MetadataDocuments, OAuth, Passwords, Pool, RateLimit, RawConfig, Redis, Registration, Rotation,
    Server, Sessions, Settings, Tokens, layers::ENV_PREFIX,
};

/// Maximum number of `keys.previous_encryption_keys`: each is tried for each token.
const MAX_PREVIOUS_KEYS: usize = 4;

/// Minimum of `tokens.key_publication_seconds`: the `max-age` of the JWKS, and the time in which
/// every node lists a new key.
const MIN_KEY_PUBLICATION: i64 = 310;

/// Reads typed values and collects the errors. An invalid value is `None`, and reading continues.
pub(super) struct SettingsValidator<'a> {
    pub(super) raw: &'a RawConfig,
    pub(super) errors: Vec<String>,
}

impl SettingsValidator<'_> {
    pub(super) fn settings(&mut self) -> Option<Settings> {
        // Read every section before returning, to collect all errors.
        let server = self.server();
        let database = self.database();
        let keys = self.keys();
        let tokens = self.tokens();
        let sessions = self.sessions();
        let passwords = self.passwords();
        let rate_limit = self.rate_limit();
        let cache = self.cache();
        let redis = self.redis();
        let mail = self.mail();
        let oauth = self.oauth();
        let documents = self.documents();
        let audit = self.audit();
        let rotation = self.rotation();
        let log = self.log();
        Some(Settings {
            server: server?,
            database: database?,
            keys: keys?,
            tokens: tokens?,
            sessions: sessions?,
            passwords: passwords?,
            rate_limit: rate_limit?,
            cache: cache?,
            redis,
            mail: mail?,
            oauth: oauth?,
            documents: documents?,
            audit: audit?,
            rotation: rotation?,
            log: log?,
        })
    }

    fn server(&mut self) -> Option<Server> {
        let address = self.parse("server.address", "an address such as 127.0.0.1:8080");
        let metrics_address = match &*self.text("server.metrics_address") {
            "" => Some(None),
            _ => {
                self.parse("server.metrics_address", "an address such as 127.0.0.1:9090").map(Some)
            }
        };
        let public_url = self.public_url();
        let allowed_origins = self.allowed_origins();
        let trusted_proxies = self.trusted_proxies();
        let max_body_bytes = self.number("server.max_body_bytes", 1024, 16 << 20);
        let handler_timeout = self.seconds("server.handler_timeout_seconds", 3600);
        let header_timeout = self.seconds("server.header_timeout_seconds", 3600);
        let write_timeout = self.seconds("server.write_timeout_seconds", 3600);
        let max_connections = self.number("server.max_connections", 1, 1_000_000);
        let per_address = self.number("server.max_connections_per_address", 1, 1_000_000);
        let shutdown_timeout = self.seconds("server.shutdown_timeout_seconds", 3600);
        Some(Server {
            address: address?,
            metrics_address: metrics_address?,
            public_url: public_url?,
            allowed_origins: allowed_origins?,
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
        // As browsers write it in `Origin`: scheme and host in lower case, no default port.
        let url = text.parse::<url::Url>().ok();
        Some(url.map_or(text, |url| url.origin().ascii_serialization()))
    }

    fn allowed_origins(&mut self) -> Option<Vec<String>> {
        let is_origin = |text: &str| {
            let url = text.parse::<Url>().ok();
            url.is_some_and(|url| {
                ["http", "https"].contains(&url.scheme())
                    && url.origin().ascii_serialization() == text
            })
        };
        self.texts("server.allowed_origins", "origins such as https://app.example.com", is_origin)
    }

    fn oauth(&mut self) -> Option<OAuth> {
        let is_resource = |text: &str| resource::canonicalize(text).is_some();
        let what = "http or https URLs without a fragment";
        let resources = self.texts("oauth.resources", what, is_resource);
        let registration = self.choice("oauth.registration", &[("open", true), ("closed", false)]);
        let documents = self.choice(
            "oauth.metadata_documents",
            &[
                ("off", MetadataDocuments::Off),
                ("public", MetadataDocuments::Public),
                ("any", MetadataDocuments::Any),
            ],
        );
        let is_scheme = |text: &str| {
            let is_scheme_char =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-".contains(c);
            // Schemes that browsers handle themselves.
            let reserved =
                ["http", "https", "javascript", "data", "vbscript", "file", "blob", "about"];
            text.starts_with(|c: char| c.is_ascii_lowercase())
                && text.chars().all(is_scheme_char)
                && !reserved.contains(&text)
        };
        let what = "URI schemes of native apps, such as vscode";
        let native_schemes = self.texts("oauth.native_schemes", what, is_scheme);
        let refresh_token = self.seconds("oauth.refresh_token_seconds", 10 * 366 * 86_400);
        Some(OAuth {
            resources: resources?,
            is_registration_open: registration?,
            metadata_documents: documents?,
            native_schemes: native_schemes?,
            grant_idle_timeout: refresh_token?,
        })
    }

    /// A list of strings that all satisfy `fits`.
    fn texts(&mut self, key: &str, what: &str, fits: impl Fn(&str) -> bool) -> Option<Vec<String>> {
        let Some(Value::Array(items)) = self.value(key).cloned() else { return None };
        let text = |item: &Value| item.as_str().filter(|text| fits(text)).map(str::to_owned);
        let texts: Option<Vec<_>> = items.iter().map(text).collect();
        if texts.is_none() {
            self.problem(key, &format!("must be {what}"));
        }
        texts
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

    pub(super) fn database(&mut self) -> Option<Database> {
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
        let max_clock_skew = self.seconds("database.max_clock_skew_seconds", 366 * 86_400);
        Some(Database {
            url: url?.into(),
            owner_url: Some(owner_url).filter(|url| !url.is_empty()).map(Into::into),
            pool: Pool {
                max_connections: max_connections?,
                acquire_timeout: acquire_timeout?,
                statement_timeout: statement_timeout?,
            },
            max_clock_skew: max_clock_skew?,
        })
    }

    fn keys(&mut self) -> Option<Keys> {
        let environment = self.parse("keys.environment", "1 to 16 lowercase letters or digits");
        let encryption_key = self
            .required("keys.encryption_key")
            .and_then(|text| self.encryption_key("keys.encryption_key", &text));
        let previous_encryption_keys = self.previous_encryption_keys(encryption_key.as_ref());
        Some(Keys {
            environment: environment?,
            encryption_key: encryption_key?,
            previous_encryption_keys: previous_encryption_keys?,
        })
    }

    fn encryption_key(&mut self, setting: &str, text: &str) -> Option<EncryptionKey> {
        let bytes = BASE64.decode(text.trim().as_bytes()).ok();
        let key = bytes.and_then(|bytes| bytes.try_into().ok()).map(EncryptionKey::new);
        if key.is_none() {
            self.problem(
                setting,
                "must be 32 bytes in base64; generate them with `openssl rand -base64 32`",
            );
        }
        key
    }

    fn previous_encryption_keys(
        &mut self,
        current: Option<&EncryptionKey>,
    ) -> Option<Vec<EncryptionKey>> {
        let setting = "keys.previous_encryption_keys";
        let texts = self.texts(setting, "a list of keys in base64", |_| true)?;
        if texts.len() > MAX_PREVIOUS_KEYS {
            self.problem(setting, &format!("has at most {MAX_PREVIOUS_KEYS} keys"));
            return None;
        }
        let mut keys = Vec::new();
        for text in texts {
            let key = self.encryption_key(setting, &text)?;
            if current.is_some_and(|current| current.expose() == key.expose()) {
                self.problem(setting, "must not contain keys.encryption_key");
                return None;
            }
            keys.push(key);
        }
        Some(keys)
    }

    fn tokens(&mut self) -> Option<Tokens> {
        let algorithms = SigningAlgorithm::ALL.map(|algorithm| (algorithm.as_str(), algorithm));
        let signing_algorithm = self.choice("tokens.signing_algorithm", &algorithms);
        let publication = "tokens.key_publication_seconds";
        let key_publication = self.number(publication, MIN_KEY_PUBLICATION, 7 * 86_400);
        Some(Tokens {
            signing_algorithm: signing_algorithm?,
            key_publication: Duration::from_secs(key_publication?),
        })
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
            access_token_lifetime: access_token?,
            refresh_token_lifetime: refresh_token?,
            absolute_lifetime: absolute?,
            refresh_reuse_window: Duration::from_secs(refresh_reuse?),
        })
    }

    fn passwords(&mut self) -> Option<Passwords> {
        let threads = self.number("passwords.threads", 0, 64);
        let queue = self.number("passwords.queue", 1, 100_000);
        Some(Passwords { threads: threads?, queue_capacity: queue? })
    }

    fn rate_limit(&mut self) -> Option<RateLimit> {
        let per_key = self.rate("rate_limit.per_key_per_minute");
        let per_address = self.rate("rate_limit.per_address_per_minute");
        let sign_in = self.rate("rate_limit.sign_in_per_minute");
        Some(RateLimit {
            per_key_per_minute: per_key?,
            per_address_per_minute: per_address?,
            sign_in_per_minute: sign_in?,
        })
    }

    fn cache(&mut self) -> Option<Cache> {
        let lease = self.seconds("cache.lease_seconds", 60);
        let keys = self.number("cache.keys", 1, 100_000_000);
        Some(Cache { lease_duration: lease?, max_keys: keys? })
    }

    /// The server for shared rate limits, if `rate_limit.store` is `redis`. The settings are
    /// validated in either case.
    fn redis(&mut self) -> Option<Redis> {
        let chosen = self.choice("rate_limit.store", &[("memory", false), ("redis", true)]);
        let prefix = self.text("redis.prefix");
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if !(1..=64).contains(&prefix.len()) || !prefix.chars().all(fits) {
            self.problem("redis.prefix", "must be 1 to 64 letters, digits, or any of - _ . :");
        }
        let key = "redis.url";
        let url = self.text(key);
        if !url.is_empty() && !is_redis_url(&url) {
            self.problem(
                key,
                "must be a URL such as redis://user:password@host:6379/0, rediss://… for TLS, or \
                 unix:///path/to/socket",
            );
        }
        if chosen != Some(true) {
            return None;
        }
        Some(Redis { url: self.required(key)?.into(), prefix })
    }

    fn mail(&mut self) -> Option<Mail> {
        let transport = MailTransport::parse(&self.text("mail.url"));
        if transport.is_none() {
            self.problem(
                "mail.url",
                "must be smtps://user:password@host, smtp://… for STARTTLS, log, or empty",
            );
        }
        let from = match self.text("mail.from") {
            from if from.is_empty() => Mail::default_from(&self.text("server.public_url")),
            from => from,
        };
        if from.parse::<lettre::message::Mailbox>().is_err() {
            self.problem("mail.from", "must be an address such as Acme <no-reply@acme.example>");
        }
        Some(Mail { transport: transport?, from })
    }

    fn documents(&mut self) -> Option<Documents> {
        let count = self.number("documents.max_per_workspace", 1, 1_000_000_000);
        let bytes = self.number("documents.max_bytes_per_workspace", 1024, 1 << 50);
        Some(Documents { max_per_workspace: count?, max_bytes_per_workspace: bytes? })
    }

    fn audit(&mut self) -> Option<Audit> {
        let durability = self.choice(
            "audit.durability",
            &[("batched", Durability::Batched), ("strict", Durability::Strict)],
        );
        let queue = self.number("audit.queue", 1, 10_000_000);
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let retention: Option<u64> = self.number("audit.retention_days", 0, 7_300);
        let usage_retention: Option<u64> = self.number("audit.usage_retention_days", 1, 7_300);
        if retention.is_some_and(|events| usage_retention.is_some_and(|usage| usage < events)) {
            let what = "must not be less than audit.retention_days";
            self.problem("audit.usage_retention_days", what);
        }
        Some(Audit {
            durability: durability?,
            queue_capacity: queue?,
            retention: Some(retention?).filter(|days| *days > 0).map(days),
            usage_retention: days(usage_retention?),
        })
    }

    fn rotation(&mut self) -> Option<Rotation> {
        // At most a day: nodes that crashed are remembered for a day.
        let quiet = self.number("rotation.quiet_seconds", 0, 86_400);
        Some(Rotation { quiet_period: Duration::from_secs(quiet?) })
    }

    fn log(&mut self) -> Option<Log> {
        let filter = self.text("log.filter");
        if filter.parse::<tracing_subscriber::EnvFilter>().is_err() {
            self.problem("log.filter", "must be a filter such as info or warn,call2me_auth=debug");
        }
        let json = self.choice("log.format", &[("text", false), ("json", true)]);
        let slow_request: Option<u64> = self.number("log.slow_request_ms", 1, 3_600_000);
        Some(Log { filter, is_json: json?, slow_request: Duration::from_millis(slow_request?) })
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
            self.errors.push(format!("{key} is not set (variable {ENV_PREFIX}{variable})"));
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
        self.errors.push(format!("{key} {what} (from {origin})"));
    }
}

/// True if the text is the URL of a Valkey or Redis server. Parts that the client would ignore are
/// rejected.
fn is_redis_url(text: &str) -> bool {
    let Ok(url) = text.parse::<Url>() else { return false };
    // `#insecure` would disable the check of the TLS certificate.
    if url.fragment().is_some() {
        return false;
    }
    match url.scheme() {
        "redis" | "rediss" => {
            let database = url.path().trim_matches('/');
            url.host_str().is_some_and(|host| !host.is_empty())
                && url.query().is_none()
                && (database.is_empty() || database.parse::<u32>().is_ok())
        }
        "unix" => {
            url.host_str().is_none()
                && url.path().len() > 1
                && url.query_pairs().all(|(name, value)| match &*name {
                    "db" => value.parse::<u32>().is_ok(),
                    "user" | "pass" => true,
                    _ => false,
                })
        }
        _ => false,
    }
}
