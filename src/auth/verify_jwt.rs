//! Access tokens: issued and verified (RFC 9068, RFC 8725).
//!
//! What is believed of a token's header is nothing but which of our own keys to try: the algorithm is
//! pinned, keys come from the database alone, and a header with any other parameter is none of ours.

use std::{collections::HashSet, sync::Arc, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Auth, AuthError, caches::VerifiedTokens, signing_keys::ACCESS_TOKEN_TYPE};
use crate::model::{
    id::{GrantId, SessionId, UserId, WorkspaceId},
    oauth::grant::GrantRecord,
    principal::{Credential, Principal},
    scope::{Role, Scope},
    session::SessionRecord,
};

/// The `client_id` of tokens that a person's own sign-in gives.
const DASHBOARD_CLIENT: &str = "call2me-dashboard";

/// Longer than any token that was issued here; as long as the header that holds one is read.
const MAX_LEN: usize = 4096;

/// The claims of an access token (RFC 9068, section 2.2).
#[derive(Debug, Serialize, Deserialize)]
pub struct Claims {
    pub(crate) iss: String,
    pub(crate) sub: Subject,
    pub(crate) aud: Audience,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) jti: Uuid,
    pub(crate) client_id: String,
    pub(crate) scope: String,
    pub(crate) workspace_id: WorkspaceId,
    pub(crate) sid: Bond,
}

/// Whom a token is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Subject {
    /// A person.
    Person(UserId),
    /// A client that acts for itself, by its `client_id`.
    Client(String),
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One resource.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// What a token lives and dies with; the prefix of the id tells which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bond {
    /// A person's own session.
    Session(SessionId),
    /// What an OAuth client was granted.
    Grant(GrantId),
}

/// A token for an OAuth client.
pub struct GrantedToken<'a> {
    /// The client, as it calls itself in requests.
    pub client_id: &'a str,
    /// Who granted it; none: the client acts for itself.
    pub person: Option<UserId>,
    /// Where.
    pub workspace: WorkspaceId,
    /// By what.
    pub grant: GrantId,
    /// What it may do.
    pub scope: Scope,
    /// What it is for.
    pub resources: &'a [String],
}

/// What tells one token from another; the rest is the same for all.
struct About {
    sub: Subject,
    aud: Audience,
    client_id: String,
    scope: Scope,
    workspace_id: WorkspaceId,
    sid: Bond,
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
const GRANT_ENDED: AuthError =
    AuthError::InvalidCredential("access was revoked: ask for authorization again");

impl Auth {
    /// A fresh access token of a session.
    pub(super) fn issue_access_token(
        &self,
        user: UserId,
        workspace: WorkspaceId,
        session: SessionId,
        role: Role,
    ) -> Result<String, AuthError> {
        self.issue(About {
            sub: Subject::Person(user),
            aud: Audience::One(self.issuer.to_string()),
            client_id: DASHBOARD_CLIENT.to_owned(),
            scope: role.scope(),
            workspace_id: workspace,
            sid: Bond::Session(session),
        })
    }

    /// A fresh access token of a grant.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn issue_granted_token(&self, token: &GrantedToken<'_>) -> Result<String, AuthError> {
        let sub = match token.person {
            Some(person) => Subject::Person(person),
            None => Subject::Client(token.client_id.to_owned()),
        };
        let aud = match token.resources {
            [one] => Audience::One(one.clone()),
            several => Audience::Several(several.to_vec()),
        };
        self.issue(About {
            sub,
            aud,
            client_id: token.client_id.to_owned(),
            scope: token.scope,
            workspace_id: token.workspace,
            sid: Bond::Grant(token.grant),
        })
    }

    fn issue(&self, about: About) -> Result<String, AuthError> {
        let About { sub, aud, client_id, scope, workspace_id, sid } = about;
        let now = self.env.clock.now().unix_timestamp();
        let life = i64::try_from(self.lifetimes.access_token.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            iss: self.issuer.to_string(),
            sub,
            aud,
            exp: now.saturating_add(life),
            iat: now,
            jti: self.env.new_uuid(),
            client_id,
            scope: scope.oauth_scope(),
            workspace_id,
            sid,
        };
        let signed = self.signing_keys.current().sign(&claims);
        signed.map_err(|_| AuthError::Internal("cannot sign an access token"))
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
            let claims = Arc::new(self.verify_claims(token, Some(&self.issuer)).await?);
            self.caches.tokens.keep(digest, Arc::clone(&claims));
            claims
        };
        if self.env.clock.now().unix_timestamp() >= claims.exp {
            return Err(AuthError::TokenExpired);
        }
        match claims.sid {
            Bond::Session(id) => {
                let session = self.caches.sessions.find(id, began).await?.ok_or(ENDED)?;
                self.principal_of(&claims, id, &session).map(Arc::new)
            }
            Bond::Grant(id) => {
                let grant = self.caches.grants.find(id, began).await?.ok_or(GRANT_ENDED)?;
                grantee(&claims, id, &grant).map(Arc::new)
            }
        }
    }

    /// What a token for whatever resource is worth at the moment (RFC 7662): its claims, and the scope that
    /// is left of it; none where it is not to be believed.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn look_at_token(
        &self,
        token: &str,
        began: Duration,
    ) -> Result<Option<(Claims, Scope)>, AuthError> {
        let Some(claims) = self.read_token(token).await? else { return Ok(None) };
        let principal = match claims.sid {
            Bond::Session(id) => match self.caches.sessions.find(id, began).await? {
                Some(session) => self.principal_of(&claims, id, &session),
                None => return Ok(None),
            },
            Bond::Grant(id) => match self.caches.grants.find(id, began).await? {
                Some(grant) => grantee(&claims, id, &grant),
                None => return Ok(None),
            },
        };
        Ok(principal.ok().filter(|who| !who.lacks_second_factor).map(|who| (claims, who.scope)))
    }

    /// What a genuine token for whatever resource says that has not expired, whatever has become of it since.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn read_token(&self, token: &str) -> Result<Option<Claims>, AuthError> {
        if token.len() > MAX_LEN {
            return Ok(None);
        }
        let claims = match self.verify_claims(token, None).await {
            Ok(claims) => claims,
            Err(AuthError::InvalidCredential(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let lives = self.env.clock.now().unix_timestamp() < claims.exp;
        Ok(Some(claims).filter(|_| lives))
    }

    /// The claims of a genuine token for a resource, or for any. It may have expired.
    async fn verify_claims(
        &self,
        token: &str,
        resource: Option<&str>,
    ) -> Result<Claims, AuthError> {
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
        match resource {
            Some(resource) => validation.aud = Some(HashSet::from([resource.to_owned()])),
            None => validation.validate_aud = false,
        }
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
        // By our own clock, above, and without leeway.
        validation.validate_exp = false;
        let token = jsonwebtoken::decode::<Claims>(token, key, &validation);
        Ok(token.map_err(|_| MALFORMED)?.claims)
    }

    fn principal_of(
        &self,
        claims: &Claims,
        id: SessionId,
        session: &SessionRecord,
    ) -> Result<Principal, AuthError> {
        let is_of = claims.sub == Subject::Person(session.user_id);
        if !is_of || session.workspace_id != claims.workspace_id {
            return Err(ENDED);
        }
        let person = self.person_in(id, session)?;
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

/// The client that bears a grant's token, with what is left of its scope: of the token's, the grant's and the
/// person's own the least.
fn grantee(claims: &Claims, id: GrantId, grant: &GrantRecord) -> Result<Principal, AuthError> {
    if grant.ended
        || grant.workspace_id != claims.workspace_id
        || grant.revoked_tokens.contains(&claims.jti)
    {
        return Err(GRANT_ENDED);
    }
    let granted = Scope::from_oauth_scope(&claims.scope).ok_or(MALFORMED)?.min(grant.scope);
    let (person, most) = match (&grant.person, &claims.sub) {
        (Some(holder), Subject::Person(sub)) if holder.user_id == *sub => {
            let role = holder.role.ok_or(AuthError::InvalidCredential(
                "who granted this is no longer a member of the workspace",
            ))?;
            (Some((holder.user_id, role)), role.scope())
        }
        (None, Subject::Client(_)) => (None, Scope::Admin),
        _ => return Err(GRANT_ENDED),
    };
    Ok(Principal {
        workspace_id: grant.workspace_id,
        scope: granted.min(most),
        rate_limit_per_minute: grant.rate_limit_per_minute,
        lacks_second_factor: grant.lacks_second_factor,
        credential: Credential::Grant {
            id,
            client_id: grant.client_id,
            name: Arc::clone(&grant.client_name),
            person,
        },
    })
}
