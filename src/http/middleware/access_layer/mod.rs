//! The access layer: applies the access rule of a route around its endpoint.
//!
//! In this order it authenticates the caller, reserves a slot in the audit queue, charges the rate
//! limit, runs the endpoint with a timeout and a panic handler, and records the audit event. A
//! protected endpoint runs only if its audit event has a slot in the queue. Each step decides on an
//! [`EndpointResult`]; an error becomes a response at the end, in the format of the surface.

mod authenticated;
mod pending_event;
mod public;

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, any_service, on_service},
};
use futures_util::{FutureExt, future::BoxFuture};
use hyper::body::Body as _;
use tokio::time::timeout;
use tower::service_fn;
use tracing::{error, warn};

use super::{OpenRouteCeiling, rate_limit_response, request_info::method_label};
use crate::{
    http::{
        ApiError, App, HEADER_CAPACITY,
        endpoint::{Endpoint, EndpointResult, status_of},
        error::EndpointError,
        extract::{AcceptedParameters, AccessRule},
        large_body::{BodyOrigin, PermitSlot, SMALL_BODY},
        route_types::{PageRoute, Route},
        surface::{ErrorFormat, RenderErrorPage, Surface},
        unread_responses::Reader,
    },
    limit::Decision,
    metrics::RouteMetrics,
    model::{
        audit::RequestInfo, id::WorkspaceId, principal::Caller, scope::Scope, usage::RouteUse,
    },
};

/// The result of a request, and the state of the bucket that its response reports.
type LimitedResult = (EndpointResult, Decision);

/// The access layer of one route.
struct AccessLayer {
    app: App,
    rule: AccessRule,
    /// The route's path pattern, which contains no ids, for the operator's log.
    path: &'static str,
    endpoint: Endpoint,
    metrics: RouteMetrics,
    /// The kind of usage that a request of this route counts as.
    route_use: RouteUse,
    surface: Surface,
    ceiling: OpenRouteCeiling,
}

/// Serves a dashboard page. `render_error` turns its errors into pages.
pub fn protect_page(
    page: PageRoute,
    render_error: RenderErrorPage,
    app: &App,
    ceiling: &OpenRouteCeiling,
) -> MethodRouter<App> {
    let PageRoute { method, path, access_rule: rule, endpoint } = page;
    let surface = Surface::Page(render_error);
    if path.starts_with("/assets/") {
        return serve_static(Some(method), endpoint, surface, app);
    }
    let layer = AccessLayer::new(app, Some(&method), path, rule, surface, endpoint, ceiling);
    layer.into_router(Some(method))
}

/// Serves a route of the route table.
///
/// Health and discovery routes have no timeout and audit log. They have a rate limit only if their
/// rule is [`AccessRule::AddressLimited`]. Requests to the API that may change something are
/// rejected if they have an undocumented query parameter.
pub fn protect_route(route: Route, app: &App, ceiling: &OpenRouteCeiling) -> MethodRouter<App> {
    let accepted = match (Surface::of_route(route.path), route.method.as_ref()) {
        (_, None | Some(&Method::GET)) => AcceptedParameters::Any,
        (Some(Surface::Api), _) => route.documented_parameters(),
        // OAuth clients may send parameters of extensions (RFC 6749, section 3.2).
        _ => AcceptedParameters::Any,
    };
    let Route { method, access_rule: rule, path, endpoint, .. } = route;
    let endpoint = endpoint.accepting(accepted);
    let Some(surface) = Surface::of_route(path) else {
        return match rule {
            AccessRule::AddressLimited => serve_static(method, endpoint, Surface::Api, app),
            _ => serve_unprotected(method, endpoint, app),
        };
    };
    let layer = AccessLayer::new(app, method.as_ref(), path, rule, surface, endpoint, ceiling);
    layer.into_router(method)
}

/// Serves an endpoint without the access layer. Its errors have the format of the API.
fn serve_unprotected(method: Option<Method>, endpoint: Endpoint, app: &App) -> MethodRouter<App> {
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

/// Routes requests with this method, or with any, to a function.
///
/// The future has three kilobytes. It is boxed at once, so that axum, which wraps and boxes it
/// again, moves a pointer.
fn route_to<F>(method: Option<Method>, respond: F) -> MethodRouter<App>
where
    F: Fn(Request) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static,
{
    let service = service_fn(move |request| respond(request).map(Ok::<_, Infallible>));
    match method.and_then(|method| MethodFilter::try_from(method).ok()) {
        Some(filter) => on_service(filter, service),
        None => any_service(service),
    }
}

/// The kind of usage that requests of a route count as.
///
/// The group is the first path segment after `/v1`, `gateway` for forward-auth, and `pages` for
/// everything else. The scope is the required one, or read-only.
fn route_use_of(path: &'static str, rule: AccessRule, surface: Surface) -> RouteUse {
    let segment = path.strip_prefix("/v1/").and_then(|rest| rest.split('/').next());
    let group = match surface {
        Surface::Gateway => "gateway",
        _ => segment.unwrap_or("pages"),
    };
    RouteUse { group, scope: rule.scope().unwrap_or(Scope::ReadOnly) }
}

/// The workspace of the credential; `None` on a route that requires none.
fn workspace_of(request: &Request) -> Option<WorkspaceId> {
    request.extensions().get().map(Caller::workspace)
}

fn request_info(request: &Request) -> Result<Arc<RequestInfo>, ApiError> {
    let info = request.extensions().get::<Arc<RequestInfo>>().cloned();
    info.ok_or_else(|| ApiError::internal("the request has no RequestInfo"))
}

impl AccessLayer {
    fn new(
        app: &App,
        method: Option<&Method>,
        path: &'static str,
        rule: AccessRule,
        surface: Surface,
        endpoint: Endpoint,
        ceiling: &OpenRouteCeiling,
    ) -> Self {
        let metrics = app.metrics.route(method.map_or("ANY", method_label), path);
        let route_use = route_use_of(path, rule, surface);
        let (app, ceiling) = (Arc::clone(app), ceiling.clone());
        Self { app, rule, path, endpoint, metrics, route_use, surface, ceiling }
    }

    fn into_router(self, method: Option<Method>) -> MethodRouter<App> {
        let layer = Arc::new(self);
        route_to(method, move |request| {
            let layer = Arc::clone(&layer);
            Box::pin(async move { layer.respond(request).await })
        })
    }

    /// Responds to a request. An error of any step is rendered here.
    async fn respond(&self, request: Request) -> Response {
        let info = match request_info(&request) {
            Ok(info) => info,
            Err(error) => return error.into_response(),
        };
        let error_format = self.surface.error_format(&request);
        let (result, decision) = match self.rule {
            _ if !self.app.store.is_schema_compatible() => self.refuse_schema(&info).await,
            AccessRule::Open | AccessRule::AddressLimited | AccessRule::SignIn => {
                self.serve_public(&info, request).await
            }
            AccessRule::Protected(_) => self.serve_authenticated(&info, request).await,
        };
        self.observe(&info, status_of(&result));
        let mut response = match result {
            Ok(response) => response,
            Err(error) => error_format.render(error, info.id, &self.app.settings.public_url),
        };
        let headers = response.headers_mut();
        if headers.capacity() < HEADER_CAPACITY {
            headers.reserve(HEADER_CAPACITY - headers.len());
        }
        rate_limit_response::set_headers(&decision, &self.app.env, headers);
        if self.is_page() {
            // Streams and exports too: no cache may store the content of a page.
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response
    }

    /// Answers 503: with the schema of another version, this node could do anything wrong.
    async fn refuse_schema(&self, info: &RequestInfo) -> LimitedResult {
        let error = ApiError::unavailable("the database has the schema of another version").into();
        self.log_server_error(&error, info);
        (Err(error), self.app.limits.peek_address(info.ip).await)
    }

    /// Counts a request, and logs a slow one.
    fn observe(&self, info: &RequestInfo, status: StatusCode) {
        let took = self.app.env.clock.monotonic().saturating_sub(info.started_at);
        self.metrics.observe(status.as_u16(), took);
        if took > self.app.settings.slow_request {
            let (request_id, method, route) = (info.id, &*info.method, self.path);
            warn!(%request_id, method, route, ?took, "slow request");
        }
    }

    /// Runs the endpoint with a timeout and catches its panics.
    async fn run_endpoint(&self, info: &RequestInfo, request: Request) -> EndpointResult {
        let app = &self.app;
        let reader = Reader::new(info.ip, workspace_of(&request));
        let run = async {
            let (request, _permit) = self.guard_body(info, request);
            let response = self.endpoint.run(app, request).await?;
            self.limit_unread_response(reader, response).await
        };
        let run = AssertUnwindSafe(run).catch_unwind();
        let result = match timeout(app.settings.handler_timeout, run).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ApiError::internal("the handler panicked").into()),
            Err(_) => Err(ApiError::unavailable("the handler timed out").into()),
        };
        if let Err(error) = &result {
            self.log_server_error(error, info);
        }
        result
    }

    /// Makes a body that may be large wait for a permit. The request holds it until its slot is
    /// dropped.
    fn guard_body(&self, info: &RequestInfo, request: Request) -> (Request, Option<PermitSlot>) {
        if request.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BODY) {
            return (request, None);
        }
        let origin = BodyOrigin { ip: info.ip, workspace: workspace_of(&request) };
        let (parts, body) = request.into_parts();
        let (body, slot) = self.app.large_body_permits.guard(body, origin);
        (Request::from_parts(parts, body), Some(slot))
    }

    /// Counts the response, if it is large, until its client has read it.
    async fn limit_unread_response(&self, reader: Reader, response: Response) -> EndpointResult {
        let held = self.app.unread_responses.hold_if_large(reader, response).await;
        held.map_err(|_| ApiError::internal("the body of the response failed").into())
    }

    /// Logs a server error; errors of clients are in the audit log. Of the 503s of an outage, only
    /// some are logged. A 500 always is, because its response promises that its id is in the log.
    fn log_server_error(&self, error: &EndpointError, info: &RequestInfo) {
        let (Some(cause), status) = (error.cause(), error.status()) else { return };
        let now = self.app.env.clock.monotonic();
        let admitted = match status {
            StatusCode::SERVICE_UNAVAILABLE => self.app.unavailable_log.admit(cause, now),
            _ => Some(0),
        };
        let Some(suppressed) = admitted else { return };
        let suppressed = (suppressed > 0).then_some(suppressed);
        let (request_id, method, status) = (info.id, &*info.method, status.as_u16());
        error!(%request_id, method, route = self.path, status, cause, suppressed);
    }

    fn is_page(&self) -> bool {
        matches!(self.surface, Surface::Page(_))
    }
}
