use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, header},
};

use crate::{
    http::{
        App,
        extract::{PeerAddr, client_ip},
    },
    model::{audit::RequestInfo, id::RequestId, text::shorten},
};

/// What the log keeps of a path and of a `User-Agent`, in bytes.
pub(super) const MAX_KEPT: usize = 512;

/// What is known of a request before anything else.
pub(super) fn request_info(app: &App, request: &Request) -> RequestInfo {
    let peer = request.extensions().get::<PeerAddr>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |PeerAddr(peer)| peer.ip());
    RequestInfo {
        id: request_id(request.headers()).unwrap_or_else(|| app.env.new_id()),
        method: method_name(request.method()),
        path: redacted(shorten(request.uri().path(), MAX_KEPT)),
        ip: client_ip(peer, request.headers(), &app.settings.trusted_proxies),
        user_agent: user_agent(request.headers()),
        began: app.env.clock.monotonic(),
    }
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
pub(super) fn method_name(method: &Method) -> Cow<'static, str> {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::POST,
        Method::PATCH,
        Method::DELETE,
        Method::PUT,
        Method::HEAD,
        Method::OPTIONS,
    ];
    const NAMES: [&str; 7] = ["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"];
    match KNOWN.iter().position(|known| known == method) {
        Some(place) => Cow::Borrowed(NAMES[place]),
        None => Cow::Owned(redacted(shorten(method.as_str(), 32))),
    }
}

/// A credential that a client put where none belongs must not end up in the log.
pub(super) fn redacted(text: &str) -> String {
    // An underscore may be written as %5F; a JWT begins with the base64 of `{"`.
    let is_secret = |part: &str| {
        part.contains("call2me_") || part.contains("call2me%5") || part.contains("eyJ")
    };
    if !is_secret(text) {
        return text.to_owned();
    }
    let part = |part: &str| if is_secret(part) { "[redacted]".to_owned() } else { part.to_owned() };
    text.split('/').map(part).collect::<Vec<_>>().join("/")
}
