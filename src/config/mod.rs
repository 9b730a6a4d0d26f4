//! The configuration: `config/default.toml`, `config/<profile>.toml`, then the environment.
//!
//! `default.toml` lists every setting and defines its type. So a misspelled name or a value of the
//! wrong type is detected in every source, and all errors are reported at once. `layers.rs` merges
//! the sources into [`RawConfig`], `check.rs` validates them into [`Settings`].

mod check;
mod layers;
mod mail;

use std::{fmt, net::SocketAddr, num::NonZeroU32, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::model::{api_key::Environment, signing_key::SigningAlgorithm};

pub use layers::{ConfigErrors, ConfigFiles, Profile, RawConfig};
pub use mail::{Mail, MailTransport, Smtp, SmtpSecurity};

/// The validated settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[database]`
    pub database: Database,
    /// `[keys]`
    pub keys: Keys,
    /// `[tokens]`
    pub tokens: Tokens,
    /// `[sessions]`
    pub sessions: Sessions,
    /// `[passwords]`
    pub passwords: Passwords,
    /// `[rate_limit]`
    pub rate_limit: RateLimit,
    /// `[cache]`
    pub cache: Cache,
    /// `[redis]`, if `rate_limit.store` is `redis`.
    pub redis: Option<Redis>,
    /// `[mail]`
    pub mail: Mail,
    /// `[oauth]`
    pub oauth: OAuth,
    /// `[documents]`
    pub documents: Documents,
    /// `[audit]`
    pub audit: Audit,
    /// `[rotation]`
    pub rotation: Rotation,
    /// `[log]`
    pub log: Log,
}

/// `[server]`
#[derive(Debug, Clone)]
pub struct Server {
    /// The address that the API listens on.
    pub address: SocketAddr,
    /// The address that serves the metrics; `None` to serve none.
    pub metrics_address: Option<SocketAddr>,
    /// The URL under which clients reach the service, without a trailing slash.
    pub public_url: String,
    /// Origins that may call `/v1` from a browser (CORS).
    pub allowed_origins: Vec<String>,
    /// Proxies that are trusted to set `X-Forwarded-For`.
    pub trusted_proxies: Vec<IpNet>,
    /// Maximum size of a request body, in bytes.
    pub max_body_bytes: usize,
    /// Timeout of a handler.
    pub handler_timeout: Duration,
    /// Timeout of receiving a request's head or its body, and of an idle connection.
    pub header_timeout: Duration,
    /// Timeout of sending: the connection is closed if the client reads nothing for this long.
    pub write_timeout: Duration,
    /// Maximum number of connections.
    pub max_connections: usize,
    /// Maximum number of connections of one client (IPv6: one /64).
    pub max_connections_per_address: usize,
    /// Timeout of graceful shutdown: requests in flight may take this long to finish.
    pub shutdown_timeout: Duration,
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// The URL of the service's own database role.
    pub url: SecretString,
    /// The URL of the role that owns the tables.
    pub owner_url: Option<SecretString>,
    /// The connection pool.
    pub pool: Pool,
    /// Maximum difference between the clock of this machine and that of PostgreSQL at the start.
    pub max_clock_skew: Duration,
}

/// Settings of the PostgreSQL connection pool.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Maximum number of connections.
    pub max_connections: u32,
    /// Timeout of acquiring a connection; then the response is 503.
    pub acquire_timeout: Duration,
    /// Timeout of a statement.
    pub statement_timeout: Duration,
}

/// `[documents]`
#[derive(Debug, Clone, Copy)]
pub struct Documents {
    /// Maximum number of documents of a workspace.
    pub max_per_workspace: i64,
    /// Maximum size of all documents of a workspace, in bytes of JSON.
    pub max_bytes_per_workspace: i64,
}

/// `[keys]`
#[derive(Debug, Clone)]
pub struct Keys {
    /// The environment label in API keys.
    pub environment: Environment,
    /// Encrypts stored secrets, and derives tokens that are not stored.
    pub encryption_key: EncryptionKey,
    /// Earlier and future keys, which only read.
    pub previous_encryption_keys: Vec<EncryptionKey>,
}

/// The deployment's secret: 32 bytes, never printed, zeroized when dropped.
#[derive(Clone)]
pub struct EncryptionKey(Zeroizing<[u8; 32]>);

impl EncryptionKey {
    /// Wraps 32 secret bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns the bytes, to derive keys from.
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

/// `[tokens]`
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    /// The algorithm of access tokens.
    pub signing_algorithm: SigningAlgorithm,
    /// Time for which a new key is published before it signs.
    pub key_publication: Duration,
}

/// The policy for creating accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Open to everyone.
    Open,
    /// Only with an invitation.
    Invite,
    /// Closed: only operators create accounts.
    Closed,
}

/// `[sessions]`
#[derive(Debug, Clone)]
pub struct Sessions {
    /// The policy for creating accounts.
    pub registration: Registration,
    /// Lifetime of an access token.
    pub access_token_lifetime: Duration,
    /// Lifetime of a refresh token.
    pub refresh_token_lifetime: Duration,
    /// Lifetime of a session, however often it is refreshed.
    pub absolute_lifetime: Duration,
    /// Time within which a used refresh token may be retried, with the same successor.
    pub refresh_reuse_window: Duration,
}

/// `[passwords]`
#[derive(Debug, Clone, Copy)]
pub struct Passwords {
    /// Number of hashing threads; 0 for half the number of cores.
    pub threads: usize,
    /// Maximum number of sign-ins waiting for a thread.
    pub queue_capacity: usize,
}

/// `[rate_limit]`
#[derive(Debug, Clone, Copy)]
pub struct RateLimit {
    /// Requests per minute of each credential.
    pub per_key_per_minute: NonZeroU32,
    /// Requests per minute without a valid credential, for each address.
    pub per_address_per_minute: NonZeroU32,
    /// Failed sign-ins and similar requests per minute, for each address and account.
    pub sign_in_per_minute: NonZeroU32,
}

/// `[cache]`
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// Duration of a node's lease: the time for which it may use its cache without contact to
    /// PostgreSQL.
    pub lease_duration: Duration,
    /// Maximum number of cached API keys.
    pub max_keys: usize,
}

/// The state of its audit event that a response waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The event is queued.
    Batched,
    /// The event is committed.
    Strict,
}

/// `[redis]`: a Valkey or Redis server on which nodes share their rate limits.
#[derive(Debug, Clone)]
pub struct Redis {
    /// The server's URL, with user and password.
    pub url: SecretString,
    /// Prefix of all keys on the server.
    pub prefix: String,
}

/// Sources from which client metadata documents may be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataDocuments {
    /// None.
    Off,
    /// Public addresses only.
    Public,
    /// Any address, including this machine: for development only.
    Any,
}

/// `[oauth]`
#[derive(Debug, Clone)]
pub struct OAuth {
    /// Resources, besides this service, for which tokens are issued (RFC 8707).
    pub resources: Vec<String>,
    /// True if clients may register themselves (RFC 7591).
    pub is_registration_open: bool,
    /// Sources from which client metadata documents may be fetched.
    pub metadata_documents: MetadataDocuments,
    /// URI schemes of native apps that redirect URIs may use although they contain no dot.
    pub native_schemes: Vec<String>,
    /// Idle timeout of a grant: it expires if it issues no token for this long.
    pub grant_idle_timeout: Duration,
}

/// `[audit]`
#[derive(Debug, Clone, Copy)]
pub struct Audit {
    /// The state of its audit event that a response waits for.
    pub durability: Durability,
    /// Maximum number of events waiting to be written.
    pub queue_capacity: usize,
    /// Retention of audit events; `None` to keep them forever.
    pub retention: Option<Duration>,
    /// Retention of the usage of keys.
    pub usage_retention: Duration,
}

/// `[rotation]`
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// Time for which a rotated key must be idle until it is safe to revoke.
    pub quiet_period: Duration,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// The log filter, in the syntax of `RUST_LOG`.
    pub filter: String,
    /// True for JSON lines, false for text.
    pub is_json: bool,
    /// Requests that take longer than this are logged.
    pub slow_request: Duration,
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use secrecy::ExposeSecret as _;

    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn read(variables: &[(&str, &str)]) -> RawConfig {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        RawConfig::read(Profile::Production, ConfigFiles::Embedded, variables)
    }

    const NO_VARIABLES: [(&str, &str); 0] = [];

    const REQUIRED: [(&str, &str); 3] = [
        ("DATABASE_URL", "postgres://localhost/x"),
        ("CALL2ME_AUTH__SERVER__PUBLIC_URL", "https://auth.example.com/"),
        ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY", KEY),
    ];

    #[test]
    fn required_settings_alone_are_accepted() {
        let settings = read(&REQUIRED).check().unwrap();
        assert_eq!(settings.server.public_url, "https://auth.example.com");
        assert_eq!(settings.server.address.port(), 8080);
        assert_eq!(settings.sessions.access_token_lifetime, Duration::from_hours(1));
    }

    #[test]
    fn embedded_files_are_valid() {
        for profile in [Profile::Development, Profile::Production] {
            assert_eq!(
                RawConfig::read(profile, ConfigFiles::Embedded, NO_VARIABLES).errors,
                Vec::<String>::new()
            );
        }
    }

    #[test]
    fn all_errors_are_reported_at_once() {
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
            "server.port is not a setting",
            "sessions.registration must be one of: open, invite, closed",
            "keys.encryption_key must be 32 bytes",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(expected)), "{expected}: {problems:#?}");
        }
        assert_eq!(problems.len(), 7, "{problems:#?}");
    }

    #[test]
    fn misspelled_variable_is_rejected_with_a_suggestion() {
        for (variable, hint) in [
            ("CALL2ME_AUTH_SERVER_ADDRESS", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("CALL2ME_AUTH__SERVER_ADDRESS", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("call2me_auth__server__address", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("CALL2ME_AUTH_DATABASE_URL", "did you mean CALL2ME_AUTH__DATABASE__URL?"),
            ("CALL2ME_AUTHSERVER_ADDRESS", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("CALL2ME_AUTH_NOTHING", "CALL2ME_AUTH_NOTHING is not a variable"),
            ("CALL2ME_AUTH", "CALL2ME_AUTH is not a variable"),
        ] {
            let raw = read(&[&REQUIRED[..], &[(variable, "127.0.0.1:1")]].concat());
            let problems = raw.check().unwrap_err().0;
            assert_eq!(problems.len(), 1, "{problems:#?}");
            assert!(problems[0].contains(hint), "{problems:#?}");
            assert!(raw.check_database().is_err() && raw.check_sources().is_err());
        }
        // Variables of other programs.
        let others = [("CALL2ME_API_KEY", "x"), ("CALL2ME", "x"), ("SERVER__ADDRESS", "x")];
        assert!(read(&[&REQUIRED[..], &others].concat()).check().is_ok());
    }

    #[test]
    fn kubernetes_service_links_are_ignored() {
        let links = [
            ("CALL2ME_AUTH_SERVICE_HOST", "10.0.0.1"),
            ("CALL2ME_AUTH_SERVICE_PORT", "8080"),
            ("CALL2ME_AUTH_SERVICE_PORT_HTTP", "8080"),
            ("CALL2ME_AUTH_PORT", "tcp://10.0.0.1:8080"),
            ("CALL2ME_AUTH_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("CALL2ME_AUTH_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("CALL2ME_AUTH_METRICS_PORT", "tcp://10.0.0.2:9090"),
            ("CALL2ME_AUTH_METRICS_SERVICE_HOST", "10.0.0.2"),
        ];
        assert!(read(&[&REQUIRED[..], &links].concat()).check().is_ok());
        let misspelled = ("CALL2ME_AUTH_SERVER_PORT", "8080");
        assert!(read(&[&REQUIRED[..], &[misspelled]].concat()).check().is_err());
    }

    #[test]
    fn non_utf8_variable_is_rejected_only_if_it_is_a_setting() {
        use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};
        let bytes = || OsString::from_vec(vec![b'x', 0xff]);
        let check = |name: OsString| {
            let required =
                REQUIRED.map(|(name, value)| (OsString::from(name), OsString::from(value)));
            let all = required.into_iter().chain([(name, bytes())]);
            let raw = RawConfig::read(Profile::Production, ConfigFiles::Embedded, all);
            raw.check().err().map_or(Vec::new(), |problems| problems.0)
        };
        for name in ["LS_COLORS".into(), bytes()] {
            assert_eq!(check(name), Vec::<String>::new());
        }
        for name in ["CALL2ME_AUTH__LOG__FILTER", "DATABASE_URL"] {
            assert_eq!(check(name.into()), [format!("{name} is not UTF-8")]);
        }
    }

    #[test]
    fn named_folder_without_files_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let problems = |files: ConfigFiles<'_>| {
            RawConfig::read(Profile::Production, files, NO_VARIABLES).errors.join("; ")
        };
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for missing in [folder.path(), &file, &folder.path().join("nowhere")] {
            assert_eq!(problems(ConfigFiles::Optional(missing)), "");
            let error = problems(ConfigFiles::Required(missing));
            assert!(error.ends_with("no default.toml or production.toml found"), "{error}");
        }
        std::fs::write(folder.path().join("production.toml"), "").unwrap();
        assert_eq!(problems(ConfigFiles::Required(folder.path())), "");
    }

    #[test]
    fn secrets_are_not_printed() {
        let raw = read(&REQUIRED);
        let text = format!("{} {:?}", raw.describe(), raw.check().unwrap());
        assert!(!text.contains(KEY) && !text.contains("localhost/x"), "{text}");
        assert!(text.contains("url = \"[redacted]\"  # from DATABASE_URL"), "{text}");
    }

    #[test]
    fn secret_is_read_from_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let key = file("key", &format!("{KEY}\n"));
        let url = file("url", "postgres://db.example/x\r\n");
        let others = [[1; 32], [2; 32]].map(|bytes| BASE64.encode(&bytes));
        let list = file("list", &format!("{}\n\n  {}\n", others[0], others[1]));
        let settings = read(&[
            ("CALL2ME_AUTH__DATABASE__URL_FILE", &url),
            ("CALL2ME_AUTH__SERVER__PUBLIC_URL", "https://auth.example.com/"),
            ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY_FILE", &key),
            ("CALL2ME_AUTH__KEYS__PREVIOUS_ENCRYPTION_KEYS_FILE", &list),
        ]);
        let text = settings.describe();
        assert!(others.iter().all(|key| !text.contains(key)) && !text.contains(KEY), "{text}");
        assert!(text.contains("= [\"[redacted]\", \"[redacted]\"]"), "{text}");
        let settings = settings.check().unwrap();
        assert_eq!(settings.database.url.expose_secret(), "postgres://db.example/x");
        assert_eq!(BASE64.encode(settings.keys.encryption_key.expose()), KEY);
        let previous = &settings.keys.previous_encryption_keys;
        assert_eq!(previous.iter().map(|key| key.expose()[0]).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn wrong_file_of_secret_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let (missing, present) = (path("missing"), path("present"));
        std::fs::write(&present, KEY).unwrap();
        for (variable, path, expected) in [
            ("CALL2ME_AUTH__MAIL__URL_FILE", &missing, "cannot read /"),
            ("CALL2ME_AUTH__KEYS__ENCRYPTION_KEY_FILE", &present, "are both set"),
            ("CALL2ME_AUTH__SERVER__ADDRESS_FILE", &present, "is not a setting"),
        ] {
            for order in [[0, 1, 2, 3], [3, 0, 1, 2]] {
                let variables = [&REQUIRED[..], &[(variable, &**path)]].concat();
                let problems = read(&order.map(|n: usize| variables[n])).errors;
                assert_eq!(problems.len(), 1, "{problems:#?}");
                assert!(problems[0].contains(expected), "{problems:#?}");
            }
        }
    }

    #[test]
    fn wrong_previous_encryption_key_is_rejected() {
        let other = BASE64.encode(&[1; 32]);
        let five = [&*other; 5].join(",");
        for (text, expected) in [
            ("short", "must be 32 bytes in base64"),
            (&*format!("{other},short"), "must be 32 bytes in base64"),
            (KEY, "must not contain keys.encryption_key"),
            (&*format!("{other},{KEY}"), "must not contain keys.encryption_key"),
            (&*five, "at most 4 keys"),
        ] {
            let list = ("CALL2ME_AUTH__KEYS__PREVIOUS_ENCRYPTION_KEYS", text);
            let problems = read(&[&REQUIRED[..], &[list]].concat()).check().unwrap_err().0;
            assert_eq!(problems.len(), 1, "{problems:#?}");
            assert!(problems[0].starts_with("keys.previous_encryption_keys "), "{problems:#?}");
            assert!(problems[0].contains(expected), "{problems:#?}");
            assert!(!problems[0].contains(&other) && !problems[0].contains(KEY), "{problems:#?}");
        }
    }

    fn redis_problems(url: &str) -> Vec<String> {
        let store =
            [("CALL2ME_AUTH__RATE_LIMIT__STORE", "redis"), ("CALL2ME_AUTH__REDIS__URL", url)];
        read(&[&REQUIRED[..], &store].concat())
            .check()
            .err()
            .map_or(Vec::new(), |problems| problems.0)
    }

    #[test]
    fn redis_url_is_validated() {
        for url in [
            "redis://127.0.0.1",
            "redis://:secret@valkey.internal:6379/2",
            "rediss://user:p%40ss@valkey.example.com",
            "redis://[::1]:6379",
            "unix:///run/valkey/valkey.sock?db=1&pass=secret",
        ] {
            assert_eq!(redis_problems(url), Vec::<String>::new(), "{url}");
        }
        for url in [
            "valkey.internal:6379",
            "http://valkey.internal",
            "redis://",
            "redis://valkey.internal/zero",
            "redis://valkey.internal?db=1",
            "rediss://valkey.internal#insecure",
            "unix://run/valkey.sock",
            "unix:///run/valkey.sock?database=1",
        ] {
            let problems = redis_problems(url);
            assert_eq!(problems.len(), 1, "{url}: {problems:?}");
            assert!(problems[0].starts_with("redis.url must be a URL such as"), "{problems:?}");
        }
        let unset = redis_problems("");
        assert_eq!(unset, ["redis.url is not set (variable CALL2ME_AUTH__REDIS__URL)"]);
    }

    #[test]
    fn redis_url_is_used_only_if_chosen_and_is_never_printed() {
        let url = ("CALL2ME_AUTH__REDIS__URL", "redis://:hush@localhost/0");
        let raw = read(&[&REQUIRED[..], &[url]].concat());
        assert!(raw.check().unwrap().redis.is_none());
        let store = ("CALL2ME_AUTH__RATE_LIMIT__STORE", "redis");
        let raw = read(&[&REQUIRED[..], &[url, store]].concat());
        let settings = raw.check().unwrap();
        assert_eq!(settings.redis.as_ref().map(|redis| redis.prefix.as_str()), Some("call2me"));
        let text = format!("{} {settings:?}", raw.describe());
        assert!(!text.contains("hush"), "{text}");
        let prefix = ("CALL2ME_AUTH__REDIS__PREFIX", "two words");
        let problems = read(&[&REQUIRED[..], &[prefix]].concat()).check().unwrap_err().0;
        assert!(problems[0].starts_with("redis.prefix must be"), "{problems:?}");
    }
}
