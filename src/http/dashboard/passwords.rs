//! The pages of mailed links: password reset and email verification.
//!
//! Opening a link changes nothing; only submitting the form does. Mail scanners open links, too.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    browser::Browser,
    form::Form,
    layout::Layout,
    page::{MessagePage, form_error},
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
#[template(path = "forgot_password.html")]
struct ForgotPage<'a> {
    layout: Layout,
    email: &'a str,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "reset_password.html")]
struct ResetPage<'a> {
    layout: Layout,
    token: &'a str,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "verify_email.html")]
struct VerifyPage<'a> {
    layout: Layout,
    token: &'a str,
    problem: Option<String>,
}

/// Displays the form that requests a password reset.
pub(super) async fn show_forgot(_public: Public, browser: Browser) -> Result<Response, ApiError> {
    let page = ForgotPage { layout: browser.layout(), email: "", problem: None };
    browser.render_page(200, &page)
}

/// Sends a reset link if the email address has an account. The response is the same if it has none.
pub(super) async fn request_reset(
    _public: Public,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let (browser, email) = (&form.browser, form.text("email")?);
    if let Err(error) = app.auth.passwords.request_reset(email).await {
        let (status, problem) = form_error(error.into())?;
        let page = ForgotPage { layout: browser.layout(), email, problem: Some(problem) };
        return browser.render_page(status, &page);
    }
    let message = MessagePage {
        layout: browser.layout(),
        title: "Check your email",
        text: "If an account with this email address exists, we sent a link to choose a new password. \
               The link works once and expires in an hour.",
        link: Some(("/sign-in", "Back to sign-in")),
    };
    browser.render_page(200, &message)
}

/// Displays the form for a new password.
pub(super) async fn show_reset(
    _public: Public,
    browser: Browser,
    query: Query,
) -> Result<Response, ApiError> {
    let token = query.text("token")?.unwrap_or_default();
    let page = ResetPage { layout: browser.layout(), token, problem: None };
    browser.render_page(200, &page)
}

/// Sets the new password and ends all sessions of the user.
pub(super) async fn reset(
    public: Public,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let (browser, token) = (&form.browser, form.text("token")?);
    let new = Password::new(form.text("new_password")?.to_owned());
    if let Err(error) = app.auth.passwords.reset(token, &new, &public.request).await {
        let (status, problem) = form_error(error.into())?;
        let page = ResetPage { layout: browser.layout(), token, problem: Some(problem) };
        return browser.render_page(status, &page);
    }
    let message = MessagePage {
        layout: browser.layout(),
        title: "Password changed",
        text: "You are signed out everywhere. Sign in with your new password.",
        link: Some(("/sign-in", "Sign in")),
    };
    browser.render_page(200, &message)
}

/// Displays the form that confirms the email address.
pub(super) async fn show_verify(
    _public: Public,
    browser: Browser,
    query: Query,
) -> Result<Response, ApiError> {
    let token = query.text("token")?.unwrap_or_default();
    let page = VerifyPage { layout: browser.layout(), token, problem: None };
    browser.render_page(200, &page)
}

/// Verifies the email address.
pub(super) async fn verify(
    public: Public,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let (browser, token) = (&form.browser, form.text("token")?);
    let verified: Result<(), AuthError> =
        app.auth.email_verification.verify(token, &public.request).await;
    if let Err(error) = verified {
        let (status, problem) = form_error(error.into())?;
        let page = VerifyPage { layout: browser.layout(), token, problem: Some(problem) };
        return browser.render_page(status, &page);
    }
    let message = MessagePage {
        layout: browser.layout(),
        title: "Email address verified",
        text: "Thank you. You are all set.",
        link: Some(("/", "Continue")),
    };
    browser.render_page(200, &message)
}
