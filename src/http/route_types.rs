//! Routes: how the route tables of the API and the dashboard describe them.

use axum::http::Method;
use utoipa::openapi::{RefOr, path::Paths, schema::Schema};

use super::{endpoint::Endpoint, extract::AccessRule};

/// A row of the route table.
pub struct Route {
    /// The HTTP method, or `None` for all methods.
    pub method: Option<Method>,
    /// The operation id in the OpenAPI document, `module_handler`.
    pub operation_id: String,
    /// The path in axum's syntax.
    pub path: &'static str,
    /// The access rule.
    pub access_rule: AccessRule,
    /// The handler.
    pub endpoint: Endpoint,
    /// The route's part of the OpenAPI document.
    pub paths: Paths,
    /// The schemas that `paths` refers to.
    pub schemas: Vec<(String, RefOr<Schema>)>,
}

/// A route of the dashboard: a page, or the target of a form.
pub struct PageRoute {
    /// The HTTP method.
    pub method: Method,
    /// The path, in axum's syntax.
    pub path: &'static str,
    /// The access rule.
    pub access_rule: AccessRule,
    /// The handler.
    pub endpoint: Endpoint,
}
