//! /v1/auth/verify: forward-auth.

use serde_json::json;

use crate::fixture::TestApp;

#[tokio::test]
async fn valid_key_passes_with_identity_headers() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let response = app.get("/v1/auth/verify").bearer(&key.secret).send().await;
    assert_eq!(response.header("x-auth-subject"), key.id);
    assert_eq!(response.header("x-auth-workspace-id"), dana.workspace_id);
    assert_eq!(response.header("x-auth-scope"), "read-only");
    assert_eq!(response.header("x-auth-key-id"), key.id);
    assert_eq!(
        response.expect_status(200),
        json!({
            "subject": key.id, "workspace_id": dana.workspace_id, "scope": "read-only",
            "key_id": key.id,
        })
    );
    let session = app.get("/v1/auth/verify").bearer(&dana.access_token).send().await;
    assert_eq!(session.header("x-auth-subject"), dana.user_id);
    assert_eq!(session.header("x-auth-key-id"), "");
    app.get("/v1/auth/verify").send().await.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn original_method_determines_required_scope() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let verify = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let mut request = app.request_as(&key.secret, method, path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.send().await
    };
    for headers in [
        &[("x-forwarded-method", "POST"), ("x-forwarded-uri", "/v1/calls?x=1")][..],
        &[("x-original-method", "DELETE"), ("x-original-uri", "/v1/calls")],
        &[("x-forwarded-method", "BREW")],
        // A client gains nothing by headers that it adds before or after those of its gateway.
        &[("x-forwarded-method", "POST"), ("x-original-method", "GET")],
        &[("x-forwarded-method", "GET"), ("x-forwarded-uri", "/x"), ("x-original-method", "POST")],
        &[("x-forwarded-method", "GET"), ("x-forwarded-method", "POST")],
        &[("x-forwarded-method", "GET"), ("x-forwarded-method", "GET")],
        &[("x-forwarded-method", "( )")],
        &[("x-forwarded-method", "")],
    ] {
        let response = verify("GET", "/v1/auth/verify", headers).await;
        response.assert_error(403, "insufficient_scope");
        assert_eq!(response.body["error"]["required_scope"], "write");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        verify(method, "/v1/auth/verify", &[]).await.assert_error(403, "insufficient_scope");
        verify(method, "/v1/auth/verify/v1/calls", &[])
            .await
            .assert_error(403, "insufficient_scope");
        let read_method = [("x-forwarded-method", "HEAD")];
        verify(method, "/v1/auth/verify", &read_method).await.expect_status(200);
        // If the path is the original one, the method is too.
        let rejected = verify(method, "/v1/auth/verify/v1/calls", &read_method).await;
        rejected.assert_error(403, "insufficient_scope");
    }
    assert_eq!(verify("HEAD", "/v1/auth/verify", &[]).await.status, 200);
    // The query can raise the required scope, but not lower it.
    verify("GET", "/v1/auth/verify?scope=admin", &[]).await.assert_error(403, "insufficient_scope");
    verify("POST", "/v1/auth/verify?scope=read-only", &[])
        .await
        .assert_error(403, "insufficient_scope");
    verify("GET", "/v1/auth/verify?scope=root", &[])
        .await
        .assert_error(422, "validation_failed")
        .assert_field("scope");
}

#[tokio::test]
async fn original_request_is_logged() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    for (method, path, headers, expected) in [
        (
            "GET",
            "/v1/auth/verify",
            vec![("x-forwarded-method", "POST"), ("x-forwarded-uri", "/v1/a?token=x")],
            ("POST", "/v1/a"),
        ),
        (
            "GET",
            "/v1/auth/verify",
            vec![("x-original-url", "https://api.example/v1/b?y")],
            ("GET", "/v1/b"),
        ),
        ("PUT", "/v1/auth/verify/v1/c/d", vec![], ("PUT", "/v1/c/d")),
        ("GET", "/v1/auth/verify", vec![], ("GET", "/v1/auth/verify")),
        ("GET", "/v1/auth/verify/", vec![], ("GET", "/")),
        (
            "GET",
            "/v1/auth/verify",
            vec![
                ("x-forwarded-method", "GET"),
                ("x-forwarded-uri", "/harmless"),
                ("x-original-method", "POST"),
                ("x-original-uri", "/v1/real"),
            ],
            ("POST", "/v1/real"),
        ),
    ] {
        let mut forward_auth = app.request_as(&key.secret, method, path);
        for (name, value) in headers {
            forward_auth = forward_auth.header(name, value);
        }
        let response = forward_auth.send().await;
        assert!([200, 204].contains(&response.status.as_u16()), "{}", response.text);
        let query = format!("request_id={}", response.header("x-request-id"));
        let events = app.wait_for_event(&dana.access_token, &query, |_| true).await;
        assert_eq!(events[0]["metadata"]["via"], "verify");
        let request = &events[0]["request"];
        assert_eq!(
            (request["method"].as_str(), request["path"].as_str()),
            (Some(expected.0), Some(expected.1))
        );
    }
}

#[tokio::test]
async fn rejected_request_is_logged_as_original_request() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "2")]).await;
    let dana = app.register("acme").await;
    let [key, reader] = [
        app.create_key(&dana, "prod", "read-only").await,
        app.create_key(&dana, "reader", "read-only").await,
    ];
    for status in [403, 422, 429] {
        let path = if status == 422 { "/v1/auth/verify?scope=x" } else { "/v1/auth/verify" };
        let forward_auth = app.request_as(&key.secret, "GET", path);
        let forward_auth =
            forward_auth.header("x-original-method", "DELETE").header("x-original-uri", "/v1/a");
        assert_eq!(forward_auth.send().await.status, status);
    }
    app.raise_rate_limits().await;
    let events = app.wait_for_event_count(&reader.secret, &format!("key_id={}", key.id), 3).await;
    for event in events {
        let request = &event["request"];
        assert_eq!((&request["method"], &request["path"]), (&json!("DELETE"), &json!("/v1/a")));
    }
}
