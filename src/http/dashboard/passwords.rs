//! What mailed links lead to: another password, a verified address. Opening a link changes nothing, for
//! programs that look for bad links in mails open them too.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    browser::Browser,
    form::Form,
    layout::Layout,
    page::{Message, explained},
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

/// Asks whose password was forgotten.
pub(super) async fn show_forgot(_public: Public, browser: Browser) -> Response {
    let page = ForgotPage { layout: browser.layout(), email: "", problem: None };
    browser.page(200, &page)
}

/// Mails a link, perhaps.
pub(super) async fn forgot(
    _public: Public,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let (browser, email) = (&form.browser, form.text("email")?);
    if let Err(error) = app.auth.forgot_password(email).await {
        let (status, problem) = explained(error.into())?;
        let page = ForgotPage { layout: browser.layout(), email, problem: Some(problem) };
        return Ok(browser.page(status, &page));
    }
    let message = Message {
        layout: browser.layout(),
        title: "Check your mail",
        text: "If there is an account with this address, a link to choose a new password is on its way. \
               It works once, within an hour.",
        link: Some(("/sign-in", "To the sign-in")),
    };
    Ok(browser.page(200, &message))
}

/// Asks for a new password.
pub(super) async fn show_reset(
    _public: Public,
    browser: Browser,
    query: Query,
) -> Result<Response, ApiError> {
    let token = query.text("token")?.unwrap_or_default();
    let page = ResetPage { layout: browser.layout(), token, problem: None };
    Ok(browser.page(200, &page))
}

/// Takes it.
pub(super) async fn reset(
    public: Public,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let (browser, token) = (&form.browser, form.text("token")?);
    let new = Password::new(form.text("new_password")?.to_owned());
    if let Err(error) = app.auth.reset_password(token, &new, &public.request).await {
        let (status, problem) = explained(error.into())?;
        let page = ResetPage { layout: browser.layout(), token, problem: Some(problem) };
        return Ok(browser.page(status, &page));
    }
    let message = Message {
        layout: browser.layout(),
        title: "Your password was changed",
        text: "All your sessions were ended. Sign in with the new password.",
        link: Some(("/sign-in", "Sign in")),
    };
    Ok(browser.page(200, &message))
}

/// Asks whether to go on.
pub(super) async fn show_verify(
    _public: Public,
    browser: Browser,
    query: Query,
) -> Result<Response, ApiError> {
    let token = query.text("token")?.unwrap_or_default();
    let page = VerifyPage { layout: browser.layout(), token, problem: None };
    Ok(browser.page(200, &page))
}

/// Goes on.
pub(super) async fn verify(
    public: Public,
    State(app): State<App>,
    form: Form,
) -> Result<Response, ApiError> {
    let (browser, token) = (&form.browser, form.text("token")?);
    let verified: Result<(), AuthError> = app.auth.verify_email(token, &public.request).await;
    if let Err(error) = verified {
        let (status, problem) = explained(error.into())?;
        let page = VerifyPage { layout: browser.layout(), token, problem: Some(problem) };
        return Ok(browser.page(status, &page));
    }
    let message = Message {
        layout: browser.layout(),
        title: "Your address is verified",
        text: "Thank you. There is nothing else to do.",
        link: Some(("/", "Go on")),
    };
    Ok(browser.page(200, &message))
}
