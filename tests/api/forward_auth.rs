//! /v1/auth/verify and /v1/auth/require: forward-auth.

use serde_json::{Value, json};

use crate::fixture::{
    Key, TestApp, TestClient, TestResponse,
    oauth::{OAuthClient, OAuthExt},
};

/// The identity headers of a 200.
const IDENTITY: [&str; 5] =
    ["x-auth-subject", "x-auth-workspace-id", "x-auth-scope", "x-auth-key-id", "x-auth-client-id"];

/// Sends a forward-auth request with a key and these headers.
async fn verify(
    app: &TestClient,
    key: &Key,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> TestResponse {
    let request = app.request_as(&key.secret, method, path);
    headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().await
}

/// Checks that a response has each identity header once, and the same values in its body.
fn assert_identity(response: TestResponse, expected: [&str; 5]) {
    for (name, value) in IDENTITY.iter().zip(expected) {
        let values: Vec<_> = response.headers.get_all(*name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
    let or_null = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    let [subject, workspace_id, scope, key_id, client_id] = expected.map(or_null);
    let body = json!({
        "subject": subject, "workspace_id": workspace_id, "scope": scope, "key_id": key_id,
        "client_id": client_id,
    });
    assert_eq!(response.expect_status(200), body);
}

#[tokio::test]
async fn accepted_request_has_all_identity_headers() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let workspace = dana.workspace_id.as_str();
    let key = app.create_key(&dana, "prod", "read-only").await;
    for path in ["/v1/auth/verify", "/v1/auth/verify/", "/v1/auth/verify/a/b"] {
        let response = app.get(path).bearer(&key.secret).send().await;
        assert_identity(response, [&key.id, workspace, "read-only", &key.id, ""]);
    }
    let response = app.get("/v1/auth/verify").bearer(&dana.access_token).send().await;
    assert_identity(response, [&dana.user_id, workspace, "admin", "", ""]);
    app.get("/v1/auth/verify").send().await.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn oauth_token_has_client_id_in_identity_headers() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let workspace = dana.workspace_id.as_str();
    let body = json!({ "name": "Robot", "grant_types": ["client_credentials"] });
    let create = app.post("/v1/oauth/clients").bearer(&dana.access_token).json(body);
    let robot = OAuthClient::from_registration(&create.send().await.expect_status(201));
    let fields = [("grant_type", "client_credentials")];
    let tokens = app.request_token(&robot.with_client_credentials(&fields)).await;
    let token = tokens.expect_status(200)["access_token"].as_str().unwrap().to_owned();
    let response = app.get("/v1/auth/verify").bearer(&token).send().await;
    let scope = response.body["scope"].as_str().unwrap().to_owned();
    assert_identity(response, [&robot.id, workspace, &scope, "", &robot.id]);
}

#[tokio::test]
async fn most_demanding_method_determines_required_scope() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    for headers in [
        &[("x-forwarded-method", "POST"), ("x-forwarded-uri", "/v1/calls?x=1")][..],
        &[("x-original-method", "DELETE"), ("x-original-uri", "/v1/calls")],
        &[("x-forwarded-method", "BREW")],
        // A URI without its method does not say that the method is a read.
        &[("x-original-uri", "/v1/calls")],
        &[("x-original-url", "https://api.example/v1/calls")],
        &[("x-forwarded-uri", "/v1/calls")],
        &[("x-original-uri", "")],
        // A method of the client does not belong to the URI of the gateway.
        &[("x-original-uri", "/v1/calls"), ("x-forwarded-method", "GET")],
        &[("x-forwarded-uri", "/v1/calls"), ("x-original-method", "HEAD")],
        // A client gains nothing by headers that it adds before or after those of its gateway.
        &[("x-forwarded-method", "POST"), ("x-original-method", "GET")],
        &[("x-forwarded-method", "GET"), ("x-forwarded-uri", "/x"), ("x-original-method", "POST")],
        &[("x-forwarded-method", "GET"), ("x-forwarded-method", "POST")],
        &[("x-forwarded-method", "GET"), ("x-forwarded-method", "GET")],
        &[("x-forwarded-method", "( )")],
        &[("x-forwarded-method", "get")],
        &[("x-forwarded-method", "GET, GET")],
        &[("x-forwarded-method", "")],
        // An API behind the gateway may act on these.
        &[("x-http-method-override", "DELETE")],
        &[("x-http-method", "PUT"), ("x-original-method", "GET")],
        &[("x-method-override", "post")],
    ] {
        for path in ["/v1/auth/verify", "/v1/auth/verify/v1/calls", "/v1/auth/require/read-only"] {
            let response = verify(&app, &key, "GET", path, headers).await;
            response.assert_error(403, "insufficient_scope");
            assert_eq!(response.body["error"]["required_scope"], "write", "{path} {headers:?}");
        }
    }
    for headers in [
        &[][..],
        &[("x-original-method", "GET"), ("x-original-uri", "/v1/calls")],
        &[("x-forwarded-method", "HEAD"), ("x-forwarded-uri", "/v1/calls")],
        &[("x-http-method-override", "GET")],
    ] {
        let response = verify(&app, &key, "GET", "/v1/auth/verify", headers).await;
        assert_eq!(response.status, 200, "{headers:?}: {}", response.text);
    }
    assert_eq!(verify(&app, &key, "HEAD", "/v1/auth/verify", &[]).await.status, 200);
}

/// Some gateways repeat the client's method: then a header of the client must not lower it.
#[tokio::test]
async fn own_method_counts_beside_any_stated_one() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
        for path in ["/v1/auth/verify", "/v1/auth/verify/v1/calls", "/v1/auth/require/read-only/x"]
        {
            for headers in [
                &[][..],
                &[("x-forwarded-method", "GET")],
                &[("x-original-uri", "/")],
                &[("x-original-method", "HEAD"), ("x-original-uri", "/harmless")],
                &[("x-http-method-override", "GET")],
            ] {
                let response = verify(&app, &key, method, path, headers).await;
                response.assert_error(403, "insufficient_scope");
            }
        }
    }
}

/// The query string is that of the original request: gateways such as Caddy and Envoy append it.
#[tokio::test]
async fn query_string_is_never_read() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    for query in ["scope=openid", "scope=admin", "scope=a&scope=b", "x=%zz", "%ff", "a=%00"] {
        for path in ["/v1/auth/verify", "/v1/auth/verify/v1/calls", "/v1/auth/require/read-only"] {
            let response = verify(&app, &key, "GET", &format!("{path}?{query}"), &[]).await;
            assert_eq!(response.status, 200, "{path}?{query}: {}", response.text);
        }
        let path = format!("/v1/auth/verify?{query}");
        verify(&app, &key, "POST", &path, &[]).await.assert_error(403, "insufficient_scope");
    }
}

#[tokio::test]
async fn required_scope_in_path_is_the_least_that_is_accepted() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let scopes = ["read-only", "write", "admin"];
    for (level, held) in scopes.into_iter().enumerate() {
        let key = app.create_key(&dana, held, held).await;
        for (required_level, required) in scopes.into_iter().enumerate() {
            for suffix in ["", "/", "/v1/agents?scope=x"] {
                let path = format!("/v1/auth/require/{required}{suffix}");
                let response = verify(&app, &key, "GET", &path, &[]).await;
                if level >= required_level {
                    assert_eq!(response.status, 200, "{held} {path}");
                    continue;
                }
                response.assert_error(403, "insufficient_scope");
                assert_eq!(response.body["error"]["required_scope"], required);
            }
        }
        // It raises the requirement of the method, and does not lower it.
        let post = verify(&app, &key, "POST", "/v1/auth/require/read-only", &[]).await;
        assert_eq!(post.status == 200, level >= 1, "{}", post.text);
    }
}

#[tokio::test]
async fn unknown_scope_in_path_is_not_found() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "admin").await;
    for scope in ["root", "Admin", "call2me:read", "read%2Donly", "openid"] {
        for suffix in ["", "/", "/v1/agents"] {
            let path = format!("/v1/auth/require/{scope}{suffix}");
            verify(&app, &key, "GET", &path, &[]).await.assert_error(404, "not_found");
            app.get(&path).send().await.assert_error(401, "unauthorized");
        }
    }
    verify(&app, &key, "GET", "/v1/auth/require", &[]).await.assert_error(404, "not_found");
}

/// A gateway that repeats the client's method must not let `OPTIONS` through.
#[tokio::test]
async fn options_is_checked_like_other_methods() {
    let origin = "https://app.example";
    let app = TestApp::start_with(&[("server.allowed_origins", origin)]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "read-only").await;
    let preflight = [("origin", origin), ("access-control-request-method", "POST")];
    for path in [
        "/v1/auth/verify",
        "/v1/auth/verify/",
        "/v1/auth/verify/v1/calls",
        "/v1/auth/require/read-only",
        "/v1/auth/require/write/v1/calls",
    ] {
        for headers in [&[][..], &preflight[..1], &preflight[..]] {
            let request = app.request("OPTIONS", path).header("x-auth-subject", "forged");
            let request = headers.iter().fold(request, |it, (name, value)| it.header(name, value));
            let anonymous = request.send().await;
            anonymous.assert_error(401, "unauthorized");
            assert_eq!(anonymous.header("access-control-allow-origin"), "");
            let response = verify(&app, &key, "OPTIONS", path, headers).await;
            response.assert_error(403, "insufficient_scope");
        }
    }
}

#[tokio::test]
async fn original_request_is_logged() {
    let app = TestClient::shared();
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
        ("PUT", "/v1/auth/require/write", vec![], ("PUT", "/v1/auth/require/write")),
        ("PUT", "/v1/auth/require/write/v1/c/d?x=1", vec![], ("PUT", "/v1/c/d")),
        // The gateway repeats the client's method and adds the URI.
        ("DELETE", "/v1/auth/verify", vec![("x-original-uri", "/v1/e")], ("DELETE", "/v1/e")),
        // The path that the gateway appended counts more than a header of the client.
        (
            "GET",
            "/v1/auth/verify/v1/f",
            vec![("x-forwarded-method", "GET"), ("x-forwarded-uri", "/forged")],
            ("GET", "/v1/f"),
        ),
        (
            "GET",
            "/v1/auth/verify",
            vec![("x-original-method", "PUT"), ("x-original-uri", "/caf\u{e9}?q=\u{e9}")],
            ("PUT", "/caf\u{e9}"),
        ),
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
    for status in [403, 404, 429] {
        let path = if status == 404 { "/v1/auth/require/x" } else { "/v1/auth/verify?x=%zz" };
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

/// Bytes that are not UTF-8 are percent-encoded in the event, and the method is kept.
#[tokio::test]
async fn invalid_utf8_in_original_uri_is_percent_encoded() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    for (header, uri, path) in [
        ("x-original-uri", &b"/caf\xe9/a"[..], "/caf%E9/a"),
        ("x-forwarded-uri", b"http://api.example/\xff\xfe?\xff", "/%FF%FE"),
        ("x-original-url", b"/\xc3\xa9\xc3", "/\u{e9}%C3"),
    ] {
        let method_header = header.replace("-uri", "-method").replace("-url", "-method");
        let request = app.request_as(&key.secret, "GET", "/v1/auth/verify");
        let request = request.header(&method_header, "DELETE").header_bytes(header, uri);
        let response = request.send().await;
        assert_eq!(response.status, 200, "{}", response.text);
        let query = format!("request_id={}", response.header("x-request-id"));
        let events = app.wait_for_event(&dana.access_token, &query, |_| true).await;
        let request = &events[0]["request"];
        assert_eq!((&request["method"], &request["path"]), (&json!("DELETE"), &json!(path)));
    }
}
