//! Access tokens: issued and verified (RFC 9068, RFC 8725).
//!
//! What is believed of a token's header is nothing but which of our own keys to try: the algorithm is
//! pinned, keys come from the database alone, and a header with any other parameter is none of ours.

use std::{collections::HashSet, sync::Arc, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, Validation};
use serde::{Deserialize, Serialize};

use super::{Auth, AuthError, caches::VerifiedTokens, signing_keys::ACCESS_TOKEN_TYPE};
use crate::model::{
    id::{SessionId, UserId, WorkspaceId},
    principal::{Credential, Principal},
    scope::{Role, Scope},
    session::SessionRecord,
};

/// The `client_id` of tokens that a person's own sign-in gives.
const DASHBOARD_CLIENT: &str = "call2me-dashboard";

/// Longer than any token that was issued here.
const MAX_LEN: usize = 2048;

/// The claims of an access token (RFC 9068, section 2.2).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: String,
    sub: UserId,
    aud: String,
    exp: i64,
    iat: i64,
    jti: String,
    client_id: String,
    scope: String,
    workspace_id: WorkspaceId,
    sid: SessionId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenHeader {
    alg: String,
    typ: String,
    kid: String,
}

const MALFORMED: AuthError = AuthError::InvalidCredential("the access token is invalid");
const ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

impl Auth {
    /// A fresh access token of a session.
    pub(super) fn issue_access_token(
        &self,
        user: UserId,
        workspace: WorkspaceId,
        session: SessionId,
        role: Role,
    ) -> Result<String, AuthError> {
        let now = self.env.clock.now().unix_timestamp();
        let life = i64::try_from(self.lifetimes.access_token.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            iss: self.issuer.to_string(),
            sub: user,
            aud: self.issuer.to_string(),
            exp: now.saturating_add(life),
            iat: now,
            jti: self.env.new_uuid().to_string(),
            client_id: DASHBOARD_CLIENT.to_owned(),
            scope: role.scope().oauth_scope(),
            workspace_id: workspace,
            sid: session,
        };
        self.signing_keys
            .current()
            .sign(&claims)
            .map_err(|_| AuthError::Internal("cannot sign an access token"))
    }

    /// Who bears this access token. Its session is looked up, so a token dies with its session.
    pub(super) async fn verify_jwt(
        &self,
        token: &str,
        began: Duration,
    ) -> Result<Arc<Principal>, AuthError> {
        if token.len() > MAX_LEN {
            return Err(MALFORMED);
        }
        let digest = VerifiedTokens::digest(token);
        let claims = if let Some(claims) = self.caches.tokens.get(&digest) {
            claims
        } else {
            let claims = Arc::new(self.verify_claims(token).await?);
            self.caches.tokens.keep(digest, Arc::clone(&claims));
            claims
        };
        if self.env.clock.now().unix_timestamp() >= claims.exp {
            return Err(AuthError::TokenExpired);
        }
        let session = self.caches.sessions.find(claims.sid, began).await?.ok_or(ENDED)?;
        self.principal_of(&claims, &session).map(Arc::new)
    }

    /// The claims of a genuine token. It may have expired.
    async fn verify_claims(&self, token: &str) -> Result<Claims, AuthError> {
        let header = token.split('.').next().unwrap_or_default();
        let header = BASE64URL_NOPAD.decode(header.as_bytes()).map_err(|_| MALFORMED)?;
        let header: TokenHeader = serde_json::from_slice(&header).map_err(|_| MALFORMED)?;
        if header.alg != "EdDSA" || !header.typ.eq_ignore_ascii_case(ACCESS_TOKEN_TYPE) {
            return Err(MALFORMED);
        }
        let keys = self.keys_for(&header.kid).await?;
        let key = keys.verifier(&header.kid).ok_or(MALFORMED)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.iss = Some(HashSet::from([self.issuer.to_string()]));
        validation.aud = Some(HashSet::from([self.issuer.to_string()]));
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
        // By our own clock, above, and without leeway.
        validation.validate_exp = false;
        let token = jsonwebtoken::decode::<Claims>(token, key, &validation);
        Ok(token.map_err(|_| MALFORMED)?.claims)
    }

    fn principal_of(
        &self,
        claims: &Claims,
        session: &SessionRecord,
    ) -> Result<Principal, AuthError> {
        if session.user_id != claims.sub || session.workspace_id != claims.workspace_id {
            return Err(ENDED);
        }
        let person = self.person_in(claims.sid, session)?;
        let granted = Scope::from_oauth_scope(&claims.scope).ok_or(MALFORMED)?;
        // Demotion takes effect at once, promotion with the next token.
        Ok(Principal { scope: granted.min(person.scope), ..person })
    }

    /// The person of a session, with all that their role allows.
    pub(super) fn person_in(
        &self,
        id: SessionId,
        session: &SessionRecord,
    ) -> Result<Principal, AuthError> {
        if session.ended || self.env.clock.now() >= session.expires_at {
            return Err(ENDED);
        }
        let role = session.role.ok_or(AuthError::InvalidCredential(
            "the session's person is no longer a member of the workspace",
        ))?;
        Ok(Principal {
            workspace_id: session.workspace_id,
            scope: role.scope(),
            rate_limit_per_minute: session.rate_limit_per_minute,
            lacks_second_factor: session.lacks_second_factor,
            credential: Credential::Session {
                id,
                user_id: session.user_id,
                name: Arc::clone(&session.name),
                role,
            },
        })
    }
}
