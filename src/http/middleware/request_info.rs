//! Collects the information about a request for the audit log, with credentials redacted.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, header},
};

use super::redaction::redact_credentials;
use crate::{
    http::{
        App,
        extract::client_ip,
        forward_auth::{OriginalRequest, is_forward_auth_path, remove_query},
    },
    model::{audit::RequestInfo, id::RequestId, text::truncate_bytes},
};

/// Maximum length of a path or a `User-Agent` in the audit log, in bytes.
const MAX_LOGGED_BYTES: usize = 512;

/// Attaches the [`RequestInfo`] to a request, for the audit log and the handler.
///
/// Runs before anything else. For a forward-auth request, method and path are those of the original
/// request, also if the response is an error, and the required scope is attached too.
pub(super) fn attach_request_info(
    app: &App,
    peer: IpAddr,
    request: &mut Request,
) -> Arc<RequestInfo> {
    if !is_forward_auth_path(request.uri().path()) {
        let info = request_info(app, peer, request, request.method(), request.uri().path());
        request.extensions_mut().insert(Arc::clone(&info));
        return info;
    }
    let original = OriginalRequest::from_forward_auth(request);
    let info = request_info(app, peer, request, &original.method, &original.path);
    let required_scope = original.required_scope;
    remove_query(request.uri_mut());
    let extensions = request.extensions_mut();
    extensions.insert(required_scope);
    extensions.insert(Arc::clone(&info));
    info
}

fn request_info(
    app: &App,
    peer: IpAddr,
    request: &Request,
    method: &Method,
    path: &str,
) -> Arc<RequestInfo> {
    let headers = request.headers();
    Arc::new(RequestInfo {
        id: request_id(headers).unwrap_or_else(|| app.env.new_id()),
        method: method_name(method),
        path: redact_credentials(truncate_bytes(path, MAX_LOGGED_BYTES)),
        ip: client_ip(peer, headers, &app.settings.trusted_proxies),
        user_agent: user_agent(headers),
        started_at: app.env.clock.monotonic(),
    })
}

/// The request id that the client sent, if it is valid.
fn request_id(headers: &HeaderMap) -> Option<RequestId> {
    headers.get("x-request-id")?.to_str().ok()?.parse().ok()
}

fn user_agent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::USER_AGENT)?;
    let text = String::from_utf8_lossy(value.as_bytes());
    Some(redact_credentials(truncate_bytes(&text, MAX_LOGGED_BYTES)))
}

/// The method as the audit log shows it; an unknown one is shortened and redacted.
fn method_name(method: &Method) -> Cow<'static, str> {
    match method_label(method) {
        "" => Cow::Owned(redact_credentials(truncate_bytes(method.as_str(), 32))),
        known => Cow::Borrowed(known),
    }
}

/// The name of a method that routes use, or an empty string for all others.
pub(super) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::PUT => "PUT",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "",
    }
}
