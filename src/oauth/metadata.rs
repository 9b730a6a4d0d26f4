//! Discovery documents of the authorization server (RFC 8414) and of its own API (RFC 9728).
//!
//! Both are built from the settings, so that clients need no other configuration.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::model::{
    oauth::{
        client::{ClientAuthMethod, GrantType},
        resource::ProtectedResources,
    },
    scope::Scope,
};

/// The metadata of the authorization server (RFC 8414, section 2). All fields are explicit, because
/// RFC 8414 gives some of them a different default.
#[derive(Serialize, ToSchema)]
pub struct ServerMetadata {
    /// The issuer: the `iss` of all tokens and authorization responses.
    #[schema(example = "https://auth.example.com")]
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    /// The client registration endpoint (RFC 7591), if registration is turned on.
    #[serde(skip_serializing_if = "Option::is_none")]
    registration_endpoint: Option<String>,
    scopes_supported: [&'static str; 3],
    response_types_supported: [&'static str; 1],
    response_modes_supported: [&'static str; 1],
    grant_types_supported: [&'static str; 4],
    token_endpoint_auth_methods_supported: [&'static str; 3],
    service_documentation: String,
    revocation_endpoint: String,
    revocation_endpoint_auth_methods_supported: [&'static str; 3],
    introspection_endpoint: String,
    introspection_endpoint_auth_methods_supported: [&'static str; 2],
    code_challenge_methods_supported: [&'static str; 1],
    /// The device authorization endpoint (RFC 8628, section 4).
    device_authorization_endpoint: String,
    /// True: authorization responses contain `iss` (RFC 9207, section 3).
    authorization_response_iss_parameter_supported: bool,
    /// True if a `client_id` can be the URL of a client metadata document.
    client_id_metadata_document_supported: bool,
    /// The resources for which this server issues tokens (RFC 9728, section 4).
    protected_resources: Vec<String>,
}

/// The metadata of this service's API as a protected resource (RFC 9728, section 2).
#[derive(Serialize, ToSchema)]
pub struct ResourceMetadata {
    #[schema(example = "https://auth.example.com")]
    resource: String,
    authorization_servers: [String; 1],
    scopes_supported: [&'static str; 3],
    bearer_methods_supported: [&'static str; 1],
    resource_name: &'static str,
    resource_documentation: String,
}

/// Creates the discovery documents.
pub struct Metadata {
    pub(super) issuer: Arc<str>,
    pub(super) resources: Arc<ProtectedResources>,
    pub(super) is_registration_enabled: bool,
    pub(super) accepts_metadata_documents: bool,
}

impl Metadata {
    /// Returns true if these resources are this service's own API and nothing else.
    #[must_use]
    pub fn is_own_api(&self, resources: &[String]) -> bool {
        resources == [self.resources.own_api()]
    }

    /// Returns the metadata of the authorization server (RFC 8414).
    #[must_use]
    pub fn server(&self) -> ServerMetadata {
        let at = |path: &str| format!("{}{path}", self.issuer);
        let methods = [
            ClientAuthMethod::ClientSecretBasic,
            ClientAuthMethod::ClientSecretPost,
            ClientAuthMethod::None,
        ];
        let methods = methods.map(ClientAuthMethod::as_str);
        let [basic, post, _] = methods;
        ServerMetadata {
            issuer: self.issuer.to_string(),
            authorization_endpoint: at("/oauth/authorize"),
            token_endpoint: at("/oauth/token"),
            jwks_uri: at("/.well-known/jwks.json"),
            registration_endpoint: self.is_registration_enabled.then(|| at("/oauth/register")),
            scopes_supported: Scope::ALL.map(Scope::oauth_name),
            response_types_supported: ["code"],
            response_modes_supported: ["query"],
            grant_types_supported: GrantType::ALL.map(GrantType::as_str),
            token_endpoint_auth_methods_supported: methods,
            service_documentation: at("/docs"),
            revocation_endpoint: at("/oauth/revoke"),
            revocation_endpoint_auth_methods_supported: methods,
            introspection_endpoint: at("/oauth/introspect"),
            introspection_endpoint_auth_methods_supported: [basic, post],
            code_challenge_methods_supported: ["S256"],
            device_authorization_endpoint: at("/oauth/device_authorization"),
            authorization_response_iss_parameter_supported: true,
            client_id_metadata_document_supported: self.accepts_metadata_documents,
            protected_resources: self.resources.iter().map(str::to_owned).collect(),
        }
    }

    /// Returns the metadata of this service's API (RFC 9728).
    #[must_use]
    pub fn resource(&self) -> ResourceMetadata {
        ResourceMetadata {
            resource: self.issuer.to_string(),
            authorization_servers: [self.issuer.to_string()],
            scopes_supported: Scope::ALL.map(Scope::oauth_name),
            bearer_methods_supported: ["header"],
            resource_name: "Call2Me API",
            resource_documentation: format!("{}/docs", self.issuer),
        }
    }
}
