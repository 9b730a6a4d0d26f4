//! The sign-in with a password and a second factor.
//!
//! The sign-in with a passkey is in [`super::passkeys`].

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use secrecy::ExposeSecret;

use super::{
    browser::{Browser, Newcomer},
    form::PublicForm,
    layout::Layout,
    page::form_error,
    paths::same_origin_path,
};
use crate::{
    auth::AuthError,
    http::{
        ApiError, App,
        extract::{Public, Query},
    },
    model::password::Password,
};

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage<'a> {
    layout: Layout,
    next: &'a str,
    email: &'a str,
    /// The options of the Web Authentication request as JSON; `None` if passkeys are not
    /// available.
    passkey_options: Option<String>,
    /// True if registration is open.
    can_sign_up: bool,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "second_factor.html")]
struct SecondFactorPage<'a> {
    layout: Layout,
    next: &'a str,
    mfa_token: &'a str,
    problem: Option<String>,
}

/// Displays the sign-in form. A signed-in user is redirected to `next`, unless `again` is set.
pub(super) async fn show(
    _public: Public,
    State(app): State<App>,
    newcomer: Newcomer,
    query: Query,
) -> Result<Response, ApiError> {
    let next = same_origin_path(query.text("next")?.unwrap_or_default());
    let is_sign_in_forced = query.text("again")?.is_some();
    let Newcomer { mut browser, is_signed_in } = newcomer;
    if is_signed_in && !is_sign_in_forced {
        return Ok(Redirect::to(next).into_response());
    }
    browser.allow_forms_to_next(next);
    if let Some(workspace) = query.parse_as("workspace", "a workspace id")? {
        browser.set_brand(app.resources.workspace_brand(workspace).await?);
    }
    let email = query.text("email")?.unwrap_or_default();
    page(&app, &browser, 200, next, email, None)
}

/// Signs in with email address and password. If a second factor is due, displays its form.
pub(super) async fn submit(
    public: Public,
    State(app): State<App>,
    PublicForm(mut form): PublicForm,
) -> Result<Response, ApiError> {
    form.allow_forms_to_next()?;
    let (browser, next) = (&form.browser, same_origin_path(form.text("next")?));
    let (email, password) = (form.text("email")?, Password::new(form.text("password")?.to_owned()));
    match app.auth.sign_in.with_password(email, &password, None, &public.request).await {
        Ok(credentials) => Ok(browser.sign_in_redirect(&credentials.cookie, next)),
        Err(AuthError::MfaRequired(token)) => {
            let (layout, mfa_token) = (browser.layout(), token.expose_secret());
            let page = SecondFactorPage { layout, next, mfa_token, problem: None };
            browser.render_page(200, &page)
        }
        Err(error) => {
            let (status, problem) = form_error(error.into())?;
            page(&app, browser, status, next, email, Some(problem))
        }
    }
}

/// Returns the sign-in page.
pub(super) fn page(
    app: &App,
    browser: &Browser,
    status: u16,
    next: &str,
    email: &str,
    problem: Option<String>,
) -> Result<Response, ApiError> {
    let passkey =
        app.auth.passkeys.authentication_options().ok().map(|options| options.to_string());
    let layout = browser.layout();
    let can_sign_up = app.auth.accounts.require_open_registration().is_ok();
    let page = SignInPage { layout, next, email, passkey_options: passkey, can_sign_up, problem };
    browser.render_page(status, &page)
}

/// Completes the sign-in with a TOTP code or a recovery code.
pub(super) async fn submit_code(
    public: Public,
    State(app): State<App>,
    PublicForm(mut form): PublicForm,
) -> Result<Response, ApiError> {
    form.allow_forms_to_next()?;
    let (browser, next) = (&form.browser, same_origin_path(form.text("next")?));
    let (mfa_token, code) = (form.text("mfa_token")?, form.text("code")?.trim());
    match app.auth.sign_in.complete_mfa_challenge(mfa_token, code, &public.request).await {
        Ok(credentials) => Ok(browser.sign_in_redirect(&credentials.cookie, next)),
        Err(error) => {
            let (status, problem) = form_error(error.into())?;
            let (layout, problem) = (browser.layout(), Some(problem));
            browser.render_page(status, &SecondFactorPage { layout, next, mfa_token, problem })
        }
    }
}
