//! Routes without the access layer: health checks, discovery and static content. They have no
//! timeout and no audit log.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::Method,
    response::{IntoResponse, Response},
    routing::MethodRouter,
};

use super::{request_info, route_to};
use crate::{
    http::{
        App,
        endpoint::Endpoint,
        middleware::rate_limit_response,
        surface::{ErrorFormat, Surface},
    },
    model::audit::RequestInfo,
};

/// Serves an endpoint without the access layer. Its errors have the format of the API.
pub(super) fn serve_unprotected(
    method: Option<Method>,
    endpoint: Endpoint,
    app: &App,
) -> MethodRouter<App> {
    let app = Arc::clone(app);
    route_to(method, move |request| {
        let (app, endpoint) = (Arc::clone(&app), endpoint.clone());
        Box::pin(async move {
            match request_info(&request) {
                Ok(info) => run_unprotected(&app, &info, &endpoint, request).await,
                Err(error) => error.into_response(),
            }
        })
    })
}

/// Serves static content. Requests count against the client's address, because content may be
/// large. Those over the limit are rejected in the format of the surface.
pub(in crate::http) fn serve_static(
    method: Option<Method>,
    endpoint: Endpoint,
    surface: Surface,
    app: &App,
) -> MethodRouter<App> {
    let app = Arc::clone(app);
    route_to(method, move |request| {
        let (app, endpoint) = (Arc::clone(&app), endpoint.clone());
        Box::pin(async move {
            let info = match request_info(&request) {
                Ok(info) => info,
                Err(error) => return error.into_response(),
            };
            let decision = app.limits.charge_address(info.ip).await;
            let Some(refusal) = rate_limit_response::rejection(&decision) else {
                return run_unprotected(&app, &info, &endpoint, request).await;
            };
            app.refusal_pauses.pause().await;
            let format = surface.error_format(&request);
            let mut response = format.render(refusal.into(), info.id, &app.settings.public_url);
            rate_limit_response::set_headers(&decision, &app.env, response.headers_mut());
            response
        })
    })
}

/// Runs an endpoint. Its errors have the format of the API.
async fn run_unprotected(
    app: &App,
    info: &RequestInfo,
    endpoint: &Endpoint,
    request: Request,
) -> Response {
    match endpoint.run(app, request).await {
        Ok(response) => response,
        Err(error) => ErrorFormat::Json.render(error, info.id, &app.settings.public_url),
    }
}
