//! Routes of the second factor by TOTP: complete a sign-in, enroll and remove an authenticator app,
//! and renew recovery codes.
//!
//! Passkeys are in [`super::passkeys`].

use axum::{Json, extract::State};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ApiResult, auth::TokenBody};
use crate::{
    auth::second_factors::NewRecoveryCodes,
    http::{
        App,
        extract::{self, Authorized, Public, UserSession},
    },
    model::password::Password,
};

/// A code to complete a sign-in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyMfaRequest {
    /// The token of the `mfa_required` error. It is valid for five minutes.
    #[schema(value_type = String)]
    mfa_token: SecretString,
    /// A code of the authenticator app, or a recovery code.
    #[schema(value_type = String, example = "287082")]
    code: SecretString,
}

/// Complete a sign-in with a code
///
/// Accepts a code of the authenticator app or a recovery code. Each code works once.
#[utoipa::path(post, path = "/v1/auth/mfa/verify", tag = "Sessions", request_body = VerifyMfaRequest,
    responses((status = 200, body = TokenBody), (status = 401)))]
pub async fn verify(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<VerifyMfaRequest>,
) -> ApiResult<Json<TokenBody>> {
    let VerifyMfaRequest { mfa_token, code } = body;
    let (token, code) = (mfa_token.expose_secret(), code.expose_secret());
    let credentials = app.auth.sign_in.complete_mfa_challenge(token, code, &public.request).await?;
    Ok(Json(TokenBody::new(&app, &credentials.tokens)))
}

/// An authenticator app to enroll.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollTotpRequest {
    /// The caller's password. Required unless the caller signed in within the last 15 minutes.
    #[schema(value_type = Option<String>, format = Password)]
    password: Option<Password>,
}

/// The secret of an authenticator app.
#[derive(Serialize, ToSchema)]
pub struct TotpEnrollmentBody {
    /// The secret in base32, to type in.
    #[schema(example = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")]
    secret: String,
    /// The secret as a URI, to show as a QR code.
    #[schema(example = "otpauth://totp/…")]
    otpauth_uri: String,
}

/// Enroll an authenticator app
///
/// Nothing changes until `POST /v1/auth/mfa/totp/confirm` confirms a first code, within 15 minutes.
/// The caller's email address must be verified.
#[utoipa::path(post, path = "/v1/auth/mfa/totp", tag = "Sessions", request_body = EnrollTotpRequest,
    responses((status = 200, body = TotpEnrollmentBody), (status = 403), (status = 409)))]
pub async fn enroll(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<EnrollTotpRequest>,
) -> ApiResult<Json<TotpEnrollmentBody>> {
    let enrollment = app.auth.second_factors.enroll_totp(&caller, body.password.as_ref()).await?;
    Ok(Json(TotpEnrollmentBody {
        secret: enrollment.secret.expose_secret().to_owned(),
        otpauth_uri: enrollment.uri.expose_secret().to_owned(),
    }))
}

/// The first code of an authenticator app.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmTotpRequest {
    /// The code that the authenticator app shows.
    #[schema(value_type = String, example = "287082")]
    code: SecretString,
}

/// Recovery codes, to sign in without the authenticator app, and the new tokens of the session.
#[derive(Serialize, ToSchema)]
pub struct RecoveryCodesBody {
    /// Each code works once. Only this response contains the codes.
    recovery_codes: Vec<String>,
    #[serde(flatten)]
    tokens: TokenBody,
}

impl RecoveryCodesBody {
    fn new(app: &App, new: &NewRecoveryCodes) -> Self {
        let codes = new.codes.iter().map(|code| code.expose_secret().to_owned());
        let tokens = TokenBody::new(app, &new.credentials.tokens);
        Self { recovery_codes: codes.collect(), tokens }
    }
}

/// Confirm an authenticator app
///
/// From now on, each sign-in with a password requires a code. Ends the user's other sessions, and
/// returns new tokens for this one; its earlier tokens stop working at once. API keys are not
/// affected.
#[utoipa::path(post, path = "/v1/auth/mfa/totp/confirm", tag = "Sessions",
    request_body = ConfirmTotpRequest,
    responses((status = 200, body = RecoveryCodesBody), (status = 403), (status = 409)))]
pub async fn confirm(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<ConfirmTotpRequest>,
) -> ApiResult<Json<RecoveryCodesBody>> {
    let new = app.auth.second_factors.confirm_totp(&caller, body.code.expose_secret()).await?;
    Ok(Json(RecoveryCodesBody::new(&app, &new)))
}

/// Create new recovery codes
///
/// The previous recovery codes stop working. Ends the user's other sessions, and returns new tokens
/// for this one; its earlier tokens stop working at once.
#[utoipa::path(post, path = "/v1/auth/mfa/recovery-codes", tag = "Sessions",
    request_body = PasswordConfirmation,
    responses((status = 200, body = RecoveryCodesBody), (status = 403), (status = 404)))]
pub async fn renew_recovery_codes(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<PasswordConfirmation>,
) -> ApiResult<Json<RecoveryCodesBody>> {
    let new = app.auth.second_factors.renew_recovery_codes(&caller, &body.password).await?;
    Ok(Json(RecoveryCodesBody::new(&app, &new)))
}

/// A confirmation with the caller's password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordConfirmation {
    /// The caller's password.
    #[schema(value_type = String, format = Password)]
    password: Password,
}

/// Remove the authenticator app
///
/// A user with passkeys must have signed in with one of them, or remove the passkeys first. Ends
/// the user's other sessions, and returns new tokens for this one; its earlier tokens stop working
/// at once.
#[utoipa::path(delete, path = "/v1/auth/mfa/totp", tag = "Sessions", request_body = PasswordConfirmation,
    responses((status = 200, body = TokenBody), (status = 403), (status = 404), (status = 409)))]
pub async fn remove(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<PasswordConfirmation>,
) -> ApiResult<Json<TokenBody>> {
    let credentials = app.auth.second_factors.remove_totp(&caller, &body.password).await?;
    Ok(Json(TokenBody::new(&app, &credentials.tokens)))
}
