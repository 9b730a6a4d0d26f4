//! Passkeys: add, remove, and sign in with one.
//!
//! These pages need JavaScript: browsers offer Web Authentication to scripts only.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    context::DashboardContext,
    form::{PublicForm, UserForm},
    layout::Layout,
    page::form_error,
    paths::{SECOND_FACTOR, same_origin_path},
    second_factor, sign_in,
};
use crate::{
    http::{
        ApiError, App,
        error::ErrorCode,
        extract::{Authorized, PathId, Public, UserSession},
    },
    model::id::PasskeyId,
};

#[derive(Template)]
#[template(path = "new_passkey.html")]
struct NewPasskeyPage {
    layout: Layout,
    /// The options for the new credential (Web Authentication), as JSON.
    options: String,
}

/// Starts the registration of a passkey.
pub(super) async fn start_registration(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    match app.auth.passkeys.registration_options(&caller, password.as_ref()).await {
        Ok(options) => {
            let page = NewPasskeyPage { layout: context.layout(), options: options.to_string() };
            context.render_page(200, &page)
        }
        Err(error) => {
            second_factor::settings_page(&caller, &app, &context, Some(error.into())).await
        }
    }
}

/// Adds the passkey that the browser created.
pub(super) async fn add(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let name = form.text("name")?;
    let added = match parse_credential(form.text("credential")?) {
        Ok(credential) => {
            app.auth.passkeys.register(&caller, name, &credential).await.map_err(ApiError::from)
        }
        Err(error) => Err(error),
    };
    match added {
        Ok((_, credentials)) => {
            Ok(context.browser.sign_in_redirect(&credentials.cookie, SECOND_FACTOR))
        }
        Err(error) => second_factor::settings_page(&caller, &app, &context, Some(error)).await,
    }
}

/// Removes a passkey.
pub(super) async fn remove(
    caller: Authorized<UserSession>,
    State(app): State<App>,
    context: DashboardContext,
    PathId(id): PathId<PasskeyId>,
    UserForm(form): UserForm,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    match app.auth.passkeys.remove(&caller, id, password.as_ref()).await {
        Ok(credentials) => Ok(context.browser.sign_in_redirect(&credentials.cookie, SECOND_FACTOR)),
        Err(error) => {
            second_factor::settings_page(&caller, &app, &context, Some(error.into())).await
        }
    }
}

/// Signs in with a passkey.
pub(super) async fn sign_in(
    public: Public,
    State(app): State<App>,
    PublicForm(mut form): PublicForm,
) -> Result<Response, ApiError> {
    form.allow_forms_to_next()?;
    let next = same_origin_path(form.text("next")?);
    let tokens = match parse_credential(form.text("credential")?) {
        Ok(credential) => {
            let tokens = app.auth.passkeys.sign_in(&credential, None, &public.request).await;
            tokens.map_err(ApiError::from)
        }
        Err(error) => Err(error),
    };
    match tokens {
        Ok(credentials) => Ok(form.browser.sign_in_redirect(&credentials.cookie, next)),
        Err(error) => {
            let (status, problem) = form_error(error)?;
            sign_in::page(&app, &form.browser, status, next, "", Some(problem))
        }
    }
}

fn parse_credential<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    let credential = serde_json::from_str(text);
    credential.map_err(|_| {
        ApiError::new(ErrorCode::ValidationFailed, "the response of the passkey is malformed")
    })
}
