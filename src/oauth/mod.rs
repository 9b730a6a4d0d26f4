//! The OAuth 2.1 authorization server.
//!
//! A user authorizes a client once for a workspace; the decision is stored as a grant. All tokens
//! of a grant name its row. Ending the grant therefore ends its tokens on every node, through the
//! same cache invalidation and fence as for API keys.
//!
//! - [`metadata`]: discovery documents (RFC 8414, RFC 9728).
//! - [`clients`]: lookup, authentication and registration of clients.
//! - [`authorization`]: the authorization request and response, and the user's decision.
//!   [`devices`]: the device flow for clients without a browser (RFC 8628).
//! - [`token_endpoint`]: the token endpoint and its four grant types.
//! - [`revocation`] (RFC 7009), [`introspection`] (RFC 7662).
//! - [`grants`]: creates, lists and ends grants.

pub mod authorization;
pub mod clients;
pub mod devices;
mod error;
pub mod grants;
pub mod introspection;
pub mod metadata;
pub mod revocation;
pub mod token_endpoint;

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    auth::{Auth, AuthError},
    config::{self, Settings},
    env::Env,
    limit::Limits,
    model::{
        audit::{Action, Actor, NewEvent, RequestInfo},
        id::WorkspaceId,
        oauth::{
            client::Client,
            parameters::{Parameters, RESOURCE},
            resource::ProtectedResources,
        },
        scope::Scope,
    },
    store::Store,
};

pub use error::{OAuthError, OAuthErrorCode};

use clients::metadata_documents::MetadataDocumentFetcher;

/// The authorization server. Cheap to clone.
#[derive(Clone)]
pub struct OAuth {
    auth: Auth,
    store: Store,
    env: Env,
    issuer: Arc<str>,
    resources: Arc<ProtectedResources>,
    native_schemes: Arc<[String]>,
    documents: MetadataDocumentFetcher,
    is_registration_enabled: bool,
    /// Idle timeout of a grant: after this time without a new token it no longer works.
    grant_idle_timeout: Duration,
    limits: Limits,
}

impl OAuth {
    /// Creates the authorization server from the settings and the shared services.
    ///
    /// # Errors
    /// A one-line message for the operator if the HTTP client for metadata documents fails to
    /// start.
    pub fn new(
        settings: &Settings,
        auth: Auth,
        store: Store,
        env: Env,
        limits: Limits,
    ) -> Result<Self, String> {
        let config::OAuth {
            resources,
            is_registration_open: registration,
            metadata_documents: documents,
            native_schemes,
            grant_idle_timeout: refresh_token,
        } = &settings.oauth;
        let issuer = &settings.server.public_url;
        Ok(Self {
            auth,
            store,
            issuer: issuer.as_str().into(),
            resources: Arc::new(ProtectedResources::new(issuer, resources)),
            documents: MetadataDocumentFetcher::new(*documents, native_schemes, env.clone())?,
            native_schemes: native_schemes.as_slice().into(),
            is_registration_enabled: *registration,
            grant_idle_timeout: *refresh_token,
            limits,
            env,
        })
    }

    /// The protected resources for which this server issues tokens.
    #[must_use]
    pub fn resources(&self) -> &ProtectedResources {
        &self.resources
    }

    /// Returns the resources that a request names, in the form that tokens use (RFC 8707). Without
    /// a `resource` parameter this is the service's own API.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidTarget`] for a resource that is not configured.
    fn requested_resources(&self, parameters: &Parameters) -> Result<Vec<String>, OAuthError> {
        let mut named: Vec<String> = Vec::new();
        for requested in parameters.all(RESOURCE) {
            let known = self.resources.find(requested).ok_or_else(unknown_resource)?;
            if !named.iter().any(|named| named == known) {
                named.push(known.to_owned());
            }
        }
        if named.is_empty() {
            named.push(self.resources.own_api().to_owned());
        }
        Ok(named)
    }

    /// Charges one token request to the rate limit of a grant or client, on this node.
    ///
    /// # Errors
    /// [`AuthError::TooManyAttempts`] if the limit is exceeded.
    fn charge_token_request(&self, id: Uuid) -> Result<(), OAuthError> {
        let decision = self.limits.charge_grant(id);
        if decision.allowed {
            return Ok(());
        }
        // Round up, so that a client that waits this long succeeds.
        Err(AuthError::TooManyAttempts(decision.retry_in.as_secs() + 1).into())
    }

    /// Idle timeout of a grant: after this time without a new token it no longer works.
    #[must_use]
    pub fn grant_idle_timeout(&self) -> Duration {
        self.grant_idle_timeout
    }

    /// Creates an audit event whose actor is a client.
    fn client_event(
        &self,
        request: &Arc<RequestInfo>,
        workspace: WorkspaceId,
        action: Action,
        client: &Client,
        status: u16,
    ) -> NewEvent {
        let actor = Actor::client(client.id, &client.name);
        self.auth.context.audit_event(request, workspace, action, actor, status)
    }
}

fn unknown_resource() -> OAuthError {
    OAuthError::new(
        OAuthErrorCode::InvalidTarget,
        "this server does not issue tokens for this resource",
    )
}

/// Returns the highest known scope that a request names, or `None` without a `scope` parameter.
/// Unknown scopes such as `offline_access` are ignored.
///
/// # Errors
/// [`OAuthErrorCode::InvalidScope`] if the request names only unknown scopes.
fn requested_scope(parameters: &Parameters) -> Result<Option<Scope>, OAuthError> {
    let Some(requested) = parameters.get("scope") else { return Ok(None) };
    let known = Scope::from_oauth_scope(requested);
    let unknown = || {
        let names = Scope::ALL.map(Scope::oauth_name).join(", ");
        OAuthError::new(
            OAuthErrorCode::InvalidScope,
            format!("none of the requested scopes is known; supported scopes: {names}"),
        )
    };
    known.ok_or_else(unknown).map(Some)
}

/// Returns a required parameter, or `invalid_request` if it is missing.
fn required_parameter<'a>(
    parameters: &'a Parameters,
    name: &'static str,
) -> Result<&'a str, OAuthError> {
    parameters.get(name).ok_or_else(|| OAuthError::invalid_request(format!("{name} is missing")))
}
