//! The OAuth 2.1 authorization server: a person lets a client into a workspace, once.
//!
//! - [`metadata`]: what clients read at first (RFC 8414, RFC 9728).
//! - [`clients`]: who asks, and how it shows that. [`registration`]: clients that register themselves
//!   (RFC 7591); [`documents`]: clients whose own documents tell of them; [`workspace_clients`]: those that
//!   an admin makes.
//! - [`authorize`]: the request and its answers. [`consent`]: a person lets it in. [`device`]: the same for who has
//!   no browser (RFC 8628).
//! - [`token`]: tokens for codes, for refresh tokens, and for the client itself.
//! - [`revoke`] (RFC 7009), [`introspect`] (RFC 7662), [`grants`]: connected apps, seen and ended.
//!
//! A grant is the row that all of its tokens name: what ends it ends them, on every node, by the cache and the
//! fence that API keys have.

pub mod authorize;
pub mod clients;
pub mod consent;
pub mod device;
pub mod documents;
mod error;
pub mod grants;
pub mod introspect;
pub mod metadata;
pub mod registration;
pub mod revoke;
pub mod token;
pub mod workspace_clients;

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
            resource::Resources,
        },
        scope::Scope,
    },
    store::Store,
};

pub use error::{Code, OAuthError};

use documents::Documents;

/// The authorization server. Cheap to clone.
#[derive(Clone)]
pub struct OAuth {
    auth: Auth,
    store: Store,
    env: Env,
    issuer: Arc<str>,
    resources: Arc<Resources>,
    native_schemes: Arc<[String]>,
    documents: Documents,
    registration: bool,
    /// How long a grant may go without giving tokens.
    idle: Duration,
    limits: Limits,
}

impl OAuth {
    /// Over the parts that keys and sessions have too.
    ///
    /// # Errors
    /// With one line for the operator.
    pub fn new(
        settings: &Settings,
        auth: Auth,
        store: Store,
        env: Env,
        limits: Limits,
    ) -> Result<Self, String> {
        let config::OAuth { resources, registration, documents, native_schemes, refresh_token } =
            &settings.oauth;
        let issuer = &settings.server.public_url;
        Ok(Self {
            auth,
            store,
            issuer: issuer.as_str().into(),
            resources: Arc::new(Resources::new(issuer, resources)),
            documents: Documents::new(*documents, native_schemes, env.clone())?,
            native_schemes: native_schemes.as_slice().into(),
            registration: *registration,
            idle: *refresh_token,
            limits,
            env,
        })
    }

    /// What tokens are made for.
    #[must_use]
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The resources that a request names, as tokens name them; this service's own where it names none.
    ///
    /// # Errors
    /// [`Code::InvalidTarget`] for one that tokens are not made for.
    fn resources_of(&self, parameters: &Parameters) -> Result<Vec<String>, OAuthError> {
        let mut named: Vec<String> = Vec::new();
        for given in parameters.all(RESOURCE) {
            let known = self.resources.find(given).ok_or_else(unknown_resource)?;
            if !named.iter().any(|named| named == known) {
                named.push(known.to_owned());
            }
        }
        if named.is_empty() {
            named.push(self.resources.own().to_owned());
        }
        Ok(named)
    }

    /// Keeps who gets tokens from asking for them without an end.
    ///
    /// # Errors
    /// [`AuthError::TooManyAttempts`].
    fn charge(&self, id: Uuid) -> Result<(), OAuthError> {
        let decision = self.limits.charge_grant(id);
        if decision.allowed {
            return Ok(());
        }
        // Rounded up: waiting so long is enough.
        Err(AuthError::TooManyAttempts(decision.retry_in.as_secs() + 1).into())
    }

    /// How long a grant may go without giving tokens.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// An event of a client.
    fn event(
        &self,
        request: &Arc<RequestInfo>,
        workspace: WorkspaceId,
        action: Action,
        client: &Client,
        status: u16,
    ) -> NewEvent {
        let actor = Actor::client(client.id, &client.name);
        self.auth.witness(request, workspace, action, actor, status)
    }
}

fn unknown_resource() -> OAuthError {
    OAuthError::new(Code::InvalidTarget, "tokens are not made for this resource")
}

/// The greatest of our scopes that a request asks for; none where it asks for none. Others are passed over,
/// such as `offline_access`.
///
/// # Errors
/// [`Code::InvalidScope`] where it asks for others alone.
fn scope_of(parameters: &Parameters) -> Result<Option<Scope>, OAuthError> {
    let Some(asked) = parameters.get("scope") else { return Ok(None) };
    let known = Scope::from_oauth_scope(asked);
    let unknown = || {
        let names = Scope::ALL.map(Scope::oauth_name).join(", ");
        OAuthError::new(
            Code::InvalidScope,
            format!("none of the scopes is known; there are {names}"),
        )
    };
    known.ok_or_else(unknown).map(Some)
}
