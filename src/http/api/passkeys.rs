//! Passkeys: made, listed, taken away; and signing in with one (Web Authentication Level 3).

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{Answer, Created, auth::TokenBody};
use crate::{
    auth::passkeys::{NewCredential, SignedCredential},
    http::{
        App,
        extract::{self, Authorized, OwnSession, PathId, Public},
    },
    model::{
        id::{PasskeyId, WorkspaceId},
        passkey::Passkey,
        password::Password,
    },
};

/// What a browser is asked for.
#[derive(Serialize, ToSchema)]
pub struct OptionsBody {
    /// For `PublicKeyCredential.parseCreationOptionsFromJSON` or `parseRequestOptionsFromJSON`.
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

/// One's passkeys, twenty at most.
#[derive(Serialize, ToSchema)]
pub struct PasskeysBody {
    passkeys: Vec<PasskeyBody>,
}

/// Who changes their passkeys.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyRequest {
    /// Where one has not just signed in.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// Ask for what makes a passkey
#[utoipa::path(post, path = "/v1/auth/passkeys/options", tag = "Passkeys", request_body = PasskeyRequest,
    responses((status = 200, body = OptionsBody), (status = 403), (status = 409)))]
pub async fn options(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<PasskeyRequest>,
) -> Answer<Json<OptionsBody>> {
    let options = app.auth.new_passkey_options(&caller, body.password.as_ref()).await?;
    Ok(Json(OptionsBody { options }))
}

/// A passkey that a browser made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddPasskeyRequest {
    /// What one calls it.
    #[schema(example = "Dana's phone")]
    name: String,
    /// What `PublicKeyCredential.toJSON()` answered.
    #[schema(value_type = Object)]
    credential: NewCredential,
}

/// Add a passkey
#[utoipa::path(post, path = "/v1/auth/passkeys", tag = "Passkeys", request_body = AddPasskeyRequest,
    responses((status = 201, body = PasskeyBody), (status = 409)))]
pub async fn add(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<AddPasskeyRequest>,
) -> Answer<Created<Json<PasskeyBody>>> {
    let made = app.auth.add_passkey(&caller, &body.name, &body.credential).await?;
    Ok(Created::at("/v1/auth/passkeys".to_owned(), Json(made.into())))
}

/// List one's passkeys
#[utoipa::path(get, path = "/v1/auth/passkeys", tag = "Passkeys",
    responses((status = 200, body = PasskeysBody)))]
pub async fn list(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
) -> Answer<Json<PasskeysBody>> {
    let passkeys = app.auth.passkeys(&caller).await?.into_iter().map(PasskeyBody::from).collect();
    Ok(Json(PasskeysBody { passkeys }))
}

/// Take a passkey away
///
/// It does not sign in any more, and one's other sessions end. Who has no authenticator has to have signed in with
/// a passkey.
#[utoipa::path(delete, path = "/v1/auth/passkeys/{id}", tag = "Passkeys",
    params(("id" = PasskeyId, Path)), request_body = PasskeyRequest,
    responses((status = 204), (status = 403), (status = 404)))]
pub async fn remove(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    PathId(id): PathId<PasskeyId>,
    extract::Json(body): extract::Json<PasskeyRequest>,
) -> Answer<StatusCode> {
    app.auth.remove_passkey(&caller, id, body.password.as_ref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ask for what a passkey signs in with
#[utoipa::path(post, path = "/v1/auth/login/passkey/options", tag = "Passkeys",
    responses((status = 200, body = OptionsBody), (status = 409)))]
pub async fn login_options(_public: Public, State(app): State<App>) -> Answer<Json<OptionsBody>> {
    Ok(Json(OptionsBody { options: app.auth.passkey_options()? }))
}

/// A passkey's answer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyLoginRequest {
    /// What `PublicKeyCredential.toJSON()` answered.
    #[schema(value_type = Object)]
    credential: SignedCredential,
    /// The workspace to be in; else the one last used, else the oldest.
    workspace_id: Option<WorkspaceId>,
}

/// Sign in with a passkey
///
/// It takes no password and no code.
#[utoipa::path(post, path = "/v1/auth/login/passkey", tag = "Passkeys",
    request_body = PasskeyLoginRequest,
    responses((status = 200, body = TokenBody), (status = 401), (status = 403), (status = 409)))]
pub async fn login(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<PasskeyLoginRequest>,
) -> Answer<Json<TokenBody>> {
    let PasskeyLoginRequest { credential, workspace_id } = body;
    let pair = app.auth.sign_in_by_passkey(&credential, workspace_id, &public.request).await?;
    Ok(Json(TokenBody::new(&app, &pair)))
}
