use std::sync::Arc;

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, Uri, header},
    response::{IntoResponse, Response},
};

use super::rate_limit;
use crate::{
    http::{ApiError, App, dashboard::page, error::Code},
    model::audit::RequestInfo,
};

/// The answer to a path that no route has. It is charged to the address: whoever scans for routes
/// has no good credential.
pub async fn not_found(
    State(app): State<App>,
    Extension(info): Extension<Arc<RequestInfo>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let error = ApiError::new(Code::NotFound, "there is no such route");
    charged(&app, &info, &uri, shown(&uri, &headers, error)).await
}

/// The answer to a method that a route does not have; the router adds `Allow`.
pub async fn method_not_allowed(
    State(app): State<App>,
    Extension(info): Extension<Arc<RequestInfo>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let error = ApiError::new(Code::MethodNotAllowed, "the route has other methods: see Allow");
    charged(&app, &info, &uri, shown(&uri, &headers, error)).await
}

/// To a person in a browser a page, to programs the body of all errors.
fn shown(uri: &Uri, headers: &HeaderMap, error: ApiError) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let is_person = accepted.is_some_and(|accepted| accepted.contains("text/html"));
    if is_person && !is_v1(uri.path()) { page::of_nothing(&error) } else { error.into_response() }
}

async fn charged(app: &App, info: &RequestInfo, uri: &Uri, mut response: Response) -> Response {
    if is_v1(uri.path()) {
        let decision = app.limits.charge_address(info.ip).await;
        rate_limit::describe(&decision, &app.env, response.headers_mut());
    }
    response
}

/// Whether a path is of the API, with its limits and its `no-store`.
pub(super) fn is_v1(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}
