//! Hostile input gets the error body of the API contract, never a 500 and never a partial write.

use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fixture::{PASSWORD, TestApp, TestClient};

#[tokio::test]
async fn body_that_is_no_json_object_is_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    for path in ["/v1/agents", "/v1/api-keys"] {
        let post = |body: Vec<u8>| {
            app.post(path).bearer(&dana.access_token).body("application/json", body).send()
        };
        for malformed in [
            &b"{"[..],
            b"{]",
            b"nul",
            b"{\"name\":\"a\"} x",
            b"{\"name\":1e999}",
            b"{\"name\":\"\xff\xfe\"}",
            b"{\"name\":\"\\ud800\"}",
            b"{\"name\":\"\x00\"}",
            b"{'name':'a'}",
            b"\xef\xbb\xbf{}",
        ] {
            post(malformed.to_vec()).await.assert_error(400, "bad_request");
        }
        let deep = format!("{{\"name\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
        post(deep.into_bytes()).await.assert_error(400, "bad_request");
        for other in ["[]", "7", "\"a\"", "null", "true"] {
            post(other.as_bytes().to_vec()).await.assert_error(422, "validation_failed");
        }
        let field = if path == "/v1/agents" { "agent_name" } else { "name" };
        let nul = post(format!("{{\"{field}\":\"a\\u0000b\"}}").into_bytes()).await;
        nul.assert_error(422, "validation_failed").assert_field(field);
    }
    let duplicate = b"{\"name\":\"a\",\"name\":\"b\"}".to_vec();
    let duplicate = app
        .post("/v1/api-keys")
        .bearer(&dana.access_token)
        .body("application/json", duplicate)
        .send()
        .await;
    duplicate.assert_error(422, "validation_failed").assert_field("name");
    for path in ["/v1/agents", "/v1/api-keys"] {
        let list = app.get(path).bearer(&dana.access_token).send().await.expect_status(200);
        assert_eq!(list["total"], 0, "nothing was created");
    }
}

#[tokio::test]
async fn error_never_quotes_password() {
    let app = TestApp::start().await;
    for body in [
        json!({ "email": "a@b.example", "password": 123_456_789_012_345_i64 }),
        json!({ "email": "a@b.example", "password": { "hunter2hunter2": true } }),
        json!({ "email": "a@b.example", "password": ["hunter2hunter2"] }),
        json!({ "email": "a@b.example", "password": "hunter2" }),
        json!({ "email": "a@b.example", "password": { "expected hunter2": 1 } }),
    ] {
        let answer = app.post("/v1/auth/register").json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field("password");
        assert!(
            !answer.text.contains("hunter2") && !answer.text.contains("12345678"),
            "{}",
            answer.text
        );
    }
}

#[tokio::test]
async fn error_never_quotes_secret_or_long_name() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let secret = "sk_call2me_live_0000000000000000000000000000";
    for body in [
        json!({ "name": "a", "allowed_ips": format!("x, expected {secret}") }),
        json!({ "name": "a", secret: 1 }),
        json!({ "name": "a", secret: "\u{0}" }),
        json!({ "name": "a", "n".repeat(9000): "\u{0}" }),
    ] {
        for path in ["/v1/api-keys", "/v1/agents"] {
            let call = app.post(path).bearer(&dana.access_token).json(body.clone());
            let answer = call.send().await;
            answer.assert_error(422, "validation_failed");
            assert!(
                !answer.text.contains("sk_call2me") && answer.text.len() < 1000,
                "{}",
                answer.text
            );
        }
    }
}

#[tokio::test]
async fn malformed_id_path_or_query_is_client_error() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    for id in [
        "x",
        "agent_",
        "agent_zzzzzzzzzzzzzzzzzzzzzzzzzz",
        "agent_00000000000000000000000000",
        "key_01jd0zt8q7f7qvs4p2k6x3m9ab",
        "%00",
        "%ff%fe",
        "%F0%9F%92%A5",
        "..%2f..%2fetc%2fpasswd",
        "'%20OR%201=1--",
        &"a".repeat(5000),
    ] {
        let path = format!("/v1/agents/{id}");
        app.get(&path).bearer(&dana.access_token).send().await.assert_error(404, "not_found");
        app.delete(&path).bearer(&dana.access_token).send().await.assert_error(404, "not_found");
    }
    for path in ["/v1/agents/", "/v1//agents", "/v1/agents/a/b", "/V1/agents", "/v1/agents%2f"] {
        app.get(path).bearer(&dana.access_token).send().await.assert_error(404, "not_found");
    }
    for query in ["name=%00", "limit=99999999999999999999", "cursor=%00", "name=a&name=b"] {
        let path = format!("/v1/api-keys?{query}");
        app.get(&path)
            .bearer(&dana.access_token)
            .send()
            .await
            .assert_error(422, "validation_failed");
    }
    let long = format!("/v1/api-keys?name={}", "n".repeat(8000));
    app.get(&long).bearer(&dana.access_token).send().await.assert_error(422, "validation_failed");
    // The limits of representable time, in other time zones.
    for (since, expected) in [
        ("9999-12-31T23:59:59-01:00", "rejected"),
        ("0000-01-01T00:00:00%2B01:00", "all"),
        ("1970-01-01T00:00:00%2B14:00", "all"),
        ("9999-12-31T23:59:59Z", "none"),
    ] {
        let path = format!("/v1/audit-log?since={since}");
        let answer = app.get(&path).bearer(&dana.access_token).send().await;
        match expected {
            "rejected" => drop(answer.assert_error(422, "validation_failed").assert_field("since")),
            "all" => assert_ne!(answer.expect_status(200)["events"], json!([]), "{since}"),
            _ => assert_eq!(answer.expect_status(200)["events"], json!([]), "{since}"),
        }
    }
}

#[tokio::test]
async fn unknown_query_parameter_of_change_is_rejected() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "admin").await;
    let path = format!("/v1/api-keys/{}", key.id);
    let by = |method: &str, path: &str| {
        app.request(method, path).bearer(&dana.access_token).json(json!({}))
    };
    for (method, path, field) in [
        // A misspelled condition.
        ("DELETE", format!("{path}?if_quite=true"), "if_quite"),
        ("DELETE", format!("{path}?if_quiet=true&force=1"), "force"),
        ("PATCH", format!("{path}?dry_run"), "dry_run"),
        ("POST", format!("{path}/rotate?dry_run=true"), "dry_run"),
        // Routes that read no query.
        ("POST", "/v1/auth/logout?all=true".to_owned(), "all"),
        ("DELETE", "/v1/auth/sessions?except=x".to_owned(), "except"),
        ("PUT", "/v1/users/me/branding?x=y".to_owned(), "x"),
        ("POST", format!("/v1/agents?{}=1", "sk_call2me_live_abc"), "[redacted]"),
        // An open route.
        ("POST", "/v1/auth/password/forgot?email=x".to_owned(), "email"),
    ] {
        let body = match path.split('?').next() {
            Some("/v1/auth/password/forgot") => json!({ "email": "dana@acme.example" }),
            Some("/v1/agents") => json!({ "agent_name": "a" }),
            _ => json!({}),
        };
        let answer = by(method, &path).json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field(field);
    }
    // Nothing has happened.
    app.get("/v1/auth/me").bearer(&dana.access_token).send().await.expect_status(200);
    app.get("/v1/auth/me").bearer(&key.secret).send().await.expect_status(200);
    // A missing scope, another media type and a malformed query are reported first.
    let reader = app.create_key(&dana, "reader", "read-only").await;
    let delete = format!("{path}?if_quite=true");
    let forbidden = app.delete(&delete).bearer(&reader.secret).send().await;
    forbidden.assert_error(403, "insufficient_scope");
    let text = app.post("/v1/agents?x=y").bearer(&key.secret).body("text/plain", "x").send().await;
    text.assert_error(415, "unsupported_media_type");
    by("DELETE", &format!("{path}?%zz")).send().await.assert_error(400, "bad_request");
    // Reads, forward-auth and OAuth endpoints ignore unknown parameters.
    for (method, path, status) in [
        ("GET", format!("{path}?if_quite=true"), 200),
        ("HEAD", format!("{path}?x"), 200),
        ("POST", "/v1/auth/verify/agents?limit=x".to_owned(), 200),
        ("POST", "/oauth/revoke?x=y".to_owned(), 415),
    ] {
        let answer = app.request(method, &path).bearer(&key.secret).send().await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
    }
}

#[tokio::test]
async fn unknown_value_of_filter_is_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    for (path, field) in [
        ("/v1/audit-log?action=api_key.create", "action"),
        ("/v1/audit-log/export?action=requests", "action"),
        ("/v1/audit-log/stream?action=", "action"),
        ("/v1/audit-log?status=600", "status"),
        ("/v1/audit-log/export?format=xml", "format"),
        ("/v1/api-keys?status=gone", "status"),
        ("/v1/oauth/grants?of=everyone", "of"),
    ] {
        let answer = app.get(path).bearer(&dana.access_token).send().await;
        answer.assert_error(422, "validation_failed").assert_field(field);
    }
    for action in call2me_auth::model::audit::Action::ALL {
        let path = format!("/v1/audit-log?action={}", action.as_str());
        app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
    }
}

/// Sends raw bytes and reads the response until the connection closes.
async fn send_raw(app: &TestClient, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn malformed_request_head_ends_only_its_connection() {
    let app = TestClient::shared();
    let close = "host: x\r\nconnection: close\r\n";
    for (bytes, status) in [
        ("GET /x HTTP/1.1\r\nhost: x\r\n\r\n".to_owned() + "garbage\r\n\r\n", "HTTP/1.1 4"),
        ("\x16\x03\x01\x02\x00\x01".to_owned(), ""),
        (format!("GET /{} HTTP/1.1\r\n{close}\r\n", "a".repeat(60_000)), "HTTP/1.1 4"),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n{close}\r\n", "a".repeat(60_000)), "HTTP/1.1 431"),
        (format!("GET / HTTP/1.1\r\n{}{close}\r\n", "x: y\r\n".repeat(200)), "HTTP/1.1 431"),
        (format!("POST /v1/agents HTTP/1.1\r\n{close}content-length: -1\r\n\r\n"), "HTTP/1.1 400"),
        (
            format!(
                "POST /v1/agents HTTP/1.1\r\n{close}content-length: 1\r\ncontent-length: 2\r\n\r\nab"
            ),
            "HTTP/1.1 400",
        ),
        (
            format!("GET /v1/agents HTTP/1.1\r\n{close}authorization: Bearer \x01\r\n\r\n"),
            "HTTP/1.1 400",
        ),
        (
            format!("GET /v1/agents HTTP/1.1\r\n{close}authorization: Bearer \u{ff}\r\n\r\n"),
            "HTTP/1.1 401",
        ),
        (format!("BREW /v1/agents HTTP/1.1\r\n{close}\r\n"), "HTTP/1.1 405"),
    ] {
        let answer = send_raw(&app, bytes.as_bytes()).await;
        assert!(answer.starts_with(status), "{bytes:.60?} {answer:.200}");
        assert!(!answer.contains(" 500 "), "{answer}");
    }
    assert_eq!(app.get("/livez").send().await.status, 200);
}

/// The parser of a proxy may find the end of such requests elsewhere (request smuggling).
#[tokio::test]
async fn ambiguous_request_is_400_and_closes_connection() {
    let app = TestClient::shared();
    let post = "POST /v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let chunks = "2\r\n{}\r\n0\r\n\r\n";
    let first = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let after_body = format!("{post}content-length: 2\r\n\r\n{{}}");
    for ambiguous in [
        // A length and a transfer coding.
        format!("{post}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"),
        format!("{post}transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n{chunks}"),
        format!("{post}Transfer-Encoding: gzip, chunked\r\nContent-Length: 0\r\n\r\n{chunks}"),
        format!("{post}transfer-encoding: chunked, identity\r\n\r\n{chunks}"),
        format!("{post}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"),
        // No host, two hosts, no host name.
        "GET /livez HTTP/1.1\r\n\r\n".to_owned(),
        "GET /v1/agents HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(),
        "GET /oauth/nothing HTTP/1.1\r\nhost: a\r\nx: y\r\nhost: a\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nhost: a b\r\n\r\n".to_owned(),
        // Line feeds without carriage returns.
        "GET /livez HTTP/1.1\nhost: x\n\n".to_owned(),
        "GET /livez HTTP/1.1\r\nhost: x\nx: y\r\n\r\n".to_owned(),
        "GET /livez HTTP/1.1\r\nhost: x\r\n\n".to_owned(),
        "GET /livez HTTP/1.1\r\nhost: x\rx: y\r\n\r\n".to_owned(),
    ] {
        for (before, status) in [("", ""), (first, "HTTP/1.1 200"), (&after_body, "HTTP/1.1 422")] {
            let follower = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
            let answer = send_raw(&app, format!("{before}{ambiguous}{follower}").as_bytes()).await;
            let (own, rest) = answer.split_at(answer.rfind("HTTP/1.1 ").unwrap());
            assert!(rest.starts_with("HTTP/1.1 400"), "{ambiguous:?}: {answer}");
            assert!(rest.to_lowercase().contains("connection: close"), "{ambiguous:?}: {answer}");
            assert!(own.starts_with(status), "{ambiguous:?}: {answer}");
            assert_eq!(own.matches("HTTP/1.1 ").count(), usize::from(!before.is_empty()));
        }
    }
    // Unambiguous ones are served, and the connection stays open.
    for (bytes, count) in [
        (format!("{first}{after_body}\r\n{first}"), 3),
        ("GET /livez HTTP/1.0\r\n\r\n".to_owned(), 1),
        ("GET /livez HTTP/1.1\r\nhost:\r\n\r\n".to_owned(), 1),
        ("GET http://a/livez HTTP/1.1\r\nhost: [::1]:80\r\n\r\n".to_owned(), 1),
        // The connection is closed after a body in chunks: nothing behind it is a request.
        (format!("{post}transfer-encoding: chunked\r\n\r\n{chunks}{first}"), 1),
    ] {
        let last = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let is_closed = bytes.contains("chunked") || bytes.contains("HTTP/1.0");
        let answer = send_raw(&app, format!("{bytes}{last}").as_bytes()).await;
        let answered = count + usize::from(!is_closed);
        assert_eq!(answer.matches("HTTP/1.").count(), answered, "{bytes:?}: {answer}");
        assert!(!answer.contains(" 400 "), "{bytes:?}: {answer}");
    }
}

#[tokio::test]
async fn disconnecting_clients_do_not_affect_others() {
    let app = TestApp::start().await;
    let [dana, wim] = [app.register("acme").await, app.register("widgets-inc").await];
    let [good, aborting] = [
        app.create_key(&dana, "good", "read-only").await,
        app.create_key(&wim, "aborting", "read-only").await,
    ];
    let address = app.url.strip_prefix("http://").unwrap().to_owned();
    let head = format!(
        "GET /v1/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        aborting.secret
    );
    // One client sends requests and disconnects after a different delay each time…
    let aborting = tokio::spawn(async move {
        for attempt in 0..400_u64 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_micros(attempt * 7 % 3000)).await;
        }
    });
    // …while another client reads its responses.
    let mut answered = 0;
    while !aborting.is_finished() {
        app.get("/v1/agents").bearer(&good.secret).send().await.expect_status(200);
        answered += 1;
    }
    aborting.await.unwrap();
    let database = app.stop().await;
    let mut connection = database.connect().await;
    let logged: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit_events WHERE actor_name = 'good'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(logged, answered);
}

#[tokio::test]
async fn disconnect_leaves_no_partial_write() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let address = app.url.strip_prefix("http://").unwrap();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/api-keys HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: 100\r\n\r\n{{\"name\":",
            dana.access_token
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        drop(stream);
    }
    // A body that ends early is logged as a bad request, although no client reads the response.
    app.wait_for_event(&dana.access_token, "method=POST&status=400", |_| true).await;
    let list = app.get("/v1/api-keys").bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(list["total"], 0);

    // A complete request whose client disconnects before the response is cancelled, rolled back
    // and logged.
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    tx.execute("LOCK TABLE documents IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 18\r\n\r\n{{\"agent_name\":\"a\"}}",
        dana.access_token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    app.database.wait_for_blocked_statement().await;
    drop(stream);
    app.wait_for_event(&dana.access_token, "method=POST&status=499", |_| true).await;
    tx.rollback().await.unwrap();
    let list = app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(list["total"], 0);
}

/// No endpoint hashes a password of one megabyte.
#[tokio::test]
async fn megabyte_password_is_rejected() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let huge = "x".repeat(1_000_000);
    let login = json!({ "email": dana.email, "password": huge });
    let rejected = app.post("/v1/auth/login").json(login).send().await;
    rejected.assert_error(401, "invalid_credentials");
    let register = json!({ "email": "new@acme.example", "password": huge });
    let rejected = app.post("/v1/auth/register").json(register).send().await;
    rejected.assert_error(422, "validation_failed").assert_field("password");
    let change = json!({ "current_password": PASSWORD, "new_password": huge });
    let change =
        app.request_as(&dana.access_token, "POST", "/v1/auth/password/change").json(change);
    change.send().await.assert_error(422, "validation_failed").assert_field("new_password");
    let change = json!({ "current_password": huge, "new_password": "a walk in the old park" });
    let change =
        app.request_as(&dana.access_token, "POST", "/v1/auth/password/change").json(change);
    change.send().await.assert_error(422, "validation_failed").assert_field("current_password");
    let over_body_limit = json!({ "email": dana.email, "password": "x".repeat(1024 * 1024) });
    let over_body_limit = app.post("/v1/auth/login").json(over_body_limit).send().await;
    over_body_limit.assert_error(413, "payload_too_large");
}

/// Addresses that look alike are not two accounts, and no character is mapped to another one.
#[tokio::test]
async fn lookalike_email_is_rejected() {
    let app = TestApp::start().await;
    let register = async |email: &str| {
        let body = json!({ "email": email, "password": PASSWORD });
        app.post("/v1/auth/register").json(body).send().await
    };
    assert_eq!(register("kim@acme.example").await.status, 201);
    register("KIM@Acme.EXAMPLE").await.assert_error(409, "conflict");
    // Kelvin sign, dotless i, Cyrillic a, full-width letter, zero-width space.
    for email in [
        "\u{212a}im@acme.example",
        "k\u{131}m@acme.example",
        "kim@\u{430}cme.example",
        "\u{ff4b}im@acme.example",
        "ki\u{200b}m@acme.example",
    ] {
        register(email).await.assert_error(422, "validation_failed").assert_field("email");
        let body = json!({ "email": email, "password": PASSWORD });
        let login = app.post("/v1/auth/login").json(body.clone()).send().await;
        login.assert_error(401, "invalid_credentials");
        let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": email }));
        forgot.send().await.assert_error(422, "validation_failed").assert_field("email");
    }
}
