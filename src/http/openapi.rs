//! Builds the OpenAPI document from the route table.
//!
//! The annotation of a handler holds what is particular to it: summary, parameters, body and
//! successful responses. This module adds everything that follows from the route table (security,
//! error responses, rate limit headers), so that no route can miss it. The route table is in
//! [`super::routes`].

use axum::http::HeaderValue;
use utoipa::openapi::{
    ComponentsBuilder, Content, HeaderBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder, OpenApi,
    OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder, Server,
    path::{Operation, PathItem, Paths},
    schema::Type,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};

use super::{
    error::ErrorBody, extract::AccessRule, route_types::Route, routes::route_table,
    static_content::StaticContent,
};
use crate::{auth::check_scope::AccessRequirement, model::scope::Scope};

const API_KEY: &str = "api_key";
const ACCESS_TOKEN: &str = "access_token";

/// Builds the OpenAPI document. `public_url` is its server.
#[must_use]
pub fn build_document(public_url: &str) -> OpenApi {
    let mut paths = Paths::new();
    let mut components = ComponentsBuilder::new();
    let mut schemas = Vec::new();
    <ErrorBody as utoipa::ToSchema>::schemas(&mut schemas);
    schemas.push(("ErrorBody".to_owned(), <ErrorBody as utoipa::PartialSchema>::schema()));
    for mut route in route_table() {
        schemas.append(&mut route.schemas);
        add_route(&mut paths, route);
    }
    for (name, schema) in schemas {
        components = components.schema(name, schema);
    }
    for (name, text) in [
        (API_KEY, "An API key of a workspace: `sk_call2me_live_…`."),
        (ACCESS_TOKEN, "The access token of a user's session: a JWT, valid for one hour."),
    ] {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text));
        components = components.security_scheme(name, SecurityScheme::Http(scheme.build()));
    }
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Call2Me authentication")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(env!("CARGO_PKG_DESCRIPTION")))
                .license(Some(
                    LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build(),
                ))
                .build(),
        )
        .servers(Some([Server::new(public_url)]))
        .tags(Some(
            tags().map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build()),
        ))
        .paths(paths)
        .components(Some(components.build()))
        .build()
}

/// Returns the document of [`build_document`] as content to serve.
///
/// # Errors
/// A message for the operator if it cannot be serialized.
pub fn build_content(public_url: &str) -> Result<StaticContent, String> {
    let document = build_document(public_url)
        .to_json()
        .map_err(|error| format!("cannot create the OpenAPI document: {error}"))?;
    let media_type = HeaderValue::from_static("application/json");
    Ok(StaticContent::new(media_type, "no-cache", document))
}

fn tags() -> [(&'static str, &'static str); 10] {
    [
        ("Sessions", "Sign up, sign in and sign out; access tokens and the second factor."),
        ("Passkeys", "Sign-in without a password (WebAuthn)."),
        ("OAuth", "OAuth clients, tokens and connected apps."),
        ("API keys", "Create, rotate and revoke API keys, and read their usage."),
        ("Audit log", "The record of all requests and changes in a workspace."),
        ("Workspaces", "Workspaces, members and invitations."),
        ("Resources", "Agents, calls, knowledge bases, campaigns, wallet and profile."),
        ("Gateways", "Forward-auth for reverse proxies."),
        ("Discovery", "Metadata and public keys for clients and resource servers."),
        ("Operation", "Health checks."),
    ]
}

fn add_route(paths: &mut Paths, route: Route) {
    let rule = route.access_rule;
    let is_v1 = route.path.starts_with("/v1/");
    for (path, item) in route.paths.paths {
        let mut item = item;
        let has_id = path.contains('{');
        for (method, operation) in operations(&mut item) {
            // A route of any method has several operations, which need different ids.
            operation.operation_id = Some(match route.method {
                Some(_) => route.operation_id.clone(),
                None => format!("{}_{method}", route.operation_id),
            });
            add_access_and_errors(operation, rule, is_v1, has_id);
        }
        match paths.paths.get_mut(&path) {
            Some(existing) => existing.merge_operations(item),
            None => {
                paths.paths.insert(path, item);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("delete", &mut item.delete),
        ("patch", &mut item.patch),
        ("head", &mut item.head),
        ("options", &mut item.options),
        ("trace", &mut item.trace),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Adds the security requirement and the error responses that follow from the route's access rule.
fn add_access_and_errors(operation: &mut Operation, rule: AccessRule, is_v1: bool, has_id: bool) {
    if let AccessRule::Protected(requirement) = rule {
        let schemes = match requirement {
            AccessRequirement::Scope(_) | AccessRequirement::FirstParty(_) => {
                &[API_KEY, ACCESS_TOKEN][..]
            }
            AccessRequirement::UserSession | AccessRequirement::AdminSession => &[ACCESS_TOKEN],
        };
        let requirement = |name: &&str| SecurityRequirement::new(*name, Vec::<String>::new());
        operation.security = Some(schemes.iter().map(requirement).collect());
        let access = match rule.scope().map(Scope::as_str) {
            Some(scope) => format!("Requires a credential with the `{scope}` scope."),
            None => "Requires the access token of a user's session.".to_owned(),
        };
        let described = operation.description.take().filter(|text| !text.is_empty());
        operation.description =
            Some(described.map_or(access.clone(), |text| format!("{text}\n\n{access}")));
        add_error(operation, 401, "The credential is missing, unknown, revoked or expired.");
        add_error(operation, 403, "The credential is not allowed to do this.");
    }
    if is_v1 {
        add_error(operation, 400, "The request is malformed.");
        add_error(operation, 422, "A value is invalid. `field` names it.");
        add_error(operation, 429, "Too many requests. Retry after `Retry-After` seconds.");
        add_error(operation, 500, "Internal error.");
        add_error(operation, 503, "Temporarily unavailable. Retry after `Retry-After` seconds.");
        if operation.request_body.is_some() {
            add_error(operation, 413, "The body is too large.");
            add_error(operation, 415, "The body is not JSON.");
        }
        if has_id {
            add_error(operation, 404, "The workspace has no resource with this id.");
        }
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            add_body_and_headers(status, response, is_v1);
        }
    }
}

/// Adds an error response, unless the annotation describes the same status itself.
fn add_error(operation: &mut Operation, status: u16, text: &str) {
    let missing = match operation.responses.responses.get(&status.to_string()) {
        None => true,
        Some(RefOr::T(response)) => response.description.is_empty() && response.content.is_empty(),
        Some(RefOr::Ref(_)) => false,
    };
    if missing {
        let response = ResponseBuilder::new().description(text).build();
        operation.responses.responses.insert(status.to_string(), response.into());
    }
}

/// Adds a default description, the error body, and the headers of every response.
fn add_body_and_headers(status: &str, response: &mut Response, is_v1: bool) {
    let is_error = matches!(status.as_bytes().first(), Some(b'4' | b'5'));
    if response.description.is_empty() {
        let text = match status {
            "200" => "Success.",
            "201" => "Created. `Location` holds the URL of the new resource.",
            "204" => "Success, without a body.",
            "401" => "The credential is invalid.",
            "403" => "The caller is not allowed to do this.",
            "404" => "The workspace has no such resource.",
            "409" => "The request conflicts with the current state.",
            _ => "The request failed.",
        };
        text.clone_into(&mut response.description);
    }
    if is_error && response.content.is_empty() {
        let schema = Ref::from_schema_name("ErrorBody");
        response
            .content
            .insert("application/json".to_owned(), RefOr::T(Content::new(Some(schema))));
    }
    let mut header = |name: &str, kind: Type, text: &str| {
        let schema = ObjectBuilder::new().schema_type(kind).build();
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(text)).build();
        response.headers.insert(name.to_owned(), RefOr::T(header));
    };
    header("X-Request-Id", Type::String, "The request id. Quote it when you contact support.");
    if is_v1 {
        header("X-RateLimit-Limit", Type::Integer, "Requests per minute, and the burst size.");
        header("X-RateLimit-Remaining", Type::Integer, "Requests left in the current burst.");
        header("X-RateLimit-Reset", Type::Integer, "Unix time at which the burst is full again.");
    }
    if matches!(status, "429" | "503") && is_v1 {
        header("Retry-After", Type::Integer, "Seconds to wait before a retry.");
    }
    if status == "201" {
        header("Location", Type::String, "URL of the new resource.");
    }
    if status == "401" {
        header("WWW-Authenticate", Type::String, "The authentication challenge (RFC 6750).");
    }
}
