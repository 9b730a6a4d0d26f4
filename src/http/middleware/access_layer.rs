use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    extract::Request,
    http::{HeaderValue, StatusCode, header, uri::PathAndQuery},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use futures_util::FutureExt;
use hyper::body::Body as _;
use tokio::time::timeout;
use tower::{Layer, Service, ServiceExt};
use tracing::{error, warn};

use super::{
    authenticate::{authenticate, authenticate_cookie},
    rate_limit,
    request_info::method_label,
};
use crate::{
    audit::{self, AuditPermit},
    auth::authenticator::AuthenticationOutcome,
    http::{
        ApiError, App, bearer,
        cookies::CookieAuthenticated,
        error::{ErrorCode, RateLimitExempt, render_oauth_error},
        extract::AccessRule,
        forward_auth::{is_forward_auth_path, requested_scope},
        route::{PageRoute, Route},
        surface::{AuthSurface, RenderPageError},
    },
    limit::Decision,
    metrics::RouteMetrics,
    model::{
        api_key::KeyRecord,
        audit::{Action, Actor, Metadata, NewEvent, RequestInfo},
        principal::{Caller, Credential},
        scope::Scope,
        usage::RouteUse,
    },
};

/// Status in the audit log if the client disconnected before the response (nginx's convention). It
/// is never sent.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Bodies up to this size, in bytes, need no permit of `large_body_permits`.
const SMALL_BODY: u64 = 16 * 1024;

/// The layer that applies a route's access rule.
///
/// In this order it authenticates the caller, reserves a slot in the audit queue, charges the rate
/// limit, runs the handler with a timeout and a panic handler, and records the audit event. A
/// protected handler runs only if its audit event has a slot in the queue.
#[derive(Clone)]
struct AccessLayer {
    app: App,
    rule: AccessRule,
    /// The route's path pattern, which contains no ids, for the operator's log.
    path: &'static str,
    metrics: RouteMetrics,
    /// The kind of usage that a request of this route counts as.
    route_use: RouteUse,
    /// True for the forward-auth routes: the request stands for one that a gateway received.
    is_forward_auth: bool,
    surface: AuthSurface,
}

/// Wraps a dashboard page's handler with the access layer. `render_error` turns its errors into
/// pages.
pub fn protect_page(
    page: PageRoute,
    render_error: RenderPageError,
    app: &App,
) -> MethodRouter<App> {
    let PageRoute { method, path, rule, handler } = page;
    // Assets are cheap, and belong to a page that is counted.
    if path.starts_with("/assets/") {
        return handler;
    }
    let metrics = app.metrics.route(method_label(&method), path);
    let app = Arc::clone(app);
    let (route_use, surface) = (route_use_of(path, rule), AuthSurface::Page(render_error));
    let is_forward_auth = false;
    let layer = AccessLayer { app, rule, path, metrics, route_use, is_forward_auth, surface };
    handler.route_layer(layer)
}

/// Wraps a route's handler with the access layer.
///
/// Health and discovery routes are returned as they are, without rate limit or audit log.
pub fn protect_route(route: Route, app: &App) -> MethodRouter<App> {
    let Route { method, access_rule: rule, path, handler, .. } = route;
    let Some(surface) = AuthSurface::of_route(path) else { return handler };
    let metrics = app.metrics.route(method.as_ref().map_or("ANY", method_label), path);
    let (app, is_forward_auth) = (Arc::clone(app), is_forward_auth_path(path));
    let route_use = route_use_of(path, rule);
    let layer = AccessLayer { app, rule, path, metrics, route_use, is_forward_auth, surface };
    match method {
        Some(_) => handler.route_layer(layer),
        // axum treats a route of any method as a fallback, which only `layer` wraps.
        None => handler.layer(layer),
    }
}

/// The kind of usage that requests of a route count as.
///
/// The group is the first path segment after `/v1`, `gateway` for forward-auth, and `pages` for
/// everything else. The scope is the required one, or read-only.
fn route_use_of(path: &'static str, rule: AccessRule) -> RouteUse {
    let segment = path.strip_prefix("/v1/").and_then(|rest| rest.split('/').next());
    let group = if is_forward_auth_path(path) { "gateway" } else { segment.unwrap_or("pages") };
    let scope = match rule {
        AccessRule::Protected(requirement) => requirement.scope(),
        AccessRule::Open | AccessRule::SignIn => None,
    };
    RouteUse { group, scope: scope.unwrap_or(Scope::ReadOnly) }
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> AccessService<S> {
        AccessService { layer: Arc::new(self.clone()), inner }
    }
}

/// A handler wrapped by the access layer.
#[derive(Clone)]
struct AccessService<S> {
    layer: Arc<AccessLayer>,
    inner: S,
}

impl<S> Service<Request> for AccessService<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // Use the service that is ready; a clone of it need not be.
        let next = self.inner.clone();
        let next = std::mem::replace(&mut self.inner, next);
        let layer = Arc::clone(&self.layer);
        Box::pin(async move { Ok(layer.dispatch(request, next).await) })
    }
}

/// The wrapped handler.
trait Handler: Service<Request, Response = Response, Error = Infallible, Future: Send> + Send {}

impl<S> Handler for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Send
{
}

impl AccessLayer {
    async fn dispatch(&self, request: Request, next: impl Handler) -> Response {
        match self.surface {
            AuthSurface::Api => self.serve(request, next).await,
            AuthSurface::OAuth => render_oauth_error(self.serve(request, next).await),
            AuthSurface::Page(render_error) => {
                let (method, uri) = (request.method().clone(), request.uri().clone());
                let path_and_query = uri.path_and_query().map_or("/", PathAndQuery::as_str);
                let response = self.serve(request, next).await;
                let mut response = render_error(response, &method, path_and_query);
                // Streams and exports too: no cache may store the content of a page.
                let no_store = HeaderValue::from_static("no-store");
                response.headers_mut().insert(header::CACHE_CONTROL, no_store);
                response
            }
        }
    }

    async fn serve(&self, request: Request, next: impl Handler) -> Response {
        let info = request.extensions().get::<Arc<RequestInfo>>().cloned();
        let Some(info) = info else {
            return ApiError::internal("the request has no RequestInfo").into_response();
        };
        let response = match self.rule {
            AccessRule::Open | AccessRule::SignIn => self.serve_public(&info, request, next).await,
            AccessRule::Protected(_) => {
                self.serve_authenticated(Arc::clone(&info), request, next).await
            }
        };
        let took = self.app.env.clock.monotonic().saturating_sub(info.started_at);
        self.metrics.observe(response.status().as_u16(), took);
        if took > self.app.settings.slow_request {
            warn!(
                request_id = %info.id,
                method = &*info.method,
                route = self.path,
                ?took,
                "slow request"
            );
        }
        response
    }

    /// Serves a route that needs no credential; the request counts against the client's address.
    async fn serve_public(
        &self,
        info: &RequestInfo,
        request: Request,
        next: impl Handler,
    ) -> Response {
        let decision = self.app.limits.charge_address(info.ip).await;
        if let Err(error) = bearer::check_single_authorization(request.headers()) {
            return self.with_rate_limit_headers(error.into_response(), decision);
        }
        let refusal = rate_limit::rejection(&decision);
        match (self.rule, refusal) {
            // A sign-in over the limit is rejected before any work is done for it.
            (AccessRule::SignIn, Some(refusal)) => {
                self.with_rate_limit_headers(refusal.into_response(), decision)
            }
            (AccessRule::SignIn, None) => {
                // Responses report this bucket and not the address's general one, since this one
                // rejects first.
                let decision = self.app.limits.charge_sign_in(info.ip);
                let response = match rate_limit::rejection(&decision) {
                    Some(refusal) => refusal.into_response(),
                    None => self.run_handler(info, request, next).await,
                };
                self.with_rate_limit_headers(response, decision)
            }
            // So is a page, before it is rendered.
            (AccessRule::Open, Some(refusal)) if self.is_page() => {
                self.with_rate_limit_headers(refusal.into_response(), decision)
            }
            // Other open routes, such as token refresh, carry a credential in the request. A valid
            // one passes even if other clients behind the same address exceed the limit: only an
            // error response is replaced by the 429.
            (_, refusal) => {
                let response = self.run_handler(info, request, next).await;
                let response = match refusal {
                    Some(refusal) if self.is_rejection(&response) => refusal.into_response(),
                    _ => response,
                };
                self.with_rate_limit_headers(response, decision)
            }
        }
    }

    /// True if the response of an open route shows that the client had no valid credential.
    fn is_rejection(&self, response: &Response) -> bool {
        match self.surface {
            AuthSurface::OAuth => {
                response.status().is_client_error()
                    && response.extensions().get::<RateLimitExempt>().is_none()
            }
            AuthSurface::Api | AuthSurface::Page(_) => {
                response.status() == StatusCode::UNAUTHORIZED
            }
        }
    }

    /// Serves a route that needs a credential. From a valid credential on, every outcome is
    /// audited, 429 included.
    async fn serve_authenticated(
        &self,
        info: Arc<RequestInfo>,
        mut request: Request,
        next: impl Handler,
    ) -> Response {
        // Has timeouts of its own.
        let authenticated = match self.surface {
            AuthSurface::Api => authenticate(&self.app, request.headers(), info.started_at).await,
            AuthSurface::Page(_) => authenticate_cookie(&self.app, request.headers()).await,
            AuthSurface::OAuth => Err(ApiError::missing_credential()),
        };
        let principal = match authenticated {
            Ok(AuthenticationOutcome::Principal(principal)) => principal,
            Ok(AuthenticationOutcome::RevokedKey(key)) => {
                return self.reject_revoked_key(&key, &info).await;
            }
            Err(error) => return self.reject_credential(error, &info).await,
        };
        let permit = self.app.audit.reserve().await;
        let caller = Caller { principal, request: info };
        // Created before the bucket is charged, which takes a moment if buckets are shared: a
        // client that disconnects meanwhile is still in the audit log.
        let event = permit.map(|permit| PendingEvent {
            app: &self.app,
            caller: &caller,
            permit: Some(permit),
            route_use: self.route_use,
            is_forward_auth: self.is_forward_auth,
        });
        let decision = self.app.limits.charge_credential(&caller.principal).await;
        let Some(event) = event else { return self.audit_queue_full(decision) };
        let response = if let Some(refusal) = rate_limit::rejection(&decision) {
            refusal.into_response()
        } else {
            request.extensions_mut().insert(caller.clone());
            if self.is_page() {
                request.extensions_mut().insert(CookieAuthenticated);
            }
            self.run_handler(&caller.request, request, next).await
        };
        let response = event.complete(response).await;
        self.with_rate_limit_headers(response, decision)
    }

    /// Rejects a missing or invalid credential; the request counts against the client's address.
    async fn reject_credential(&self, error: ApiError, info: &RequestInfo) -> Response {
        // The credential could not be checked: a server error, which must not cost the client.
        if error.cause().is_some() {
            self.log_server_error(&error, info);
            let decision = self.app.limits.peek_address(info.ip).await;
            return self.with_rate_limit_headers(error.into_response(), decision);
        }
        if error.is_unknown_credential() {
            self.app.audit.unknown_credentials().count(info.ip, self.app.env.clock.now());
        }
        let decision = self.app.limits.charge_address(info.ip).await;
        let error = error.with_challenge_scope(self.scope());
        let response = rate_limit::rejection(&decision).unwrap_or(error).into_response();
        self.with_rate_limit_headers(response, decision)
    }

    fn is_page(&self) -> bool {
        matches!(self.surface, AuthSurface::Page(_))
    }

    /// The scope that the route requires.
    fn scope(&self) -> Option<Scope> {
        match self.rule {
            AccessRule::Protected(requirement) => requirement.scope(),
            AccessRule::Open | AccessRule::SignIn => None,
        }
    }

    /// Rejects a revoked key and audits it in the key's workspace, which should learn that the key
    /// is still in use.
    async fn reject_revoked_key(&self, key: &KeyRecord, info: &Arc<RequestInfo>) -> Response {
        let decision = self.app.limits.charge_address(info.ip).await;
        if let Some(refusal) = rate_limit::rejection(&decision) {
            return self.with_rate_limit_headers(refusal.into_response(), decision);
        }
        let Some(permit) = self.app.audit.reserve().await else {
            return self.audit_queue_full(decision);
        };
        let env = &self.app.env;
        let actor = Actor::api_key(key.id, &key.name);
        let status = ErrorCode::Unauthorized.status().as_u16();
        let event = NewEvent::new(env.new_id(), key.workspace_id, Action::ApiKeyRejected, actor)
            .with_request(info, status, env.clock.monotonic());
        if !permit.record(event).await {
            return self.with_rate_limit_headers(event_not_committed(), decision);
        }
        let error = ApiError::new(ErrorCode::Unauthorized, "the API key has been revoked");
        let error = error.with_challenge_scope(self.scope());
        self.with_rate_limit_headers(error.into_response(), decision)
    }

    /// Runs the handler with a timeout and catches its panics.
    async fn run_handler(
        &self,
        info: &RequestInfo,
        request: Request,
        next: impl Handler,
    ) -> Response {
        let app = &self.app;
        let run = async {
            // A large body holds a permit until the handler is done with it, so that the memory of
            // all bodies is bounded.
            let _permit = match request.body().size_hint().upper() {
                Some(bytes) if bytes <= SMALL_BODY => None,
                _ => app.large_body_permits.acquire().await.ok(),
            };
            let Ok(response) = next.oneshot(request).await;
            response
        };
        let run = AssertUnwindSafe(run).catch_unwind();
        let response = match timeout(app.settings.handler_timeout, run).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => ApiError::internal("the handler panicked").into_response(),
            Err(_) => ApiError::unavailable("the handler timed out").into_response(),
        };
        if let Some(error) = ApiError::from_response(&response) {
            self.log_server_error(error, info);
        }
        response
    }

    /// Answers 503: a request that cannot be audited must not be served.
    fn audit_queue_full(&self, decision: Decision) -> Response {
        let error = ApiError::unavailable("the audit event queue is full");
        self.with_rate_limit_headers(error.into_response(), decision)
    }

    /// Sets the rate-limit headers of a response.
    fn with_rate_limit_headers(&self, mut response: Response, decision: Decision) -> Response {
        rate_limit::set_headers(&decision, &self.app.env, response.headers_mut());
        response
    }

    /// Logs a server error; errors of clients are in the audit log.
    fn log_server_error(&self, error: &ApiError, info: &RequestInfo) {
        if let Some(cause) = error.cause() {
            let status = error.code().status().as_u16();
            error!(request_id = %info.id, method = &*info.method, route = self.path, status, cause);
        }
    }
}

/// Answers 503: the change was made, but its audit event is not committed yet.
fn event_not_committed() -> Response {
    ApiError::unavailable("the audit event was not committed in time").into_response()
}

/// The audit event of a request in flight. It is always recorded. If the client disconnects
/// and the handler is dropped, the status is 499.
struct PendingEvent<'a> {
    app: &'a App,
    caller: &'a Caller,
    permit: Option<AuditPermit>,
    route_use: RouteUse,
    /// True for forward-auth: the event describes the request that the gateway received.
    is_forward_auth: bool,
}

impl PendingEvent<'_> {
    /// Records the event and returns the response, or 503 if the event could not be committed.
    async fn complete(mut self, response: Response) -> Response {
        let Some(permit) = self.permit.take() else { return response };
        let mut event = self.event(response.status().as_u16());
        if self.is_forward_auth {
            let scope = requested_scope(&self.caller.request.method, &response);
            event.route = Some(RouteUse { scope, ..self.route_use });
        }
        if permit.record(event).await { response } else { event_not_committed() }
    }

    fn event(&self, status: u16) -> NewEvent {
        let mut event = audit::event(&self.app.env, self.caller, Action::Request, status);
        event.route = Some(self.route_use);
        if self.is_forward_auth {
            event.metadata = Metadata::ForwardAuth;
        } else if let Credential::Grant { id, user: person, .. } = &self.caller.principal.credential
        {
            let person = person.map(|(user_id, _)| user_id);
            event.metadata = Metadata::Grant { grant: *id, user: person };
        }
        event
    }
}

impl Drop for PendingEvent<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.send(self.event(CLIENT_CLOSED_REQUEST));
        }
    }
}
