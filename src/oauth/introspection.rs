//! Token introspection (RFC 7662), for resources that do not verify tokens themselves.
//!
//! A client learns only about its own tokens, those of its workspace, and those for the resource
//! that it is. Any other token is inactive to it.

use std::sync::Arc;

use secrecy::ExposeSecret;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    OAuthError, ProtocolError,
    clients::AuthenticatedClient,
    grants::{Grants, LockedGrant},
    request::{TokenParameter, required_parameter},
};
use crate::{
    auth::{
        ServiceContext,
        authenticator::Authenticator,
        token_issuer::{Audience, Claims, Subject, TokenBinding},
    },
    model::{
        id::{GrantId, WorkspaceId},
        oauth::{
            client::{Client, ClientOrigin},
            grant::GrantStage,
            parameters::Parameters,
        },
        refresh_token::PresentedToken,
        scope::Scope,
    },
};

/// The introspection response (RFC 7662, section 2.2). For a token that is not active it contains
/// only `active: false`.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = Introspection)]
pub struct IntrospectionResponse {
    active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "call2me:read call2me:write")]
    scope: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    aud: Option<Audience>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<WorkspaceId>,
}

impl IntrospectionResponse {
    /// The workspace of the token, if it is active.
    #[must_use]
    pub fn workspace_id(&self) -> Option<WorkspaceId> {
        self.workspace_id
    }
}

/// An introspection request (RFC 7662, section 2.1) of a client with a secret.
#[derive(Debug)]
pub struct IntrospectionRequest<'a> {
    client: &'a AuthenticatedClient,
    token: TokenParameter,
}

impl<'a> IntrospectionRequest<'a> {
    /// Parses the introspection request of a client.
    ///
    /// # Errors
    /// `invalid_client` for a public client, `invalid_request` without a token.
    pub fn parse(
        parameters: &Parameters,
        client: &'a AuthenticatedClient,
    ) -> Result<Self, ProtocolError> {
        if !client.is_confidential() {
            let message = "introspection requires a client with a secret";
            return Err(ProtocolError::invalid_client(message));
        }
        let token = required_parameter(parameters, "token")?;
        Ok(Self { client, token: TokenParameter::parse(token) })
    }
}

/// Returns the state of tokens to clients and resources.
pub struct Introspection {
    pub(super) context: Arc<ServiceContext>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) grants: Arc<Grants>,
}

impl Introspection {
    /// Returns the current state of a token.
    ///
    /// # Errors
    /// [`OAuthError::Service`] if a query fails.
    #[tracing::instrument(
        name = "oauth.introspection.introspect",
        level = "debug",
        skip_all,
        fields(client = %client.id),
        err(level = "debug")
    )]
    pub async fn introspect(
        &self,
        IntrospectionRequest { client, token }: &IntrospectionRequest<'_>,
    ) -> Result<IntrospectionResponse, OAuthError> {
        match token {
            TokenParameter::Refresh(token) => self.introspect_refresh_token(client, token).await,
            TokenParameter::Access(token) => {
                self.introspect_access_token(client, token.expose_secret()).await
            }
        }
    }

    /// Introspects an access token, for the clients that [`can_introspect`] names.
    async fn introspect_access_token(
        &self,
        client: &AuthenticatedClient,
        token: &str,
    ) -> Result<IntrospectionResponse, OAuthError> {
        let verified = self.authenticator.introspect(token, client.request().started_at).await?;
        let visible = verified.filter(|(claims, _)| can_introspect(client, claims));
        Ok(visible.map_or_else(IntrospectionResponse::default, |(claims, scope)| {
            active_introspection(claims, scope)
        }))
    }

    /// Introspects a refresh token. It is visible only to its own client.
    async fn introspect_refresh_token(
        &self,
        client: &Client,
        token: &PresentedToken<GrantId>,
    ) -> Result<IntrospectionResponse, OAuthError> {
        let parties = self.context.store.find_grant_parties(token.id()).await?;
        let parties = parties.filter(|parties| parties.client_id == client.id);
        let parties = parties.filter(|parties| !parties.lacks_second_factor);
        let Some(parties) = parties else { return Ok(IntrospectionResponse::default()) };
        let opened = self.grants.lock(parties).await?;
        let Some(LockedGrant { grant, seed, role_scope: Some(role_scope), .. }) = opened else {
            return Ok(IntrospectionResponse::default());
        };
        let GrantStage::Redeemed { last_used_at, generation } = grant.stage else {
            return Ok(IntrospectionResponse::default());
        };
        let presented = token.verify(&seed);
        let expires_at = last_used_at + self.grants.idle_timeout();
        // The last token is valid, and so is its predecessor, for a retry.
        let is_active = presented.is_some_and(|it| it <= generation && it + 1 >= generation)
            && self.context.env.clock.now() < expires_at;
        if !is_active {
            return Ok(IntrospectionResponse::default());
        }
        Ok(IntrospectionResponse {
            active: true,
            scope: Some(grant.scope.min(role_scope).oauth_scope()),
            client_id: Some(client.client_id()),
            exp: Some(expires_at.unix_timestamp()),
            sub: parties.user_id.map(|user| user.to_string()),
            iss: Some(self.context.issuer.to_string()),
            workspace_id: Some(parties.workspace_id),
            ..IntrospectionResponse::default()
        })
    }
}

/// Returns true for the client's own tokens, those of its workspace, and those for its resource.
fn can_introspect(client: &Client, claims: &Claims) -> bool {
    // Access tokens of a user's own session are not visible to any client.
    if !matches!(claims.sid, TokenBinding::Grant(_)) {
        return false;
    }
    let is_for = |resource: &String| match &claims.aud {
        Audience::One(one) => one == resource,
        Audience::Many(several) => several.contains(resource),
    };
    claims.client_id == client.client_id()
        || client.origin == ClientOrigin::Workspace(claims.workspace_id)
        || client.resource.as_ref().is_some_and(is_for)
}

fn active_introspection(claims: Claims, scope: Scope) -> IntrospectionResponse {
    IntrospectionResponse {
        active: true,
        scope: Some(scope.oauth_scope()),
        client_id: Some(claims.client_id),
        token_type: Some("Bearer"),
        exp: Some(claims.exp),
        iat: Some(claims.iat),
        sub: Some(match claims.sub {
            Subject::User(user) => user.to_string(),
            Subject::Client(client) => client,
        }),
        aud: Some(claims.aud),
        iss: Some(claims.iss),
        jti: Some(claims.jti.to_string()),
        workspace_id: Some(claims.workspace_id),
    }
}
