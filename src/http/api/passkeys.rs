//! Routes of passkeys: add, list and remove passkeys, and sign in with one (Web Authentication
//! Level 3).
//!
//! Adding and signing in take two requests each: one for the options that the browser needs, one
//! with its result.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{ApiResult, Created, auth::TokenBody};
use crate::{
    auth::passkeys::{AuthenticationCredential, RegistrationCredential},
    http::{
        App,
        extract::{self, Authorized, PathId, Public, UserSession},
    },
    model::{
        id::{PasskeyId, WorkspaceId},
        passkey::Passkey,
        password::Password,
    },
};

/// Web Authentication options for a browser.
#[derive(Serialize, ToSchema)]
pub struct OptionsBody {
    /// Pass them to `PublicKeyCredential.parseCreationOptionsFromJSON` or
    /// `parseRequestOptionsFromJSON`.
    #[schema(value_type = Object)]
    options: Value,
}

/// A passkey.
#[derive(Serialize, ToSchema)]
pub struct PasskeyBody {
    id: PasskeyId,
    #[schema(example = "Dana's phone")]
    name: String,
    #[serde(serialize_with = "crate::model::timestamp::serialize")]
    created_at: OffsetDateTime,
    #[serde(serialize_with = "crate::model::timestamp::option::serialize")]
    #[schema(required = true)]
    last_used_at: Option<OffsetDateTime>,
}

impl From<Passkey> for PasskeyBody {
    fn from(passkey: Passkey) -> Self {
        let Passkey { id, name, created_at, last_used_at } = passkey;
        Self { id, name, created_at, last_used_at }
    }
}

/// A new passkey, and the new tokens of the session.
#[derive(Serialize, ToSchema)]
pub struct AddedPasskeyBody {
    #[serde(flatten)]
    passkey: PasskeyBody,
    #[serde(flatten)]
    tokens: TokenBody,
}

/// The caller's passkeys, at most 20.
#[derive(Serialize, ToSchema)]
pub struct PasskeysBody {
    passkeys: Vec<PasskeyBody>,
}

/// A confirmation with the caller's password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyRequest {
    /// The caller's password. Required unless the caller signed in within the last 15 minutes.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// Get the options to create a passkey
///
/// The caller's email address must be verified.
#[utoipa::path(post, path = "/v1/auth/passkeys/options", tag = "Passkeys", request_body = PasskeyRequest,
    responses((status = 200, body = OptionsBody), (status = 403), (status = 409)))]
pub async fn options(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<PasskeyRequest>,
) -> ApiResult<Json<OptionsBody>> {
    let options = app.auth.passkeys.registration_options(&caller, body.password.as_ref()).await?;
    Ok(Json(OptionsBody { options }))
}

/// A passkey to add.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddPasskeyRequest {
    /// A name to recognize the passkey.
    #[schema(example = "Dana's phone")]
    name: String,
    /// The result of `PublicKeyCredential.toJSON()`.
    #[schema(value_type = Object)]
    credential: RegistrationCredential,
}

/// Add a passkey
///
/// Stores the passkey that a browser created with the options of `POST /v1/auth/passkeys/options`.
/// The session then counts as signed in with it. Returns new tokens for the session; its earlier
/// tokens stop working at once.
#[utoipa::path(post, path = "/v1/auth/passkeys", tag = "Passkeys", request_body = AddPasskeyRequest,
    responses((status = 201, body = AddedPasskeyBody), (status = 403), (status = 409)))]
pub async fn add(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<AddPasskeyRequest>,
) -> ApiResult<Created<Json<AddedPasskeyBody>>> {
    let (passkey, credentials) =
        app.auth.passkeys.register(&caller, &body.name, &body.credential).await?;
    let tokens = TokenBody::new(&app, &credentials.tokens);
    let body = AddedPasskeyBody { passkey: passkey.into(), tokens };
    Ok(Created::without_replay(
        "/v1/auth/passkeys".to_owned(),
        Json(body),
        "its challenge works once, so a retry creates nothing",
    ))
}

/// List your passkeys
#[utoipa::path(get, path = "/v1/auth/passkeys", tag = "Passkeys",
    responses((status = 200, body = PasskeysBody)))]
pub async fn list(
    caller: Authorized<UserSession>,
    State(app): State<App>,
) -> ApiResult<Json<PasskeysBody>> {
    let passkeys =
        app.auth.passkeys.list(&caller).await?.into_iter().map(PasskeyBody::from).collect();
    Ok(Json(PasskeysBody { passkeys }))
}

/// Remove a passkey
///
/// The passkey no longer signs in, and your other sessions end. Returns new tokens for this
/// session; its earlier tokens stop working at once. A user without an authenticator app must have
/// signed in with a passkey.
#[utoipa::path(delete, path = "/v1/auth/passkeys/{id}", tag = "Passkeys",
    params(("id" = PasskeyId, Path)), request_body = PasskeyRequest,
    responses((status = 200, body = TokenBody), (status = 403), (status = 404)))]
pub async fn remove(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    PathId(id): PathId<PasskeyId>,
    extract::Json(body): extract::Json<PasskeyRequest>,
) -> ApiResult<Json<TokenBody>> {
    let credentials = app.auth.passkeys.remove(&caller, id, body.password.as_ref()).await?;
    Ok(Json(TokenBody::new(&app, &credentials.tokens)))
}

/// Get the options to sign in with a passkey
#[utoipa::path(post, path = "/v1/auth/login/passkey/options", tag = "Passkeys",
    responses((status = 200, body = OptionsBody), (status = 409)))]
pub async fn login_options(
    _public: Public,
    State(app): State<App>,
) -> ApiResult<Json<OptionsBody>> {
    Ok(Json(OptionsBody { options: app.auth.passkeys.authentication_options()? }))
}

/// A sign-in with a passkey.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyLoginRequest {
    /// The result of `PublicKeyCredential.toJSON()`.
    #[schema(value_type = Object)]
    credential: AuthenticationCredential,
    /// The workspace of the session. The default is the last used workspace, then the oldest one.
    workspace_id: Option<WorkspaceId>,
}

/// Sign in with a passkey
///
/// Requires neither a password nor a code: a passkey counts as two factors.
#[utoipa::path(post, path = "/v1/auth/login/passkey", tag = "Passkeys",
    request_body = PasskeyLoginRequest,
    responses((status = 200, body = TokenBody), (status = 401), (status = 403), (status = 409)))]
pub async fn login(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<PasskeyLoginRequest>,
) -> ApiResult<Json<TokenBody>> {
    let PasskeyLoginRequest { credential, workspace_id } = body;
    let credentials = app.auth.passkeys.sign_in(&credential, workspace_id, &public.request).await?;
    Ok(Json(TokenBody::new(&app, &credentials.tokens)))
}
