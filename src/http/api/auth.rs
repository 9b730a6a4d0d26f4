//! Routes to sign up, sign in, refresh tokens, sign out, and get the caller's identity.
//!
//! Second factors are in [`super::mfa`] and [`super::passkeys`], sessions in [`super::sessions`].

use axum::{Json, extract::State, http::StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{ApiResult, Created, api_keys::ApiKeyBody, workspace::WorkspaceBody};
use crate::{
    auth::{accounts::NewAccount, sessions::TokenPair},
    http::{
        App,
        extract::{self, Authorized, Public, ReadOnly, UserSession},
    },
    model::{
        id::{UserId, WorkspaceId},
        password::Password,
        principal::Credential,
        scope::{Role, Scope},
        user::User,
    },
};

/// An access token and a refresh token (RFC 6749, section 5.1).
#[derive(Serialize, ToSchema)]
pub struct TokenBody {
    /// A JWT. Send it to the API as `Authorization: Bearer …`.
    #[schema(example = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSJ9.…")]
    access_token: String,
    /// An opaque token that gets the next pair of tokens. It works once.
    #[schema(example = "rt_call2me_…")]
    refresh_token: String,
    /// Lifetime of the access token in seconds.
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
            expires_in: app.auth.token_issuer.access_token_lifetime().as_secs(),
            token_type: "Bearer",
        }
    }
}

/// A user.
#[derive(Serialize, ToSchema)]
pub struct UserBody {
    id: UserId,
    #[schema(example = "dana@acme.example")]
    email: String,
    /// True if the user has verified the email address.
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

/// A sign-up.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The email address to sign in with. Not case-sensitive.
    #[schema(example = "dana@acme.example")]
    email: String,
    /// 12 to 256 characters of any kind.
    #[schema(value_type = String, format = Password, min_length = 12, max_length = 256,
             example = "correct horse battery staple")]
    password: Password,
    /// The user's name.
    #[schema(example = "Dana Meyer")]
    full_name: Option<String>,
    /// The name of the first workspace.
    #[schema(example = "acme")]
    workspace_name: Option<String>,
}

/// The new user and workspace, with the tokens of the user's first session.
#[derive(Serialize, ToSchema)]
pub struct RegisteredBody {
    #[serde(flatten)]
    tokens: TokenBody,
    user: UserBody,
    workspace: WorkspaceBody,
}

/// Sign up
///
/// Creates a user and their first workspace, and signs in.
#[utoipa::path(post, path = "/v1/auth/register", tag = "Sessions", request_body = RegisterRequest,
    responses((status = 201, body = RegisteredBody), (status = 403), (status = 409)))]
pub async fn register(
    public: Public,
    State(app): State<App>,
    body: ApiResult<extract::Json<RegisterRequest>>,
) -> ApiResult<Created<Json<RegisteredBody>>> {
    app.auth.accounts.require_open_registration()?;
    let extract::Json(body) = body?;
    let RegisterRequest { email, password, full_name, workspace_name } = body;
    let account = NewAccount { email, password, full_name, workspace_name };
    let registered = app.auth.accounts.register(account, &public.request).await?;
    let body = RegisteredBody {
        tokens: TokenBody::new(&app, &registered.credentials.tokens),
        user: registered.user.into(),
        workspace: WorkspaceBody::new(&app, registered.workspace),
    };
    Ok(Created::without_replay(
        "/v1/auth/me".to_owned(),
        Json(body),
        "there is no caller yet that a stored response could belong to; a retry is 409",
    ))
}

/// A sign-in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The user's email address.
    #[schema(example = "dana@acme.example")]
    email: String,
    /// The user's password.
    #[schema(value_type = String, format = Password, example = "correct horse battery staple")]
    password: Password,
    /// The workspace of the session. The default is the last used workspace, then the oldest one.
    workspace_id: Option<WorkspaceId>,
}

/// Sign in with a password
///
/// If the user has a second factor, the response is 401 with the code `mfa_required` and an
/// `mfa_token`; complete the sign-in with `POST /v1/auth/mfa/verify`.
#[utoipa::path(post, path = "/v1/auth/login", tag = "Sessions", request_body = LoginRequest,
    responses((status = 200, body = TokenBody), (status = 401), (status = 403)))]
pub async fn login(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<LoginRequest>,
) -> ApiResult<Json<TokenBody>> {
    let LoginRequest { email, password, workspace_id } = body;
    let credentials =
        app.auth.sign_in.with_password(&email, &password, workspace_id, &public.request).await?;
    Ok(Json(TokenBody::new(&app, &credentials.tokens)))
}

/// A token refresh.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    /// The newest refresh token of the session.
    #[schema(value_type = String, example = "rt_call2me_…")]
    refresh_token: SecretString,
}

/// Refresh tokens
///
/// A refresh token works once and is replaced by its successor. A retry within ten seconds gets the
/// same successor; any other reuse ends the session.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "Sessions", request_body = RefreshRequest,
    responses((status = 200, body = TokenBody), (status = 401)))]
pub async fn refresh(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<RefreshRequest>,
) -> ApiResult<Json<TokenBody>> {
    let pair =
        app.auth.sessions.refresh(body.refresh_token.expose_secret(), &public.request).await?;
    Ok(Json(TokenBody::new(&app, &pair)))
}

/// Sign out
///
/// Ends the session. Its access and refresh tokens stop working at once.
#[utoipa::path(post, path = "/v1/auth/logout", tag = "Sessions", responses((status = 204)))]
pub async fn logout(
    caller: Authorized<UserSession>,
    State(app): State<App>,
) -> ApiResult<StatusCode> {
    app.auth.sessions.sign_out(&caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The identity behind the credential.
#[derive(Serialize, ToSchema)]
pub struct SubjectBody {
    /// `api_key`, `user` or `oauth_client`.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    kind: &'static str,
    /// The id of the API key, user or OAuth client.
    #[schema(example = "key_01jd0zt8q7f7qvs4p2k6x3m9ab")]
    id: String,
    /// The name of the API key, user or OAuth client.
    #[schema(example = "prod-2026-q2")]
    name: String,
}

/// The caller.
#[derive(Serialize, ToSchema)]
pub struct MeBody {
    subject: SubjectBody,
    /// The user of the session, or the user that authorized the OAuth client.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserBody>,
    workspace: WorkspaceBody,
    scope: Scope,
    /// The user's role in the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    /// The API key, if the credential is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<ApiKeyBody>,
}

/// Get the caller
///
/// Returns the identity, workspace and scope of the credential.
#[utoipa::path(get, path = "/v1/auth/me", tag = "Sessions", responses((status = 200, body = MeBody)))]
pub async fn me(caller: Authorized<ReadOnly>, State(app): State<App>) -> ApiResult<Json<MeBody>> {
    let workspace = app.resources.workspace(&caller).await?;
    let (kind, user, role, key) = match &caller.principal.credential {
        Credential::ApiKey { id, .. } => {
            let key = app.auth.api_keys.get(&caller, *id).await?;
            ("api_key", None, None, Some(ApiKeyBody::new(&app, key)))
        }
        Credential::Session { role, .. } => {
            ("user", Some(app.resources.current_user(&caller).await?.into()), Some(*role), None)
        }
        Credential::Grant { user: Some((_, role)), .. } => (
            "oauth_client",
            Some(app.resources.current_user(&caller).await?.into()),
            Some(*role),
            None,
        ),
        Credential::Grant { user: None, .. } => ("oauth_client", None, None, None),
    };
    let id = match &caller.principal.credential {
        Credential::Grant { client_id, .. } => client_id.to_string(),
        _ => caller.principal.subject(),
    };
    let subject = SubjectBody { kind, id, name: caller.principal.name().to_string() };
    let workspace = WorkspaceBody::new(&app, workspace);
    Ok(Json(MeBody { subject, user, workspace, scope: caller.principal.scope, role, key }))
}
