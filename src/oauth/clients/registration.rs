//! Dynamic client registration (RFC 7591).
//!
//! Registration needs no credential: a client has no access until a user authorizes it. The number
//! of unused clients is limited, overall and per IPv4 address or IPv6 /64; new ones replace the
//! oldest.

use std::sync::Arc;

use super::{
    RegisteredClient,
    client_metadata::{ClientMetadata, client_from_metadata},
    unknown_clients::UnknownClients,
};
use crate::{
    auth::ServiceContext,
    model::{
        address,
        audit::RequestInfo,
        oauth::client::{ClientAuthMethod, ClientOrigin, ClientSecret},
    },
    oauth::{OAuthError, OAuthErrorCode, ProtocolError},
};

/// Registers clients that register themselves.
pub struct Registration {
    pub(in crate::oauth) context: Arc<ServiceContext>,
    /// Schemes that redirect URIs may have although they have no dot.
    pub(in crate::oauth) native_schemes: Arc<[String]>,
    pub(in crate::oauth) is_enabled: bool,
    pub(in crate::oauth) unknown: Arc<UnknownClients>,
}

impl Registration {
    /// Registers a client.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidRedirectUri`] or [`OAuthErrorCode::InvalidClientMetadata`] for bad
    /// metadata, [`OAuthErrorCode::AccessDenied`] if registration is turned off, and a 503 if
    /// too many clients of all addresses registered within an hour.
    #[tracing::instrument(
        name = "oauth.registration.register",
        level = "debug",
        skip_all,
        fields(request = %request.id),
        err(level = "debug")
    )]
    pub async fn register(
        &self,
        metadata: &ClientMetadata,
        request: &RequestInfo,
    ) -> Result<RegisteredClient, OAuthError> {
        if !self.is_enabled {
            let message = "client registration is turned off; contact the operator";
            return Err(ProtocolError::new(OAuthErrorCode::AccessDenied, message).into());
        }
        // The default is HTTP Basic (RFC 7591, section 2), also instead of an unknown method.
        let method = metadata.token_endpoint_auth_method.as_deref();
        let auth_method = method
            .and_then(ClientAuthMethod::from_name)
            .unwrap_or(ClientAuthMethod::ClientSecretBasic);
        let schemes = &self.native_schemes;
        let client = client_from_metadata(
            &self.context.env,
            metadata,
            ClientOrigin::SelfRegistered,
            auth_method,
            schemes,
        )?;
        let secret =
            client.is_confidential().then(|| ClientSecret::new(self.context.env.entropy.bytes()));
        let digest = secret.as_ref().map(|secret| (self.context.env.new_uuid(), secret.digest()));
        let subnet = address::client_subnet(request.ip);
        if !self.context.store.register_client(&client, digest, subnet).await? {
            return Err(OAuthError::unavailable());
        }
        self.unknown.invalidate(client.id);
        tracing::info!(client = %client.id, "registered an OAuth client");
        Ok(RegisteredClient { client, secret })
    }
}
