//! The handlers of the API, one file per resource.
//!
//! A handler extracts its parameters, calls one service and builds the response; it holds no other
//! logic. The doc comments of handlers and bodies are the texts of the OpenAPI document. Routes and
//! access rules are in [`super::routes`].

#![expect(
    clippy::missing_errors_doc,
    reason = "the errors of a route are in the route table and the OpenAPI document"
)]

pub mod api_keys;
pub mod audit_export;
pub mod audit_log;
pub mod audit_stream;
pub mod auth;
pub mod branding;
pub mod documents;
pub mod invitations;
pub mod key_revocation;
pub mod key_rotation;
pub mod key_usage;
pub mod members;
pub mod mfa;
pub mod oauth_clients;
pub mod oauth_grants;
pub mod passkeys;
pub mod passwords;
pub mod sessions;
pub mod users;
pub mod verify;
pub mod wallet;
pub mod workspace;
pub mod workspaces;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{ApiError, App, endpoint::HandlerResponse};
use crate::{
    idempotency::{IdempotencyOutcome, IdempotentRequest, IdempotentTransaction, StoredResponse},
    model::principal::Caller,
    store::Audited,
};

/// The result of a handler.
type ApiResult<T> = Result<T, ApiError>;

/// A 201 response with the `Location` of the new resource. A retry of its request is processed
/// again: prefer [`IdempotentCreated`].
pub struct Created<T> {
    location: String,
    body: T,
}

impl<T> Created<T> {
    /// Creates the response of a request whose `Idempotency-Key` is ignored. The reason is for
    /// readers of the code; docs/integrate.md lists these routes for clients.
    fn without_replay(location: String, body: T, _reason: &'static str) -> Self {
        Self { location, body }
    }
}

impl<T: IntoResponse> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        let location: [(HeaderName, String); 1] = [(header::LOCATION, self.location)];
        (StatusCode::CREATED, location, self.body).into_response()
    }
}

impl<T: IntoResponse> HandlerResponse for Created<T> {}

/// A 201 response that is stored for retries with the same idempotency key.
pub struct IdempotentCreated {
    response: StoredResponse,
    is_replayed: bool,
}

/// The outcome of [`IdempotentCreated::begin`].
enum CreationOutcome {
    /// The request is new. Its changes go into this transaction.
    New(IdempotentTransaction),
    /// The request is a retry. This is the stored response.
    Replayed(IdempotentCreated),
}

impl IdempotentCreated {
    /// Begins the transaction of a request, or returns the stored response of an earlier attempt.
    async fn begin(
        app: &App,
        caller: &Caller,
        attempt: IdempotentRequest,
    ) -> ApiResult<CreationOutcome> {
        Ok(match app.idempotency.begin(caller, attempt).await? {
            IdempotencyOutcome::New(transaction) => CreationOutcome::New(transaction),
            IdempotencyOutcome::Replayed(response) => {
                CreationOutcome::Replayed(Self { response, is_replayed: true })
            }
        })
    }

    /// Commits the transaction together with the response. `body` is the JSON of the new resource.
    async fn finish(
        transaction: IdempotentTransaction,
        audited: Audited,
        location: String,
        body: String,
    ) -> ApiResult<Self> {
        let response = StoredResponse { status: StatusCode::CREATED.as_u16(), location, body };
        transaction
            .commit(&response, audited)
            .await?
            .unfenced("a new resource or secret, which no node has cached");
        Ok(Self { response, is_replayed: false })
    }
}

/// Serializes a response body.
fn to_json(body: &impl Serialize) -> ApiResult<String> {
    serde_json::to_string(body).map_err(|error| ApiError::internal(&error.to_string()))
}

impl IntoResponse for IdempotentCreated {
    fn into_response(self) -> Response {
        const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
        let StoredResponse { status, location, body } = self.response;
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::CREATED);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(location) = HeaderValue::try_from(location) {
            headers.insert(header::LOCATION, location);
        }
        if self.is_replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl HandlerResponse for IdempotentCreated {}
