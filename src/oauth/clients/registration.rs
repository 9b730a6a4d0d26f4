//! Dynamic client registration (RFC 7591).
//!
//! Registration needs no credential: a client has no access until a user authorizes it. The number
//! of unused clients is limited, overall and per address.

use serde::Deserialize;

use crate::{
    env::Env,
    model::{
        address,
        audit::RequestInfo,
        oauth::{
            client::{Client, ClientAuthMethod, ClientOrigin, ClientSecret, GrantType},
            redirect_uri,
        },
        scope::Scope,
        text,
    },
    oauth::{OAuth, OAuthError, OAuthErrorCode},
};

/// Maximum number of redirect URIs of a client.
const MAX_REDIRECT_URIS: usize = 20;

/// Maximum number of clients that registered within a week and have no grant yet.
const MAX_UNUSED: i32 = 10_000;
/// Maximum number of such clients from one IPv4 address or IPv6 /64.
const MAX_UNUSED_PER_ADDRESS: i32 = 200;

/// Client metadata (RFC 7591, section 2). Other fields are ignored.
#[derive(Debug, Default, Deserialize)]
pub struct ClientMetadata {
    /// The URL of the metadata document. Only metadata documents use it.
    pub client_id: Option<String>,
    /// A client secret, which a metadata document must not contain.
    pub client_secret: Option<serde_json::Value>,
    /// The public keys in a metadata document. They are not used.
    pub jwks: Option<serde_json::Value>,
    /// The display name.
    pub client_name: Option<String>,
    /// The URL of the client's home page.
    pub client_uri: Option<String>,
    /// The allowed redirect URIs.
    pub redirect_uris: Option<Vec<String>>,
    /// The client authentication method at the token endpoint.
    pub token_endpoint_auth_method: Option<String>,
    /// The grant types that the client uses.
    pub grant_types: Option<Vec<String>>,
    /// The response types that the client uses.
    pub response_types: Option<Vec<String>>,
    /// The default scope.
    pub scope: Option<String>,
}

/// A new client and its secret, which is returned only this once.
#[derive(Debug)]
pub struct RegisteredClient {
    /// The client.
    pub client: Client,
    /// The secret; `None` for a public client.
    pub secret: Option<ClientSecret>,
}

impl OAuth {
    /// Registers a client.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidRedirectUri`] or [`OAuthErrorCode::InvalidClientMetadata`] for bad
    /// metadata, [`OAuthErrorCode::AccessDenied`] if registration is turned off, and a 503 if
    /// there are too many unused clients.
    pub async fn register_client(
        &self,
        metadata: &ClientMetadata,
        request: &RequestInfo,
    ) -> Result<RegisteredClient, OAuthError> {
        if !self.is_registration_enabled {
            let message = "client registration is turned off; contact the operator";
            return Err(OAuthError::new(OAuthErrorCode::AccessDenied, message));
        }
        // The default is HTTP Basic (RFC 7591, section 2).
        let method = metadata.token_endpoint_auth_method.as_deref();
        let method = ClientAuthMethod::from_name(method.unwrap_or("client_secret_basic"));
        let auth_method = method.ok_or_else(|| {
            invalid_metadata(
                "token_endpoint_auth_method must be none, client_secret_basic or \
                 client_secret_post",
            )
        })?;
        let schemes = &self.native_schemes;
        let client = client_from_metadata(
            &self.env,
            metadata,
            ClientOrigin::SelfRegistered,
            auth_method,
            schemes,
        )?;
        let secret = client.is_confidential().then(|| ClientSecret::new(self.env.entropy.bytes()));
        let digest = secret.as_ref().map(|secret| (self.env.new_uuid(), secret.digest()));
        let (subnet, limits) =
            (address::client_subnet(request.ip), [MAX_UNUSED, MAX_UNUSED_PER_ADDRESS]);
        if !self.store.register_client(&client, digest, subnet, limits).await? {
            return Err(OAuthError::unavailable());
        }
        tracing::info!(client = %client.id, "registered an OAuth client");
        Ok(RegisteredClient { client, secret })
    }
}

/// Creates a client with a new id from its metadata.
pub(super) fn client_from_metadata(
    env: &Env,
    metadata: &ClientMetadata,
    origin: ClientOrigin,
    auth_method: ClientAuthMethod,
    native_schemes: &[String],
) -> Result<Client, OAuthError> {
    let grant_types = grant_types(metadata)?;
    let redirect_uris = metadata.redirect_uris.clone().unwrap_or_default();
    check_redirect_uris(&redirect_uris, &grant_types, native_schemes)?;
    let name = match &metadata.client_name {
        Some(name) => {
            text::validate_name("client_name", name).map_err(|why| invalid_metadata(why.0))?
        }
        None => match redirect_uris.first() {
            Some(uri) => redirect_uri::destination(uri),
            None => "unnamed client".to_owned(),
        },
    };
    let client_uri = metadata.client_uri.clone().filter(|uri| !uri.is_empty());
    if client_uri.as_ref().is_some_and(|uri| !is_web_url(uri)) {
        return Err(invalid_metadata("client_uri must be an http or https URL"));
    }
    Ok(Client {
        id: env.new_id(),
        origin,
        name: text::truncate_bytes(&name, 100).to_owned(),
        redirect_uris,
        auth_method,
        grant_types,
        scope: metadata.scope.as_deref().and_then(Scope::from_oauth_scope),
        client_uri,
        resource: None,
        created_at: env.clock.now(),
        created_by: None,
    })
}

/// Returns the supported grant types in the metadata; others are ignored (RFC 7591, section 2).
fn grant_types(metadata: &ClientMetadata) -> Result<Vec<GrantType>, OAuthError> {
    let mut grants: Vec<_> = match &metadata.grant_types {
        None => vec![GrantType::AuthorizationCode],
        Some(named) => named.iter().filter_map(|name| GrantType::from_name(name)).collect(),
    };
    grants.sort_unstable();
    grants.dedup();
    if grants.contains(&GrantType::ClientCredentials) {
        return Err(invalid_metadata(
            "client_credentials is only for clients that a workspace administrator creates",
        ));
    }
    let starts_grant = |grant: &GrantType| *grant != GrantType::RefreshToken;
    if !grants.iter().any(starts_grant) {
        return Err(invalid_metadata(
            "grant_types must contain authorization_code or the device grant",
        ));
    }
    let codes = grants.contains(&GrantType::AuthorizationCode);
    let responses = metadata.response_types.as_deref().unwrap_or_default();
    if codes && !responses.is_empty() && !responses.iter().any(|response| response == "code") {
        return Err(invalid_metadata("response_types must contain code"));
    }
    Ok(grants)
}

/// Checks a client's redirect URIs.
///
/// # Errors
/// [`OAuthErrorCode::InvalidRedirectUri`] if one is not allowed, if there are more than 20, or if
/// `authorization_code` has none.
pub(super) fn check_redirect_uris(
    uris: &[String],
    grants: &[GrantType],
    native_schemes: &[String],
) -> Result<(), OAuthError> {
    let refuse = |why: String| Err(OAuthError::new(OAuthErrorCode::InvalidRedirectUri, why));
    if uris.len() > MAX_REDIRECT_URIS {
        return refuse(format!("redirect_uris must contain at most {MAX_REDIRECT_URIS} URIs"));
    }
    if uris.is_empty() && grants.contains(&GrantType::AuthorizationCode) {
        return refuse("redirect_uris must contain at least one URI".to_owned());
    }
    for uri in uris {
        if let Err(why) = redirect_uri::validate(uri, native_schemes) {
            return refuse(why.0);
        }
    }
    Ok(())
}

/// Returns true for an absolute http or https URL of at most 2000 bytes.
pub(super) fn is_web_url(text: &str) -> bool {
    let url = text.parse::<url::Url>().ok();
    text.len() <= 2000
        && url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && url.host().is_some())
}

fn invalid_metadata(why: impl Into<std::borrow::Cow<'static, str>>) -> OAuthError {
    OAuthError::new(OAuthErrorCode::InvalidClientMetadata, why)
}
