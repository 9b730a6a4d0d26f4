//! Handlers, a file for each resource: extract, call one service, answer.

#![expect(
    clippy::missing_errors_doc,
    reason = "what a route refuses is in the route table and the OpenAPI document"
)]

pub mod agents;
pub mod api_keys;
pub mod audit_log;
pub mod auth;
pub mod branding;
pub mod calls;
pub mod campaigns;
mod documents;
pub mod invitations;
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

use super::ApiError;
use axum::{
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
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
