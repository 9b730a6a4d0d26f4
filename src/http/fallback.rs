//! Responses to requests that no route serves.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderMap, header},
    response::Response,
};

use super::{
    ApiError, App,
    bearer::bearer_credential,
    dashboard::page,
    middleware::rate_limit_response,
    surface::{Surface, is_api_path},
};
use crate::{
    auth::authenticator::AuthenticationOutcome,
    model::{audit::RequestInfo, principal::Principal},
};

/// Answers 404 to a path that no route has.
pub(super) async fn not_found(
    State(app): State<App>,
    Extension(info): Extension<Arc<RequestInfo>>,
    request: Request,
) -> Response {
    respond(&app, &info, request, ApiError::route_not_found()).await
}

/// Answers 405 to a method that the route does not have; the router adds `Allow`.
pub(super) async fn method_not_allowed(
    State(app): State<App>,
    Extension(info): Extension<Arc<RequestInfo>>,
    request: Request,
) -> Response {
    respond(&app, &info, request, ApiError::method_not_allowed()).await
}

/// Renders the error. Under `/v1` the request counts against its credential or, without a valid
/// one, against the client's address: a client that scans for routes has none.
async fn respond(app: &App, info: &RequestInfo, request: Request, error: ApiError) -> Response {
    let format = surface_of(&request).error_format(&request);
    let is_limited = is_api_path(request.uri().path());
    let principal =
        if is_limited { find_principal(app, info, request.headers()).await } else { None };
    drop(request);
    let mut response = format.render(error.into(), info.id, &app.settings.public_url);
    if is_limited {
        let decision = match principal {
            Some(principal) => app.limits.charge_credential(&principal).await,
            None => app.limits.charge_address(info.ip).await,
        };
        rate_limit_response::set_headers(&decision, &app.env, response.headers_mut());
    }
    response
}

/// The principal of a request's bearer credential, if it is valid at this address.
async fn find_principal(
    app: &App,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Option<Arc<Principal>> {
    let credential = bearer_credential(headers).ok().flatten()?;
    match app.auth.authenticator.authenticate(credential, info.started_at).await {
        Ok(AuthenticationOutcome::Principal(principal)) => {
            Some(principal).filter(|principal| principal.allows_address(info.ip))
        }
        _ => None,
    }
}

/// A page if the client accepts HTML and the path is not under `/v1`, else the API.
fn surface_of(request: &Request) -> Surface {
    let accepted = request.headers().get(header::ACCEPT);
    let accepted = accepted.and_then(|accepted| accepted.to_str().ok());
    let accepts_html = accepted.is_some_and(|accepted| accepted.contains("text/html"));
    if accepts_html && !is_api_path(request.uri().path()) {
        Surface::Page(page::render_error)
    } else {
        Surface::Api
    }
}
