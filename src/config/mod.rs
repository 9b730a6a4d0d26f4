//! The configuration: `config/default.toml`, `config/<profile>.toml`, then the environment.
//!
//! `default.toml` names every setting and gives it its type, so a misspelt name or a value of the
//! wrong type is noticed whatever it comes from, and all problems are reported at once.

mod check;
mod layers;
mod mail;

use std::{fmt, net::SocketAddr, num::NonZeroU32, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::model::api_key::Environment;

pub use layers::{Files, Problems, Profile, Raw};
pub use mail::{Mail, MailTransport, Smtp, SmtpSecurity};

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
    /// `[cache]`
    pub cache: Cache,
    /// `[redis]`, if `rate_limit.store` asks for it.
    pub redis: Option<Redis>,
    /// `[mail]`
    pub mail: Mail,
    /// `[oauth]`
    pub oauth: OAuth,
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
    /// Where the API listens.
    pub address: SocketAddr,
    /// Where metrics are served; none: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// Where clients reach it, without a slash at the end.
    pub public_url: String,
    /// Origins of web pages that may call `/v1` from browsers.
    pub allowed_origins: Vec<String>,
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
    /// Threads that hash; 0 is half as many as there are cores.
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

/// `[cache]`
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// How long a node may believe what it has cached after it last heard from PostgreSQL.
    pub lease: Duration,
    /// API keys in memory at most.
    pub keys: usize,
}

/// What a response waits for before it goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// That its event is queued.
    Batched,
    /// That its event is committed.
    Strict,
}

/// `[redis]`: a Valkey or Redis server, on which nodes share what they count.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Where it is, and how to log in.
    pub url: SecretString,
    /// What the names of all keys begin with.
    pub prefix: String,
}

/// From where clients' metadata documents are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataDocuments {
    /// From nowhere.
    Off,
    /// From public addresses.
    Public,
    /// From anywhere, this machine too: for development.
    Any,
}

/// `[oauth]`
#[derive(Debug, Clone)]
pub struct OAuth {
    /// What tokens are made for, besides this service.
    pub resources: Vec<String>,
    /// Whether clients may register themselves.
    pub registration: bool,
    /// From where clients' metadata documents are fetched.
    pub documents: MetadataDocuments,
    /// Schemes of redirect URIs that are taken though they have no dot.
    pub native_schemes: Vec<String>,
    /// How long a grant may go without giving tokens.
    pub refresh_token: Duration,
}

/// `[audit]`
#[derive(Debug, Clone, Copy)]
pub struct Audit {
    /// What a response waits for.
    pub durability: Durability,
    /// Events that may wait to be written.
    pub queue: usize,
    /// How long events are kept; none: for good.
    pub retention: Option<Duration>,
    /// How long it is kept what keys were used for.
    pub usage_retention: Duration,
}

/// `[rotation]`
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// How long a rotated key has to be unused until it is safe to revoke.
    pub quiet: Duration,
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
#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn read(variables: &[(&str, &str)]) -> Raw {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Raw::read(Profile::Production, Files::Embedded, variables)
    }

    const NONE: [(&str, &str); 0] = [];

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
            assert_eq!(Raw::read(profile, Files::Embedded, NONE).problems, Vec::<String>::new());
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
    fn misspelt_variables_are_refused_with_the_right_name() {
        for (variable, hint) in [
            ("CALL2ME_AUTH_SERVER_ADDRESS", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("CALL2ME_AUTH__SERVER_ADDRESS", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("call2me_auth__server__address", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("CALL2ME_AUTH_DATABASE_URL", "did you mean CALL2ME_AUTH__DATABASE__URL?"),
            ("CALL2ME_AUTHSERVER_ADDRESS", "did you mean CALL2ME_AUTH__SERVER__ADDRESS?"),
            ("CALL2ME_AUTH_NOTHING", "CALL2ME_AUTH_NOTHING is not a variable"),
            ("CALL2ME_AUTH", "CALL2ME_AUTH is not a variable"),
        ] {
            let raw = read(&[&ENOUGH[..], &[(variable, "127.0.0.1:1")]].concat());
            let problems = raw.check().unwrap_err().0;
            assert_eq!(problems.len(), 1, "{problems:#?}");
            assert!(problems[0].contains(hint), "{problems:#?}");
            assert!(raw.check_database().is_err() && raw.check_layers().is_err());
        }
        // Other programs' variables.
        let others = [("CALL2ME_API_KEY", "x"), ("CALL2ME", "x"), ("SERVER__ADDRESS", "x")];
        assert!(read(&[&ENOUGH[..], &others].concat()).check().is_ok());
    }

    #[test]
    fn service_links_of_kubernetes_are_ignored() {
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
        assert!(read(&[&ENOUGH[..], &links].concat()).check().is_ok());
        let misspelt = ("CALL2ME_AUTH_SERVER_PORT", "8080");
        assert!(read(&[&ENOUGH[..], &[misspelt]].concat()).check().is_err());
    }

    #[test]
    fn variables_that_are_not_utf8_matter_only_where_they_are_settings() {
        use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};
        let bytes = || OsString::from_vec(vec![b'x', 0xff]);
        let check = |name: OsString| {
            let enough = ENOUGH.map(|(name, value)| (OsString::from(name), OsString::from(value)));
            let all = enough.into_iter().chain([(name, bytes())]);
            let raw = Raw::read(Profile::Production, Files::Embedded, all);
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
    fn named_folder_without_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let problems =
            |files: Files<'_>| Raw::read(Profile::Production, files, NONE).problems.join("; ");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for missing in [folder.path(), &file, &folder.path().join("nowhere")] {
            assert_eq!(problems(Files::Optional(missing)), "");
            let refused = problems(Files::Required(missing));
            assert!(refused.ends_with("no default.toml or production.toml is there"), "{refused}");
        }
        std::fs::write(folder.path().join("production.toml"), "").unwrap();
        assert_eq!(problems(Files::Required(folder.path())), "");
    }

    #[test]
    fn secrets_are_not_printed() {
        let raw = read(&ENOUGH);
        let text = format!("{} {:?}", raw.describe(), raw.check().unwrap());
        assert!(!text.contains(KEY) && !text.contains("localhost/x"), "{text}");
        assert!(text.contains("url = \"[redacted]\"  # from DATABASE_URL"), "{text}");
    }

    fn redis_problems(url: &str) -> Vec<String> {
        let store =
            [("CALL2ME_AUTH__RATE_LIMIT__STORE", "redis"), ("CALL2ME_AUTH__REDIS__URL", url)];
        read(&[&ENOUGH[..], &store].concat())
            .check()
            .err()
            .map_or(Vec::new(), |problems| problems.0)
    }

    #[test]
    fn limits_are_shared_where_a_server_is_named() {
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
    fn a_server_is_used_only_if_it_is_chosen_and_never_printed() {
        let url = ("CALL2ME_AUTH__REDIS__URL", "redis://:hush@localhost/0");
        let raw = read(&[&ENOUGH[..], &[url]].concat());
        assert!(raw.check().unwrap().redis.is_none());
        let store = ("CALL2ME_AUTH__RATE_LIMIT__STORE", "redis");
        let raw = read(&[&ENOUGH[..], &[url, store]].concat());
        let settings = raw.check().unwrap();
        assert_eq!(settings.redis.as_ref().map(|redis| redis.prefix.as_str()), Some("call2me"));
        let text = format!("{} {settings:?}", raw.describe());
        assert!(!text.contains("hush"), "{text}");
        let prefix = ("CALL2ME_AUTH__REDIS__PREFIX", "two words");
        let problems = read(&[&ENOUGH[..], &[prefix]].concat()).check().unwrap_err().0;
        assert!(problems[0].starts_with("redis.prefix must be"), "{problems:?}");
    }
}
