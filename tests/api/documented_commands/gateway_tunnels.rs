//! Checks that a gateway opens no tunnel but a WebSocket: it does not check what is sent through
//! one.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use data_encoding::BASE64;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::gateway_checks::Tenant;
use crate::fixture::{Script, with_timeout};

/// The key of a handshake (RFC 6455, section 1.3).
const WEB_SOCKET_KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
const WEB_SOCKET_VERSION: &str = "Sec-WebSocket-Version: 13";
const SETTINGS: &str = "HTTP2-Settings: AAMAAABkAAQAAP__";

/// Headers that ask for another protocol than a WebSocket (RFC 9110, section 7.8), or also for
/// another one.
const UPGRADES: [&[&str]; 12] = [
    &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", SETTINGS],
    &["connection: upgrade, http2-settings", "upgrade: H2C", SETTINGS],
    &["Connection: keep-alive", "Connection: Upgrade", "Upgrade: h2c", SETTINGS],
    &["Upgrade: h2c"],
    &["Connection:  upgrade ", "Upgrade: \t h2c \t"],
    &["Connection: Upgrade", "Upgrade: TLS/1.2"],
    &["Connection: Upgrade", "Upgrade: websocketh2c"],
    &["Connection: Upgrade", "Upgrade: websocket/13", WEB_SOCKET_KEY, WEB_SOCKET_VERSION],
    &["Connection: Upgrade, HTTP2-Settings", "Upgrade: websocket, h2c", SETTINGS, WEB_SOCKET_KEY],
    &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c,websocket", SETTINGS, WEB_SOCKET_KEY],
    &["Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c", SETTINGS, WEB_SOCKET_KEY],
    &["Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket", SETTINGS, WEB_SOCKET_KEY],
];

const WEB_SOCKET: [&str; 4] =
    ["Connection: Upgrade", "Upgrade: websocket", WEB_SOCKET_VERSION, WEB_SOCKET_KEY];

const PREFLIGHT: [&str; 2] = ["Origin: https://app.example", "Access-Control-Request-Method: GET"];

/// Accepts the protocol that a request asks for, and echoes each byte from then on. The response
/// has all requested protocols, and the identity headers of the request.
pub fn upgrade(mut request: Request, identity: &str) -> Response {
    let connection = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(connection) = connection.await else { return };
        let mut stream = TokioIo::new(connection);
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            stream.write_all(&byte).await.unwrap();
        }
    });
    let headers = request.headers();
    let protocols = headers.get_all(header::UPGRADE).iter().map(|name| name.to_str().unwrap());
    let protocols: Vec<_> = protocols.collect();
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocols[0])
        .header("x-requested-protocols", protocols.join(", "))
        .header(header::SEC_WEBSOCKET_ACCEPT, web_socket_accept(headers))
        .header("x-identity", identity)
        .body(Body::empty())
        .unwrap()
}

/// Returns the response to the key of a handshake (RFC 6455, section 4.2.2).
fn web_socket_accept(headers: &HeaderMap) -> String {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map_or(&[][..], HeaderValue::as_bytes);
    let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text).as_ref())
}

/// Sends a request with these headers exactly as they are, and returns the response: its head, and
/// its body if it is a 200 with a `Content-Length`.
pub async fn exchange(url: &str, method: &str, target: &str, headers: &[&str]) -> String {
    let (_, response) = open(url, method, target, headers).await;
    response
}

/// Like [`exchange`], and returns the connection as well.
async fn open(url: &str, method: &str, target: &str, headers: &[&str]) -> (TcpStream, String) {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let host = format!("Host: {address}");
    let start = format!("{method} {target} HTTP/1.1");
    let lines: Vec<_> = [&*start, &host].iter().chain(headers).copied().collect();
    stream.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes()).await.unwrap();
    let response = with_timeout("the gateway answers", read_response(&mut stream)).await;
    (stream, response)
}

async fn read_response(stream: &mut TcpStream) -> String {
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await.unwrap());
    }
    let mut response = String::from_utf8(response).unwrap();
    if response.starts_with("HTTP/1.1 200") {
        let head = response.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
        stream.read_exact(&mut body).await.unwrap();
        response.push_str(&String::from_utf8(body).unwrap());
    }
    response
}

/// Checks which tunnels a client can open through HTTP/1.1.
pub async fn check_tunnels(url: &str, tenant: &Tenant) {
    let authorization = format!("Authorization: Bearer {}", tenant.reader.secret);
    for upgrade in UPGRADES {
        let authorized =
            exchange(url, "GET", "/", &[&[&*authorization][..], upgrade].concat()).await;
        assert_no_tunnel(&authorized, url, upgrade);
    }
    for upgrade in UPGRADES.into_iter().chain([&WEB_SOCKET[..]]) {
        let context = format!("{url} {upgrade:?}");
        let anonymous = exchange(url, "GET", "/", upgrade).await;
        assert!(anonymous.starts_with("HTTP/1.1 4"), "{context}: {anonymous}");
        let headers = [&PREFLIGHT[..], &[&*authorization], upgrade].concat();
        let preflight = exchange(url, "OPTIONS", "/", &headers).await;
        assert!(is_passed(&preflight, "OPTIONS") || is_rejected(&preflight), "{context}");
    }
    let address = url.strip_prefix("http://").unwrap();
    let authorization = format!("Authorization: Bearer {}", tenant.writer.secret);
    for target in [address, "/v1/things"] {
        let refused = exchange(url, "CONNECT", target, &[&authorization]).await;
        assert!(is_rejected(&refused), "{url} CONNECT {target}: {refused}");
    }
}

/// Either the gateway rejects the request, or the API gets it without an `Upgrade`. If a WebSocket
/// is one of several headers, the API may get that alone.
fn assert_no_tunnel(response: &str, url: &str, upgrade: &[&str]) {
    let is_safe = if response.starts_with("HTTP/1.1 101") {
        let received = response.to_lowercase();
        upgrade.contains(&"Upgrade: websocket")
            && received.contains("\r\nx-requested-protocols: websocket\r\n")
    } else {
        is_passed(response, "GET\n") || is_rejected(response)
    };
    assert!(is_safe, "{url} {upgrade:?}: {response}");
}

/// Returns true if the API has answered a request without an `Upgrade`.
fn is_passed(response: &str, body: &str) -> bool {
    let parts = response.split_once("\r\n\r\n");
    response.starts_with("HTTP/1.1 200") && parts.is_some_and(|(_, text)| text.starts_with(body))
}

/// Returns true if the gateway has rejected a request for what it asks for.
fn is_rejected(response: &str) -> bool {
    ["400", "403", "404", "405"].iter().any(|status| response[9..].starts_with(status))
}

/// A WebSocket is opened with a good credential only, and carries data in both directions.
pub async fn check_web_socket(url: &str, tenant: &Tenant) {
    let reader = &tenant.reader;
    let good = reader.secret.as_str();
    let removing = "keep-alive, Upgrade, X-Auth-Scope, X-Auth-Workspace-Id";
    for (key, connection, protocol, status) in [
        (good, "Upgrade", "websocket", "101"),
        (good, "upgrade", "WebSocket", "101"),
        (good, removing, "websocket", "101"),
        ("nonsense", "Upgrade", "websocket", "401"),
    ] {
        let authorization = format!("Authorization: Bearer {key}");
        let headers = [format!("Connection: {connection}"), format!("Upgrade: {protocol}")];
        let [connection, upgrade] = &headers;
        let headers = [&*authorization, connection, upgrade, WEB_SOCKET_VERSION, WEB_SOCKET_KEY];
        let (mut stream, head) = open(url, "GET", "/v1/stream", &headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{url} {headers:?}: {head}");
        if status == "101" {
            let identity = format!("x-auth-scope: read-only, x-auth-subject: {}, ", reader.id);
            assert!(head.contains(&identity), "{url}: {head}");
            assert!(head.contains("x-auth-workspace-id: ws_"), "{url}: {head}");
            let echo = async {
                stream.write_all(b"ping").await.unwrap();
                let mut echo = [0; 4];
                stream.read_exact(&mut echo).await.unwrap();
                assert_eq!(&echo, b"ping");
            };
            with_timeout("the WebSocket answers", echo).await;
        }
    }
}

/// Checks which tunnels a client can open through HTTP/2. Only some gateways pass on a `WebSocket`
/// there (RFC 8441).
pub async fn check_http2_tunnels(url: &str, tenant: &Tenant, has_web_sockets: bool) {
    let arguments = [url, &tenant.writer.secret, "h2c", "websocket"];
    let mut script = Script::node("tunnels.mjs", &arguments, &[]);
    let refused = script.read_line_after("CONNECT").await;
    assert!(refused.starts_with('4'), "{url}: {refused}");
    if has_web_sockets {
        let passed = script.read_line_after("h2c").await;
        assert_eq!(passed, "200 GET", "{url}");
        assert_eq!(script.read_line_after("websocket").await, "200 ping", "{url}");
    }
    script.expect_success().await;
}
