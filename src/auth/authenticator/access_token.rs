//! Verification of access tokens: JWTs by RFC 9068 and RFC 8725.
//!
//! A token's header selects one of our own keys and nothing else. The algorithm is that of the key,
//! keys come only from the database, and a header with any other parameter is rejected.
//!
//! The signature proves that a token was issued here; its session or grant is looked up on every
//! use, so a token ends with them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use crate::{
    auth::{
        AuthError,
        authenticator::Authenticator,
        credential_caches::{BindingRecord, VerifiedTokenCache},
        signing_keys::ACCESS_TOKEN_TYPE,
        token_issuer::{Claims, Subject, TokenBinding},
    },
    model::{
        id::{GrantId, SessionId},
        oauth::grant::GrantRecord,
        principal::{Credential, Principal},
        scope::Scope,
        session::SessionRecord,
    },
};

/// Maximum length of a token in bytes. Longer than any token issued here, and as long as the header
/// that carries one.
const MAX_TOKEN_LEN: usize = 4096;

const INVALID_TOKEN: AuthError = AuthError::InvalidCredential("the access token is invalid");

const SESSION_ENDED: AuthError = AuthError::InvalidCredential("the session has ended");

const CREDENTIALS_REPLACED: AuthError = AuthError::InvalidCredential(
    "the password or a second factor was changed: use the tokens of that response, or sign in again",
);

const GRANT_REVOKED: AuthError =
    AuthError::InvalidCredential("access was revoked; request authorization again");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenHeader {
    alg: String,
    typ: String,
    kid: String,
}

impl Authenticator {
    /// Verifies an access token for this service and resolves it to its principal. The session or
    /// grant is looked up on every use, so a token stops working when that ends.
    pub(in crate::auth) async fn verify_access_token(
        &self,
        token: &str,
        began: Duration,
    ) -> Result<Arc<Principal>, AuthError> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(INVALID_TOKEN);
        }
        let digest = VerifiedTokenCache::digest(token);
        let claims = if let Some(claims) = self.caches.tokens.get(&digest) {
            claims
        } else {
            let claims = Arc::new(self.verify_claims(token, Some(&self.context.issuer)).await?);
            self.caches.tokens.insert(digest, Arc::clone(&claims));
            claims
        };
        if self.context.env.clock.now().unix_timestamp() >= claims.exp {
            return Err(AuthError::TokenExpired);
        }
        let record = self.caches.bindings.find(claims.sid, began).await?;
        let record = record.ok_or_else(|| binding_ended(claims.sid))?;
        self.token_principal(&claims, &record).map(Arc::new)
    }

    /// Introspects an access token for any resource (RFC 7662). Returns its claims and its
    /// effective scope, which may be lower than the scope claim by now; `None` if the token is not
    /// active.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    pub async fn introspect(
        &self,
        token: &str,
        began: Duration,
    ) -> Result<Option<(Claims, Scope)>, AuthError> {
        let Some(claims) = self.decode_access_token(token).await? else { return Ok(None) };
        let record = self.caches.bindings.find(claims.sid, began).await?;
        let Some(record) = record else { return Ok(None) };
        let principal = self.token_principal(&claims, &record);
        Ok(principal
            .ok()
            .filter(|principal| !principal.lacks_second_factor)
            .map(|principal| (claims, principal.scope)))
    }

    /// Decodes a token for any resource: returns its claims if the signature is valid and the token
    /// has not expired. Does not check that the session or grant is still active.
    ///
    /// # Errors
    /// [`AuthError::Store`] if the query fails.
    pub async fn decode_access_token(&self, token: &str) -> Result<Option<Claims>, AuthError> {
        if token.len() > MAX_TOKEN_LEN {
            return Ok(None);
        }
        let claims = match self.verify_claims(token, None).await {
            Ok(claims) => claims,
            Err(AuthError::InvalidCredential(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_unexpired = self.context.env.clock.now().unix_timestamp() < claims.exp;
        Ok(Some(claims).filter(|_| is_unexpired))
    }

    /// Checks a token's signature, issuer and, if `resource` is `Some`, audience. Does not check
    /// its expiry.
    async fn verify_claims(
        &self,
        token: &str,
        resource: Option<&str>,
    ) -> Result<Claims, AuthError> {
        let header = token.split('.').next().unwrap_or_default();
        let header = BASE64URL_NOPAD.decode(header.as_bytes()).map_err(|_| INVALID_TOKEN)?;
        let header: TokenHeader = serde_json::from_slice(&header).map_err(|_| INVALID_TOKEN)?;
        if !header.typ.eq_ignore_ascii_case(ACCESS_TOKEN_TYPE) {
            return Err(INVALID_TOKEN);
        }
        let keys = self.signing_keys.key_set_for(&header.kid).await?;
        let key = keys.token_verifying_key(&header.kid).ok_or(INVALID_TOKEN)?;
        if header.alg != key.algorithm() {
            return Err(INVALID_TOKEN);
        }
        let claims = key.verify(token, |rules| {
            rules.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
            rules.iss = Some(HashSet::from([self.context.issuer.to_string()]));
            if let Some(resource) = resource {
                rules.validate_aud = true;
                rules.aud = Some(HashSet::from([resource.to_owned()]));
            }
        });
        claims.ok_or(INVALID_TOKEN)
    }

    fn token_principal(
        &self,
        claims: &Claims,
        record: &BindingRecord,
    ) -> Result<Principal, AuthError> {
        match (claims.sid, record) {
            (TokenBinding::Session(id), BindingRecord::Session(session)) => {
                self.session_token_principal(claims, id, session)
            }
            (TokenBinding::Grant(id), BindingRecord::Grant(grant)) => {
                grant_principal(claims, id, grant)
            }
            _ => Err(binding_ended(claims.sid)),
        }
    }

    fn session_token_principal(
        &self,
        claims: &Claims,
        id: SessionId,
        session: &SessionRecord,
    ) -> Result<Principal, AuthError> {
        let is_same_user = claims.sub == Subject::User(session.user_id);
        if !is_same_user || session.workspace_id != claims.workspace_id {
            return Err(SESSION_ENDED);
        }
        let principal = self.session_principal(id, session)?;
        if claims.session_generation != Some(session.credential_generation) {
            return Err(CREDENTIALS_REPLACED);
        }
        let granted = Scope::from_oauth_scope(&claims.scope).ok_or(INVALID_TOKEN)?;
        // A demotion applies at once, a promotion with the next token.
        Ok(Principal { scope: granted.min(principal.scope), ..principal })
    }
}

/// The error for a token whose session or grant does not exist.
fn binding_ended(binding: TokenBinding) -> AuthError {
    match binding {
        TokenBinding::Session(_) => SESSION_ENDED,
        TokenBinding::Grant(_) => GRANT_REVOKED,
    }
}

/// The principal of a grant's access token. Its scope is the lowest of the token's, the grant's and
/// the user's own.
fn grant_principal(
    claims: &Claims,
    id: GrantId,
    grant: &GrantRecord,
) -> Result<Principal, AuthError> {
    if grant.is_ended
        || grant.workspace_id != claims.workspace_id
        || grant.revoked_tokens.contains(&claims.jti)
    {
        return Err(GRANT_REVOKED);
    }
    let granted = Scope::from_oauth_scope(&claims.scope).ok_or(INVALID_TOKEN)?.min(grant.scope);
    let (user, max_scope) = match (&grant.user, &claims.sub) {
        (Some(holder), Subject::User(sub)) if holder.user_id == *sub => {
            let role = holder.role.ok_or(AuthError::InvalidCredential(
                "the user who authorized this app is no longer a member of the workspace",
            ))?;
            (Some((holder.user_id, role)), role.scope())
        }
        (None, Subject::Client(_)) => (None, Scope::Admin),
        _ => return Err(GRANT_REVOKED),
    };
    Ok(Principal {
        workspace_id: grant.workspace_id,
        scope: granted.min(max_scope),
        rate_limit_per_minute: grant.rate_limit_per_minute,
        lacks_second_factor: grant.lacks_second_factor,
        credential: Credential::Grant {
            id,
            token_id: claims.jti,
            client_id: grant.client_id,
            name: Arc::clone(&grant.client_name),
            user,
        },
    })
}
