//! Clients from their metadata (RFC 7591, section 2), of registrations and metadata documents.

use serde::Deserialize;

use crate::{
    env::Env,
    model::{
        ValidationError,
        oauth::{
            client::{Client, ClientAuthMethod, ClientOrigin, GrantType},
            redirect_uri,
        },
        scope::Scope,
        text,
    },
    oauth::{OAuthErrorCode, ProtocolError},
};

/// Maximum number of redirect URIs of a client.
const MAX_REDIRECT_URIS: usize = 20;

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

/// Creates a client with a new id from its metadata.
///
/// What a client may not have is dropped, not refused (RFC 7591, section 2): clients register for
/// many servers at once. The response states what was registered.
pub(super) fn client_from_metadata(
    env: &Env,
    metadata: &ClientMetadata,
    origin: ClientOrigin,
    auth_method: ClientAuthMethod,
    native_schemes: &[String],
) -> Result<Client, ProtocolError> {
    let grant_types = grant_types(metadata)?;
    let named_uris = metadata.redirect_uris.as_deref().unwrap_or_default();
    let redirect_uris = allowed_redirect_uris(named_uris, native_schemes);
    // The first violated rule if no URI is left.
    let checked_uris = if redirect_uris.is_empty() { named_uris } else { &redirect_uris };
    check_redirect_uris(checked_uris, &grant_types, native_schemes)
        .map_err(|why| ProtocolError::new(OAuthErrorCode::InvalidRedirectUri, why.0))?;
    let name = text::printable(metadata.client_name.as_deref().unwrap_or_default());
    let name = match redirect_uris.first() {
        _ if !name.is_empty() => name,
        Some(uri) => redirect_uri::destination(uri),
        None => "unnamed client".to_owned(),
    };
    Ok(Client {
        id: env.new_id(),
        origin,
        name: text::truncate_bytes(&name, 100).to_owned(),
        redirect_uris,
        auth_method,
        grant_types,
        scope: metadata.scope.as_deref().and_then(Scope::from_oauth_scope),
        client_uri: metadata.client_uri.clone().filter(|uri| is_web_url(uri)),
        resource: None,
        created_at: env.clock.now(),
        created_by: None,
    })
}

/// Returns the redirect URIs that a client may have, at most 20.
fn allowed_redirect_uris(uris: &[String], native_schemes: &[String]) -> Vec<String> {
    let is_allowed = |uri: &&String| redirect_uri::validate(uri, native_schemes).is_ok();
    uris.iter().filter(is_allowed).take(MAX_REDIRECT_URIS).cloned().collect()
}

/// Returns the grant types in the metadata that a client may have. Without one that starts a grant,
/// the default is added.
fn grant_types(metadata: &ClientMetadata) -> Result<Vec<GrantType>, ProtocolError> {
    let named = metadata.grant_types.as_deref().unwrap_or_default();
    let known = named.iter().filter_map(|name| GrantType::from_name(name));
    let (own, mut grants): (Vec<_>, Vec<_>) =
        known.partition(|grant| *grant == GrantType::ClientCredentials);
    if grants.iter().all(|grant| *grant == GrantType::RefreshToken) {
        let has_uris = metadata.redirect_uris.as_ref().is_some_and(|uris| !uris.is_empty());
        if !own.is_empty() && !has_uris {
            let message =
                "client_credentials is only for clients that a workspace administrator creates";
            return Err(ProtocolError::new(OAuthErrorCode::InvalidClientMetadata, message));
        }
        grants.push(GrantType::AuthorizationCode);
    }
    grants.sort_unstable();
    grants.dedup();
    Ok(grants)
}

/// Checks a client's redirect URIs.
///
/// # Errors
/// The violated rule, if one URI is not allowed, if there are more than 20, or if
/// `authorization_code` has none.
pub(super) fn check_redirect_uris(
    uris: &[String],
    grants: &[GrantType],
    native_schemes: &[String],
) -> Result<(), ValidationError> {
    let refuse = |why: String| Err(ValidationError::new(why));
    if uris.len() > MAX_REDIRECT_URIS {
        return refuse(format!("redirect_uris must contain at most {MAX_REDIRECT_URIS} URIs"));
    }
    if uris.is_empty() && grants.contains(&GrantType::AuthorizationCode) {
        return refuse("redirect_uris must contain at least one URI".to_owned());
    }
    for uri in uris {
        redirect_uri::validate(uri, native_schemes)?;
    }
    Ok(())
}

/// Returns true for an absolute http or https URL of at most 2000 bytes.
pub(super) fn is_web_url(text: &str) -> bool {
    let url = text.parse::<url::Url>().ok();
    text.len() <= 2000
        && url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && url.host().is_some())
}
