//! Handlers, a file for each resource: extract, call one service, answer.

#![expect(
    clippy::missing_errors_doc,
    reason = "what a route refuses is in the route table and the OpenAPI document"
)]

pub mod agents;
pub mod api_keys;
pub mod audit_export;
pub mod audit_log;
pub mod audit_stream;
pub mod auth;
pub mod branding;
pub mod calls;
pub mod campaigns;
mod documents;
pub mod invitations;
pub mod key_rotation;
pub mod key_usage;
pub mod knowledge_base;
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

use super::{ApiError, App};
use crate::{
    idempotency::{Attempt, Begun, KeptAnswer, Work},
    model::principal::Caller,
};

/// What handlers answer.
type Answer<T> = Result<T, ApiError>;

/// 201, with where to find what was created.
pub struct Created<T> {
    location: String,
    body: T,
}

impl<T> Created<T> {
    fn at(location: String, body: T) -> Self {
        Self { location, body }
    }
}

impl<T: IntoResponse> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        let location: [(HeaderName, String); 1] = [(header::LOCATION, self.location)];
        (StatusCode::CREATED, location, self.body).into_response()
    }
}

/// 201 to a request that may have come before, whose answer is kept.
pub struct CreatedOnce {
    answer: KeptAnswer,
    is_replayed: bool,
}

/// What becomes of a request that makes something.
enum Creating {
    /// It is to be worked on.
    Work(Work),
    /// It was, and this is how it was answered.
    Done(CreatedOnce),
}

impl CreatedOnce {
    /// Begins the work, unless it was done before.
    async fn begin(app: &App, caller: &Caller, attempt: Attempt) -> Answer<Creating> {
        Ok(match app.idempotency.begin(caller, attempt).await? {
            Begun::Work(work) => Creating::Work(work),
            Begun::Answered(answer) => Creating::Done(Self { answer, is_replayed: true }),
        })
    }

    /// Makes the work last, with its answer: where what was made is, and the JSON of it.
    async fn finish(work: Work, location: String, body: String) -> Answer<Self> {
        let answer = KeptAnswer { status: StatusCode::CREATED.as_u16(), location, body };
        work.finish(&answer).await?;
        Ok(Self { answer, is_replayed: false })
    }
}

/// The JSON of an answer.
fn json(body: &impl Serialize) -> Answer<String> {
    serde_json::to_string(body).map_err(|error| ApiError::internal(&error.to_string()))
}

impl IntoResponse for CreatedOnce {
    fn into_response(self) -> Response {
        const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
        let KeptAnswer { status, location, body } = self.answer;
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
