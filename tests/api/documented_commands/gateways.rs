//! Forward-auth configurations, with real gateways in front of a real upstream.

use axum::{Router, extract::Request, routing::any};

use super::{demo_service::DemoService, page::Page, shell::Shell};
use crate::fixture::{Gateway, TestApp, TestRequest, TestResponse, free_port};

/// Identity headers that clients make up.
const FORGED: [(&str, &str); 4] = [
    ("x-auth-subject", "forged"),
    ("x-auth-workspace-id", "forged"),
    ("x-auth-scope", "forged"),
    ("x-auth-key-id", "forged"),
];

/// Starts an API that returns its identity headers. Returns its address.
async fn start_upstream() -> String {
    async fn echo(request: Request) -> String {
        let headers = request.headers().iter();
        let identity = headers.filter(|(name, _)| name.as_str().starts_with("x-auth-"));
        let line = |(name, value)| format!("{name}: {value:?}\n");
        identity.map(line).collect()
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = Router::new().fallback(any(echo));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn send(app: &TestApp, url: &str, method: &str, path: &str, key: &str) -> TestResponse {
    let request = TestRequest::new(&app.http, url, method, path).bearer(key);
    FORGED.iter().fold(request, |request, (name, value)| request.header(name, value)).send().await
}

/// Checks what a gateway passes to the API and to the client. `identity` are the headers that the
/// API gets, with `{workspace}` and `{key}`.
async fn check_gateway(app: &TestApp, url: &str, identity: &[&str]) {
    let owner = app.register(&format!("gateway-{}", url.rsplit(':').next().unwrap())).await;
    let writer = app.create_key(&owner, "writer", "write").await;
    let reader = app.create_key(&owner, "reader", "read-only").await;
    let passed = send(app, url, "POST", "/v1/things", &writer.secret).await;
    assert_eq!(passed.status, 200, "{}", passed.text);
    let mut headers: Vec<&str> = passed.text.lines().collect();
    headers.sort_unstable();
    let expected = identity.iter().map(|header| {
        header.replace("{workspace}", &owner.workspace_id).replace("{key}", &writer.id)
    });
    assert_eq!(headers, expected.collect::<Vec<_>>());
    // The client's query string does not change what is required.
    let read = send(app, url, "GET", "/v1/things?scope=admin", &reader.secret).await;
    assert_eq!(read.status, 200, "{}", read.text);
    assert_eq!(send(app, url, "POST", "/v1/things", &reader.secret).await.status, 403);
    let unknown = send(app, url, "GET", "/v1/things", "nonsense").await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.headers.contains_key("www-authenticate")),
        (401, true)
    );
    // A limited key gets a 429 with a time to wait.
    let limited = app.create_key(&owner, "limited", "write").await;
    let mut connection = app.database.connect().await;
    let sql = "UPDATE workspaces SET rate_limit_per_minute = 1 WHERE name LIKE 'gateway-%'";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    assert_eq!(send(app, url, "GET", "/v1/things", &limited.secret).await.status, 200);
    let refused = send(app, url, "GET", "/v1/things", &limited.secret).await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert!(refused.headers.contains_key("retry-after"));
}

/// Runs the variant of the nginx configuration together with the rest of the first one.
async fn check_nginx(
    app: &TestApp,
    first: &str,
    variant: &str,
    upstream: &str,
) -> (Gateway, String) {
    let auth = &first[first.find("location = /_auth").unwrap()..];
    let locations = format!("{variant}{auth}")
        .replace("http://auth:8080", &app.url)
        .replace("http://api", &format!("http://{upstream}"));
    let port = free_port();
    let server = format!("server {{ listen 127.0.0.1:{port}; {locations} }}");
    let nginx = Gateway::nginx(port, &server).await;
    let url = format!("http://127.0.0.1:{port}");
    check_gateway(app, &url, &["x-auth-workspace-id: \"{workspace}\""]).await;
    (nginx, url)
}

async fn check_caddy(app: &TestApp, caddyfile: &str, upstream: &str) {
    let port = free_port();
    let caddyfile = caddyfile
        .replace("api.example.com", &format!("http://127.0.0.1:{port}"))
        .replace("auth:8080", app.url.strip_prefix("http://").unwrap())
        .replace("api:8080", upstream);
    let _caddy = Gateway::caddy(port, &caddyfile).await;
    let identity = [
        "x-auth-scope: \"write\"",
        "x-auth-subject: \"{key}\"",
        "x-auth-workspace-id: \"{workspace}\"",
    ];
    check_gateway(app, &format!("http://127.0.0.1:{port}"), &identity).await;
}

/// Debian has no package of Traefik. So the configuration is parsed, and the service is asked as
/// Traefik asks it: each header that Traefik copies is in the response.
async fn check_traefik(shell: &mut Shell, configuration: &str) {
    std::fs::write(shell.path().join("traefik.yml"), configuration).unwrap();
    let program = "import yaml; http = yaml.safe_load(open('traefik.yml')).pop('http'); \
                   auth = http['middlewares']['call2me-auth'].pop('forwardAuth'); \
                   print(auth.pop('address'), *auth.pop('authResponseHeaders')); assert not auth";
    let values = shell.run(&format!("python3 -c \"{program}\"")).await;
    let mut values = values.split_whitespace();
    let address = values.next().unwrap().replace("http://auth:8080", "$URL");
    let request = format!(
        "curl -si {address} -H \"Authorization: Bearer $KEY\" -H 'X-Forwarded-Method: POST' \
         -H 'X-Forwarded-Uri: /v1/things' -H 'X-Forwarded-For: 192.0.2.7'"
    );
    let response = shell.run(&request).await.to_lowercase();
    assert!(response.starts_with("http/1.1 200"), "{response}");
    for header in values {
        assert!(response.contains(&format!("\n{}:", header.to_lowercase())), "{response}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_commands_work() {
    let settings = [("server.trusted_proxies", "127.0.0.1")];
    let DemoService { app, mut shell } = DemoService::start(&settings).await;
    let mut page = Page::read("docs/gateways.md");
    // `gateway::…` runs the first configuration of nginx alone.
    let [first, variant] = [page.take("nginx"), page.take("nginx")];
    let (traefik, caddy) = (page.take("yaml"), page.take("caddyfile"));
    page.run(&mut shell).await;
    check_traefik(&mut shell, &traefik).await;
    let upstream = start_upstream().await;
    check_caddy(&app, &caddy, &upstream).await;
    let (_nginx, url) = check_nginx(&app, &first, &variant, &upstream).await;
    // An outage lets no request pass.
    let owner = app.register("outage").await;
    let key = app.create_key(&owner, "unused", "write").await;
    app.database.allow_connections(false).await;
    let refused = send(&app, &url, "GET", "/v1/things", &key.secret).await;
    assert_eq!((refused.status.as_u16(), refused.headers.contains_key("retry-after")), (503, true));
}
