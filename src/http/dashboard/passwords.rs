//! The pages of mailed links: password reset and email verification.
//!
//! Opening a link changes nothing; only submitting the form does. Mail scanners open links, too.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    browser::{Browser, Visitor},
    form::{PublicForm, VisitorForm},
    layout::Layout,
    page::{MessagePage, encode_query_value, form_error},
};
use crate::{
    auth::{caller::SessionCaller, email_verification::AddressProof},
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
    /// True if the confirmation removes nothing.
    keeps_setup: bool,
    /// True if the user is signed in to the account.
    is_own: bool,
    /// The URL of the sign-in, which leads back to this page.
    sign_in_url: String,
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
    PublicForm(form): PublicForm,
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

/// Sets the new password and ends all sessions and grants of the user.
pub(super) async fn reset(
    public: Public,
    State(app): State<App>,
    PublicForm(form): PublicForm,
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
        text: "You are signed out everywhere, and your connected apps are disconnected. Sign in with \
               your new password.",
        link: Some(("/sign-in", "Sign in")),
    };
    browser.render_page(200, &message)
}

/// Displays the form that confirms the email address.
///
/// A user with a session of the account keeps what was set up. Without one, the page offers to sign
/// in first, and otherwise to confirm the address and remove everything that was set up before.
pub(super) async fn show_verify(
    _public: Public,
    State(app): State<App>,
    Visitor { browser, caller }: Visitor,
    query: Query,
) -> Result<Response, ApiError> {
    let token = query.text("token")?.unwrap_or_default();
    verify_page(&app, &browser, caller.as_ref(), token, None).await
}

/// Verifies the email address.
pub(super) async fn verify(
    public: Public,
    State(app): State<App>,
    VisitorForm { caller, form }: VisitorForm,
) -> Result<Response, ApiError> {
    let (browser, token) = (&form.browser, form.text("token")?);
    // The form states what its page has promised.
    let proof = match (form.text("setup")?, &caller) {
        ("remove", _) => AddressProof::LinkOnly { removes_password: true },
        (_, Some(caller)) => AddressProof::WithSession(caller),
        (_, None) => return Ok(Redirect::to(&sign_in_url(token, false)).into_response()),
    };
    let verified = app.auth.email_verification.verify(token, proof, &public.request).await;
    if let Err(error) = verified {
        let (status, problem) = form_error(error.into())?;
        let problem = Some((status, problem));
        return verify_page(&app, browser, caller.as_ref(), token, problem).await;
    }
    let (text, link) = match proof {
        AddressProof::WithSession(_) => ("Thank you. You are all set.", ("/", "Continue")),
        AddressProof::LinkOnly { .. } => (
            "Your address is confirmed, and what was set up before has been removed. We sent you \
             an email with the details. To sign in, choose a password.",
            ("/forgot-password", "Choose a password"),
        ),
    };
    let title = "Email address verified";
    let message = MessagePage { layout: browser.layout(), title, text, link: Some(link) };
    browser.render_page(200, &message)
}

async fn verify_page(
    app: &App,
    browser: &Browser,
    caller: Option<&SessionCaller>,
    token: &str,
    problem: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    let preview = match app.auth.email_verification.preview(token).await {
        Ok(preview) => preview,
        Err(error) => {
            let (status, text) = form_error(error.into())?;
            let title = "This link does not work";
            let link = Some(("/sign-in", "Sign in"));
            let message = MessagePage { layout: browser.layout(), title, text: &text, link };
            return browser.render_page(status, &message);
        }
    };
    let is_own = caller.is_some_and(|caller| caller.user() == preview.user);
    let (status, problem) = problem.unzip();
    let page = VerifyPage {
        layout: browser.layout(),
        token,
        keeps_setup: is_own || preview.is_verified,
        is_own,
        sign_in_url: sign_in_url(token, caller.is_some()),
        problem,
    };
    browser.render_page(status.unwrap_or(200), &page)
}

/// Returns the URL of the sign-in, which leads back to the link. With `again`, also a signed-in
/// user signs in.
fn sign_in_url(token: &str, again: bool) -> String {
    let next = format!("/verify-email?token={}", encode_query_value(token));
    let again = if again { "&again=1" } else { "" };
    format!("/sign-in?next={}{again}", encode_query_value(&next))
}
