//! Routes to change and reset passwords and to verify email addresses.
//!
//! No response reveals whether an email address has an account.

use axum::{Json, extract::State, http::StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{ApiResult, auth::TokenBody};
use crate::{
    auth::email_verification::AddressProof,
    http::{
        App,
        extract::{self, Authorized, OptionalSession, Public, UserSession},
    },
    model::password::Password,
};

/// A password change.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePasswordRequest {
    /// The current password.
    #[schema(value_type = String, format = Password)]
    current_password: Password,
    /// 12 to 256 characters of any kind.
    #[schema(value_type = String, format = Password, min_length = 12, max_length = 256)]
    new_password: Password,
}

/// Change your password
///
/// Ends your other sessions, and returns new tokens for this one. Its earlier tokens stop working
/// at once.
#[utoipa::path(post, path = "/v1/auth/password/change", tag = "Passwords",
    request_body = ChangePasswordRequest,
    responses((status = 200, body = TokenBody), (status = 409)))]
pub async fn change(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    extract::Json(body): extract::Json<ChangePasswordRequest>,
) -> ApiResult<Json<TokenBody>> {
    let ChangePasswordRequest { current_password, new_password } = body;
    let credentials = app.auth.passwords.change(&caller, &current_password, &new_password).await?;
    Ok(Json(TokenBody::new(&app, &credentials.tokens)))
}

/// A request for a password reset.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgotPasswordRequest {
    /// The email address of the account.
    #[schema(example = "dana@acme.example")]
    email: String,
}

/// Request a password reset
///
/// Sends an email with a link to choose a new password. The response and its timing do not reveal
/// whether the email address has an account.
#[utoipa::path(post, path = "/v1/auth/password/forgot", tag = "Passwords",
    request_body = ForgotPasswordRequest,
    responses((status = 202, description = "Accepted. The email is sent if the account exists.")))]
pub async fn forgot(
    _public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<ForgotPasswordRequest>,
) -> ApiResult<StatusCode> {
    app.auth.passwords.request_reset(&body.email).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A password reset.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetPasswordRequest {
    /// The token of the mailed link.
    #[schema(value_type = String)]
    token: SecretString,
    /// 12 to 256 characters of any kind.
    #[schema(value_type = String, format = Password, min_length = 12, max_length = 256)]
    new_password: Password,
}

/// Reset a password
///
/// Sets a new password with the token of a mailed link. The link works once, for one hour. Ends all
/// sessions and connected apps of the user. If the email address was not verified before, it is
/// now, and everything that was set up until now ends too: second factors, and in workspaces
/// without another verified owner, API keys, OAuth clients, invitations and other members.
#[utoipa::path(post, path = "/v1/auth/password/reset", tag = "Passwords",
    request_body = ResetPasswordRequest, responses((status = 204), (status = 409)))]
pub async fn reset(
    public: Public,
    State(app): State<App>,
    extract::Json(body): extract::Json<ResetPasswordRequest>,
) -> ApiResult<StatusCode> {
    let ResetPasswordRequest { token, new_password } = body;
    app.auth.passwords.reset(token.expose_secret(), &new_password, &public.request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An email verification.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyEmailRequest {
    /// The token of the mailed link.
    #[schema(value_type = String)]
    token: SecretString,
}

/// Verify an email address
///
/// Takes the token of a mailed link. Send the access token of the account too, to keep what was set
/// up. Without it, another person may have registered your address: sessions, second factors and
/// connected apps end, and in workspaces without another verified owner, API keys, OAuth clients,
/// invitations and other members. The password stays. If you did not choose it, replace it with
/// `POST /v1/auth/password/forgot`: in the next seven days, a reset ends all of this once more.
#[utoipa::path(post, path = "/v1/auth/verify-email", tag = "Passwords",
    request_body = VerifyEmailRequest,
    responses((status = 204), (status = 401), (status = 403), (status = 409)))]
pub async fn verify_email(
    public: Public,
    OptionalSession(caller): OptionalSession,
    State(app): State<App>,
    extract::Json(body): extract::Json<VerifyEmailRequest>,
) -> ApiResult<StatusCode> {
    let link_only = AddressProof::LinkOnly { removes_password: false };
    let proof = caller.as_ref().map_or(link_only, AddressProof::WithSession);
    let token = body.token.expose_secret();
    app.auth.email_verification.verify(token, proof, &public.request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Send another verification email
///
/// Sends a new link to verify your email address.
#[utoipa::path(post, path = "/v1/auth/verify-email/send", tag = "Passwords",
    responses((status = 202, description = "Accepted. The email is sent."), (status = 409)))]
pub async fn send_verification(
    caller: Authorized<UserSession>,
    State(app): State<App>,
) -> ApiResult<StatusCode> {
    app.auth.email_verification.resend(&caller).await?;
    Ok(StatusCode::ACCEPTED)
}
