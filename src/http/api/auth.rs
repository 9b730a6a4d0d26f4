//! Registration, sign-in, refresh, sign-out, and who one is.

use axum::{Json, extract::State, http::StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Answer, Created, api_keys::ApiKeyBody, workspace::WorkspaceBody};
use crate::{
    auth::login::{NewAccount, TokenPair},
    http::{
        App,
        extract::{self, Authorized, OwnSession, Public, ReadOnly},
    },
    model::{
        id::{UserId, WorkspaceId},
        password::Password,
        principal::Credential,
        scope::{Role, Scope},
        user::User,
    },
};

/// A pair of tokens (RFC 6749, section 5.1).
#[derive(Serialize, ToSchema)]
pub struct TokenBody {
    /// For the API, as `Authorization: Bearer …`: a JWT.
    #[schema(example = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSJ9.…")]
    access_token: String,
    /// For the next pair, once; opaque.
    #[schema(example = "rt_call2me_…")]
    refresh_token: String,
    /// Seconds that the access token lives.
    #[schema(example = 3600)]
    expires_in: u64,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    token_type: &'static str,
}

impl TokenBody {
    pub(super) fn new(app: &App, pair: &TokenPair) -> Self {
        Self {
            access_token: pair.access_token.expose_secret().to_owned(),
            refresh_token: pair.refresh_token.expose_secret().to_owned(),
            expires_in: app.auth.access_token_lifetime().as_secs(),
            token_type: "Bearer",
        }
    }
}

/// A person.
#[derive(Serialize, ToSchema)]
pub struct UserBody {
    id: UserId,
    #[schema(example = "dana@acme.example")]
    email: String,
    /// Whether the person has shown that the address is theirs.
    email_verified: bool,
    #[schema(required = true, example = "Dana Meyer")]
    full_name: Option<String>,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
}

impl From<User> for UserBody {
    fn from(user: User) -> Self {
        let User { id, email, full_name, created_at, email_verified_at, .. } = user;
        let email_verified = email_verified_at.is_some();
        Self { id, email, email_verified, full_name, created_at }
    }
}

/// Who wants to register.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The address to sign in with; compared without case.
    #[schema(example = "dana@acme.example")]
    email: String,
    /// 12 to 256 characters, of any kind.
    #[schema(value_type = String, format = Password, min_length = 12, max_length = 256,
             example = "correct horse battery staple")]
    password: Password,
    /// The person's name.
    #[schema(example = "Dana Meyer")]
    full_name: Option<String>,
    /// The name of the first workspace.
    #[schema(example = "acme")]
    workspace_name: Option<String>,
}

/// What registration made.
#[derive(Serialize, ToSchema)]
pub struct RegisteredBody {
    #[serde(flatten)]
    tokens: TokenBody,
    user: UserBody,
    workspace: WorkspaceBody,
}

/// Register
///
/// Makes an account and its first workspace, and signs in.
#[utoipa::path(post, path = "/v1/auth/register", tag = "Sessions", request_body = RegisterRequest,
    responses((status = 201, body = RegisteredBody), (status = 403), (status = 409)))]
pub async fn register(
    public: Public,
    State(app): State<App>,
    body: Answer<extract::Json<RegisterRequest>>,
) -> Answer<Created<Json<RegisteredBody>>> {
    app.auth.check_registration()?;
    let extract::Json(body) = body?;
    let RegisterRequest { email, password, full_name, workspace_name } = body;
    let account = NewAccount { email, password, full_name, workspace_name };
    let made = app.auth.register(account, &public.request).await?;
    let body = RegisteredBody {
        tokens: TokenBody::new(&app, &made.tokens),
        user: made.user.into(),
        workspace: WorkspaceBody::new(&app, made.workspace),
    };
    Ok(Created::at("/v1/auth/me".to_owned(), Json(body)))
}

/// Who signs in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The address.
    #[schema(example = "dana@acme.example")]
    email: String,
    /// The password.
    #[schema(value_type = String, format = Password, example = "correct horse battery staple")]
    password: Password,
    /// The workspace to be in; else the one last used, else the oldest.
    workspace_id: Option<WorkspaceId>,
}

/// Sign in
#[utoipa::path(post, path = "/v1/auth/login", tag = "Sessions", request_body = LoginRequest,
    responses((status = 200, body = TokenBody), (status = 401), (status = 403)))]
pub async fn login(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<LoginRequest>,
) -> Answer<Json<TokenBody>> {
    let LoginRequest { email, password, workspace_id } = body;
    let pair = app.auth.login(&email, &password, workspace_id, &public.request).await?;
    Ok(Json(TokenBody::new(&app, &pair)))
}

/// A refresh.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    /// The newest refresh token of the session.
    #[schema(value_type = String, example = "rt_call2me_…")]
    refresh_token: SecretString,
}

/// Refresh
///
/// A token works once. A retry with the token just used, within ten seconds, gets the same successor;
/// any other reuse ends the session.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "Sessions", request_body = RefreshRequest,
    responses((status = 200, body = TokenBody), (status = 401)))]
pub async fn refresh(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<RefreshRequest>,
) -> Answer<Json<TokenBody>> {
    let pair = app.auth.refresh(body.refresh_token.expose_secret(), &public.request).await?;
    Ok(Json(TokenBody::new(&app, &pair)))
}

/// Sign out
///
/// Ends the session: its access and refresh tokens stop working at once.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "Sessions", responses((status = 204)))]
pub async fn logout(caller: Authorized<OwnSession>, State(app): State<App>) -> Answer<StatusCode> {
    app.auth.logout(&caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who bears the credential.
#[derive(Serialize, ToSchema)]
pub struct SubjectBody {
    /// `api_key`, `user` or `oauth_client`.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    kind: &'static str,
    /// Its public id.
    #[schema(example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    id: String,
    /// Its name.
    #[schema(example = "prod-2026-q2")]
    name: String,
}

/// Who one is.
#[derive(Serialize, ToSchema)]
pub struct MeBody {
    subject: SubjectBody,
    /// The person, for a session and for what one granted a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserBody>,
    workspace: WorkspaceBody,
    scope: Scope,
    /// The role of that person.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    /// The key, for a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<ApiKeyBody>,
}

/// Who am I?
#[utoipa::path(get, path = "/v1/auth/me", tag = "Sessions", responses((status = 200, body = MeBody)))]
pub async fn me(caller: Authorized<ReadOnly>, State(app): State<App>) -> Answer<Json<MeBody>> {
    let workspace = app.resources.workspace(&caller).await?;
    let (kind, user, role, key) = match &caller.principal.credential {
        Credential::ApiKey { id, .. } => {
            let key = app.auth.get_key(&caller, *id).await?;
            ("api_key", None, None, Some(ApiKeyBody::new(&app, key)))
        }
        Credential::Session { role, .. } => {
            ("user", Some(app.resources.person(&caller).await?.into()), Some(*role), None)
        }
        Credential::Grant { person: Some((_, role)), .. } => {
            ("oauth_client", Some(app.resources.person(&caller).await?.into()), Some(*role), None)
        }
        Credential::Grant { person: None, .. } => ("oauth_client", None, None, None),
    };
    let id = match &caller.principal.credential {
        Credential::Grant { client_id, .. } => client_id.to_string(),
        _ => caller.principal.subject(),
    };
    let subject = SubjectBody { kind, id, name: caller.principal.name().to_string() };
    let workspace = WorkspaceBody::new(&app, workspace);
    Ok(Json(MeBody { subject, user, workspace, scope: caller.principal.scope, role, key }))
}
