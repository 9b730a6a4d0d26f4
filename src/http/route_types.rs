//! Routes: how the route tables of the API and the dashboard describe them.

use axum::http::Method;
use utoipa::openapi::{
    RefOr,
    path::{ParameterIn, Paths},
    schema::Schema,
};

use super::{
    endpoint::Endpoint,
    extract::{AcceptedParameters, AccessRule},
};

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

impl Route {
    /// The query parameters that the OpenAPI document states for the route. So a parameter that a
    /// handler reads and does not document is rejected.
    pub(super) fn documented_parameters(&self) -> AcceptedParameters {
        let operations = self.paths.paths.values().flat_map(|item| {
            [&item.post, &item.put, &item.patch, &item.delete].into_iter().flatten()
        });
        let parameters = operations.flat_map(|operation| operation.parameters.iter().flatten());
        let names = parameters.filter_map(|parameter| match parameter {
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => {
                Some(parameter.name.clone())
            }
            _ => None,
        });
        AcceptedParameters::Only(names.collect())
    }
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
