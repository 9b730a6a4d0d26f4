//! Validation of client metadata (RFC 7591, section 2), of registrations and metadata documents.

use std::borrow::Cow;

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
pub(super) fn client_from_metadata(
    env: &Env,
    metadata: &ClientMetadata,
    origin: ClientOrigin,
    auth_method: ClientAuthMethod,
    native_schemes: &[String],
) -> Result<Client, ProtocolError> {
    let grant_types = grant_types(metadata)?;
    let redirect_uris = metadata.redirect_uris.clone().unwrap_or_default();
    check_redirect_uris(&redirect_uris, &grant_types, native_schemes)
        .map_err(|why| ProtocolError::new(OAuthErrorCode::InvalidRedirectUri, why.0))?;
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
fn grant_types(metadata: &ClientMetadata) -> Result<Vec<GrantType>, ProtocolError> {
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

pub(super) fn invalid_metadata(why: impl Into<Cow<'static, str>>) -> ProtocolError {
    ProtocolError::new(OAuthErrorCode::InvalidClientMetadata, why)
}
