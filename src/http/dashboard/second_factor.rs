//! One's second factor: set up, its recovery codes made anew, taken away.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use fast_qr::{
    QRBuilder,
    convert::{Builder, Shape, svg::SvgBuilder},
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    form::OwnForm,
    layout::{Desk, Layout},
    page::{Message, explained},
};
use crate::{
    http::{
        ApiError, App,
        extract::{Authorized, OwnSession},
    },
    model::{passkey::Passkey, password::Password, timestamp},
};

pub(super) const HERE: &str = "/second-factor";

/// What stands in the way of who is signed in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// The workspace asks for one, and there is none.
    Factor,
    /// They have a passkey, and have not shown it.
    Passkey,
}

#[derive(Template)]
#[template(path = "second_factor_settings.html")]
struct SettingsPage {
    layout: Layout,
    is_on: bool,
    lack: Option<Lack>,
    passkeys: Vec<Passkey>,
    /// Whether they signed in too long ago for what takes a password.
    must_confirm: bool,
    /// Whether there can be passkeys at all.
    has_passkeys: bool,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "second_factor_set_up.html")]
struct SetUpPage<'a> {
    layout: Layout,
    secret: &'a str,
    uri: &'a str,
    /// A picture of the URI.
    qr: Option<String>,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "recovery_codes.html")]
struct CodesPage {
    layout: Layout,
    codes: Vec<SecretString>,
}

/// Tells whether there is one.
pub(super) async fn show(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
) -> Result<Response, ApiError> {
    settings(&caller, &app, &desk, None).await
}

/// Begins with an authenticator.
pub(super) async fn set_up(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    let password = form.password("password")?;
    match app.auth.enrol_totp(&caller, password.as_ref()).await {
        Ok(new) => {
            let (secret, uri) = (new.secret.expose_secret(), new.uri.expose_secret());
            Ok(desk.page(200, &SetUpPage::new(&desk, secret, uri, None)))
        }
        Err(error) => settings(&caller, &app, &desk, Some(error.into())).await,
    }
}

/// Takes its first code.
pub(super) async fn confirm(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    match app.auth.confirm_totp(&caller, form.text("code")?.trim()).await {
        Ok(codes) => Ok(desk.page(200, &CodesPage { layout: desk.layout(), codes })),
        Err(error) => {
            let (status, problem) = explained(error.into())?;
            // What this browser was shown is shown once more.
            let (secret, uri) = (form.text("secret")?, form.text("uri")?);
            let page = SetUpPage::new(&desk, secret, uri, Some(problem));
            Ok(desk.page(status, &page))
        }
    }
}

/// Makes new recovery codes.
pub(super) async fn renew_recovery_codes(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    let password = Password::new(form.text("password")?.to_owned());
    match app.auth.renew_recovery_codes(&caller, &password).await {
        Ok(codes) => Ok(desk.page(200, &CodesPage { layout: desk.layout(), codes })),
        Err(error) => settings(&caller, &app, &desk, Some(error.into())).await,
    }
}

/// Takes another password.
pub(super) async fn change_password(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    let password = |name| Ok::<_, ApiError>(Password::new(form.text(name)?.to_owned()));
    let (current, new) = (password("current_password")?, password("new_password")?);
    match app.auth.change_password(&caller, &current, &new).await {
        Ok(()) => {
            let message = Message {
                layout: desk.layout(),
                title: "Your password was changed",
                text: "All your other sessions were ended.",
                link: Some((HERE, "Back")),
            };
            Ok(desk.page(200, &message))
        }
        Err(error) => settings(&caller, &app, &desk, Some(error.into())).await,
    }
}

/// Takes it away.
pub(super) async fn remove(
    caller: Authorized<OwnSession>,
    State(app): State<App>,
    desk: Desk,
    OwnForm(form): OwnForm,
) -> Result<Response, ApiError> {
    let password = Password::new(form.text("password")?.to_owned());
    match app.auth.remove_totp(&caller, &password).await {
        Ok(()) => Ok(Redirect::to(HERE).into_response()),
        Err(error) => settings(&caller, &app, &desk, Some(error.into())).await,
    }
}

/// The page of all of it.
pub(super) async fn settings(
    caller: &Authorized<OwnSession>,
    app: &App,
    desk: &Desk,
    error: Option<ApiError>,
) -> Result<Response, ApiError> {
    let (status, problem) = match error.map(explained).transpose()? {
        Some((status, problem)) => (status, Some(problem)),
        None => (200, None),
    };
    let lack = if app.auth.has_shown_factor(caller).await? {
        caller.principal.lacks_second_factor.then_some(Lack::Factor)
    } else {
        Some(Lack::Passkey)
    };
    let page = SettingsPage {
        layout: desk.layout(),
        is_on: app.auth.has_second_factor(caller).await?,
        lack,
        must_confirm: !app.auth.is_confirmed(caller, None).await?,
        passkeys: app.auth.passkeys(caller).await?,
        has_passkeys: app.auth.passkey_options().is_ok(),
        problem,
    };
    Ok(desk.page(status, &page))
}

impl<'a> SetUpPage<'a> {
    fn new(desk: &Desk, secret: &'a str, uri: &'a str, problem: Option<String>) -> Self {
        let qr = QRBuilder::new(uri).build().ok();
        let qr = qr.map(|qr| SvgBuilder::default().shape(Shape::Square).to_str(&qr));
        Self { layout: desk.layout(), secret, uri, qr, problem }
    }
}
