//! The OAuth endpoints that clients call: token, registration, revocation, introspection, device
//! authorization and metadata.
//!
//! All errors have the format of RFC 6749, section 5.2. The consent and device pages for users are
//! in [`super::dashboard`], the logic is in [`crate::oauth`].

#![expect(
    clippy::missing_errors_doc,
    reason = "the errors of an endpoint are in RFC 6749 and the OpenAPI document"
)]

mod form;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
};
use secrecy::ExposeSecret;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    error::{EndpointError, OAuthErrorBody},
    extract::{self, Public},
};
use crate::{
    model::{id::WorkspaceId, oauth::client::GrantType},
    oauth::{
        OAuthErrorCode, ProtocolError,
        clients::{AuthenticatedClient, RegisteredClient, client_metadata::ClientMetadata},
        devices::DeviceAuthorizationRequest,
        introspection::{IntrospectionRequest, IntrospectionResponse},
        metadata::{ResourceMetadata, ServerMetadata},
        revocation::RevocationRequest,
        token_endpoint::{TokenRequest, Tokens},
    },
};

pub use form::OAuthForm;

/// The result of a handler.
type OAuthResult<T> = Result<T, EndpointError>;

/// Records the request of an authenticated client in the audit log, with the status of its result.
async fn recorded<T>(
    app: &App,
    client: &AuthenticatedClient,
    result: OAuthResult<T>,
    token_workspace: impl FnOnce(&T) -> Option<WorkspaceId>,
) -> OAuthResult<T> {
    let (workspace, status) = match &result {
        Ok(response) => (token_workspace(response), StatusCode::OK),
        Err(error) => (None, error.status()),
    };
    app.oauth.clients.record_request(client, workspace, status.as_u16()).await?;
    result
}

/// Get the authorization server metadata (RFC 8414)
#[utoipa::path(get, path = "/.well-known/oauth-authorization-server", tag = "Discovery",
    responses((status = 200, body = ServerMetadata)))]
pub async fn server_metadata(_: Public, State(app): State<App>) -> Json<ServerMetadata> {
    Json(app.oauth.metadata.server())
}

/// Get the protected resource metadata (RFC 9728)
#[utoipa::path(get, path = "/.well-known/oauth-protected-resource", tag = "Discovery",
    responses((status = 200, body = ResourceMetadata)))]
pub async fn resource_metadata(_: Public, State(app): State<App>) -> Json<ResourceMetadata> {
    Json(app.oauth.metadata.resource())
}

/// A token response (RFC 6749, section 5.1).
#[derive(Serialize, ToSchema)]
pub struct OAuthTokenBody {
    access_token: String,
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Lifetime of the access token in seconds.
    #[schema(example = 3600)]
    expires_in: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    /// The scope of the access token.
    #[schema(example = "call2me:read call2me:write")]
    scope: String,
}

impl From<Tokens> for OAuthTokenBody {
    fn from(tokens: Tokens) -> Self {
        let refresh_token = tokens.refresh_token.as_ref();
        Self {
            access_token: tokens.access_token.expose_secret().to_owned(),
            token_type: "Bearer",
            expires_in: tokens.expires_in,
            refresh_token: refresh_token.map(|token| token.expose_secret().to_owned()),
            scope: tokens.scope.oauth_scope(),
        }
    }
}

/// A token request (RFC 6749). The other parameters depend on `grant_type`.
#[derive(ToSchema)]
#[schema(as = TokenRequest)]
#[expect(dead_code, reason = "read as TokenRequest; here for the document")]
pub struct TokenForm {
    #[schema(example = "authorization_code")]
    grant_type: String,
    /// Required unless the `Authorization` header holds the client credentials.
    client_id: Option<String>,
    /// Required for a client with a secret, unless the `Authorization` header holds it.
    client_secret: Option<String>,
    /// For `authorization_code`: the authorization code.
    code: Option<String>,
    /// For `authorization_code`: the PKCE code verifier (RFC 7636).
    code_verifier: Option<String>,
    /// For `authorization_code`. Optional; if sent, it must be the redirect URI of the
    /// authorization request.
    redirect_uri: Option<String>,
    /// For `refresh_token`: the refresh token.
    refresh_token: Option<String>,
    /// For `urn:ietf:params:oauth:grant-type:device_code`: the device code.
    device_code: Option<String>,
    /// A narrower scope than the granted one.
    scope: Option<String>,
    /// The resource that the access token is for, out of the granted ones (RFC 8707).
    resource: Option<String>,
}

/// Request tokens (RFC 6749)
#[utoipa::path(post, path = "/oauth/token", tag = "OAuth",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = OAuthTokenBody), (status = 400, body = OAuthErrorBody),
              (status = 401, body = OAuthErrorBody),
              (status = 415, body = OAuthErrorBody), (status = 429, body = OAuthErrorBody),
              (status = 503, body = OAuthErrorBody)))]
pub async fn token(
    public: Public,
    State(app): State<App>,
    form: OAuthForm,
) -> OAuthResult<Json<OAuthTokenBody>> {
    let client = form.authenticate_client(&app, &public.request).await?;
    let request = TokenRequest::parse(&form.parameters, &client)?;
    Ok(Json(app.oauth.token_endpoint.issue_tokens(&client, &request).await?.into()))
}

/// A registered client (RFC 7591, section 3.2.1).
#[derive(Serialize, ToSchema)]
pub struct RegisteredClientBody {
    #[schema(example = "client_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    client_id: String,
    client_id_issued_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
    /// Always 0: the secret does not expire.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret_expires_at: Option<u8>,
    client_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_uri: Option<String>,
    redirect_uris: Vec<String>,
    grant_types: Vec<&'static str>,
    response_types: Vec<&'static str>,
    token_endpoint_auth_method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

impl From<RegisteredClient> for RegisteredClientBody {
    fn from(RegisteredClient { client, secret }: RegisteredClient) -> Self {
        let codes = client.allows_grant_type(GrantType::AuthorizationCode);
        Self {
            client_id: client.client_id(),
            client_id_issued_at: client.created_at.unix_timestamp(),
            client_secret: secret.as_ref().map(|secret| secret.reveal().to_owned()),
            client_secret_expires_at: secret.as_ref().map(|_| 0),
            client_name: client.name,
            client_uri: client.client_uri,
            redirect_uris: client.redirect_uris,
            grant_types: client.grant_types.into_iter().map(GrantType::as_str).collect(),
            response_types: if codes { vec!["code"] } else { Vec::new() },
            token_endpoint_auth_method: client.auth_method.as_str(),
            scope: client.scope.map(crate::model::scope::Scope::oauth_scope),
        }
    }
}

/// Client metadata (RFC 7591, section 2). Unknown fields are ignored.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read as ClientMetadata; here for the document")]
pub struct RegistrationRequest {
    /// `https` URLs, `http` URLs of a loopback address, or URIs with a private-use scheme.
    redirect_uris: Vec<String>,
    client_name: Option<String>,
    client_uri: Option<String>,
    /// The default is `client_secret_basic`.
    token_endpoint_auth_method: Option<String>,
    /// The default is `authorization_code`. Include `refresh_token` to get refresh tokens.
    grant_types: Option<Vec<String>>,
    response_types: Option<Vec<String>>,
    /// The default scope of authorization requests without `scope`.
    scope: Option<String>,
}

/// Register a client (RFC 7591)
#[utoipa::path(post, path = "/oauth/register", tag = "OAuth", request_body = RegistrationRequest,
    responses((status = 201, body = RegisteredClientBody), (status = 400, body = OAuthErrorBody),
              (status = 429, body = OAuthErrorBody), (status = 503, body = OAuthErrorBody)))]
pub async fn register(
    public: Public,
    State(app): State<App>,
    request: Request<Body>,
) -> OAuthResult<(StatusCode, Json<RegisteredClientBody>)> {
    let (parts, body) = request.into_parts();
    let body = extract::read_body(&parts.headers, body, &app).await?;
    let metadata: ClientMetadata = serde_json::from_slice(&body).map_err(|_| {
        let message = "the body must be a JSON object of client metadata";
        ProtocolError::new(OAuthErrorCode::InvalidClientMetadata, message)
    })?;
    let registered = app.oauth.registration.register(&metadata, &public.request).await?;
    Ok((StatusCode::CREATED, Json(registered.into())))
}

/// A token to revoke or introspect.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read as another type; here for the document")]
pub struct TokenOperationRequest {
    token: String,
    /// Optional and ignored: the type is evident from the token.
    token_type_hint: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

/// The response to a revocation: an empty object, because some clients parse every body as JSON.
#[derive(Serialize, ToSchema)]
pub struct RevocationBody {}

/// Revoke a token (RFC 7009)
///
/// Takes effect at once. Revoking a refresh token ends the whole grant with all its tokens.
/// Revoking an access token ends that token. An unknown token is not an error.
#[utoipa::path(post, path = "/oauth/revoke", tag = "OAuth",
    request_body(content = TokenOperationRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = RevocationBody), (status = 400, body = OAuthErrorBody),
              (status = 401, body = OAuthErrorBody),
              (status = 415, body = OAuthErrorBody), (status = 503, body = OAuthErrorBody)))]
pub async fn revoke(
    public: Public,
    State(app): State<App>,
    form: OAuthForm,
) -> OAuthResult<Json<RevocationBody>> {
    let client = form.authenticate_client(&app, &public.request).await?;
    let revoked = async {
        let request = RevocationRequest::parse(&form.parameters)?;
        Ok(app.oauth.revocation.revoke(&client, &request).await?)
    };
    recorded(&app, &client, revoked.await, |()| None).await?;
    Ok(Json(RevocationBody {}))
}

/// Introspect a token (RFC 7662)
///
/// Requires a client with a secret.
#[utoipa::path(post, path = "/oauth/introspect", tag = "OAuth",
    request_body(content = TokenOperationRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = IntrospectionResponse), (status = 400, body = OAuthErrorBody),
              (status = 401, body = OAuthErrorBody),
              (status = 415, body = OAuthErrorBody), (status = 503, body = OAuthErrorBody)))]
pub async fn introspect(
    public: Public,
    State(app): State<App>,
    form: OAuthForm,
) -> OAuthResult<Json<IntrospectionResponse>> {
    let client = form.authenticate_client(&app, &public.request).await?;
    let introspected = async {
        let request = IntrospectionRequest::parse(&form.parameters, &client)?;
        Ok(app.oauth.introspection.introspect(&request).await?)
    };
    let response = recorded(&app, &client, introspected.await, IntrospectionResponse::workspace_id);
    Ok(Json(response.await?))
}

/// A device authorization response (RFC 8628, section 3.2).
#[derive(Serialize, ToSchema)]
pub struct DeviceAuthorizationBody {
    device_code: String,
    #[schema(example = "BCDF-GHJK")]
    user_code: String,
    #[schema(example = "https://auth.example.com/device")]
    verification_uri: String,
    verification_uri_complete: String,
    /// Lifetime of the codes in seconds.
    expires_in: u64,
    /// Minimum time between two token requests in seconds.
    interval: u32,
}

/// A device authorization request (RFC 8628, section 3.1).
#[derive(ToSchema)]
#[schema(as = DeviceAuthorizationRequest)]
#[expect(dead_code, reason = "read as DeviceAuthorizationRequest; here for the document")]
pub struct DeviceAuthorizationForm {
    client_id: Option<String>,
    client_secret: Option<String>,
    scope: Option<String>,
    resource: Option<String>,
}

/// Start a device authorization (RFC 8628)
#[utoipa::path(post, path = "/oauth/device_authorization", tag = "OAuth",
    request_body(content = DeviceAuthorizationForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = DeviceAuthorizationBody), (status = 400, body = OAuthErrorBody),
              (status = 401, body = OAuthErrorBody),
              (status = 415, body = OAuthErrorBody), (status = 429, body = OAuthErrorBody),
              (status = 503, body = OAuthErrorBody)))]
pub async fn device_authorization(
    public: Public,
    State(app): State<App>,
    form: OAuthForm,
) -> OAuthResult<Json<DeviceAuthorizationBody>> {
    let client = form.authenticate_client(&app, &public.request).await?;
    let request = DeviceAuthorizationRequest::parse(&form.parameters);
    let started = app.oauth.devices.start(&client, &request).await.map_err(EndpointError::from);
    let device = recorded(&app, &client, started, |_| None).await?;
    let (uri, code) = (device.verification_uri, device.user_code.to_display_string());
    Ok(Json(DeviceAuthorizationBody {
        device_code: device.device_code.expose_secret().to_owned(),
        verification_uri_complete: format!("{uri}?user_code={code}"),
        user_code: code,
        verification_uri: uri,
        expires_in: device.expires_in,
        interval: device.interval,
    }))
}
