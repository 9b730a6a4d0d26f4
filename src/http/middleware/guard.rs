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
    SignInLimit,
    authenticate::{self, authenticate, authenticate_cookie},
    rate_limit,
    request_info::method_label,
};
use crate::{
    audit::{self, Permit},
    auth::authenticate::Authenticated,
    http::{
        ApiError, App,
        api::verify::{asked_scope, is_question},
        dashboard::{self, PageRoute},
        error::{Code, Patient, oauth_refusal},
        extract::Rule,
        oauth::is_endpoint,
        routes::Route,
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

/// Status of a request whose client hung up before the answer, in the log alone; nginx's convention.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Bodies of no more bytes are served without a place among the large ones.
const SMALL_BODY: u64 = 16 * 1024;

/// What a route's guard knows of it.
#[derive(Clone)]
struct Guard {
    app: App,
    rule: Rule,
    /// For the operator's log: the pattern, which holds no ids.
    path: &'static str,
    sign_in: SignInLimit,
    metrics: RouteMetrics,
    /// As what a request counts among the uses of a key.
    counts_as: RouteUse,
    /// Whether the route answers gateways, which ask about requests of others.
    is_gateway: bool,
    door: Door,
}

/// How somebody shows who they are, and how refusals look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// To programs: a bearer token, JSON.
    Api,
    /// To people: a cookie, a page.
    Page,
    /// To OAuth's clients, who show who they are by themselves: JSON in the words of RFC 6749.
    Client,
}

/// Marks a request whose caller is known by a cookie.
#[derive(Clone, Copy)]
pub struct ByCookie;

/// A page's handler behind its guard.
pub fn guarded_page(page: PageRoute, app: &App, sign_in: &SignInLimit) -> MethodRouter<App> {
    let PageRoute { method, path, rule, handler } = page;
    // They cost nothing, and belong to a page that is counted.
    if path.starts_with("/assets/") {
        return handler;
    }
    let handler = if rule == Rule::SignIn { sign_in.limit(handler) } else { handler };
    let metrics = app.metrics.route(method_label(&method), path);
    let (app, sign_in) = (Arc::clone(app), sign_in.clone());
    let (counts_as, door) = (use_of(path, rule), Door::Page);
    let guard = Guard { app, rule, path, sign_in, metrics, counts_as, is_gateway: false, door };
    handler.route_layer(guard)
}

/// A route's handler behind its guard.
pub fn guarded(route: Route, app: &App, sign_in: &SignInLimit) -> MethodRouter<App> {
    let Route { method, rule, path, handler, .. } = route;
    let door = match path {
        path if path.starts_with("/v1/") => Door::Api,
        path if is_endpoint(path) => Door::Client,
        // Health and discovery are read by machines of the operator, without limit or log.
        _ => return handler,
    };
    let handler = if rule == Rule::SignIn { sign_in.limit(handler) } else { handler };
    let metrics = app.metrics.route(method.as_ref().map_or("ANY", method_label), path);
    let (app, sign_in, is_gateway) = (Arc::clone(app), sign_in.clone(), is_question(path));
    let counts_as = use_of(path, rule);
    let guard = Guard { app, rule, path, sign_in, metrics, counts_as, is_gateway, door };
    match method {
        Some(_) => handler.route_layer(guard),
        // A route of any method is a fallback to axum, which only `layer` wraps.
        None => handler.layer(guard),
    }
}

/// As what requests of a route count: the first word behind the version, `gateway` for the questions of
/// gateways, and what the route asks for.
fn use_of(path: &'static str, rule: Rule) -> RouteUse {
    let word = path.strip_prefix("/v1/").and_then(|rest| rest.split('/').next());
    let group = if is_question(path) { "gateway" } else { word.unwrap_or("pages") };
    let scope = match rule {
        Rule::Protected(requirement) => requirement.scope(),
        Rule::Open | Rule::SignIn => None,
    };
    RouteUse { group, scope: scope.unwrap_or(Scope::ReadOnly) }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: Arc::new(self.clone()), inner }
    }
}

/// A handler behind its guard.
#[derive(Clone)]
struct Guarded<S> {
    guard: Arc<Guard>,
    inner: S,
}

impl<S> Service<Request> for Guarded<S>
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
        // The one that is ready, which a clone need not be.
        let next = self.inner.clone();
        let next = std::mem::replace(&mut self.inner, next);
        let guard = Arc::clone(&self.guard);
        Box::pin(async move { Ok(guard.admit(request, next).await) })
    }
}

/// What a guard lets a request through to.
trait Next: Service<Request, Response = Response, Error = Infallible, Future: Send> + Send {}

impl<S> Next for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Send
{
}

impl Guard {
    async fn admit(&self, request: Request, next: impl Next) -> Response {
        match self.door {
            Door::Api => self.answer(request, next).await,
            Door::Client => oauth_refusal(self.answer(request, next).await),
            Door::Page => {
                let (method, uri) = (request.method().clone(), request.uri().clone());
                let wanted = uri.path_and_query().map_or("/", PathAndQuery::as_str);
                let response = self.answer(request, next).await;
                let mut response = dashboard::page::of_refusal(response, &method, wanted);
                // Streams and exports too: what a page shows is for nobody to keep.
                let unkept = HeaderValue::from_static("no-store");
                response.headers_mut().insert(header::CACHE_CONTROL, unkept);
                response
            }
        }
    }

    async fn answer(&self, request: Request, next: impl Next) -> Response {
        let info = request.extensions().get::<Arc<RequestInfo>>().cloned();
        let Some(info) = info else {
            return ApiError::internal("a request has no id").into_response();
        };
        let response = match self.rule {
            Rule::Open | Rule::SignIn => self.admit_anybody(&info, request, next).await,
            Rule::Protected(_) => self.admit_caller(Arc::clone(&info), request, next).await,
        };
        let took = self.app.env.clock.monotonic().saturating_sub(info.began);
        self.metrics.observe(response.status().as_u16(), took);
        if took > self.app.settings.slow_request {
            warn!(request_id = %info.id, method = &*info.method, route = self.path, ?took, "slow");
        }
        response
    }

    /// A request that needs no credential is charged to its address.
    async fn admit_anybody(
        &self,
        info: &RequestInfo,
        request: Request,
        next: impl Next,
    ) -> Response {
        let decision = self.app.limits.charge_address(info.ip).await;
        if let Err(error) = authenticate::check_count(request.headers()) {
            return self.with_decision(error.into_response(), decision);
        }
        let refusal = rate_limit::refusal(&decision);
        match (self.rule, refusal) {
            // A sign-in is refused before any work is done for it…
            (Rule::SignIn, Some(refusal)) => self.with_decision(refusal.into_response(), decision),
            (Rule::SignIn, None) => {
                let response = self.handle(info, request, next).await;
                let decision = self.sign_in.decision(&response);
                self.with_decision(response, decision)
            }
            // …and a page before it is made…
            (Rule::Open, Some(refusal)) if self.door == Door::Page => {
                self.with_decision(refusal.into_response(), decision)
            }
            // …a refresh brings a credential of its own, and a good one passes whatever others
            // behind the same address do.
            (_, refusal) => {
                let response = self.handle(info, request, next).await;
                let response = match refusal {
                    Some(refusal) if self.is_refused(&response) => refusal.into_response(),
                    _ => response,
                };
                self.with_decision(response, decision)
            }
        }
    }

    /// Whether an answer to anybody shows that they brought nothing good.
    fn is_refused(&self, response: &Response) -> bool {
        match self.door {
            Door::Client => {
                response.status().is_client_error()
                    && response.extensions().get::<Patient>().is_none()
            }
            Door::Api | Door::Page => response.status() == StatusCode::UNAUTHORIZED,
        }
    }

    /// A request that needs a credential: 401, 429 and all that follows is in the log.
    async fn admit_caller(
        &self,
        info: Arc<RequestInfo>,
        mut request: Request,
        next: impl Next,
    ) -> Response {
        // Bounded in time by itself.
        let authenticated = match self.door {
            Door::Api => authenticate(&self.app, request.headers(), info.began).await,
            Door::Page => authenticate_cookie(&self.app, request.headers()).await,
            Door::Client => Err(ApiError::no_credential()),
        };
        let principal = match authenticated {
            Ok(Authenticated::Principal(principal)) => principal,
            Ok(Authenticated::RevokedKey(key)) => return self.reject_revoked(&key, &info).await,
            Err(error) => return self.reject(error, &info).await,
        };
        let permit = self.app.audit.reserve().await;
        let caller = Caller { principal, request: info };
        // Before the bucket is asked, which takes a moment where it is shared: a client that hangs up
        // meanwhile is in the log.
        let event = permit.map(|permit| PendingEvent {
            app: &self.app,
            caller: &caller,
            permit: Some(permit),
            counts_as: self.counts_as,
            is_gateway: self.is_gateway,
        });
        let decision = self.app.limits.charge_credential(&caller.principal).await;
        let Some(event) = event else { return self.log_is_full(decision) };
        let response = if let Some(refusal) = rate_limit::refusal(&decision) {
            refusal.into_response()
        } else {
            request.extensions_mut().insert(caller.clone());
            if self.door == Door::Page {
                request.extensions_mut().insert(ByCookie);
            }
            self.handle(&caller.request, request, next).await
        };
        let response = event.complete(response).await;
        self.with_decision(response, decision)
    }

    /// An absent or bad credential is charged to its address, and refused either way.
    async fn reject(&self, error: ApiError, info: &RequestInfo) -> Response {
        // What could not be checked is nobody's fault but ours.
        if error.cause().is_some() {
            self.log(&error, info);
            let decision = self.app.limits.look_at_address(info.ip).await;
            return self.with_decision(error.into_response(), decision);
        }
        if error.is_unknown_credential() {
            self.app.audit.unknown_credentials().count(info.ip, self.app.env.clock.now());
        }
        let decision = self.app.limits.charge_address(info.ip).await;
        let error = error.wanting(self.scope());
        let response = rate_limit::refusal(&decision).unwrap_or(error).into_response();
        self.with_decision(response, decision)
    }

    /// The scope that the route asks for.
    fn scope(&self) -> Option<Scope> {
        match self.rule {
            Rule::Protected(requirement) => requirement.scope(),
            Rule::Open | Rule::SignIn => None,
        }
    }

    /// The use of a revoked key is an event of its workspace: somebody still has it.
    async fn reject_revoked(&self, key: &KeyRecord, info: &Arc<RequestInfo>) -> Response {
        let decision = self.app.limits.charge_address(info.ip).await;
        if let Some(refusal) = rate_limit::refusal(&decision) {
            return self.with_decision(refusal.into_response(), decision);
        }
        let Some(permit) = self.app.audit.reserve().await else {
            return self.log_is_full(decision);
        };
        let env = &self.app.env;
        let actor = Actor::api_key(key.id, &key.name);
        let status = Code::Unauthorized.status().as_u16();
        let event = NewEvent::new(env.new_id(), key.workspace_id, Action::ApiKeyRejected, actor)
            .in_request(info, status, env.clock.monotonic());
        if !permit.record(event).await {
            return self.with_decision(not_committed(), decision);
        }
        let error = ApiError::new(Code::Unauthorized, "the API key has been revoked");
        let error = error.wanting(self.scope());
        self.with_decision(error.into_response(), decision)
    }

    /// Runs the handler within its time, and survives its panic.
    async fn handle(&self, info: &RequestInfo, request: Request, next: impl Next) -> Response {
        let app = &self.app;
        let run = async {
            // Large bodies take turns, from their first byte until they are done with: a place is
            // worth so much memory, and all of it is bounded.
            let _place = match request.body().size_hint().upper() {
                Some(bytes) if bytes <= SMALL_BODY => None,
                _ => app.large_bodies.acquire().await.ok(),
            };
            let Ok(response) = next.oneshot(request).await;
            response
        };
        let run = AssertUnwindSafe(run).catch_unwind();
        let response = match timeout(app.settings.handler_timeout, run).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => ApiError::internal("the handler panicked").into_response(),
            Err(_) => ApiError::unavailable("the handler took too long").into_response(),
        };
        if let Some(error) = ApiError::of(&response) {
            self.log(error, info);
        }
        response
    }

    /// What cannot be logged is not to happen.
    fn log_is_full(&self, decision: Decision) -> Response {
        let error = ApiError::unavailable("the queue of audit events is full");
        self.with_decision(error.into_response(), decision)
    }

    /// The answer, which also tells what the bucket said.
    fn with_decision(&self, mut response: Response, decision: Decision) -> Response {
        rate_limit::describe(&decision, &self.app.env, response.headers_mut());
        response
    }

    /// Failures of ours; what clients do wrong is in the audit log.
    fn log(&self, failure: &ApiError, info: &RequestInfo) {
        if let Some(cause) = failure.cause() {
            let status = failure.code().status().as_u16();
            error!(request_id = %info.id, method = &*info.method, route = self.path, status, cause);
        }
    }
}

/// What is done is done, but the log does not hold it yet.
fn not_committed() -> Response {
    ApiError::unavailable("an event was not committed in time").into_response()
}

/// The event of a request under way. It is written whatever becomes of the request, also when the
/// client hangs up and the handler is dropped.
struct PendingEvent<'a> {
    app: &'a App,
    caller: &'a Caller,
    permit: Option<Permit>,
    counts_as: RouteUse,
    /// Whether it tells of a request that a gateway asked about.
    is_gateway: bool,
}

impl PendingEvent<'_> {
    /// The response, once it may go out.
    async fn complete(mut self, response: Response) -> Response {
        let Some(permit) = self.permit.take() else { return response };
        let mut event = self.event(response.status().as_u16());
        if self.is_gateway {
            let scope = asked_scope(&self.caller.request.method, &response);
            event.route = Some(RouteUse { scope, ..self.counts_as });
        }
        if permit.record(event).await { response } else { not_committed() }
    }

    fn event(&self, status: u16) -> NewEvent {
        let mut event = audit::event(&self.app.env, self.caller, Action::Request, status);
        event.route = Some(self.counts_as);
        if self.is_gateway {
            event.metadata = Metadata::Gateway;
        } else if let Credential::Grant { id, person, .. } = &self.caller.principal.credential {
            let person = person.map(|(user_id, _)| user_id);
            event.metadata = Metadata::OnBehalf { grant: *id, person };
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
