//! Responses to requests that no route serves. Under `/v1` those of a valid credential are in the
//! audit log: they may be the first that a thief of the credential sends.

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
    audit,
    auth::authenticator::AuthenticationOutcome,
    limit::Decision,
    model::{
        audit::RequestInfo,
        principal::{Caller, Principal},
        scope::Scope,
        usage::{KeyUse, RouteUse},
    },
};

/// The usage that a request counts as if no route serves it.
const UNKNOWN_ROUTE: RouteUse = RouteUse { group: "unknown", scope: Scope::ReadOnly };

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
async fn respond(
    app: &App,
    info: &Arc<RequestInfo>,
    request: Request,
    error: ApiError,
) -> Response {
    let format = surface_of(&request).error_format(&request);
    if !is_api_path(request.uri().path()) {
        return format.render(error.into(), info.id, &app.settings.public_url);
    }
    let principal = find_principal(app, info, request.headers()).await;
    drop(request);
    let (error, decision) = match principal {
        Some(principal) => charge_and_record(app, info, principal, error).await,
        None => (error, app.limits.charge_address(info.ip).await),
    };
    let mut response = format.render(error.into(), info.id, &app.settings.public_url);
    rate_limit_response::set_headers(&decision, &app.env, response.headers_mut());
    response
}

/// Charges a request of a valid credential and records it in the audit log. A request over the rate
/// limit gets the same error and is not recorded, so that a flood does not fill the log. Returns
/// 503 in place of the error if the event cannot be recorded.
async fn charge_and_record(
    app: &App,
    info: &Arc<RequestInfo>,
    principal: Arc<Principal>,
    error: ApiError,
) -> (ApiError, Decision) {
    let is_allowed = principal.allows_address(info.ip);
    let decision = if is_allowed {
        app.limits.charge_credential(&principal).await
    } else {
        app.limits.charge_address(info.ip).await
    };
    if !decision.allowed {
        return (error, decision);
    }
    let Some(permit) = app.audit.reserve().await else {
        return (ApiError::unavailable("the audit event queue is full"), decision);
    };
    let caller = Caller { principal, request: Arc::clone(info) };
    let mut event = audit::request_event(&app.env, &caller, error.code().status().as_u16());
    // A request from outside of `allowed_ips` is no use of the key.
    event.key_use = if is_allowed { KeyUse::Request(UNKNOWN_ROUTE) } else { KeyUse::Rejection };
    if permit.record(event).await {
        (error, decision)
    } else {
        (ApiError::unavailable("the audit event was not committed in time"), decision)
    }
}

/// The principal of a request's bearer credential, if it is valid.
async fn find_principal(
    app: &App,
    info: &RequestInfo,
    headers: &HeaderMap,
) -> Option<Arc<Principal>> {
    let credential = bearer_credential(headers).ok().flatten()?;
    match app.auth.authenticator.authenticate(credential, info.started_at).await {
        Ok(AuthenticationOutcome::Principal(principal)) => Some(principal),
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
