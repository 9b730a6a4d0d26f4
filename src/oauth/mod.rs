//! The OAuth 2.1 authorization server.
//!
//! A user authorizes a client once for a workspace; the decision is stored as a grant. All tokens
//! of a grant contain the grant's id. Ending the grant therefore ends its tokens on every node,
//! through the same cache invalidation and fence as for API keys.
//!
//! [`OAuth`] holds one service for each job, in the order in which they depend on each other:
//!
//! - [`clients`]: lookup, authentication and registration of clients.
//! - [`grants`]: creates, locks, lists and ends grants.
//! - [`authorization`]: the authorization request and response, and the user's decision.
//! - [`devices`]: the device flow for clients without a browser (RFC 8628).
//! - [`token_endpoint`]: the token endpoint and its four grant types.
//! - [`revocation`] (RFC 7009), [`introspection`] (RFC 7662).
//! - [`metadata`]: discovery documents (RFC 8414, RFC 9728).
//!
//! Their public methods have spans at the level `debug`, which carry only ids. An error is logged
//! at the same level, with its cause.

pub mod authorization;
pub mod clients;
pub mod devices;
mod error;
pub mod grants;
pub mod introspection;
pub mod metadata;
mod request;
pub mod revocation;
pub mod token_endpoint;

use std::sync::Arc;

use crate::{
    auth::Auth, config::Settings, limit::Limits, model::oauth::resource::ProtectedResources,
};

pub use error::{
    CodeFault, DeviceCodeFault, InactiveGrant, InvalidGrant, OAuthError, OAuthErrorCode,
    ProtocolError, RefreshTokenFault,
};

use authorization::{Authorization, consent::Consent};
use clients::{
    Clients, metadata_documents::MetadataDocumentFetcher, registration::Registration,
    unknown_clients::UnknownClients, unrecorded_rejections::UnrecordedRejections,
    workspace_clients::WorkspaceClients,
};
use devices::Devices;
use grants::Grants;
use introspection::Introspection;
use metadata::Metadata;
use revocation::Revocation;
use token_endpoint::TokenEndpoint;

/// The services of the authorization server.
pub struct OAuth {
    /// Lookup and authentication of clients.
    pub clients: Arc<Clients>,
    /// Dynamic client registration.
    pub registration: Registration,
    /// Clients that administrators manage.
    pub workspace_clients: WorkspaceClients,
    /// Grants and connected apps.
    pub grants: Arc<Grants>,
    /// Authorization requests.
    pub authorization: Authorization,
    /// Decisions of users about authorization requests.
    pub consent: Consent,
    /// Device authorizations.
    pub devices: Devices,
    /// The token endpoint.
    pub token_endpoint: TokenEndpoint,
    /// Token revocation.
    pub revocation: Revocation,
    /// Token introspection.
    pub introspection: Introspection,
    /// Discovery documents.
    pub metadata: Metadata,
}

impl OAuth {
    /// Creates the services in the order of their dependencies.
    ///
    /// # Errors
    /// A one-line message for the operator if the HTTP client for metadata documents fails to
    /// start.
    pub fn new(settings: &Settings, auth: &Auth, limits: &Limits) -> Result<Self, String> {
        let settings = &settings.oauth;
        let context = &auth.context;
        let resources = Arc::new(ProtectedResources::new(&context.issuer, &settings.resources));
        let native_schemes: Arc<[String]> = settings.native_schemes.as_slice().into();
        let documents = MetadataDocumentFetcher::new(
            settings.metadata_documents,
            &native_schemes,
            context.env.clone(),
        )?;
        let metadata = Metadata {
            issuer: Arc::clone(&context.issuer),
            resources: Arc::clone(&resources),
            is_registration_enabled: settings.is_registration_open,
            accepts_metadata_documents: documents.is_enabled(),
        };
        let unknown = Arc::new(UnknownClients::new());
        let clients = Arc::new(Clients {
            context: Arc::clone(context),
            limits: limits.clone(),
            documents,
            unknown: Arc::clone(&unknown),
            unrecorded: UnrecordedRejections::default(),
        });
        let grants = Arc::new(Grants {
            context: Arc::clone(context),
            passwords: Arc::clone(&auth.passwords),
            seed_sealing: auth.grant_seed_sealing.clone(),
            idle_timeout: settings.grant_idle_timeout,
        });
        Ok(Self {
            registration: Registration {
                context: Arc::clone(context),
                native_schemes: Arc::clone(&native_schemes),
                is_enabled: settings.is_registration_open,
                unknown: Arc::clone(&unknown),
            },
            workspace_clients: WorkspaceClients {
                context: Arc::clone(context),
                native_schemes,
                resources: Arc::clone(&resources),
                unknown,
            },
            authorization: Authorization {
                context: Arc::clone(context),
                clients: Arc::clone(&clients),
                resources: Arc::clone(&resources),
                issuer: Arc::clone(&context.issuer),
            },
            consent: Consent {
                context: Arc::clone(context),
                passwords: Arc::clone(&auth.passwords),
                grants: Arc::clone(&grants),
            },
            devices: Devices {
                context: Arc::clone(context),
                grants: Arc::clone(&grants),
                resources: Arc::clone(&resources),
            },
            token_endpoint: TokenEndpoint {
                context: Arc::clone(context),
                token_issuer: Arc::clone(&auth.token_issuer),
                grants: Arc::clone(&grants),
                resources,
                limits: limits.clone(),
            },
            revocation: Revocation {
                context: Arc::clone(context),
                authenticator: Arc::clone(&auth.authenticator),
                token_issuer: Arc::clone(&auth.token_issuer),
                grants: Arc::clone(&grants),
            },
            introspection: Introspection {
                context: Arc::clone(context),
                authenticator: Arc::clone(&auth.authenticator),
                grants: Arc::clone(&grants),
            },
            clients,
            grants,
            metadata,
        })
    }
}
