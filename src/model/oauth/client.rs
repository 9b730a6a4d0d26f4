//! OAuth clients and their authentication (RFC 6749, section 2).
//!
//! Client secrets are never stored, only their SHA-256; see [`SecretDigest`].

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::model::{
    ValidationError,
    id::{ClientId, Id, WorkspaceId},
    scope::Scope,
};

/// The prefix of client secrets, by which secret scanners recognize them.
const SECRET_PREFIX: &str = "cs_call2me_";
const SECRET_BYTES: usize = 32;

/// A grant type (RFC 6749, section 1.3; RFC 8628).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GrantType {
    /// A user consents in the browser that the client opened.
    AuthorizationCode,
    /// The client renews the tokens of an existing grant.
    RefreshToken,
    /// The client acts for itself, in its own workspace.
    ClientCredentials,
    /// A user consents in a browser on another device.
    DeviceCode,
}

impl GrantType {
    /// All grant types.
    pub const ALL: [Self; 4] =
        [Self::AuthorizationCode, Self::RefreshToken, Self::ClientCredentials, Self::DeviceCode];

    /// Returns the name in requests, in metadata and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationCode => "authorization_code",
            Self::RefreshToken => "refresh_token",
            Self::ClientCredentials => "client_credentials",
            Self::DeviceCode => "urn:ietf:params:oauth:grant-type:device_code",
        }
    }

    /// Returns the grant type of a name, or `None` if it is not supported.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|grant| grant.as_str() == name)
    }
}

/// A client's authentication method at the token endpoint (RFC 7591, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuthMethod {
    /// No authentication: a public client.
    None,
    /// HTTP Basic.
    ClientSecretBasic,
    /// Parameters in the body.
    ClientSecretPost,
}

impl ClientAuthMethod {
    /// All authentication methods.
    pub const ALL: [Self; 3] = [Self::None, Self::ClientSecretBasic, Self::ClientSecretPost];

    /// Returns the name in metadata and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
        }
    }

    /// Returns the method of a name, or `None` if it is not supported.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }
}

/// The way in which a client became known to this service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOrigin {
    /// The client registered itself (dynamic client registration, RFC 7591).
    SelfRegistered,
    /// The client metadata document at this URL.
    MetadataDocument(String),
    /// An administrator of this workspace registered the client.
    Workspace(WorkspaceId),
}

/// An OAuth client.
#[derive(Debug, Clone)]
pub struct Client {
    /// The client's id.
    pub id: ClientId,
    /// The way in which the client became known.
    pub origin: ClientOrigin,
    /// The name that the client declares.
    pub name: String,
    /// The registered redirect URIs.
    pub redirect_uris: Vec<String>,
    /// The authentication method at the token endpoint.
    pub auth_method: ClientAuthMethod,
    /// The grant types that the client may use.
    pub grant_types: Vec<GrantType>,
    /// The default scope of requests without `scope`; for a workspace client also the maximum.
    pub scope: Option<Scope>,
    /// The URL of the client's home page.
    pub client_uri: Option<String>,
    /// The protected resource that the client operates; the client may introspect its tokens.
    pub resource: Option<String>,
    /// Time of creation.
    pub created_at: OffsetDateTime,
    /// The public id of the creating principal; `None` is the client itself or the operator.
    pub created_by: Option<String>,
}

impl Client {
    /// Returns the `client_id` of the client in requests.
    #[must_use]
    pub fn client_id(&self) -> String {
        match &self.origin {
            ClientOrigin::MetadataDocument(url) => url.clone(),
            ClientOrigin::SelfRegistered | ClientOrigin::Workspace(_) => self.id.to_string(),
        }
    }

    /// Returns true if the client has a secret (RFC 6749, section 2.1).
    #[must_use]
    pub fn is_confidential(&self) -> bool {
        self.auth_method != ClientAuthMethod::None
    }

    /// Returns true if the client may use this grant type.
    #[must_use]
    pub fn allows_grant_type(&self, grant: GrantType) -> bool {
        self.grant_types.contains(&grant)
    }

    /// Returns the scope for a request with this `scope` parameter, or without one.
    ///
    /// Only workspace clients are limited to their registered scope. A self-registered client may
    /// request more later, because the consenting user decides.
    #[must_use]
    pub fn effective_scope(&self, requested: Option<Scope>) -> Scope {
        let requested = requested.or(self.scope).unwrap_or(Scope::ReadOnly);
        match (&self.origin, self.scope) {
            (ClientOrigin::Workspace(_), Some(max)) => requested.min(max),
            _ => requested,
        }
    }
}

/// A client with the digests of its valid secrets, as the token endpoint loads it.
#[derive(Debug, Clone)]
pub struct ClientWithSecrets {
    /// The client.
    pub client: Client,
    /// The digests of the current secret and of earlier secrets that are still valid.
    pub secrets: Vec<SecretDigest>,
}

impl ClientWithSecrets {
    /// Returns true if this is a valid secret of the client. The comparison takes constant time.
    #[must_use]
    pub fn has_secret(&self, secret: &str) -> bool {
        let presented = SecretDigest::of(secret);
        let is_equal = |known: &SecretDigest| bool::from(known.0.ct_eq(&presented.0));
        // Compare with all secrets, so that the time does not depend on which one matches.
        self.secrets.iter().map(is_equal).fold(false, |any, is_equal| any | is_equal)
    }
}

/// The SHA-256 of a client secret. A secret has 256 random bits and needs no slow hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    /// Returns the digest of a secret.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Creates a digest from the bytes in the database.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for the database.
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

/// A client secret: `cs_call2me_` and 32 random bytes in base64url. It is displayed only once.
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// Creates a secret from random bytes.
    #[must_use]
    pub fn new(bytes: [u8; SECRET_BYTES]) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self(format!("{SECRET_PREFIX}{}", BASE64URL_NOPAD.encode(&*bytes)).into())
    }

    /// Returns the secret itself, for display.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns the digest, which is stored.
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

/// Parses the `client_id` of a request.
///
/// # Errors
/// [`ValidationError`] if the text is neither an https URL nor a client id.
pub fn parse_client_id(text: &str) -> Result<ClientRef, ValidationError> {
    if text.starts_with("https://") {
        return Ok(ClientRef::MetadataDocument(text.to_owned()));
    }
    crate::model::id::parse(ClientId::PREFIX, text).map(|id| ClientRef::Id(id.into()))
}

/// A reference to a client, parsed from a `client_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientRef {
    /// The id of a registered client.
    Id(ClientId),
    /// The URL of a client metadata document.
    MetadataDocument(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(origin: ClientOrigin, scope: Option<Scope>) -> Client {
        Client {
            id: uuid::Uuid::nil().into(),
            origin,
            name: "x".to_owned(),
            redirect_uris: Vec::new(),
            auth_method: ClientAuthMethod::None,
            grant_types: Vec::new(),
            scope,
            client_uri: None,
            resource: None,
            created_at: OffsetDateTime::UNIX_EPOCH,
            created_by: None,
        }
    }

    #[test]
    fn requested_scope_is_limited_for_workspace_clients_only() {
        use Scope::{Admin, ReadOnly, Write};
        let workspace = ClientOrigin::Workspace(uuid::Uuid::nil().into());
        for (origin, registered, requested, scope) in [
            (&ClientOrigin::SelfRegistered, None, None, ReadOnly),
            (&ClientOrigin::SelfRegistered, None, Some(Admin), Admin),
            (&ClientOrigin::SelfRegistered, Some(Write), None, Write),
            (&ClientOrigin::SelfRegistered, Some(Write), Some(Admin), Admin),
            (&workspace, Some(Write), None, Write),
            (&workspace, Some(Write), Some(Admin), Write),
            (&workspace, Some(Write), Some(ReadOnly), ReadOnly),
        ] {
            let client = client(origin.clone(), registered);
            assert_eq!(
                client.effective_scope(requested),
                scope,
                "{origin:?} {registered:?} {requested:?}"
            );
        }
    }

    #[test]
    fn secret_matches_its_digest_and_is_not_in_debug_output() {
        let secret = ClientSecret::new([7; 32]);
        assert!(secret.reveal().starts_with("cs_call2me_") && secret.reveal().len() == 54);
        let (old, other) = (ClientSecret::new([8; 32]), ClientSecret::new([9; 32]));
        let secrets = vec![old.digest(), secret.digest()];
        let known =
            ClientWithSecrets { client: client(ClientOrigin::SelfRegistered, None), secrets };
        assert!(known.has_secret(secret.reveal()) && known.has_secret(old.reveal()));
        assert!(
            !known.has_secret(other.reveal())
                && !known.has_secret("")
                && !known.has_secret("cs_call2me_")
        );
        let debug = format!("{secret:?} {known:?}");
        assert!(!debug.contains(secret.reveal()), "{debug}");
    }
}
