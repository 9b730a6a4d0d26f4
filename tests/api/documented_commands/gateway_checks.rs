//! Checks of a gateway that asks the service: its responses to clients, and its requests to the
//! API.

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, Method, header},
    response::Response,
    routing::any,
};
use tokio::{net::TcpListener, process::Command};

use super::gateway_tunnels::{exchange, upgrade};
use crate::fixture::{Key, TestApp, TestRequest, TestResponse, TestUser};

/// Identity headers that clients make up. CGI and WSGI do not distinguish hyphens and underscores.
const FORGED: [(&str, &str); 9] = [
    ("x_auth_scope", "forged"),
    ("x-auth_scope", "forged"),
    ("x_auth_workspace-id", "forged"),
    ("x_auth-subject", "forged"),
    ("x-auth-subject", "forged"),
    ("x-auth-workspace-id", "forged"),
    ("x-auth-scope", "forged"),
    ("x-auth-key-id", "forged"),
    ("x-auth-client-id", "forged"),
];

/// Headers with which clients pretend to read.
const FORGED_REQUEST: [(&str, &str); 6] = [
    ("x-forwarded-method", "GET"),
    ("x-forwarded-uri", "/harmless"),
    ("x-original-method", "GET"),
    ("x-original-uri", "/harmless"),
    ("x-original-url", "/harmless"),
    ("x-http-method-override", "GET"),
];

/// Headers that state another method than that of the request.
const METHOD_OVERRIDES: [&str; 3] =
    ["x-http-method-override", "x-http-method", "x-method-override"];

const IDENTITY: [&str; 5] =
    ["x-auth-subject", "x-auth-workspace-id", "x-auth-scope", "x-auth-key-id", "x-auth-client-id"];

const PREFLIGHT: [(&str, &str); 2] =
    [("origin", "https://app.example"), ("access-control-request-method", "POST")];

const PATH: &str = "/v1/things?scope=openid";

/// A workspace with keys.
pub struct Tenant {
    pub owner: TestUser,
    pub writer: Key,
    pub reader: Key,
}

/// Values of `Connection` with which clients let a proxy remove headers (RFC 9110, section 7.6.1).
const REMOVING: [&str; 4] = [
    "x-auth-scope",
    "keep-alive, X-Auth-Subject, X-Auth-Workspace-Id, X-Auth-Scope, X-Auth-Key-Id",
    "close, x-auth-workspace-id",
    "close, x-original-method, x-original-uri, x-forwarded-method, x-forwarded-uri, \
     x-forwarded-for",
];

/// Starts an API that returns the method and the credentials of a request. It accepts each
/// `Upgrade` and then echoes each byte. Returns its address.
pub async fn start_upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = Router::new().fallback(any(respond));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn respond(request: Request) -> Response {
    let identity = identity_of(request.headers());
    if request.headers().contains_key(header::UPGRADE) {
        return upgrade(request, &identity.join(", "));
    }
    let mut lines = vec![request.method().to_string()];
    lines.extend(identity);
    if request.method() == Method::OPTIONS {
        lines.extend(unsafe_names(request.headers()));
    }
    lines[1..].sort_unstable();
    Response::new(lines.join("\n").into())
}

/// Returns the names of those headers that no preflight request may have.
fn unsafe_names(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let names = headers.keys().map(|name| name.as_str().replace('_', "-"));
    names.filter(|name| {
        let is_credential = ["authorization", "cookie"].contains(&&**name);
        is_credential || METHOD_OVERRIDES.contains(&&**name)
    })
}

/// Returns the identity headers that are not empty, sorted: some gateways drop empty ones.
fn identity_of(headers: &HeaderMap) -> Vec<String> {
    let is_identity = |name: &str| name.replace('_', "-").starts_with("x-auth-");
    let headers =
        headers.iter().filter(|(name, value)| !value.is_empty() && is_identity(name.as_str()));
    let headers = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
    let mut headers: Vec<_> = headers.collect();
    headers.sort_unstable();
    headers
}

async fn send(
    app: &TestApp,
    url: &str,
    method: &str,
    key: Option<&str>,
    headers: &[(&str, &str)],
) -> TestResponse {
    let request = TestRequest::new(&app.http, url, method, PATH);
    let request = key.into_iter().fold(request, TestRequest::bearer);
    let headers = FORGED.iter().chain(headers);
    headers.fold(request, |request, (name, value)| request.header(name, value)).send().await
}

/// Checks which requests pass, and the identity headers that the API gets.
pub async fn check_requests(app: &TestApp, url: &str) -> Tenant {
    let owner = app.register(&format!("gateway-{}", url.rsplit(':').next().unwrap())).await;
    let writer = app.create_key(&owner, "writer", "write").await;
    let reader = app.create_key(&owner, "reader", "read-only").await;
    let tenant = Tenant { owner, writer, reader };
    check_identity(app, url, &tenant).await;
    check_removing_connection_header(url, &tenant).await;
    let (reader, get) = (Some(tenant.reader.secret.as_str()), "GET");
    for method in ["GET", "HEAD"] {
        assert_eq!(send(app, url, method, reader, &[]).await.status, 200, "{url} {method}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        for headers in [&[][..], &FORGED_REQUEST] {
            let refused = send(app, url, method, reader, headers).await;
            assert_eq!(refused.status, 403, "{url} {method} {headers:?}: {}", refused.text);
        }
    }
    for name in METHOD_OVERRIDES {
        let hidden = [(name, "DELETE")];
        assert_eq!(send(app, url, get, reader, &hidden).await.status, 403, "{url} {name}");
    }
    for key in [None, Some("nonsense")] {
        let refused = send(app, url, get, key, &FORGED_REQUEST).await;
        assert_eq!(refused.status, 401, "{url}: {}", refused.text);
        assert!(refused.headers.contains_key("www-authenticate"), "{url}");
    }
    let revoked = app.create_key(&tenant.owner, "revoked", "write").await;
    assert_eq!(send(app, url, get, Some(&revoked.secret), &[]).await.status, 200, "{url}");
    let revoke = app.delete(&format!("/v1/api-keys/{}", revoked.id));
    revoke.bearer(&tenant.owner.access_token).send().await.expect_status(204);
    assert_eq!(send(app, url, get, Some(&revoked.secret), &[]).await.status, 401, "{url}");
    check_preflight(app, url, &tenant).await;
    tenant
}

/// Headers of the client are replaced, also those for which the credential has no value.
async fn check_identity(app: &TestApp, url: &str, tenant: &Tenant) {
    let Tenant { owner, writer, .. } = tenant;
    let workspace = &owner.workspace_id;
    let passed = send(app, url, "POST", Some(&writer.secret), &[]).await;
    let key = &writer.id;
    let expected = format!(
        "POST\nx-auth-key-id: {key}\nx-auth-scope: write\nx-auth-subject: {key}\n\
         x-auth-workspace-id: {workspace}"
    );
    assert_eq!((passed.status.as_u16(), passed.text), (200, expected), "{url}");
    let passed = send(app, url, "DELETE", Some(&owner.access_token), &[]).await;
    let user = &owner.user_id;
    let expected = format!(
        "DELETE\nx-auth-scope: admin\nx-auth-subject: {user}\nx-auth-workspace-id: {workspace}"
    );
    assert_eq!((passed.status.as_u16(), passed.text), (200, expected), "{url}");
}

/// A client that names headers in `Connection` removes none of those that the gateway sets, neither
/// for the check nor for the API.
async fn check_removing_connection_header(url: &str, tenant: &Tenant) {
    let Tenant { owner, writer, reader } = tenant;
    for connection in REMOVING {
        for (method, key, status) in
            [("DELETE", writer, "200"), ("GET", reader, "200"), ("DELETE", reader, "403")]
        {
            let authorization = format!("Authorization: Bearer {}", key.secret);
            let connection_header = format!("Connection: {connection}");
            let request = [&*authorization, &connection_header];
            let answer = exchange(url, method, "/v1/things", &request).await;
            // Envoy rejects a request that names X-Forwarded-For.
            if connection.contains("x-forwarded-for") && answer.starts_with("HTTP/1.1 400") {
                continue;
            }
            let context = format!("{url} {method} {connection}: {answer}");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{context}");
            if status == "200" {
                let scope = if method == "GET" { "read-only" } else { "write" };
                let expected = format!(
                    "{method}\nx-auth-key-id: {id}\nx-auth-scope: {scope}\nx-auth-subject: {id}\n\
                     x-auth-workspace-id: {}",
                    owner.workspace_id,
                    id = key.id,
                );
                assert!(answer.ends_with(&format!("\r\n\r\n{expected}")), "{context}");
            }
        }
    }
}

/// Returns a name with each of its hyphens as a hyphen or an underscore.
fn spellings(name: &str) -> Vec<String> {
    name.split('-').fold(Vec::new(), |starts: Vec<String>, part| {
        if starts.is_empty() {
            return vec![part.to_owned()];
        }
        let join = |start: &String| ["-", "_"].map(|separator| format!("{start}{separator}{part}"));
        starts.iter().flat_map(join).collect()
    })
}

/// A preflight request reaches the API without credentials and without headers that state another
/// method, and no other request does.
async fn check_preflight(app: &TestApp, url: &str, tenant: &Tenant) {
    for key in [None, Some(tenant.writer.secret.as_str()), Some("nonsense")] {
        let passed = send(app, url, "OPTIONS", key, &PREFLIGHT).await;
        assert_eq!((passed.status.as_u16(), passed.text.as_str()), (200, "OPTIONS"), "{url}");
    }
    let names = IDENTITY.iter().chain(&METHOD_OVERRIDES).flat_map(|name| spellings(name));
    let names: Vec<_> = names.chain(["cookie".to_owned()]).collect();
    let forged = names.iter().map(|name| (name.as_str(), "DELETE"));
    let headers: Vec<_> = forged.chain(PREFLIGHT).collect();
    let request = TestRequest::new(&app.http, url, "OPTIONS", PATH);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    let passed = request.bearer(&tenant.writer.secret).send().await;
    assert_eq!((passed.status.as_u16(), passed.text.as_str()), (200, "OPTIONS"), "{url}");
    for (method, headers) in [
        ("OPTIONS", &PREFLIGHT[..1]),
        ("OPTIONS", &PREFLIGHT[1..]),
        ("OPTIONS", &[]),
        ("GET", &PREFLIGHT[..]),
        ("POST", &PREFLIGHT[..]),
    ] {
        let refused = send(app, url, method, None, headers).await;
        assert_eq!(refused.status, 401, "{url} {method} {headers:?}: {}", refused.text);
    }
}

pub async fn check_http2(url: &str, tenant: &Tenant) {
    for (method, key, expected) in [
        ("GET", &tenant.reader, "2 200"),
        ("DELETE", &tenant.reader, "2 403"),
        ("DELETE", &tenant.writer, "2 200"),
    ] {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--http2-prior-knowledge", "-o", "/dev/null", "-X", method]);
        curl.args(["-w", "%{http_version} %{http_code}", "-H"]);
        curl.arg(format!("Authorization: Bearer {}", key.secret)).arg(format!("{url}{PATH}"));
        let output = curl.output().await.unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{url} {method}");
    }
}

/// A client over its limit gets a 429 with a time to wait.
pub async fn check_limits(app: &TestApp, url: &str, tenant: &Tenant) {
    let limited = app.create_key(&tenant.owner, "limited", "write").await;
    let mut connection = app.database.connect().await;
    let sql = "UPDATE workspaces SET rate_limit_per_minute = 1 WHERE name LIKE 'gateway-%'";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    assert_eq!(send(app, url, "GET", Some(&limited.secret), &[]).await.status, 200);
    let refused = send(app, url, "GET", Some(&limited.secret), &[]).await;
    assert_eq!(refused.status, 429, "{url}: {}", refused.text);
    assert!(refused.header_number("retry-after") >= 1, "{url}");
}

/// During an outage, no request passes.
pub async fn check_outage(app: &TestApp, urls: &[&str]) {
    let owner = app.register("outage").await;
    let key = app.create_key(&owner, "unused", "write").await;
    app.database.allow_connections(false).await;
    for url in urls {
        let refused = send(app, url, "GET", Some(&key.secret), &[]).await;
        assert_eq!(refused.status, 503, "{url}: {}", refused.text);
        assert!(refused.header_number("retry-after") >= 1, "{url}");
    }
}
