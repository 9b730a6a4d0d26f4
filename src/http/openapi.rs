//! The OpenAPI document, made from the route table.
//!
//! A handler's annotation says what is its own: summary, parameters, body, success. What follows
//! from the table (security, refusals, rate-limit headers) is added here, so it cannot be forgotten.

use axum::{
    Router,
    http::{HeaderValue, header},
};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::{
    IntoParams,
    openapi::{
        ComponentsBuilder, Content, HeaderBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder,
        OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder, Server,
        path::{Operation, PathItem, Paths},
        schema::Type,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
        tag::TagBuilder,
    },
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    App,
    error::ErrorBody,
    extract::Rule,
    routes::{Route, table},
};
use crate::{
    auth::check_scope::Requirement,
    model::id::{ApiKeyId, RequestId},
};

/// Which part of a list is wanted.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by extract::Query; here for the document")]
pub struct PageParams {
    /// Items at most; 50 unless said otherwise.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
    /// Items to pass over, instead of a cursor.
    #[param(minimum = 0, maximum = 100_000)]
    offset: Option<u32>,
}

/// Which events of the audit log are wanted.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by api::audit_log::filter_of; here for the document")]
pub struct EventFilterParams {
    /// Only what somebody did, and no mere calls of the API.
    changes: Option<bool>,
    /// `false`: without what people merely looked at or sent in a browser.
    pages: Option<bool>,
    /// Only what this key did.
    #[param(value_type = Option<ApiKeyId>)]
    key_id: Option<String>,
    /// Only what this key, person or OAuth client did.
    actor_id: Option<String>,
    /// Only this action.
    action: Option<String>,
    /// Only requests with this method.
    method: Option<String>,
    /// Only requests answered with this status.
    #[param(minimum = 100, maximum = 599)]
    status: Option<u16>,
    /// Only requests from this address.
    ip: Option<String>,
    /// From then on.
    #[param(format = DateTime)]
    since: Option<String>,
    /// Before then.
    #[param(format = DateTime)]
    until: Option<String>,
    /// Only events of this request.
    #[param(value_type = Option<RequestId>)]
    request_id: Option<String>,
}

/// What makes a request that creates something safe to retry.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "read by extract::Creation; here for the document")]
pub struct IdempotencyKey {
    /// Makes a retry safe: within 24 hours the same key with the same body is answered as the first time, with
    /// `Idempotency-Replayed: true`, and nothing is done twice. Scoped to the caller, the method and the path.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    idempotency_key: Option<String>,
}

const API_KEY: &str = "api_key";
const ACCESS_TOKEN: &str = "access_token";

/// The document.
#[must_use]
pub fn document(public_url: &str) -> OpenApi {
    let mut paths = Paths::new();
    let mut components = ComponentsBuilder::new();
    let mut schemas = Vec::new();
    <ErrorBody as utoipa::ToSchema>::schemas(&mut schemas);
    schemas.push(("ErrorBody".to_owned(), <ErrorBody as utoipa::PartialSchema>::schema()));
    for mut route in table() {
        schemas.append(&mut route.schemas);
        add_route(&mut paths, route);
    }
    for (name, schema) in schemas {
        components = components.schema(name, schema);
    }
    for (name, text) in [
        (API_KEY, "An API key of a workspace: `sk_call2me_live_…`."),
        (ACCESS_TOKEN, "An access token of a person's session: a JWT, for an hour."),
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

fn tags() -> [(&'static str, &'static str); 10] {
    [
        ("Sessions", "Registration, sign-in, refresh, sign-out."),
        ("Passkeys", "What signs in without a password."),
        ("OAuth", "Programs that people let into their workspaces."),
        ("API keys", "Minted, changed, revoked; the secret is shown once."),
        ("Audit log", "Who did what, when, from where."),
        ("Workspaces", "The tenant and its members."),
        ("Resources", "What the platform is about: agents, calls, knowledge, campaigns, billing."),
        ("Gateways", "Forward-auth for reverse proxies."),
        ("Discovery", "What machines read to know how to talk to this service."),
        ("Operation", "Health."),
    ]
}

fn add_route(paths: &mut Paths, route: Route) {
    let rule = route.rule;
    let is_v1 = route.path.starts_with("/v1/");
    for (path, item) in route.paths.paths {
        let mut item = item;
        let has_id = path.contains('{');
        for (method, operation) in operations(&mut item) {
            // A route of any method is several operations.
            operation.operation_id = Some(match route.method {
                Some(_) => route.name.clone(),
                None => format!("{}_{method}", route.name),
            });
            complete(operation, rule, is_v1, has_id);
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

/// Adds what the route's rule implies.
fn complete(operation: &mut Operation, rule: Rule, is_v1: bool, has_id: bool) {
    if let Rule::Protected(requirement) = rule {
        let schemes = match requirement {
            Requirement::Scope(_) | Requirement::FirstParty(_) => &[API_KEY, ACCESS_TOKEN][..],
            Requirement::OwnSession => &[ACCESS_TOKEN],
        };
        let requirement = |name: &&str| SecurityRequirement::new(*name, Vec::<String>::new());
        operation.security = Some(schemes.iter().map(requirement).collect());
        let needs = match requirement_text(rule) {
            Some(scope) => format!("Takes a credential with the scope `{scope}`."),
            None => "Takes a person's own session.".to_owned(),
        };
        let described = operation.description.take().filter(|text| !text.is_empty());
        operation.description =
            Some(described.map_or(needs.clone(), |text| format!("{text}\n\n{needs}")));
        refuse(operation, 401, "The credential is missing, unknown, revoked or expired.");
        refuse(operation, 403, "The credential may not do this.");
    }
    if is_v1 {
        refuse(operation, 400, "The request is malformed.");
        refuse(operation, 422, "A value is wrong; `field` names it.");
        refuse(operation, 429, "Too many requests: back off for `Retry-After` seconds.");
        refuse(operation, 500, "A fault of the service.");
        refuse(operation, 503, "Unavailable for the moment: retry after `Retry-After` seconds.");
        if operation.request_body.is_some() {
            refuse(operation, 413, "The body is too large.");
            refuse(operation, 415, "The body is not JSON.");
        }
        if has_id {
            refuse(operation, 404, "There is no such thing in this workspace.");
        }
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            describe(status, response, is_v1);
        }
    }
}

fn requirement_text(rule: Rule) -> Option<&'static str> {
    match rule {
        Rule::Protected(requirement) => requirement.scope().map(crate::model::scope::Scope::as_str),
        Rule::Open | Rule::SignIn => None,
    }
}

fn refuse(operation: &mut Operation, status: u16, text: &str) {
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

/// Adds the body of errors and the headers of every response.
fn describe(status: &str, response: &mut Response, is_v1: bool) {
    let is_error = matches!(status.as_bytes().first(), Some(b'4' | b'5'));
    if response.description.is_empty() {
        let text = match status {
            "200" => "Done.",
            "201" => "Created; `Location` tells where.",
            "204" => "Done; there is nothing to say.",
            "401" => "The credential is wrong.",
            "403" => "The actor may not do this.",
            "404" => "There is no such thing in this workspace.",
            "409" => "It clashes with what is there.",
            _ => "Refused.",
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
    header("X-Request-Id", Type::String, "The request's id, to quote to support.");
    if is_v1 {
        header("X-RateLimit-Limit", Type::Integer, "Requests a minute, and at once.");
        header("X-RateLimit-Remaining", Type::Integer, "Requests that may follow now.");
        header("X-RateLimit-Reset", Type::Integer, "Unix seconds when the burst is full again.");
    }
    if matches!(status, "429" | "503") && is_v1 {
        header("Retry-After", Type::Integer, "Seconds to wait; enough of them.");
    }
    if status == "201" {
        header("Location", Type::String, "Where to find what was created.");
    }
    if status == "401" {
        header("WWW-Authenticate", Type::String, "What is missing (RFC 6750).");
    }
}

/// `/docs`: the document to read and try, from the binary alone.
pub(super) fn swagger_ui(_: &App) -> Router<App> {
    let config =
        Config::new(["/openapi.json"]).try_it_out_enabled(true).persist_authorization(false);
    let pages: Router<App> = SwaggerUi::new("/docs").config(config).into();
    // It shares its origin with the dashboard.
    pages.layer(SetResponseHeaderLayer::overriding(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ))
}
