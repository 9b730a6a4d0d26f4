//! What a token is worth at the moment, for resources that cannot or would not verify it by themselves
//! (RFC 7662).

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Code, OAuth, OAuthError,
    token::{Opened, required},
};
use crate::{
    auth::verify_jwt::{Audience, Bond, Claims, Subject},
    model::{
        audit::RequestInfo,
        id::{GrantId, WorkspaceId},
        oauth::{
            client::{Client, Origin},
            parameters::Parameters,
        },
        refresh_token::PresentedToken,
        scope::Scope,
    },
};

/// What there is to say of a token (RFC 7662, section 2.2). Of one that is worth nothing, only that.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Introspection {
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

impl OAuth {
    /// Tells a client that has shown who it is what a token is worth.
    ///
    /// # Errors
    /// [`Code::InvalidClient`] for a client without a secret.
    pub async fn introspect(
        &self,
        client: &Client,
        parameters: &Parameters,
        request: &Arc<RequestInfo>,
    ) -> Result<Introspection, OAuthError> {
        if !client.is_confidential() {
            let what = "introspection takes a client with a secret";
            return Err(OAuthError::new(Code::InvalidClient, what));
        }
        let token = required(parameters, "token")?;
        if let Some(refresh) = PresentedToken::parse(token) {
            return self.introspect_refresh_token(client, &refresh).await;
        }
        let looked = self.auth.look_at_token(token, request.began).await?;
        let looked = looked.filter(|(claims, _)| may_see(client, claims));
        Ok(looked.map_or_else(Introspection::default, |(claims, scope)| of_claims(claims, scope)))
    }

    /// A refresh token is for nobody's eyes but its client's.
    async fn introspect_refresh_token(
        &self,
        client: &Client,
        token: &PresentedToken<GrantId>,
    ) -> Result<Introspection, OAuthError> {
        let parties = self.store.find_grant(token.id()).await?;
        let parties = parties.filter(|parties| parties.client_id == client.id);
        let parties = parties.filter(|parties| !parties.lacks_second_factor);
        let Some(parties) = parties else { return Ok(Introspection::default()) };
        let opened = self.lock(parties).await?;
        let Some(Opened { grant, most: Some(most), .. }) = opened else {
            return Ok(Introspection::default());
        };
        let generation = token.verify(self.auth.grant_refresh_key(), &grant.seed);
        let until = grant.last_used_at.map(|used| used + self.idle);
        let lives = !grant.ended
            && generation.is_some_and(|it| it <= grant.generation && it + 1 >= grant.generation)
            && until.is_some_and(|until| self.env.clock.now() < until);
        if !lives {
            return Ok(Introspection::default());
        }
        Ok(Introspection {
            active: true,
            scope: Some(grant.scope.min(most).oauth_scope()),
            client_id: Some(client.client_id()),
            exp: until.map(time::OffsetDateTime::unix_timestamp),
            sub: parties.user_id.map(|user| user.to_string()),
            iss: Some(self.issuer.to_string()),
            workspace_id: Some(parties.workspace_id),
            ..Introspection::default()
        })
    }
}

/// Its own tokens, those of its workspace, and those for the resource that it is.
fn may_see(client: &Client, claims: &Claims) -> bool {
    // A person's own session is nobody else's to look at.
    if !matches!(claims.sid, Bond::Grant(_)) {
        return false;
    }
    let is_for = |resource: &String| match &claims.aud {
        Audience::One(one) => one == resource,
        Audience::Several(several) => several.contains(resource),
    };
    claims.client_id == client.client_id()
        || client.origin == Origin::Workspace(claims.workspace_id)
        || client.resource.as_ref().is_some_and(is_for)
}

fn of_claims(claims: Claims, scope: Scope) -> Introspection {
    Introspection {
        active: true,
        scope: Some(scope.oauth_scope()),
        client_id: Some(claims.client_id),
        token_type: Some("Bearer"),
        exp: Some(claims.exp),
        iat: Some(claims.iat),
        sub: Some(match claims.sub {
            Subject::Person(user) => user.to_string(),
            Subject::Client(client) => client,
        }),
        aud: Some(claims.aud),
        iss: Some(claims.iss),
        jti: Some(claims.jti.to_string()),
        workspace_id: Some(claims.workspace_id),
    }
}
