use std::{borrow::Cow, net::IpAddr, sync::Arc};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, header},
};

use crate::{
    http::{
        App,
        api::verify::{OriginalRequest, is_question},
        extract::client_ip,
    },
    model::{audit::RequestInfo, id::RequestId, text::shorten},
};

/// What the log keeps of a path and of a `User-Agent`, in bytes.
const MAX_KEPT: usize = 512;

/// Notes what is known of a request before anything else, for the log and for its handler.
///
/// Of a gateway's question the log tells of the request that it is about, however it is answered.
pub(super) fn note(app: &App, peer: IpAddr, request: &mut Request) -> Arc<RequestInfo> {
    let OriginalRequest { method, path } = if is_question(request.uri().path()) {
        OriginalRequest::of(request)
    } else {
        OriginalRequest { method: Cow::Borrowed(request.method()), path: request.uri().path() }
    };
    let headers = request.headers();
    let info = Arc::new(RequestInfo {
        id: request_id(headers).unwrap_or_else(|| app.env.new_id()),
        method: method_name(&method),
        path: redacted(shorten(path, MAX_KEPT)),
        ip: client_ip(peer, headers, &app.settings.trusted_proxies),
        user_agent: user_agent(headers),
        began: app.env.clock.monotonic(),
    });
    request.extensions_mut().insert(Arc::clone(&info));
    info
}

/// The client's own id for the request, if it is such an id.
fn request_id(headers: &HeaderMap) -> Option<RequestId> {
    headers.get("x-request-id")?.to_str().ok()?.parse().ok()
}

fn user_agent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::USER_AGENT)?;
    let text = String::from_utf8_lossy(value.as_bytes());
    Some(redacted(shorten(&text, MAX_KEPT)))
}

/// A method as the log has it.
fn method_name(method: &Method) -> Cow<'static, str> {
    match method_label(method) {
        "" => Cow::Owned(redacted(shorten(method.as_str(), 32))),
        known => Cow::Borrowed(known),
    }
}

/// The name of a method that routes have; of others none.
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

/// A credential that a client put where none belongs must not end up in the log.
fn redacted(text: &str) -> String {
    // An underscore may be written as %5F; a JWT begins with the base64 of `{"`.
    let is_key = |part: &str| part.contains("call2me_") || part.contains("call2me%5");
    let is_secret = |part: &str| part.contains("eyJ") || (part.contains("call2me") && is_key(part));
    if !is_secret(text) {
        return text.to_owned();
    }
    let part = |part: &str| if is_secret(part) { "[redacted]".to_owned() } else { part.to_owned() };
    text.split('/').map(part).collect::<Vec<_>>().join("/")
}
