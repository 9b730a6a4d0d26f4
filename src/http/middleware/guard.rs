use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use futures_util::FutureExt;
use hyper::body::Body as _;
use serde_json::json;
use tokio::time::timeout;
use tracing::{error, warn};

use super::{
    SignInLimit,
    authenticate::{self, authenticate},
    rate_limit,
    request_info::{MAX_KEPT, method_name, redacted},
};
use crate::{
    audit::{self, Permit},
    auth::authenticate::Authenticated,
    http::{ApiError, App, api::verify::Forwarded, error::Code, extract::Rule, routes::Route},
    limit::Decision,
    model::{
        api_key::KeyRecord,
        audit::{Action, Actor, NewEvent, RequestInfo},
        principal::Caller,
        text::shorten,
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
}

/// A route's handler behind its guard.
pub fn guarded(route: Route, app: &App, sign_in: &SignInLimit) -> MethodRouter<App> {
    let Route { method, rule, path, handler, .. } = route;
    // Health and discovery are read by machines of the operator, without limit or log.
    if !path.starts_with("/v1/") {
        return handler;
    }
    let handler = if rule == Rule::SignIn { sign_in.limit(handler) } else { handler };
    let guard = Guard { app: Arc::clone(app), rule, path, sign_in: sign_in.clone() };
    match method {
        Some(_) => handler.route_layer(from_fn_with_state(guard, run)),
        // A route of any method is a fallback to axum, which only `layer` wraps.
        None => handler.layer(from_fn_with_state(guard, run)),
    }
}

async fn run(
    axum::extract::State(guard): axum::extract::State<Guard>,
    request: Request,
    next: Next,
) -> Response {
    let info = request.extensions().get::<Arc<RequestInfo>>().cloned();
    let Some(info) = info else {
        return ApiError::internal("a request has no id").into_response();
    };
    match guard.rule {
        Rule::Open | Rule::SignIn => guard.admit_anybody(&info, request, next).await,
        Rule::Protected(_) => guard.admit_caller(info, request, next).await,
    }
}

impl Guard {
    /// A request that needs no credential is charged to its address.
    async fn admit_anybody(&self, info: &RequestInfo, request: Request, next: Next) -> Response {
        let decision = self.app.limits.charge_address(info.ip);
        if let Err(error) = authenticate::check_count(request.headers()) {
            return with_decision(error.into_response(), decision);
        }
        let refusal = rate_limit::refusal(&decision);
        match (self.rule, refusal) {
            // A sign-in is refused before any work is done for it…
            (Rule::SignIn, Some(refusal)) => with_decision(refusal.into_response(), decision),
            (Rule::SignIn, None) => {
                let response = self.handle(info, request, next).await;
                let decision = self.sign_in.decision(&response);
                with_decision(response, decision)
            }
            // …a refresh brings a credential of its own, and a good one passes whatever others
            // behind the same address do.
            (_, refusal) => {
                let response = self.handle(info, request, next).await;
                let response = match refusal {
                    Some(refusal) if response.status() == StatusCode::UNAUTHORIZED => {
                        refusal.into_response()
                    }
                    _ => response,
                };
                with_decision(response, decision)
            }
        }
    }

    /// A request that needs a credential: 401, 429 and all that follows is in the log.
    async fn admit_caller(
        &self,
        info: Arc<RequestInfo>,
        mut request: Request,
        next: Next,
    ) -> Response {
        let info = self.question(info, &mut request);
        let within = self.app.settings.handler_timeout;
        let principal =
            match timeout(within, authenticate(&self.app, request.headers(), info.began)).await {
                Ok(Ok(Authenticated::Principal(principal))) => principal,
                Ok(Ok(Authenticated::RevokedKey(key))) => return self.reject_revoked(&key, &info),
                Ok(Err(error)) => return self.reject(error, &info),
                Err(_) => {
                    return self
                        .reject(ApiError::unavailable("authentication took too long"), &info);
                }
            };
        let decision = self.app.limits.charge_credential(&principal);
        let Some(permit) = self.app.audit.reserve() else { return log_is_full(decision) };
        let caller = Caller { principal, request: info };
        let is_gateway = self.is_gateway();
        let event =
            PendingEvent { app: &self.app, caller: &caller, permit: Some(permit), is_gateway };
        let response = if let Some(refusal) = rate_limit::refusal(&decision) {
            refusal.into_response()
        } else {
            request.extensions_mut().insert(caller.clone());
            self.handle(&caller.request, request, next).await
        };
        event.complete(&response);
        with_decision(response, decision)
    }

    /// An absent or bad credential is charged to its address, and refused either way.
    fn reject(&self, error: ApiError, info: &RequestInfo) -> Response {
        // What could not be checked is nobody's fault but ours.
        if error.cause().is_some() {
            self.log(&error, info);
            let decision = self.app.limits.look_at_address(info.ip);
            return with_decision(error.into_response(), decision);
        }
        if error.is_unknown_credential() {
            self.app.audit.unknown_credentials().count(info.ip, self.app.env.clock.now());
        }
        let decision = self.app.limits.charge_address(info.ip);
        let response = rate_limit::refusal(&decision).unwrap_or(error).into_response();
        with_decision(response, decision)
    }

    /// The use of a revoked key is an event of its workspace: somebody still has it.
    fn reject_revoked(&self, key: &KeyRecord, info: &Arc<RequestInfo>) -> Response {
        let decision = self.app.limits.charge_address(info.ip);
        if let Some(refusal) = rate_limit::refusal(&decision) {
            return with_decision(refusal.into_response(), decision);
        }
        let Some(permit) = self.app.audit.reserve() else { return log_is_full(decision) };
        let env = &self.app.env;
        let actor = Actor::api_key(key.id, &key.name);
        let status = Code::Unauthorized.status().as_u16();
        let event = NewEvent::new(env.new_id(), key.workspace_id, Action::ApiKeyRejected, actor)
            .in_request(info, status, env.clock.monotonic());
        permit.send(event);
        let error = ApiError::new(Code::Unauthorized, "the API key has been revoked");
        with_decision(error.into_response(), decision)
    }

    /// Whether the route answers gateways, which ask about requests of others.
    fn is_gateway(&self) -> bool {
        self.path.starts_with("/v1/auth/verify")
    }

    /// What the log is to tell of a request: of a gateway's, the one that it asks about, however the
    /// question is answered.
    fn question(&self, info: Arc<RequestInfo>, request: &mut Request) -> Arc<RequestInfo> {
        if !self.is_gateway() {
            return info;
        }
        let forwarded = Forwarded::of(request);
        let mut told = RequestInfo::clone(&info);
        told.method = method_name(&forwarded.method);
        told.path = redacted(shorten(&forwarded.path, MAX_KEPT));
        request.extensions_mut().insert(forwarded);
        Arc::new(told)
    }

    /// Runs the handler within its time, and survives its panic.
    async fn handle(&self, info: &RequestInfo, request: Request, next: Next) -> Response {
        let app = &self.app;
        let run = async {
            // Large bodies take turns, from their first byte until they are done with: a place is
            // worth so much memory, and all of it is bounded.
            let _place = match request.body().size_hint().upper() {
                Some(bytes) if bytes <= SMALL_BODY => None,
                _ => app.large_bodies.acquire().await.ok(),
            };
            next.run(request).await
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
        let took = app.env.clock.monotonic().saturating_sub(info.began);
        if took > app.settings.slow_request {
            warn!(request_id = %info.id, method = &*info.method, route = self.path, ?took, "slow");
        }
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

/// What cannot be logged is not to happen.
fn log_is_full(decision: Decision) -> Response {
    let error = ApiError::unavailable("the queue of audit events is full");
    with_decision(error.into_response(), decision)
}

fn with_decision(mut response: Response, decision: Decision) -> Response {
    response.extensions_mut().insert(decision);
    response
}

/// The event of a request under way. It is written whatever becomes of the request, also when the
/// client hangs up and the handler is dropped.
struct PendingEvent<'a> {
    app: &'a App,
    caller: &'a Caller,
    permit: Option<Permit>,
    /// Whether it tells of a request that a gateway asked about.
    is_gateway: bool,
}

impl PendingEvent<'_> {
    fn complete(mut self, response: &Response) {
        self.write(response.status().as_u16());
    }

    fn write(&mut self, status: u16) {
        let Some(permit) = self.permit.take() else { return };
        let mut event = audit::event(&self.app.env, self.caller, Action::Request, status);
        if self.is_gateway {
            // Whoever holds a key may ask about requests that nobody made.
            event.metadata = json!({ "via": "verify" });
        }
        permit.send(event);
    }
}

impl Drop for PendingEvent<'_> {
    fn drop(&mut self) {
        self.write(CLIENT_CLOSED_REQUEST);
    }
}
