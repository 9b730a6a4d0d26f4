//! Token requests (OAuth 2.1, section 3.2.2).

use secrecy::SecretString;

use crate::{
    model::{
        id::GrantId,
        oauth::{client::GrantType, parameters::Parameters},
        refresh_token::PresentedToken,
        scope::Scope,
    },
    oauth::{
        InvalidGrant, OAuthError, OAuthErrorCode, ProtocolError, RefreshTokenFault,
        clients::AuthenticatedClient,
        request::{RequestedResources, requested_scope, require_grant_type, required_parameter},
    },
};

/// A token request, by its grant type.
#[derive(Debug)]
pub enum TokenRequest {
    /// `authorization_code`
    AuthorizationCode(AuthorizationCodeRequest),
    /// `refresh_token`
    RefreshToken(RefreshTokenRequest),
    /// `client_credentials`
    ClientCredentials(ClientCredentialsRequest),
    /// `urn:ietf:params:oauth:grant-type:device_code`
    DeviceCode(DeviceCodeRequest),
}

/// A request to redeem an authorization code (OAuth 2.1, section 4.1.3).
#[derive(Debug)]
pub struct AuthorizationCodeRequest {
    pub(super) code: SecretString,
    pub(super) code_verifier: SecretString,
    /// OAuth 2.1 (section 10.2) no longer requires it.
    pub(super) redirect_uri: Option<String>,
    pub(super) resources: RequestedResources,
}

/// A request to renew the tokens of a grant (OAuth 2.1, section 4.3.1).
#[derive(Debug)]
pub struct RefreshTokenRequest {
    pub(super) token: PresentedToken<GrantId>,
    pub(super) scope: Option<Scope>,
    pub(super) resources: RequestedResources,
}

/// A request of a client that acts for itself (OAuth 2.1, section 4.2.1).
#[derive(Debug)]
pub struct ClientCredentialsRequest {
    pub(super) scope: Option<Scope>,
    pub(super) resources: RequestedResources,
}

/// A request of a device for its tokens (RFC 8628, section 3.4).
#[derive(Debug)]
pub struct DeviceCodeRequest {
    pub(super) device_code: SecretString,
    pub(super) resources: RequestedResources,
}

impl TokenRequest {
    /// Parses the token request of a client. Parameters that the grant type does not use are
    /// ignored.
    ///
    /// # Errors
    /// [`OAuthErrorCode::UnsupportedGrantType`], [`OAuthErrorCode::UnauthorizedClient`] if the
    /// client may not use the grant type, [`OAuthErrorCode::InvalidRequest`] if a parameter is
    /// missing, and [`OAuthError::InvalidGrant`] for a malformed refresh token.
    pub fn parse(
        parameters: &Parameters,
        client: &AuthenticatedClient,
    ) -> Result<Self, OAuthError> {
        let grant_type = parse_grant_type(parameters)?;
        // Before the other parameters: they do not matter to a client that may not use the type.
        require_grant_type(client, grant_type)?;
        let required = |name| required_parameter(parameters, name);
        let scope = requested_scope(parameters);
        let resources = RequestedResources::parse(parameters);
        Ok(match grant_type {
            GrantType::AuthorizationCode => Self::AuthorizationCode(AuthorizationCodeRequest {
                code: required("code")?.into(),
                code_verifier: required("code_verifier")?.into(),
                redirect_uri: parameters.get("redirect_uri").map(str::to_owned),
                resources,
            }),
            GrantType::RefreshToken => {
                let token = PresentedToken::parse(required("refresh_token")?);
                let malformed = InvalidGrant::RefreshToken(RefreshTokenFault::Malformed);
                let token = token.ok_or(malformed)?;
                Self::RefreshToken(RefreshTokenRequest { token, scope, resources })
            }
            GrantType::ClientCredentials => {
                Self::ClientCredentials(ClientCredentialsRequest { scope, resources })
            }
            GrantType::DeviceCode => {
                let device_code = required("device_code")?.into();
                Self::DeviceCode(DeviceCodeRequest { device_code, resources })
            }
        })
    }
}

fn parse_grant_type(parameters: &Parameters) -> Result<GrantType, ProtocolError> {
    let name = required_parameter(parameters, "grant_type")?;
    GrantType::from_name(name).ok_or_else(|| {
        let message = "this grant_type is not supported";
        ProtocolError::new(OAuthErrorCode::UnsupportedGrantType, message)
    })
}
