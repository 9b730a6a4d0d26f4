use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;

use super::{fallback::is_v1, rate_limit, request_info::request_info};
use crate::{
    http::{ApiError, App, error},
    limit::Decision,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer: what every request brings, and what every answer has.
pub async fn frame(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let info = Arc::new(request_info(&app, &request));
    let is_v1 = is_v1(request.uri().path());
    request.extensions_mut().insert(Arc::clone(&info));
    // Handlers have a net of their own, which also writes the log: this is for what is around them.
    let run = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = run.await.unwrap_or_else(|_| {
        ApiError::internal("something around a handler panicked").into_response()
    });
    if let Some(error) = ApiError::of(&response).cloned() {
        error::render(&error, &mut response, info.id, &app.settings.public_url);
    }
    let decision = response.extensions().get::<Decision>().copied();
    let headers = response.headers_mut();
    if let Some(decision) = decision {
        rate_limit::describe(&decision, &app.env, headers);
    }
    if let Ok(id) = HeaderValue::from_str(&info.id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if is_v1 {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}
