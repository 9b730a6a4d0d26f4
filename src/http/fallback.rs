//! Responses to requests that no route serves.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    http::header,
    response::Response,
};

use super::{
    ApiError, App,
    dashboard::page,
    middleware::rate_limit_response,
    surface::{Surface, is_api_path},
};
use crate::model::audit::RequestInfo;

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

/// Renders the error. Under `/v1` the request counts against the client's address: a client that
/// scans for routes has no valid credential.
async fn respond(app: &App, info: &RequestInfo, request: Request, error: ApiError) -> Response {
    let format = surface_of(&request).error_format(&request);
    let is_limited = is_api_path(request.uri().path());
    drop(request);
    let mut response = format.render(error.into(), info.id, &app.settings.public_url);
    if is_limited {
        let decision = app.limits.charge_address(info.ip).await;
        rate_limit_response::set_headers(&decision, &app.env, response.headers_mut());
    }
    response
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
