//! The verification page for devices: the user enters a user code and authorizes or denies the
//! device (RFC 8628, section 3.3).
//!
//! User codes are short. To prevent guessing, the forms require a session and have the rate limit
//! of sign-ins. They are bound to that session, as all forms that act for one.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};

use super::{
    authorize::{
        ConsentPage, Decision, Destination, describe_origin, other_resources, scope_choices,
        to_api_error, workspace_choices,
    },
    browser::{Browser, Visitor},
    form::{Form, VisitorForm},
    layout::Layout,
    page::{MessagePage, encode_query_value, form_error},
};
use crate::{
    auth::caller::SessionCaller,
    http::{
        ApiError, App,
        extract::{Public, Query},
    },
    oauth::devices::DeviceRequest,
};

#[derive(Template)]
#[template(path = "device.html")]
struct DevicePage<'a> {
    layout: Layout,
    user_code: &'a str,
    problem: Option<String>,
}

/// Displays the form for the user code. A code from the URL is filled in but not submitted: the
/// user must compare it with the device.
pub(super) async fn show(
    _public: Public,
    State(_): State<App>,
    Visitor { browser, caller }: Visitor,
    query: Query,
) -> Result<Response, ApiError> {
    let user_code = query.text("user_code")?.unwrap_or_default();
    if caller.is_none() {
        return Ok(redirect_to_sign_in(user_code));
    }
    let layout = browser.layout();
    browser.render_page(200, &DevicePage { layout, user_code, problem: None })
}

/// Redirects to the sign-in, which leads back to this user code.
fn redirect_to_sign_in(user_code: &str) -> Response {
    let next = format!("/device?user_code={}", encode_query_value(user_code));
    Redirect::to(&format!("/sign-in?next={}", encode_query_value(&next))).into_response()
}

/// Looks up the user code and displays the consent page.
pub(super) async fn submit(
    _public: Public,
    State(app): State<App>,
    VisitorForm { caller, mut form }: VisitorForm,
) -> Result<Response, ApiError> {
    let user_code = &*form.text("user_code")?.trim().to_owned();
    let Some(caller) = caller else { return Ok(redirect_to_sign_in(user_code)) };
    match app.oauth.devices.find(user_code).await {
        Ok(device) => {
            consent_page(&app, &caller, &mut form.browser, user_code, &device, None).await
        }
        Err(error) => code_page(&form, user_code, to_api_error(error)),
    }
}

/// Authorizes or denies the device.
pub(super) async fn decide(
    _public: Public,
    State(app): State<App>,
    VisitorForm { caller, mut form }: VisitorForm,
) -> Result<Response, ApiError> {
    let user_code = &*form.text("user_code")?.to_owned();
    let Some(caller) = caller else { return Ok(redirect_to_sign_in(user_code)) };
    let device = match app.oauth.devices.find(user_code).await {
        Ok(device) => device,
        Err(error) => return code_page(&form, user_code, to_api_error(error)),
    };
    let (decided, title, text) = match Decision::from_form(&form)? {
        Decision::Deny => {
            let denied = app.oauth.devices.deny(&caller, &device).await;
            (denied, "Not connected", "The device does not get access. You can close this page.")
        }
        Decision::Allow(workspace, scope) => {
            let approved = app.oauth.devices.approve(&caller, &device, workspace, scope).await;
            (approved, "Connected", "Continue on your device. You can close this page.")
        }
    };
    match decided {
        Ok(()) => form.browser.render_page(
            200,
            &MessagePage { layout: form.browser.layout(), title, text, link: None },
        ),
        Err(error) => {
            let problem = Some(form_error(to_api_error(error))?);
            consent_page(&app, &caller, &mut form.browser, user_code, &device, problem).await
        }
    }
}

/// Returns the form for the user code with an error.
fn code_page(form: &Form, user_code: &str, error: ApiError) -> Result<Response, ApiError> {
    let (status, problem) = form_error(error)?;
    let (layout, problem) = (form.browser.layout(), Some(problem));
    form.browser.render_page(status, &DevicePage { layout, user_code, problem })
}

async fn consent_page(
    app: &App,
    caller: &SessionCaller,
    browser: &mut Browser,
    user_code: &str,
    device: &DeviceRequest,
    problem: Option<(u16, String)>,
) -> Result<Response, ApiError> {
    browser.set_brand(app.resources.workspace_brand(caller.workspace()).await?);
    let (status, problem) = problem.unzip();
    let page = ConsentPage {
        layout: browser.layout(),
        action: "/device/consent",
        hidden_fields: vec![("user_code".to_owned(), user_code.to_owned())],
        client_name: &device.client.name,
        client_origin: describe_origin(&device.client.origin),
        destination: Destination::Device(user_code.to_owned()),
        user_name: caller.principal.name(),
        workspaces: workspace_choices(app, caller).await?,
        scopes: scope_choices(device.scope),
        other_resources: other_resources(app, device.resources()),
        is_second_factor_missing: caller.principal.lacks_second_factor,
        sign_in_url: format!("/sign-in?again=1&next={}", encode_query_value("/device")),
        problem,
    };
    browser.render_page(status.unwrap_or(200), &page)
}
