//! Endpoints: the handlers of routes, and their result on its way to the surface that renders it.
//!
//! A handler is an async function whose parameters are axum's extractors. Its first parameter must
//! be the extractor of the route's access rule. An [`Endpoint`] runs the extractors and the handler
//! and returns an [`EndpointResult`]. The caller, which is the access layer, decides on errors as
//! values: it counts, audits and logs them, and renders them at the end.

use std::{future::Future, marker::PhantomData, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Redirect, Response},
};
use futures_util::future::BoxFuture;
use hyper::body::Body as _;

use super::{
    ApiError, App,
    error::EndpointError,
    extract::{AcceptedParameters, Access, RequestAuthorization},
};

/// The result of an endpoint.
pub type EndpointResult = Result<Response, EndpointError>;

/// Returns the status of a result, as metrics and the audit log count it. A surface may render an
/// error with another one: pages redirect a client without a session to the sign-in.
pub(super) fn status_of(result: &EndpointResult) -> StatusCode {
    match result {
        Ok(response) => response.status(),
        Err(error) => error.status(),
    }
}

/// The value that a handler returns if it does not fail.
pub trait HandlerResponse: IntoResponse {}

impl HandlerResponse for Response {}
impl HandlerResponse for Redirect {}
impl HandlerResponse for StatusCode {}
impl HandlerResponse for &'static str {}
impl<T> HandlerResponse for Json<T> where Json<T>: IntoResponse {}
impl<T> HandlerResponse for (StatusCode, Json<T>) where Json<T>: IntoResponse {}

/// The return value of a handler: a [`HandlerResponse`], or a `Result` of one.
pub trait HandlerResult {
    /// Converts it to the result of the endpoint.
    ///
    /// # Errors
    /// The error of the handler.
    fn into_result(self) -> EndpointResult;
}

impl<T: HandlerResponse> HandlerResult for T {
    fn into_result(self) -> EndpointResult {
        Ok(self.into_response())
    }
}

impl<T: HandlerResponse, E: Into<EndpointError>> HandlerResult for Result<T, E> {
    fn into_result(self) -> EndpointResult {
        self.map_err(Into::into).and_then(T::into_result)
    }
}

/// A handler whose first parameter is the extractor of the access rule `A`.
///
/// `Args` are the types of the other parameters. As in axum, the last one may consume the body.
pub trait Handler<A, Args>: Send + Sync + 'static {
    /// Extracts the parameters and runs the handler. If the request has a body, the caller is
    /// authenticated once more after it was read: a client can send its body late, after its
    /// credential was revoked. Query parameters that the route does not
    /// accept are rejected after all extractors, so that a scope or a body that is wrong as well is
    /// reported first.
    fn run(
        &self,
        app: &App,
        accepted: &AcceptedParameters,
        request: Request,
    ) -> impl Future<Output = EndpointResult> + Send;
}

impl<A, F, Fut> Handler<A, ()> for F
where
    A: Access,
    F: Fn(A::Extractor) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: HandlerResult> + Send,
{
    async fn run(
        &self,
        app: &App,
        accepted: &AcceptedParameters,
        request: Request,
    ) -> EndpointResult {
        let (mut parts, _) = request.into_parts();
        let access = A::Extractor::from_request_parts(&mut parts, app).await?;
        accepted.check(&parts.uri)?;
        self(access).await.into_result()
    }
}

/// The authorization to check again after the body was read; `None` if there is no body, or if the
/// route requires no credential.
fn authorization_while_reading<A: Access>(
    parts: &Parts,
    body: &Body,
    app: &App,
) -> Result<Option<RequestAuthorization>, ApiError> {
    if body.is_end_stream() {
        return Ok(None);
    }
    RequestAuthorization::of_rule(A::RULE, parts, app)
}

macro_rules! impl_handler {
    ($($part:ident)* | $last:ident) => {
        #[expect(non_snake_case, reason = "a parameter has the name of its type")]
        impl<A, F, Fut, Via, $($part,)* $last> Handler<A, (Via, $($part,)* $last)> for F
        where
            A: Access,
            F: Fn(A::Extractor, $($part,)* $last) -> Fut + Send + Sync + 'static,
            Fut: Future<Output: HandlerResult> + Send,
            $($part: FromRequestParts<App, Rejection: Into<EndpointError>> + Send,)*
            $last: FromRequest<App, Via, Rejection: Into<EndpointError>> + Send,
        {
            async fn run(
                &self,
                app: &App,
                accepted: &AcceptedParameters,
                request: Request,
            ) -> EndpointResult {
                let (mut parts, body) = request.into_parts();
                let access = A::Extractor::from_request_parts(&mut parts, app).await?;
                $(
                    let $part = $part::from_request_parts(&mut parts, app)
                        .await
                        .map_err(Into::<EndpointError>::into)?;
                )*
                let is_query_accepted = accepted.check(&parts.uri);
                let held = authorization_while_reading::<A>(&parts, &body, app)?;
                let request = Request::from_parts(parts, body);
                let $last = $last::from_request(request, app)
                    .await
                    .map_err(Into::<EndpointError>::into)?;
                if let Some(authorization) = held {
                    authorization.check().await?;
                }
                is_query_accepted?;
                self(access, $($part,)* $last).await.into_result()
            }
        }
    };
}

impl_handler!(| T1);
impl_handler!(T1 | T2);
impl_handler!(T1 T2 | T3);
impl_handler!(T1 T2 T3 | T4);

/// The handler of a route, as the access layer runs it.
#[derive(Clone)]
pub struct Endpoint {
    handler: Arc<dyn ErasedHandler>,
    accepted: AcceptedParameters,
}

impl Endpoint {
    /// Wraps a handler whose first parameter is the extractor of `A`. Any other handler does not
    /// compile:
    ///
    /// ```
    /// use call2me_auth::http::{endpoint::Endpoint, extract::{Authorized, Write}};
    ///
    /// async fn create(_caller: Authorized<Write>) -> &'static str { "created" }
    /// Endpoint::new::<Write, _>(create);
    /// ```
    ///
    /// ```compile_fail,E0277
    /// use call2me_auth::http::{endpoint::Endpoint, extract::{Authorized, ReadOnly, Write}};
    ///
    /// async fn create(_caller: Authorized<ReadOnly>) -> &'static str { "created" }
    /// Endpoint::new::<Write, _>(create);
    /// ```
    #[must_use]
    pub fn new<A: Access, Args: 'static>(handler: impl Handler<A, Args>) -> Self {
        let handler = Arc::new(TypedHandler { handler, types: PhantomData::<fn(A, Args)> });
        Self { handler, accepted: AcceptedParameters::Any }
    }

    /// Rejects query parameters that the route does not accept.
    pub(super) fn accepting(self, accepted: AcceptedParameters) -> Self {
        Self { accepted, ..self }
    }

    /// Extracts the parameters of the handler and runs it.
    pub(super) fn run<'a>(
        &'a self,
        app: &'a App,
        request: Request,
    ) -> BoxFuture<'a, EndpointResult> {
        self.handler.run(app, &self.accepted, request)
    }
}

/// A [`Handler`] without type parameters, so that the access layer is compiled once.
trait ErasedHandler: Send + Sync {
    fn run<'a>(
        &'a self,
        app: &'a App,
        accepted: &'a AcceptedParameters,
        request: Request,
    ) -> BoxFuture<'a, EndpointResult>;
}

struct TypedHandler<H, A, Args> {
    handler: H,
    types: PhantomData<fn(A, Args)>,
}

impl<A: Access, Args: 'static, H: Handler<A, Args>> ErasedHandler for TypedHandler<H, A, Args> {
    fn run<'a>(
        &'a self,
        app: &'a App,
        accepted: &'a AcceptedParameters,
        request: Request,
    ) -> BoxFuture<'a, EndpointResult> {
        Box::pin(self.handler.run(app, accepted, request))
    }
}
