//! Forward-auth with a real nginx in front of a real upstream, configured as in docs/gateways.md.

use axum::{Router, extract::Request, routing::any};

use crate::fixture::{Gateway, TestApp, TestRequest, TestResponse, free_port};

/// Starts nginx as in docs/gateways.md and returns it with its URL.
async fn start_nginx(auth: &str, upstream: &str) -> (Gateway, String) {
    let page = include_str!("../../docs/gateways.md");
    let http = page.split("```nginx\n").nth(1).unwrap().split("```").next().unwrap();
    let port = free_port();
    let http = http
        .replace("http://auth:8080", auth)
        .replace("http://api:8080", upstream)
        .replace("listen 80;", &format!("listen 127.0.0.1:{port};"));
    (Gateway::nginx(port, &http).await, format!("http://127.0.0.1:{port}"))
}

/// Starts an API that returns the request line and the workspace that nginx passes on.
async fn start_upstream() -> String {
    async fn echo(request: Request) -> String {
        let workspace = request.headers().get("x-auth-workspace-id");
        format!("{} {} for {workspace:?}", request.method(), request.uri())
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(any(echo));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test]
async fn nginx_forwards_only_authorized_requests() {
    let app = TestApp::start_with(&[("server.trusted_proxies", "127.0.0.1")]).await;
    let dana = app.register("acme").await;
    let [writer, reader] = [
        app.create_key(&dana, "writer", "write").await,
        app.create_key(&dana, "reader", "read-only").await,
    ];
    let (_nginx, url) = start_nginx(&app.url, &start_upstream().await).await;
    let send = async |method: &str, key: &str, extra: &[(&str, &str)]| -> TestResponse {
        let mut call = TestRequest::new(&app.http, &url, method, "/v1/things?secret=1");
        for (name, value) in extra {
            call = call.header(name, value);
        }
        call.bearer(key).send().await
    };
    let forwarded = send("POST", &writer.secret, &[("x-auth-workspace-id", "ws_forged")]).await;
    assert_eq!(forwarded.status, 200);
    assert!(forwarded.text.starts_with("POST /v1/things?secret=1 for"), "{}", forwarded.text);
    assert!(forwarded.text.contains(&dana.workspace_id) && !forwarded.text.contains("forged"));
    assert_eq!(send("GET", &reader.secret, &[]).await.status, 200);
    assert_eq!(send("POST", &reader.secret, &[]).await.status, 403);
    assert_eq!(send("GET", "nonsense", &[]).await.status, 401);
    // Headers of the client cannot replace the method and the path.
    let spoofed = [("x-forwarded-method", "GET"), ("x-forwarded-uri", "/harmless")];
    assert_eq!(send("DELETE", &reader.secret, &spoofed).await.status, 403);
    app.delete(&format!("/v1/api-keys/{}", writer.id))
        .bearer(&dana.access_token)
        .send()
        .await
        .expect_status(204);
    assert_eq!(send("POST", &writer.secret, &[]).await.status, 401);
    let query = format!("key_id={}&action=request", reader.id);
    let events = app.wait_for_event_count(&dana.access_token, &query, 3).await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| {
            let request = &event["request"];
            format!("{} {} {}", request["method"], request["path"], request["status"])
        })
        .collect();
    assert_eq!(
        seen,
        [
            "\"DELETE\" \"/v1/things\" 403",
            "\"POST\" \"/v1/things\" 403",
            "\"GET\" \"/v1/things\" 200",
        ]
    );
}
