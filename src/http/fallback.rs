//! Responses to requests that no route serves.

use std::sync::Arc;

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, Uri, header},
    response::{IntoResponse, Response},
};

use super::{
    ApiError, App, dashboard::page, error::ErrorCode, middleware::rate_limit, surface::is_api_path,
};
use crate::model::audit::RequestInfo;

/// Answers 404 to a path that no route has.
///
/// Under `/v1` the request counts against the client's address: a client that scans for routes has
/// no valid credential.
pub(super) async fn not_found(
    State(app): State<App>,
    Extension(info): Extension<Arc<RequestInfo>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let error = ApiError::new(ErrorCode::NotFound, "route not found");
    with_rate_limit(&app, &info, &uri, error_response(&uri, &headers, error)).await
}

/// Answers 405 to a method that the route does not have; the router adds `Allow`.
pub(super) async fn method_not_allowed(
    State(app): State<App>,
    Extension(info): Extension<Arc<RequestInfo>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let error = ApiError::new(
        ErrorCode::MethodNotAllowed,
        "method not allowed; the Allow header lists the methods of this route",
    );
    with_rate_limit(&app, &info, &uri, error_response(&uri, &headers, error)).await
}

/// An HTML page if the client accepts HTML and the path is not under `/v1`, else the JSON error
/// body.
fn error_response(uri: &Uri, headers: &HeaderMap, error: ApiError) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let accepts_html = accepted.is_some_and(|accepted| accepted.contains("text/html"));
    if accepts_html && !is_api_path(uri.path()) {
        page::not_found_page(&error)
    } else {
        error.into_response()
    }
}

async fn with_rate_limit(
    app: &App,
    info: &RequestInfo,
    uri: &Uri,
    mut response: Response,
) -> Response {
    if is_api_path(uri.path()) {
        let decision = app.limits.charge_address(info.ip).await;
        rate_limit::set_headers(&decision, &app.env, response.headers_mut());
    }
    response
}
