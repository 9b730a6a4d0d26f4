use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};
use uuid::Uuid;

use crate::model::id::{self, Id};

/// The first parameter of a route's path, as an id.
///
/// A malformed id is not rejected here. It becomes the nil id, which no row has, so that the
/// response is the 404 of a missing row, after the checks of the body.
#[derive(Debug, Clone, Copy)]
pub struct PathId<T>(pub T);

impl<T: Id, S: Send + Sync> FromRequestParts<S> for PathId<T> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let params = RawPathParams::from_request_parts(parts, state).await.ok();
        let text = params.as_ref().and_then(|params| params.iter().next()).map(|(_, text)| text);
        let id = text.and_then(|text| id::parse(T::PREFIX, text).ok());
        Ok(Self(id.unwrap_or(Uuid::nil()).into()))
    }
}
