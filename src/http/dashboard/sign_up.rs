//! Signing up: an account, and its first workspace.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    browser::Browser,
    form::Form,
    layout::Layout,
    page::{Message, explained},
    sign_in::own_page,
};
use crate::{
    auth::login::NewAccount,
    http::{
        ApiError, App,
        error::Code,
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
    /// Whether the address has an account.
    is_known: bool,
    problem: Option<String>,
}

/// Asks for what an account takes.
pub(super) async fn show(
    public: Public,
    State(app): State<App>,
    mut browser: Browser,
    query: Query,
) -> Result<Response, ApiError> {
    let next = own_page(query.text("next")?.unwrap_or_default());
    if browser.caller(&public.request).await?.is_some() {
        return Ok(Redirect::to(next).into_response());
    }
    browser.is_bound_for(next).await;
    if let Err(closed) = app.auth.check_registration() {
        return refusal(&browser, closed.into());
    }
    let page = SignUpPage {
        layout: browser.layout(),
        next,
        full_name: "",
        email: query.text("email")?.unwrap_or_default(),
        workspace_name: "",
        is_known: false,
        problem: None,
    };
    Ok(browser.page(200, &page))
}

/// Makes the account, and signs in.
pub(super) async fn submit(
    public: Public,
    State(app): State<App>,
    mut form: Form,
) -> Result<Response, ApiError> {
    form.goes_on().await?;
    let (browser, next) = (&form.browser, own_page(form.text("next")?));
    if let Err(closed) = app.auth.check_registration() {
        return refusal(browser, closed.into());
    }
    let account = NewAccount {
        email: form.text("email")?.trim().to_owned(),
        password: Password::new(form.text("password")?.to_owned()),
        full_name: form.filled("full_name")?.map(str::to_owned),
        workspace_name: form.filled("workspace_name")?.map(str::to_owned),
    };
    let error = match app.auth.register(account, &public.request).await {
        Ok(made) => return Ok(browser.signed_in(made.tokens.session, next)),
        Err(error) => ApiError::from(error),
    };
    let is_known = error.code() == Code::Conflict;
    let (status, problem) = explained(error)?;
    let page = SignUpPage {
        layout: browser.layout(),
        next,
        full_name: form.text("full_name")?,
        email: form.text("email")?,
        workspace_name: form.text("workspace_name")?,
        is_known,
        problem: Some(problem),
    };
    Ok(browser.page(status, &page))
}

/// Nobody may sign up here.
fn refusal(browser: &Browser, closed: ApiError) -> Result<Response, ApiError> {
    let (status, why) = explained(closed)?;
    let message = Message {
        layout: browser.layout(),
        title: "Nobody signs up here by themselves",
        text: &format!("Ask somebody who is in a workspace to invite you: {why}."),
        link: Some(("/sign-in", "Sign in")),
    };
    Ok(browser.page(status, &message))
}
