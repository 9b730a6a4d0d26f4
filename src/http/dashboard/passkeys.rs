//! Passkeys: made, taken away, and signing in with one. These alone take a script: browsers have passkeys for
//! scripts only.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    form::{Form, OwnForm},
    layout::{Desk, Layout},
    page::explained,
    second_factor,
    sign_in::{self, own_page},
};
use crate::{
    http::{
        ApiError, App,
        error::Code,
        extract::{Authorized, OwnSession, PathId, Public},
    },
    model::id::PasskeyId,
};

#[derive(Template)]
#[template(path = "new_passkey.html")]
struct NewPasskeyPage {
    layout: Layout,
    /// What the browser is asked for, as JSON.
    options: String,
}

/// Begins to make one.
pub(super) async fn begin(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    match app.auth.new_passkey_options(&caller, password.as_ref()).await {
        Ok(options) => {
            let page = NewPasskeyPage { layout: desk.layout(), options: options.to_string() };
            Ok(desk.page(200, &page))
        }
        Err(error) => second_factor::settings(&caller, &app, &desk, Some(error.into())).await,
    }
}

/// Takes it.
pub(super) async fn add(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    let name = form.text("name")?;
    let added = match answer(form.text("credential")?) {
        Ok(credential) => {
            app.auth.add_passkey(&caller, name, &credential).await.map_err(ApiError::from)
        }
        Err(error) => Err(error),
    };
    match added {
        Ok(_) => Ok(Redirect::to(second_factor::HERE).into_response()),
        Err(error) => second_factor::settings(&caller, &app, &desk, Some(error)).await,
    }
}

/// Takes one away.
pub(super) async fn remove(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    PathId(id): PathId<PasskeyId>,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    match app.auth.remove_passkey(&caller, id, password.as_ref()).await {
        Ok(()) => Ok(Redirect::to(second_factor::HERE).into_response()),
        Err(error) => second_factor::settings(&caller, &app, &desk, Some(error.into())).await,
    }
}

/// Signs in.
pub(super) async fn sign_in(
    public: Public,
    State(app): State<App>,
    mut form: Form,
) -> Result<Response, ApiError> {
    form.goes_on().await?;
    let next = own_page(form.text("next")?);
    let signed = match answer(form.text("credential")?) {
        Ok(credential) => {
            let signed = app.auth.sign_in_by_passkey(&credential, None, &public.request).await;
            signed.map_err(ApiError::from)
        }
        Err(error) => Err(error),
    };
    match signed {
        Ok(pair) => Ok(form.browser.signed_in(pair.session, next)),
        Err(error) => {
            let (status, problem) = explained(error)?;
            Ok(sign_in::page(&app, &form.browser, status, next, "", Some(problem)))
        }
    }
}

fn answer<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    let answer = serde_json::from_str(text);
    answer.map_err(|_| ApiError::new(Code::ValidationFailed, "the browser's answer is malformed"))
}
