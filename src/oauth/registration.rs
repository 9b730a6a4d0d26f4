//! Clients that register themselves (RFC 7591). Anybody may: a client is worth nothing until somebody lets it in.

use serde::Deserialize;

use super::{Code, OAuth, OAuthError};
use crate::{
    env::Env,
    model::{
        address,
        audit::RequestInfo,
        oauth::{
            client::{AuthMethod, Client, ClientSecret, GrantType, Origin},
            redirect_uri,
        },
        scope::Scope,
        text,
    },
};

/// Redirect URIs of a client at most.
const MAX_REDIRECT_URIS: usize = 20;

/// Clients that registered within a week and that nobody has let in, at most.
const MAX_UNUSED: i32 = 10_000;
/// Of these from one address or, of IPv6, one /64.
const MAX_UNUSED_FROM_ONE: i32 = 200;

/// What a client says of itself (RFC 7591, section 2). What is not here is passed over.
#[derive(Debug, Default, Deserialize)]
pub struct ClientMetadata {
    /// In a metadata document: its URL.
    pub client_id: Option<String>,
    /// In a metadata document: forbidden.
    pub client_secret: Option<serde_json::Value>,
    /// In a metadata document: public keys, if any. They are not used.
    pub jwks: Option<serde_json::Value>,
    /// What it calls itself.
    pub client_name: Option<String>,
    /// Its page.
    pub client_uri: Option<String>,
    /// Where codes may be sent.
    pub redirect_uris: Option<Vec<String>>,
    /// How it shows who it is.
    pub token_endpoint_auth_method: Option<String>,
    /// How it gets tokens.
    pub grant_types: Option<Vec<String>>,
    /// What authorization answers.
    pub response_types: Option<Vec<String>>,
    /// What it asks for unless it says.
    pub scope: Option<String>,
}

/// A client and, this once, its secret, if it has one.
#[derive(Debug)]
pub struct Registered {
    /// The client.
    pub client: Client,
    /// Its secret.
    pub secret: Option<ClientSecret>,
}

impl OAuth {
    /// Registers a client.
    ///
    /// # Errors
    /// [`Code::InvalidRedirectUri`], [`Code::InvalidClientMetadata`]; unavailable where too many have
    /// registered that nobody lets in.
    pub async fn register(
        &self,
        metadata: &ClientMetadata,
        request: &RequestInfo,
    ) -> Result<Registered, OAuthError> {
        if !self.registration {
            let closed = "clients do not register themselves here: ask the operator";
            return Err(OAuthError::new(Code::AccessDenied, closed));
        }
        // What is not said means HTTP Basic (RFC 7591, section 2).
        let method = metadata.token_endpoint_auth_method.as_deref();
        let method = AuthMethod::from_name(method.unwrap_or("client_secret_basic"));
        let auth_method = method.ok_or_else(|| {
            refused("token_endpoint_auth_method must be none, client_secret_basic or client_secret_post")
        })?;
        let schemes = &self.native_schemes;
        let client = client_of(&self.env, metadata, Origin::Registered, auth_method, schemes)?;
        let secret = client.is_confidential().then(|| ClientSecret::new(self.env.entropy.bytes()));
        let kept = secret.as_ref().map(|secret| (self.env.new_uuid(), secret.digest()));
        let (subnet, most) = (address::subnet(request.ip), [MAX_UNUSED, MAX_UNUSED_FROM_ONE]);
        if !self.store.register_client(&client, kept, subnet, most).await? {
            return Err(OAuthError::unavailable());
        }
        tracing::info!(client = %client.id, "an OAuth client registered itself");
        Ok(Registered { client, secret })
    }
}

/// The client that metadata tells of, with a fresh id.
pub(super) fn client_of(
    env: &Env,
    metadata: &ClientMetadata,
    origin: Origin,
    auth_method: AuthMethod,
    native_schemes: &[String],
) -> Result<Client, OAuthError> {
    let grant_types = grant_types(metadata)?;
    let redirect_uris = metadata.redirect_uris.clone().unwrap_or_default();
    check_redirect_uris(&redirect_uris, &grant_types, native_schemes)?;
    let name = match &metadata.client_name {
        Some(name) => text::name("client_name", name).map_err(|why| refused(why.0))?,
        None => match redirect_uris.first() {
            Some(uri) => redirect_uri::destination(uri),
            None => "an unnamed client".to_owned(),
        },
    };
    let client_uri = metadata.client_uri.clone().filter(|uri| !uri.is_empty());
    if client_uri.as_ref().is_some_and(|uri| !is_web_page(uri)) {
        return Err(refused("client_uri must be an http or https URL"));
    }
    Ok(Client {
        id: env.new_id(),
        origin,
        name: text::shorten(&name, 100).to_owned(),
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

/// How it gets tokens, of what is offered; others are passed over (RFC 7591, section 2).
fn grant_types(metadata: &ClientMetadata) -> Result<Vec<GrantType>, OAuthError> {
    let mut grants: Vec<_> = match &metadata.grant_types {
        None => vec![GrantType::AuthorizationCode],
        Some(named) => named.iter().filter_map(|name| GrantType::from_name(name)).collect(),
    };
    grants.sort_unstable();
    grants.dedup();
    if grants.contains(&GrantType::ClientCredentials) {
        return Err(refused(
            "a client that registers itself has no workspace to act in: an admin makes those with client_credentials",
        ));
    }
    let begins = |grant: &GrantType| *grant != GrantType::RefreshToken;
    if !grants.iter().any(begins) {
        return Err(refused("grant_types must contain authorization_code or the device grant"));
    }
    let codes = grants.contains(&GrantType::AuthorizationCode);
    let responses = metadata.response_types.as_deref().unwrap_or_default();
    if codes && !responses.is_empty() && !responses.iter().any(|response| response == "code") {
        return Err(refused("response_types must contain code"));
    }
    Ok(grants)
}

/// Checks where codes may be sent.
///
/// # Errors
/// [`Code::InvalidRedirectUri`].
pub(super) fn check_redirect_uris(
    uris: &[String],
    grants: &[GrantType],
    native_schemes: &[String],
) -> Result<(), OAuthError> {
    let refuse = |why: String| Err(OAuthError::new(Code::InvalidRedirectUri, why));
    if uris.len() > MAX_REDIRECT_URIS {
        return refuse(format!("there must be at most {MAX_REDIRECT_URIS} redirect_uris"));
    }
    if uris.is_empty() && grants.contains(&GrantType::AuthorizationCode) {
        return refuse("redirect_uris must hold one at least".to_owned());
    }
    for uri in uris {
        if let Err(why) = redirect_uri::check(uri, native_schemes) {
            return refuse(why.0);
        }
    }
    Ok(())
}

/// Whether a text is the URL of a page.
pub(super) fn is_web_page(text: &str) -> bool {
    let url = text.parse::<url::Url>().ok();
    text.len() <= 2000
        && url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && url.host().is_some())
}

fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> OAuthError {
    OAuthError::new(Code::InvalidClientMetadata, why)
}
