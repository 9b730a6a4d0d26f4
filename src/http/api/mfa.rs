//! The second factor: asked for at sign-in, set up, taken away.

use axum::{Json, extract::State, http::StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Answer, auth::TokenBody};
use crate::{
    http::{
        App,
        extract::{self, Authorized, OwnSession, Public},
    },
    model::password::Password,
};

/// A code that completes a sign-in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// What came with `mfa_required`; it is good for five minutes.
    #[schema(value_type = String)]
    mfa_token: SecretString,
    /// A code of the authenticator, or a recovery code.
    #[schema(value_type = String, example = "287082")]
    code: SecretString,
}

/// Complete a sign-in
///
/// With a code of the authenticator or a recovery code, each of which works once.
#[utoipa::path(post, path = "/v1/auth/mfa/verify", tag = "Sessions", request_body = VerifyRequest,
    responses((status = 200, body = TokenBody), (status = 401)))]
pub async fn verify(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<VerifyRequest>,
) -> Answer<Json<TokenBody>> {
    let VerifyRequest { mfa_token, code } = body;
    let (token, code) = (mfa_token.expose_secret(), code.expose_secret());
    let pair = app.auth.meet_challenge(token, code, &public.request).await?;
    Ok(Json(TokenBody::new(&app, &pair)))
}

/// Who sets an authenticator up.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// Where one has not just signed in.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// What an authenticator is set up with.
#[derive(Serialize, ToSchema)]
pub struct EnrolmentBody {
    /// To type in.
    #[schema(example = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")]
    secret: String,
    /// To make a QR code of.
    #[schema(example = "otpauth://totp/…")]
    otpauth_uri: String,
}

/// Set an authenticator up
///
/// Nothing changes until a first code of it is confirmed.
#[utoipa::path(post, path = "/v1/auth/mfa/totp", tag = "Sessions", request_body = EnrolRequest,
    responses((status = 200, body = EnrolmentBody), (status = 403), (status = 409)))]
pub async fn enrol(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<EnrolRequest>,
) -> Answer<Json<EnrolmentBody>> {
    let enrolment = app.auth.enrol_totp(&caller, body.password.as_ref()).await?;
    Ok(Json(EnrolmentBody {
        secret: enrolment.secret.expose_secret().to_owned(),
        otpauth_uri: enrolment.uri.expose_secret().to_owned(),
    }))
}

/// A first code.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// What the authenticator shows.
    #[schema(value_type = String, example = "287082")]
    code: SecretString,
}

/// Codes in the authenticator's stead.
#[derive(Serialize, ToSchema)]
pub struct RecoveryCodesBody {
    /// Each works once. They are shown this once.
    recovery_codes: Vec<String>,
}

impl From<Vec<SecretString>> for RecoveryCodesBody {
    fn from(codes: Vec<SecretString>) -> Self {
        let codes = codes.iter().map(|code| code.expose_secret().to_owned());
        Self { recovery_codes: codes.collect() }
    }
}

/// Confirm an authenticator
///
/// From now on sign-in takes a code. API keys are not affected.
#[utoipa::path(post, path = "/v1/auth/mfa/totp/confirm", tag = "Sessions",
    request_body = ConfirmRequest,
    responses((status = 200, body = RecoveryCodesBody), (status = 403), (status = 409)))]
pub async fn confirm(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<ConfirmRequest>,
) -> Answer<Json<RecoveryCodesBody>> {
    let codes = app.auth.confirm_totp(&caller, body.code.expose_secret()).await?;
    Ok(Json(RecoveryCodesBody::from(codes)))
}

/// Make new recovery codes
///
/// Those so far stop working.
#[utoipa::path(post, path = "/v1/auth/mfa/recovery-codes", tag = "Sessions",
    request_body = ConfirmedByPassword,
    responses((status = 200, body = RecoveryCodesBody), (status = 403), (status = 404)))]
pub async fn renew_recovery_codes(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<ConfirmedByPassword>,
) -> Answer<Json<RecoveryCodesBody>> {
    let codes = app.auth.renew_recovery_codes(&caller, &body.password).await?;
    Ok(Json(RecoveryCodesBody::from(codes)))
}

/// Who changes what protects the account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmedByPassword {
    /// One's own.
    #[schema(value_type = String, format = Password)]
    password: Password,
}

/// Take the authenticator away
///
/// Who has passkeys has to have signed in with one, or takes them away first.
#[utoipa::path(delete, path = "/v1/auth/mfa/totp", tag = "Sessions", request_body = ConfirmedByPassword,
    responses((status = 204), (status = 403), (status = 404), (status = 409)))]
pub async fn remove(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<ConfirmedByPassword>,
) -> Answer<StatusCode> {
    app.auth.remove_totp(&caller, &body.password).await?;
    Ok(StatusCode::NO_CONTENT)
}
