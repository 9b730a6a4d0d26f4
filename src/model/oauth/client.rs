//! Clients: programs that people let into their workspaces (RFC 6749, section 2).

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::model::{
    Invalid,
    id::{ClientId, Id, WorkspaceId},
    scope::Scope,
};

/// What a client's secret begins with, so that a scanner can tell one.
const SECRET_PREFIX: &str = "cs_call2me_";
const SECRET_BYTES: usize = 32;

/// How a client gets tokens (RFC 6749, section 1.3; RFC 8628).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GrantType {
    /// Somebody consents in a browser.
    AuthorizationCode,
    /// What was granted goes on.
    RefreshToken,
    /// The client acts for itself, in its own workspace.
    ClientCredentials,
    /// Somebody consents in a browser that the client is not in.
    DeviceCode,
}

impl GrantType {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::AuthorizationCode, Self::RefreshToken, Self::ClientCredentials, Self::DeviceCode];

    /// The name in requests, in metadata and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::RefreshToken => "refresh_token",
            Self::ClientCredentials => "client_credentials",
            Self::DeviceCode => "urn:ietf:params:oauth:grant-type:device_code",
        }
    }

    /// The grant type of a name; none for one that is not offered.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|grant| grant.as_str() == name)
    }
}

/// How a client shows at the token endpoint who it is (RFC 7591, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// Not at all: a public client.
    None,
    /// By HTTP Basic.
    ClientSecretBasic,
    /// By parameters in the body.
    ClientSecretPost,
}

impl AuthMethod {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::ClientSecretBasic, Self::ClientSecretPost];

    /// The name in metadata and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
        }
    }

    /// The method of a name; none for one that is not offered.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }
}

/// Where a client comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It registered itself (RFC 7591).
    Registered,
    /// Its client ID metadata document, by its URL.
    Document(String),
    /// An admin of this workspace made it.
    Workspace(WorkspaceId),
}

/// A client.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its id.
    pub id: ClientId,
    /// Where it comes from.
    pub origin: Origin,
    /// What it calls itself.
    pub name: String,
    /// Where codes may be sent.
    pub redirect_uris: Vec<String>,
    /// How it shows who it is.
    pub auth_method: AuthMethod,
    /// How it gets tokens.
    pub grant_types: Vec<GrantType>,
    /// What it asks for unless it says; of a workspace's client also the most that it is granted.
    pub scope: Option<Scope>,
    /// Its page.
    pub client_uri: Option<String>,
    /// The protected resource that it is, whose tokens it may introspect.
    pub resource: Option<String>,
    /// Since when.
    pub created_at: OffsetDateTime,
    /// Who made it, as a public id; none: itself or the operator.
    pub created_by: Option<String>,
}

impl Client {
    /// What it is called in requests: its `client_id`.
    #[must_use]
    pub fn client_id(&self) -> String {
        match &self.origin {
            Origin::Document(url) => url.clone(),
            Origin::Registered | Origin::Workspace(_) => self.id.to_string(),
        }
    }

    /// Whether it has a secret (RFC 6749, section 2.1).
    #[must_use]
    pub fn is_confidential(&self) -> bool {
        self.auth_method != AuthMethod::None
    }

    /// Whether it may get tokens this way.
    #[must_use]
    pub fn may(&self, grant: GrantType) -> bool {
        self.grant_types.contains(&grant)
    }

    /// The scope of a request that asks for one, or for none. Who registered itself is not held to what it
    /// said then: it may ask for more later, and whoever consents decides.
    #[must_use]
    pub fn scope_of(&self, asked: Option<Scope>) -> Scope {
        let wanted = asked.or(self.scope).unwrap_or(Scope::ReadOnly);
        match (&self.origin, self.scope) {
            (Origin::Workspace(_), Some(most)) => wanted.min(most),
            _ => wanted,
        }
    }
}

/// A client with the digests of the secrets that it may show, as the token endpoint meets it.
#[derive(Debug, Clone)]
pub struct KnownClient {
    /// The client.
    pub client: Client,
    /// Of the current secret, and of those that it supersedes and that go on for a while.
    pub secrets: Vec<SecretDigest>,
}

impl KnownClient {
    /// Whether this is a secret of it; compared in constant time.
    #[must_use]
    pub fn has(&self, secret: &str) -> bool {
        let shown = SecretDigest::of(secret);
        let is = |known: &SecretDigest| bool::from(known.0.ct_eq(&shown.0));
        // Each is looked at, whichever it is.
        self.secrets.iter().map(is).fold(false, |found, is| found | is)
    }
}

/// SHA-256 of a client's secret: of 256 random bits, which need no slow hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    /// Of a secret.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// As the database has it.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the database.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretDigest(…)")
    }
}

/// A client's secret: `cs_call2me_` and 32 random bytes in base64url. It is shown once.
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// A secret of these random bytes.
    #[must_use]
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self(format!("{SECRET_PREFIX}{}", BASE64URL_NOPAD.encode(&*bytes)).into())
    }

    /// The text, to be shown.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }

    /// What is kept of it.
    #[must_use]
    pub fn digest(&self) -> SecretDigest {
        SecretDigest::of(self.0.expose_secret())
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(…)")
    }
}

/// Reads a `client_id` as somebody wrote it.
///
/// # Errors
/// For what cannot be one.
pub fn parse_client_id(text: &str) -> Result<ClientRef, Invalid> {
    if text.starts_with("https://") {
        return Ok(ClientRef::Document(text.to_owned()));
    }
    crate::model::id::parse(ClientId::PREFIX, text).map(|id| ClientRef::Id(id.into()))
}

/// Which client a request is of, as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientRef {
    /// One that is known here.
    Id(ClientId),
    /// One that its document tells of.
    Document(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(origin: Origin, scope: Option<Scope>) -> Client {
        Client {
            id: uuid::Uuid::nil().into(),
            origin,
            name: "x".to_owned(),
            redirect_uris: Vec::new(),
            auth_method: AuthMethod::None,
            grant_types: Vec::new(),
            scope,
            client_uri: None,
            resource: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
            created_by: None,
        }
    }

    #[test]
    fn nobody_is_asked_for_more_than_a_client_may_have() {
        use Scope::{Admin, ReadOnly, Write};
        let workspace = Origin::Workspace(uuid::Uuid::nil().into());
        for (origin, known, asked, scope) in [
            (&Origin::Registered, None, None, ReadOnly),
            (&Origin::Registered, None, Some(Admin), Admin),
            (&Origin::Registered, Some(Write), None, Write),
            (&Origin::Registered, Some(Write), Some(Admin), Admin),
            (&workspace, Some(Write), None, Write),
            (&workspace, Some(Write), Some(Admin), Write),
            (&workspace, Some(Write), Some(ReadOnly), ReadOnly),
        ] {
            let client = client(origin.clone(), known);
            assert_eq!(client.scope_of(asked), scope, "{origin:?} {known:?} {asked:?}");
        }
    }

    #[test]
    fn a_secret_is_known_by_its_digest_and_never_printed() {
        let secret = ClientSecret::new([7; 32]);
        assert!(secret.reveal().starts_with("cs_call2me_") && secret.reveal().len() == 54);
        let (old, other) = (ClientSecret::new([8; 32]), ClientSecret::new([9; 32]));
        let secrets = vec![old.digest(), secret.digest()];
        let known = KnownClient { client: client(Origin::Registered, None), secrets };
        assert!(known.has(secret.reveal()) && known.has(old.reveal()));
        assert!(!known.has(other.reveal()) && !known.has("") && !known.has("cs_call2me_"));
        let debug = format!("{secret:?} {known:?}");
        assert!(!debug.contains(secret.reveal()), "{debug}");
    }
}
