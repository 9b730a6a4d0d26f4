//! Hostile input gets the contract's error body: never a 500, never half a write.

use serde_json::json;
use sqlx::{Connection, Executor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fixture::TestApp;

#[tokio::test]
async fn bodies_that_are_no_json_object_are_refused() {
    let app = TestApp::start().await;
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
            post(malformed.to_vec()).await.refused(400, "bad_request");
        }
        post(format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes())
            .await
            .refused(422, "validation_failed");
        let deep = format!("{{\"name\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
        let deep = post(deep.into_bytes()).await;
        assert!(matches!(deep.status.as_u16(), 400 | 422), "{}", deep.text);
        for other in ["[]", "7", "\"a\"", "null", "true"] {
            post(other.as_bytes().to_vec()).await.refused(422, "validation_failed");
        }
        let field = if path == "/v1/agents" { "agent_name" } else { "name" };
        let nul = post(format!("{{\"{field}\":\"a\\u0000b\"}}").into_bytes()).await;
        nul.refused(422, "validation_failed").blames(field);
    }
    let twice = b"{\"name\":\"a\",\"name\":\"b\"}".to_vec();
    let twice = app
        .post("/v1/api-keys")
        .bearer(&dana.access_token)
        .body("application/json", twice)
        .send()
        .await;
    twice.refused(422, "validation_failed").blames("name");
    for path in ["/v1/agents", "/v1/api-keys"] {
        let list = app.get(path).bearer(&dana.access_token).send().await.expect(200);
        assert_eq!(list["total"], 0, "nothing was half-made");
    }
}

#[tokio::test]
async fn an_error_never_quotes_a_secret() {
    let app = TestApp::start().await;
    for body in [
        json!({ "email": "a@b.example", "password": 123_456_789_012_345_i64 }),
        json!({ "email": "a@b.example", "password": { "hunter2hunter2": true } }),
        json!({ "email": "a@b.example", "password": ["hunter2hunter2"] }),
        json!({ "email": "a@b.example", "password": "hunter2" }),
    ] {
        let answer = app.post("/v1/auth/register").json(body).send().await;
        answer.refused(422, "validation_failed").blames("password");
        assert!(
            !answer.text.contains("hunter2") && !answer.text.contains("12345678"),
            "{}",
            answer.text
        );
    }
}

#[tokio::test]
async fn any_id_cursor_and_path_is_answered_calmly() {
    let app = TestApp::start().await;
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
        app.get(&path).bearer(&dana.access_token).send().await.refused(404, "not_found");
        app.delete(&path).bearer(&dana.access_token).send().await.refused(404, "not_found");
    }
    for path in ["/v1/agents/", "/v1//agents", "/v1/agents/a/b", "/V1/agents", "/v1/agents%2f"] {
        app.get(path).bearer(&dana.access_token).send().await.refused(404, "not_found");
    }
    for query in ["name=%00", "limit=99999999999999999999", "cursor=%00", "name=a&name=b"] {
        let path = format!("/v1/api-keys?{query}");
        app.get(&path).bearer(&dana.access_token).send().await.refused(422, "validation_failed");
    }
    let long = format!("/v1/api-keys?name={}", "n".repeat(8000));
    app.get(&long).bearer(&dana.access_token).send().await.expect(200);
}

/// Sends bytes as they are, and reads what comes back until the connection ends.
async fn raw(app: &TestApp, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn hostile_heads_end_the_connection_not_the_service() {
    let app = TestApp::start().await;
    let close = "host: x\r\nconnection: close\r\n";
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned() + "garbage\r\n\r\n", "HTTP/1.1 4"),
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
        let answer = raw(&app, bytes.as_bytes()).await;
        assert!(answer.starts_with(status), "{bytes:.60?} {answer:.200}");
        assert!(!answer.contains(" 500 "), "{answer}");
    }
    app.get("/livez").send().await;
    assert_eq!(app.get("/livez").send().await.status, 200);
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_nothing_half_done() {
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
    // A body that ends early is a bad request, of which nobody reads the answer.
    app.events(&dana.access_token, "method=POST&status=400", |_| true).await;
    let list = app.get("/v1/api-keys").bearer(&dana.access_token).send().await.expect(200);
    assert_eq!(list["total"], 0);

    // A whole request whose client is gone before the answer: dropped, rolled back, and in the log.
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
    app.database.somebody_waits_for_a_lock().await;
    drop(stream);
    app.events(&dana.access_token, "method=POST&status=499", |_| true).await;
    tx.rollback().await.unwrap();
    let list = app.get("/v1/agents").bearer(&dana.access_token).send().await.expect(200);
    assert_eq!(list["total"], 0);
}
