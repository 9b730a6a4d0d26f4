//! The security settings of the user: TOTP, recovery codes, passkeys and the password.
//!
//! The handlers of passkeys are in [`super::passkeys`].

use askama::Template;
use axum::{extract::State, response::Response};
use fast_qr::{
    QRBuilder,
    convert::{Builder, Shape, svg::SvgBuilder},
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    context::DashboardContext,
    form::UserForm,
    layout::Layout,
    page::{MessagePage, form_error},
    paths::SECOND_FACTOR,
};
use crate::{
    auth::second_factors::NewRecoveryCodes,
    http::{
        ApiError, App,
        extract::{Authorized, UserSession},
    },
    model::{passkey::Passkey, password::Password, timestamp},
};

/// A second factor that the session lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissingFactor {
    /// The workspace requires a second factor and the user has none.
    NotEnrolled,
    /// The user has a passkey but did not sign in with it.
    PasskeyNotUsed,
}

/// The state of the user's email address. Factors require a verified one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EmailStatus {
    Verified,
    Unverified,
}

#[derive(Template)]
#[template(path = "second_factor_settings.html")]
struct SettingsPage {
    layout: Layout,
    is_totp_enabled: bool,
    missing_factor: Option<MissingFactor>,
    email_status: EmailStatus,
    passkeys: Vec<Passkey>,
    /// True if the sign-in is too long ago, so that changes require the password.
    is_password_required: bool,
    /// True if the service supports passkeys: they need https and a host name.
    is_passkey_supported: bool,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "second_factor_set_up.html")]
struct SetUpPage<'a> {
    layout: Layout,
    secret: &'a str,
    uri: &'a str,
    /// A QR code of the URI, as SVG.
    qr: Option<String>,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "recovery_codes.html")]
struct CodesPage {
    layout: Layout,
    codes: Vec<SecretString>,
}

/// Displays the security settings.
pub(super) async fn show(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
) -> Result<Response, ApiError> {
    settings_page(&caller, &app, &context, None).await
}

/// Starts the enrollment of an authenticator app (TOTP).
pub(super) async fn set_up(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    match app.auth.second_factors.enroll_totp(&caller, password.as_ref()).await {
        Ok(enrollment) => {
            let (secret, uri) = (enrollment.secret.expose_secret(), enrollment.uri.expose_secret());
            context.render_page(200, &SetUpPage::new(&context, secret, uri, None))
        }
        Err(error) => settings_page(&caller, &app, &context, Some(error.into())).await,
    }
}

/// Turns on TOTP with the first code of the authenticator app, and displays the recovery codes.
pub(super) async fn confirm(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    match app.auth.second_factors.confirm_totp(&caller, form.text("code")?.trim()).await {
        Ok(new) => codes_page(&context, new),
        Err(error) => {
            let (status, problem) = form_error(error.into())?;
            // Display the same secret again. Only this browser has it: the form sends it back.
            let (secret, uri) = (form.text("secret")?, form.text("uri")?);
            let page = SetUpPage::new(&context, secret, uri, Some(problem));
            context.render_page(status, &page)
        }
    }
}

/// Replaces the recovery codes and displays the new ones.
pub(super) async fn renew_recovery_codes(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let password = Password::new(form.text("password")?.to_owned());
    match app.auth.second_factors.renew_recovery_codes(&caller, &password).await {
        Ok(new) => codes_page(&context, new),
        Err(error) => settings_page(&caller, &app, &context, Some(error.into())).await,
    }
}

/// Changes the password and ends all other sessions.
pub(super) async fn change_password(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let password = |name| Ok::<_, ApiError>(Password::new(form.text(name)?.to_owned()));
    let (current, new) = (password("current_password")?, password("new_password")?);
    match app.auth.passwords.change(&caller, &current, &new).await {
        Ok(credentials) => {
            let message = MessagePage {
                layout: context.layout(),
                title: "Password changed",
                text: "You are signed out of all other sessions.",
                link: Some((SECOND_FACTOR, "Back to security settings")),
            };
            let mut response = context.render_page(200, &message)?;
            context.browser.set_session_cookie(&mut response, &credentials.cookie);
            Ok(response)
        }
        Err(error) => settings_page(&caller, &app, &context, Some(error.into())).await,
    }
}

/// Turns off TOTP.
pub(super) async fn remove(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let password = Password::new(form.text("password")?.to_owned());
    match app.auth.second_factors.remove_totp(&caller, &password).await {
        Ok(credentials) => Ok(context.browser.sign_in_redirect(&credentials.cookie, SECOND_FACTOR)),
        Err(error) => settings_page(&caller, &app, &context, Some(error.into())).await,
    }
}

/// Returns the page of new recovery codes, and sets the new cookie of the session.
fn codes_page(context: &DashboardContext, new: NewRecoveryCodes) -> Result<Response, ApiError> {
    let page = CodesPage { layout: context.layout(), codes: new.codes };
    let mut response = context.render_page(200, &page)?;
    context.browser.set_session_cookie(&mut response, &new.credentials.cookie);
    Ok(response)
}

/// Returns the page of the security settings, with the message of an error.
pub(super) async fn settings_page(
    caller: &Authorized<UserSession>,
    app: &App,
    context: &DashboardContext,
    error: Option<ApiError>,
) -> Result<Response, ApiError> {
    let (status, problem) = match error.map(form_error).transpose()? {
        Some((status, problem)) => (status, Some(problem)),
        None => (200, None),
    };
    let lack = if app.auth.second_factors.can_change(caller).await? {
        caller.principal.lacks_second_factor.then_some(MissingFactor::NotEnrolled)
    } else {
        Some(MissingFactor::PasskeyNotUsed)
    };
    let page = SettingsPage {
        layout: context.layout(),
        email_status: if app.auth.email_verification.is_verified(caller).await? {
            EmailStatus::Verified
        } else {
            EmailStatus::Unverified
        },
        is_totp_enabled: app.auth.second_factors.has_totp(caller).await?,
        missing_factor: lack,
        is_password_required: !app.auth.passwords.has_reauthenticated(caller, None).await?,
        passkeys: app.auth.passkeys.list(caller).await?,
        is_passkey_supported: app.auth.passkeys.authentication_options().is_ok(),
        problem,
    };
    context.render_page(status, &page)
}

impl<'a> SetUpPage<'a> {
    fn new(
        context: &DashboardContext,
        secret: &'a str,
        uri: &'a str,
        problem: Option<String>,
    ) -> Self {
        let qr = QRBuilder::new(uri).build().ok();
        let qr = qr.map(|qr| SvgBuilder::default().shape(Shape::Square).to_str(&qr));
        Self { layout: context.layout(), secret, uri, qr, problem }
    }
}
