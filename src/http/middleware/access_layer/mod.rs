//! The access layer: applies the access rule of a route around its endpoint.
//!
//! In this order it authenticates the caller, reserves a slot in the audit queue, charges the rate
//! limit, runs the endpoint with a timeout and a panic handler, and records the audit event. A
//! protected endpoint runs only if its audit event has a slot in the queue. Each step decides on an
//! [`EndpointResult`]; an error becomes a response at the end, in the format of the surface.

mod pending_event;
mod public;
mod rejected_credential;
mod unprotected;

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, any_service, on_service},
};
use futures_util::{FutureExt, future::BoxFuture};
use hyper::body::Body as _;
use pending_event::PendingEvent;
use rejected_credential::audit_queue_full;
use tokio::time::timeout;
use tower::service_fn;
use tracing::{error, warn};
pub(in crate::http) use unprotected::serve_static;
use unprotected::serve_unprotected;

use super::{OpenRouteCeiling, rate_limit_response, request_info::method_label};
use crate::{
    auth::{authenticator::AuthenticationOutcome, check_scope::ADDRESS_NOT_ALLOWED},
    http::{
        ApiError, App, HEADER_CAPACITY,
        bearer::bearer_credential,
        cookies::{CookieAuthenticated, session_cookie},
        endpoint::{Endpoint, EndpointResult, status_of},
        error::EndpointError,
        extract::{AcceptedParameters, AccessRule},
        forward_auth::RequiredScope,
        large_body::{BodyOrigin, PermitSlot, SMALL_BODY},
        route_types::{PageRoute, Route},
        surface::{RenderErrorPage, Surface},
        unread_responses::Reader,
    },
    limit::Decision,
    metrics::RouteMetrics,
    model::{
        audit::RequestInfo,
        id::WorkspaceId,
        principal::Caller,
        scope::Scope,
        usage::{KeyUse, RouteUse},
    },
    store::DatabaseRefusal,
};

/// The time in which forward-auth answers, with some of the promised second left for the network.
/// Gateways give up soon, and some of them then answer 403 (Envoy after 2 s).
const FORWARD_AUTH_DEADLINE: Duration = Duration::from_millis(800);

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
        let is_refused = self.app.store.database_refusal().is_some();
        let (mut result, mut decision) = match self.rule {
            _ if is_refused => self.refuse_database(&info).await,
            AccessRule::Open | AccessRule::AddressLimited | AccessRule::Attempt(_) => {
                self.serve_public(&info, request).await
            }
            AccessRule::Protected(_) => self.serve_authenticated(&info, request).await,
        };
        // A new connection may have reached a database in quarantine meanwhile.
        if !is_refused && self.app.store.database_refusal().is_some() {
            (result, decision) = self.refuse_database(&info).await;
        }
        let status = status_of(&result);
        self.observe(&info, status);
        // Gateways hold a request of their own meanwhile, which may be one of a few.
        if status == StatusCode::TOO_MANY_REQUESTS && !matches!(self.surface, Surface::Gateway) {
            self.app.refusal_pauses.pause().await;
        }
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

    /// Serves a request to a route that needs a credential, for forward-auth with a deadline.
    async fn serve_authenticated(
        &self,
        info: &Arc<RequestInfo>,
        request: Request,
    ) -> LimitedResult {
        let is_late = AtomicBool::new(false);
        let mut work = pin!(self.authenticate_and_serve(info, request, &is_late));
        if !matches!(self.surface, Surface::Gateway) {
            return work.await;
        }
        if let Ok(result) = timeout(FORWARD_AUTH_DEADLINE, &mut work).await {
            return result;
        }
        // The request is dropped only when this function returns, so its event gets this status.
        is_late.store(true, Relaxed);
        let error = ApiError::unavailable("the deadline of forward-auth has passed").into();
        self.log_server_error(&error, info);
        (Err(error), self.app.limits.peek_address(info.ip).await)
    }

    async fn authenticate_and_serve(
        &self,
        info: &Arc<RequestInfo>,
        mut request: Request,
        is_late: &AtomicBool,
    ) -> LimitedResult {
        // Has timeouts of its own.
        let principal = match self.authenticate(request.headers(), info).await {
            Ok(AuthenticationOutcome::Principal(principal)) => principal,
            Ok(AuthenticationOutcome::InactiveKey(key)) => {
                return self.reject_inactive_key(&key, info).await;
            }
            Err(error) => return self.reject_credential(error, info).await,
        };
        let permit = self.app.audit.reserve().await;
        let caller = Caller { principal, request: Arc::clone(info) };
        // A request from an address that the key does not allow is no use of the key: it neither
        // uses up the key's bucket nor keeps the key from being idle.
        let is_address_allowed = caller.principal.allows_address(info.ip);
        let key_use = if is_address_allowed {
            KeyUse::Request(self.route_use_for(&request))
        } else {
            KeyUse::Rejection
        };
        // Created before the bucket is charged, which takes a moment if buckets are shared: a
        // client that disconnects meanwhile is still in the audit log.
        let event = permit.map(|permit| PendingEvent::new(self, &caller, key_use, is_late, permit));
        let limits = &self.app.limits;
        let decision = if is_address_allowed {
            limits.charge_credential(&caller.principal).await
        } else {
            limits.charge_address(info.ip).await
        };
        let Some(event) = event else { return (Err(audit_queue_full()), decision) };
        let result = if let Some(refusal) = rate_limit_response::rejection(&decision) {
            Err(refusal.into())
        } else if !is_address_allowed {
            Err(ApiError::from(ADDRESS_NOT_ALLOWED).into())
        } else {
            request.extensions_mut().insert(caller.clone());
            if self.is_page() {
                request.extensions_mut().insert(CookieAuthenticated);
            }
            self.run_endpoint(info, request).await
        };
        (event.complete(result).await, decision)
    }

    /// The kind of usage that a request counts as. Of forward-auth, each request requires its own
    /// scope.
    fn route_use_for(&self, request: &Request) -> RouteUse {
        let required = request.extensions().get::<RequiredScope>();
        let scope = required.map_or(self.route_use.scope, |required| required.used());
        RouteUse { scope, ..self.route_use }
    }

    /// Verifies the credential of a request: the session cookie of a page, or the bearer
    /// credential.
    ///
    /// Pages accept no other credential and the API accepts no cookie, so that a request which
    /// another site makes a browser send (CSRF) never reaches the API with credentials.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        info: &RequestInfo,
    ) -> Result<AuthenticationOutcome, ApiError> {
        let authenticator = &self.app.auth.authenticator;
        match self.surface {
            Surface::Api | Surface::Gateway => {
                let credential = bearer_credential(headers)?;
                let credential = credential.ok_or_else(ApiError::missing_credential)?;
                Ok(authenticator.authenticate(credential, info.started_at).await?)
            }
            Surface::Page(_) => {
                let cookie = session_cookie(&self.app, headers);
                let cookie = cookie.ok_or_else(ApiError::missing_credential)?;
                let principal = authenticator.authenticate_cookie(&cookie).await?;
                Ok(AuthenticationOutcome::Principal(principal))
            }
            Surface::OAuth => Err(ApiError::missing_credential()),
        }
    }

    /// Answers 503: with the schema of another version, this node could do anything wrong; and in
    /// quarantine, revoked credentials would be accepted.
    async fn refuse_database(&self, info: &RequestInfo) -> LimitedResult {
        let message = self.app.store.database_refusal().map_or("", DatabaseRefusal::message);
        let error = ApiError::unavailable(message).into();
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
