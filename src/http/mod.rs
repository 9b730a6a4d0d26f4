//! HTTP: routes, middleware and the format of responses.
//!
//! A request passes these layers, from the outside in:
//!
//! 1. [`middleware::HttpService`]: request id, CORS, and the headers of every response;
//! 2. the router: 404 and 405 need no credential;
//! 3. for `/v1` and OAuth routes, [`middleware::protect_route`], and for pages,
//!    [`middleware::protect_page`]: credential, rate limit, request timeout, panic handling, the
//!    audit event, and the rendering of errors;
//! 4. the [`endpoint`]: it runs the extractors, of which the first checks the scope, and then the
//!    handler.
//!
//! An error is rendered only at the end of step 3, by the surface of the route. Until then it is a
//! value. Response extensions carry nothing.
//!
//! Routes are in [`routes`], pages in [`dashboard`], errors in [`error`].
//!
//! Imports inside this module run in one direction as well: from the tables of [`routes`] and
//! [`dashboard`] over [`api`] and [`oauth`], [`middleware`], [`endpoint`] and [`extract`] to
//! [`error`], [`dto`], cookies, bearer credentials and the original requests of gateways.

pub mod api;
mod bearer;
mod cookies;
pub mod dashboard;
mod docs;
pub mod dto;
pub mod endpoint;
pub mod error;
pub mod extract;
mod fallback;
mod forward_auth;
mod large_body;
pub mod middleware;
pub mod oauth;
pub mod openapi;
mod refusal_pauses;
pub mod route_types;
pub mod routes;
mod state;
pub mod static_content;
mod surface;
mod unread_responses;
pub mod well_known;

use std::sync::Arc;

use axum::Router;

pub use error::ApiError;
pub use large_body::LargeBodyPermits;
pub use refusal_pauses::RefusalPauses;
use state::HEADER_CAPACITY;
pub use state::{App, AppState, HttpSettings};
pub use unread_responses::UnreadResponses;

/// Builds the HTTP service: the routes of API, OAuth and dashboard with their middleware.
#[must_use]
pub fn build_service(app: &App) -> middleware::HttpService {
    let ceiling = middleware::OpenRouteCeiling::new(app.settings.per_address_per_minute);
    let mut router = Router::new();
    for route in routes::route_table() {
        let path = route.path;
        router = router.route(path, middleware::protect_route(route, app, &ceiling));
    }
    for page in dashboard::route_table() {
        let (path, render_error) = (page.path, dashboard::page::render_error);
        router = router.route(path, middleware::protect_page(page, render_error, app, &ceiling));
    }
    let router = router
        .merge(docs::routes(app))
        .method_not_allowed_fallback(fallback::method_not_allowed)
        .fallback(fallback::not_found)
        .with_state(Arc::clone(app));
    middleware::HttpService::new(Arc::clone(app), router)
}
