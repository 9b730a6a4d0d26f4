//! A device shows a code: somebody types it in here, and lets the device in or not (RFC 8628, section 3.3).
//!
//! Codes are short, so guesses are few: under the limit of sign-ins, for who has signed in.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    authorize::{
        ConsentPage, Decision, Destination, elsewhere, failure, known_by, scopes, workspaces,
    },
    browser::Browser,
    form::Form,
    layout::Layout,
    page::{Message, encoded, explained},
};
use crate::{
    http::{
        ApiError, App,
        extract::{Public, Query},
    },
    model::principal::Caller,
    oauth::device::DeviceRequest,
};

#[derive(Template)]
#[template(path = "device.html")]
struct DevicePage<'a> {
    layout: Layout,
    user_code: &'a str,
    problem: Option<String>,
}

/// Asks for the code. One that is in the URL is to be compared all the same.
pub(super) async fn show(
    public: Public,
    State(_): State<App>,
    browser: Browser,
    query: Query,
) -> Result<Response, ApiError> {
    let user_code = query.text("user_code")?.unwrap_or_default();
    if browser.caller(&public.request).await?.is_none() {
        return Ok(to_sign_in(user_code));
    }
    let layout = browser.layout();
    Ok(browser.page(200, &DevicePage { layout, user_code, problem: None }))
}

/// Signing in first, and then to this code.
fn to_sign_in(user_code: &str) -> Response {
    let next = format!("/device?user_code={}", encoded(user_code));
    Redirect::to(&format!("/sign-in?next={}", encoded(&next))).into_response()
}

/// Takes it, and tells who asks for what.
pub(super) async fn submit(
    public: Public,
    State(app): State<App>,
    mut form: Form,
) -> Result<Response, ApiError> {
    let user_code = &*form.text("user_code")?.trim().to_owned();
    let caller = form.browser.caller(&public.request).await?;
    let Some(caller) = caller else { return Ok(to_sign_in(user_code)) };
    match app.oauth.device_request(user_code).await {
        Ok(device) => consent(&app, &caller, &mut form.browser, user_code, &device, None).await,
        Err(error) => code_again(&form, user_code, failure(error)),
    }
}

/// The person answers.
pub(super) async fn decide(
    public: Public,
    State(app): State<App>,
    mut form: Form,
) -> Result<Response, ApiError> {
    let user_code = &*form.text("user_code")?.to_owned();
    let caller = form.browser.caller(&public.request).await?;
    let Some(caller) = caller else { return Ok(to_sign_in(user_code)) };
    let device = match app.oauth.device_request(user_code).await {
        Ok(device) => device,
        Err(error) => return code_again(&form, user_code, failure(error)),
    };
    let (decided, title, text) = match Decision::of(&form)? {
        Decision::Deny => {
            let denied = app.oauth.deny_device(&caller, &device).await;
            (denied, "Not connected", "The device will say so. You can close this page.")
        }
        Decision::Allow(workspace, scope) => {
            let approved = app.oauth.approve_device(&caller, &device, workspace, scope).await;
            (approved, "Connected", "Go on at the device. You can close this page.")
        }
    };
    match decided {
        Ok(()) => Ok(form
            .browser
            .page(200, &Message { layout: form.browser.layout(), title, text, link: None })),
        Err(error) => {
            let problem = Some(explained(failure(error))?);
            consent(&app, &caller, &mut form.browser, user_code, &device, problem).await
        }
    }
}

fn code_again(form: &Form, user_code: &str, error: ApiError) -> Result<Response, ApiError> {
    let (status, problem) = explained(error)?;
    let (layout, problem) = (form.browser.layout(), Some(problem));
    Ok(form.browser.page(status, &DevicePage { layout, user_code, problem }))
}

async fn consent(
    app: &App,
    caller: &Caller,
    browser: &mut Browser,
    user_code: &str,
    device: &DeviceRequest,
    problem: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    browser.brand(app.resources.brand_of(caller.workspace()).await?);
    let (status, problem) = problem.unzip();
    let page = ConsentPage {
        layout: browser.layout(),
        action: "/device/consent",
        hidden: vec![("user_code".to_owned(), user_code.to_owned())],
        client: &device.client.name,
        known_by: known_by(&device.client.origin),
        destination: Destination::Device(user_code.to_owned()),
        person: caller.principal.name(),
        workspaces: workspaces(app, caller).await?,
        scopes: scopes(device.scope),
        elsewhere: elsewhere(app, device.resources()),
        is_incomplete: caller.principal.lacks_second_factor,
        sign_in: format!("/sign-in?again=1&next={}", encoded("/device")),
        problem,
    };
    Ok(browser.page(status.unwrap_or(200), &page))
}
