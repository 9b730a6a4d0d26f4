//! The sign-up: creates a user and the user's first workspace.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    browser::{Browser, Newcomer},
    form::PublicForm,
    layout::Layout,
    page::{MessagePage, form_error},
    paths::same_origin_path,
};
use crate::{
    auth::accounts::NewAccount,
    http::{
        ApiError, App,
        error::ErrorCode,
        extract::{Public, Query},
    },
    model::password::Password,
};

#[derive(Template)]
#[template(path = "sign_up.html")]
struct SignUpPage<'a> {
    layout: Layout,
    next: &'a str,
    full_name: &'a str,
    email: &'a str,
    workspace_name: &'a str,
    /// True if a user with this email address exists.
    is_registered: bool,
    problem: Option<String>,
}

/// Displays the sign-up form, or a message if registration is not open.
pub(super) async fn show(
    _public: Public,
    State(app): State<App>,
    newcomer: Newcomer,
    query: Query,
) -> Result<Response, ApiError> {
    let next = same_origin_path(query.text("next")?.unwrap_or_default());
    let Newcomer { mut browser, is_signed_in } = newcomer;
    if is_signed_in {
        return Ok(Redirect::to(next).into_response());
    }
    browser.allow_forms_to_next(next);
    if let Err(closed) = app.auth.accounts.require_open_registration() {
        return registration_closed_page(&browser, closed.into());
    }
    let page = SignUpPage {
        layout: browser.layout(),
        next,
        full_name: "",
        email: query.text("email")?.unwrap_or_default(),
        workspace_name: "",
        is_registered: false,
        problem: None,
    };
    browser.render_page(200, &page)
}

/// Creates the user and signs in.
pub(super) async fn submit(
    public: Public,
    State(app): State<App>,
    PublicForm(mut form): PublicForm,
) -> Result<Response, ApiError> {
    form.allow_forms_to_next()?;
    let (browser, next) = (&form.browser, same_origin_path(form.text("next")?));
    if let Err(closed) = app.auth.accounts.require_open_registration() {
        return registration_closed_page(browser, closed.into());
    }
    let account = NewAccount {
        email: form.text("email")?.trim().to_owned(),
        password: Password::new(form.text("password")?.to_owned()),
        full_name: form.non_empty_text("full_name")?.map(str::to_owned),
        workspace_name: form.non_empty_text("workspace_name")?.map(str::to_owned),
    };
    let error = match app.auth.accounts.register(account, &public.request).await {
        Ok(registered) => {
            return Ok(browser.sign_in_redirect(&registered.credentials.cookie, next));
        }
        Err(error) => ApiError::from(error),
    };
    let is_known = error.code() == ErrorCode::Conflict;
    let (status, problem) = form_error(error)?;
    let page = SignUpPage {
        layout: browser.layout(),
        next,
        full_name: form.text("full_name")?,
        email: form.text("email")?,
        workspace_name: form.text("workspace_name")?,
        is_registered: is_known,
        problem: Some(problem),
    };
    browser.render_page(status, &page)
}

fn registration_closed_page(browser: &Browser, closed: ApiError) -> Result<Response, ApiError> {
    let (status, reason) = form_error(closed)?;
    let message = MessagePage {
        layout: browser.layout(),
        title: "Sign-up is not open",
        text: &format!("{reason} Ask an administrator of a workspace to invite you."),
        link: Some(("/sign-in", "Sign in")),
    };
    browser.render_page(status, &message)
}
