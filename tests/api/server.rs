//! The accept loop, timeouts, panics, startup and graceful shutdown.

use std::{sync::Arc, time::Duration};

use axum::Router;
use call2me_auth::{
    http::{
        endpoint::Endpoint,
        extract::{AccessRule, Open, Public},
        middleware::{HttpService, OpenRouteCeiling, protect_route},
        route_types::Route,
    },
    server::Respond as _,
};
use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fixture::{TestApp, TestClient, with_timeout};

async fn connect(app: &TestClient) -> TcpStream {
    TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Reads a response with a `Content-Length`. Returns its head.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(stream.read_u8().await.unwrap()));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    head
}

#[tokio::test]
async fn slow_or_idle_connection_is_closed() {
    let app = TestApp::start_with(&[("server.header_timeout_seconds", "1")]).await;
    let mut slow = connect(&app).await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    let mut idle = connect(&app).await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let silent = &mut connect(&app).await;
    for stream in [&mut slow, &mut idle, silent] {
        let mut response = Vec::new();
        let read = stream.read_to_end(&mut response);
        with_timeout("the connection is closed", read).await.ok();
    }
}

#[tokio::test]
async fn connection_over_limit_waits() {
    let app = TestApp::start_with(&[("server.max_connections", "1")]).await;
    let first = connect(&app).await;
    let mut second = connect(&app).await;
    second.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(200), second.read(&mut byte)).await;
    assert!(early.is_err(), "no response before a connection is free");
    drop(first);
    let mut response = String::new();
    second.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let app = TestApp::start_with(&[("server.max_connections_per_address", "3")]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(connect(&app).await);
    }
    // The next connection is closed before its request is read.
    let mut byte = [0];
    assert_eq!(connect(&app).await.read(&mut byte).await.unwrap_or(0), 0);
    drop(held);
    while app.http.get(format!("{}/livez", app.url)).send().await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn client_that_does_not_read_is_disconnected() {
    let app = TestApp::start_with(&[
        ("server.max_connections", "1"),
        ("server.write_timeout_seconds", "1"),
    ])
    .await;
    let mut stalled = connect(&app).await;
    let request = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n";
    stalled.write_all(request.repeat(20).as_bytes()).await.unwrap();
    // The only connection is free again for another client.
    let other = app.get("/livez").send();
    let other = with_timeout("another client is served", other).await;
    assert_eq!(other.status, 200);
    drop(stalled);
}

#[tokio::test]
async fn incomplete_body_is_bad_request() {
    let app = TestApp::start_with(&[("server.header_timeout_seconds", "1")]).await;
    let mut stream = connect(&app).await;
    let head = "POST /v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    assert!(response.contains("took too long to arrive"), "{response}");
}

#[tokio::test]
async fn slow_handler_is_503() {
    // A busy machine may take longer than that to hash a password.
    let patient = TestApp::start().await;
    let dana = patient.register("acme").await;
    let changes = [
        ("server.handler_timeout_seconds", "1"),
        // The issuer of access tokens.
        ("server.public_url", patient.url.as_str()),
    ];
    let app = TestApp::start_on(patient.database.clone(), &changes).await;
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    tx.execute("LOCK TABLE documents").await.unwrap();
    let response = app.get("/v1/agents").bearer(&dana.access_token).send().await;
    response.assert_error(503, "unavailable");
    tx.rollback().await.unwrap();
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    let events = app.wait_for_event(&dana.access_token, "status=503", |_| true).await;
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn panic_is_500_with_usual_error_body() {
    async fn panicking_handler(_: Public) -> &'static str {
        panic!("as a test")
    }
    let app = TestApp::start().await;
    let mut route = call2me_auth::http::routes::route_table().into_iter().next().unwrap();
    route = Route {
        method: Some(axum::http::Method::GET),
        access_rule: AccessRule::Open,
        endpoint: Endpoint::new::<Open, _>(panicking_handler),
        path: "/v1/panics",
        ..route
    };
    let ceiling = OpenRouteCeiling::new(1.try_into().unwrap());
    let router = Router::new()
        .route("/v1/panics", protect_route(route, &app.app, &ceiling))
        .with_state(Arc::clone(&app.app));
    let request = axum::http::Request::get("/v1/panics")
        .header("host", "localhost")
        .body(axum::body::Body::empty())
        .unwrap();
    let service = HttpService::new(Arc::clone(&app.app), router);
    let response = service.respond([127, 0, 0, 1].into(), request).await;
    assert_eq!(response.status(), 500);
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["error"]["code"], "internal");
    assert!(!body.to_string().contains("as a test"));
}

#[tokio::test]
async fn graceful_shutdown_finishes_requests_and_writes_log() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    tx.execute("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let request =
        app.post("/v1/agents").bearer(&dana.access_token).json(json!({ "agent_name": "a" }));
    let in_flight = tokio::spawn(request.send());
    app.database.wait_for_blocked_statement().await;
    let url = app.url.clone();
    let stopping = tokio::spawn(app.stop());
    // New connections are refused.
    let address = url.strip_prefix("http://").unwrap();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    tx.commit().await.unwrap();
    in_flight.await.unwrap().expect_status(201);
    let database = stopping.await.unwrap();
    let written: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_events WHERE action = 'request' AND status = 201 AND path = '/v1/agents'",
    )
    .fetch_one(&mut database.connect().await)
    .await
    .unwrap();
    assert_eq!(written, 1);
}

/// The request's audit event is still written, and other nodes need not wait for this one.
#[tokio::test]
async fn request_over_shutdown_timeout_is_aborted_and_logged() {
    let app = TestApp::start_with(&[("server.shutdown_timeout_seconds", "1")]).await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    tx.execute("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let in_flight = tokio::spawn(app.get("/v1/agents").bearer(&dana.access_token).try_send());
    app.database.wait_for_blocked_statement().await;
    let database = with_timeout("the service stops", app.stop()).await;
    assert!(in_flight.await.unwrap().is_err());
    let counts: (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM audit_events WHERE status = 499 AND path = '/v1/agents'),
                (SELECT count(*) FROM nodes)",
    )
    .fetch_one(&mut database.connect().await)
    .await
    .unwrap();
    assert_eq!(counts, (1, 0));
    tx.rollback().await.unwrap();
}

#[tokio::test]
async fn restart_keeps_sessions_keys_and_signing_key() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let jwks = app.get("/.well-known/jwks.json").send().await.text;
    let address = app.url.strip_prefix("http://").unwrap().to_owned();
    let url = app.url.clone();
    let database = app.stop().await;
    let app = TestApp::start_on(database, &[("server.public_url", &url)]).await;
    drop(address);
    assert_eq!(app.get("/.well-known/jwks.json").send().await.text, jwks);
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    let refresh = json!({ "refresh_token": dana.refresh_token });
    app.post("/v1/auth/refresh").json(refresh).send().await.expect_status(200);
}

#[tokio::test]
async fn concurrently_started_nodes_share_one_signing_key() {
    let database = crate::fixture::cluster().empty_database().await;
    let start = || TestApp::start_with_skew(database.clone(), &[], time::Duration::ZERO);
    let (a, b, c) = tokio::join!(start(), start(), start());
    let mut key_sets = Vec::new();
    for app in [&a, &b, &c] {
        key_sets.push(app.get("/.well-known/jwks.json").send().await.text);
    }
    assert_eq!(key_sets[0], key_sets[1]);
    assert_eq!(key_sets[1], key_sets[2]);
}

/// A client that sends the body after the head finds its connection open for the next request, also
/// if the first was refused by its head.
#[tokio::test]
async fn connection_survives_request_that_is_refused_before_its_body() {
    let app = TestClient::shared();
    for (path, status, encoding, body) in [
        ("/v1/agents", 401, "content-length: 2", "{}"),
        ("/v1/nowhere", 404, "content-length: 2", "{}"),
        ("/livez", 405, "content-length: 2", "{}"),
        ("/oauth/token", 415, "content-type: text/plain\r\ncontent-length: 2", "{}"),
    ] {
        let mut stream = connect(&app).await;
        for _ in 0..2 {
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{encoding}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.write_all(body.as_bytes()).await.unwrap();
            let response = with_timeout(path, read_head(&mut stream)).await;
            assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {response}");
            assert!(!response.contains("connection: close"), "{path}: {response}");
        }
    }
}

#[tokio::test]
async fn client_is_told_of_close_if_body_is_not_read() {
    let app = TestClient::shared();
    for header in ["", "expect: 100-continue\r\n"] {
        let mut stream = connect(&app).await;
        let head =
            format!("POST /v1/agents HTTP/1.1\r\nhost: x\r\n{header}content-length: 9\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut response = String::new();
        let read = stream.read_to_string(&mut response);
        with_timeout("the connection is closed", read).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 401"), "{response}");
        assert!(response.contains("connection: close"), "{response}");
    }
}

/// Clients that announce a body of any size and send one byte hold up no large body.
#[tokio::test]
async fn stalled_bodies_do_not_hold_up_large_ones() {
    let app = TestApp::start_with(&[
        ("server.header_timeout_seconds", "3600"),
        ("server.handler_timeout_seconds", "3600"),
    ])
    .await;
    let dana = app.register("acme").await;
    let mut stalled = Vec::new();
    for path in ["/oauth/token", "/v1/auth/login", "/v1/agents"] {
        for _ in 0..140 {
            let mut stream = connect(&app).await;
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
                 content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
                dana.access_token
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stalled.push(stream);
        }
    }
    let body = json!({ "agent_name": "a", "notes": "x".repeat(100_000) });
    let create = app.post("/v1/agents").bearer(&dana.access_token).json(body).send();
    with_timeout("a large body is read", create).await.expect_status(201);
}

/// Clients that send more than a small body and then nothing hold up those of another workspace for
/// a moment only, and get an error.
#[tokio::test]
async fn stalled_large_bodies_give_way() {
    let app = TestApp::start_with(&[
        ("server.header_timeout_seconds", "3600"),
        ("server.handler_timeout_seconds", "3600"),
        ("server.trusted_proxies", "127.0.0.1"),
    ])
    .await;
    let [dana, wim] = [app.register("acme").await, app.register("widgets-inc").await];
    let key = app.create_key(&dana, "prod", "write").await;
    let mut stalled = Vec::new();
    for address in 0..12 {
        for _ in 0..8 {
            let mut stream = connect(&app).await;
            let head = format!(
                "POST /v1/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
                 x-forwarded-for: 192.0.2.{address}\r\ncontent-type: application/json\r\n\
                 content-length: 30000\r\n\r\n{}",
                key.secret,
                " ".repeat(17_000)
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stalled.push(stream);
        }
    }
    let body = json!({ "agent_name": "a", "notes": "x".repeat(100_000) });
    let create = app.post("/v1/agents").bearer(&wim.access_token).json(body).send();
    with_timeout("a large body is read", create).await.expect_status(201);
    for mut stream in stalled {
        let head = with_timeout("an answer", read_head(&mut stream)).await;
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
    }
}

/// A gateway that sends the client's body along would otherwise wait for it.
#[tokio::test]
async fn gateway_check_with_body_is_answered_without_reading_it() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    for (path, credential, status) in [
        ("/v1/auth/verify", key.secret.as_str(), 200),
        ("/v1/auth/verify/v1/things", "nonsense", 401),
        ("/v1/auth/require/admin", &key.secret, 403),
    ] {
        for (framing, sent) in [
            ("content-length: 2", "{}"),
            ("content-length: 1000000", "{"),
            ("transfer-encoding: chunked", ""),
        ] {
            let mut stream = connect(&app).await;
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {credential}\r\n\
                 {framing}\r\n\r\n{sent}"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let head = with_timeout("an answer", read_head(&mut stream)).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path} {framing}: {head}");
            assert!(head.contains("connection: close"), "{path} {framing}: {head}");
        }
        // Without a body, the connection stays open.
        let mut stream = connect(&app).await;
        for _ in 0..2 {
            let request = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {credential}\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let head = with_timeout("an answer", read_head(&mut stream)).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}");
        }
    }
}
