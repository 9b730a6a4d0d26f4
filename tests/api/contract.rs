//! Every row of the error table in the API contract, and the conventions that all responses share.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{PASSWORD, TestApp, TestClient, eventually};

#[tokio::test]
async fn every_documented_error_has_its_status_and_code() {
    let app = TestApp::start_with(&[("server.max_body_bytes", "2048")]).await;
    let dana = app.register("acme").await;
    let reader = app.create_key(&dana, "reader", "read-only").await;
    let token = dana.access_token.as_str();
    let post = |path: &str| app.post(path).bearer(token);

    let bad = post("/v1/agents").body("application/json", "{\"agent_name\":").send().await;
    bad.assert_error(400, "bad_request");
    app.get("/v1/agents?a=%zz").bearer(token).send().await.assert_error(400, "bad_request");
    let duplicate = app.get("/v1/agents").bearer(token).bearer(token).send().await;
    duplicate.assert_error(400, "bad_request");

    app.get("/v1/agents").send().await.assert_error(401, "unauthorized");
    let login = json!({ "email": dana.email, "password": "wrong horse battery" });
    app.post("/v1/auth/login").json(login).send().await.assert_error(401, "invalid_credentials");
    let refresh = json!({ "refresh_token": "rt_call2me_x" });
    app.post("/v1/auth/refresh")
        .json(refresh)
        .send()
        .await
        .assert_error(401, "invalid_refresh_token");

    let scope = app.post("/v1/agents").bearer(&reader.secret).json(json!({})).send().await;
    scope.assert_error(403, "insufficient_scope");
    assert_eq!(scope.body["error"]["required_scope"], "write");
    app.post("/v1/auth/logout").bearer(&reader.secret).send().await.assert_error(403, "forbidden");

    app.get("/v1/nothing").bearer(token).send().await.assert_error(404, "not_found");
    app.get("/nothing").send().await.assert_error(404, "not_found");
    app.get("/v1/agents/agent_x").bearer(token).send().await.assert_error(404, "not_found");

    let method = app.request("PUT", "/v1/agents").send().await;
    method.assert_error(405, "method_not_allowed");
    assert_eq!(method.header("allow"), "GET,HEAD,POST");
    let large = json!({ "agent_name": "x".repeat(3000) });
    post("/v1/agents").json(large).send().await.assert_error(413, "payload_too_large");
    let chunks =
        futures_util::stream::iter([0, 1].map(|_| Ok::<_, std::io::Error>("[".repeat(1500))));
    let chunked = post("/v1/agents").body("application/json", reqwest::Body::wrap_stream(chunks));
    chunked.send().await.assert_error(413, "payload_too_large");
    let zipped = post("/v1/agents").header("content-encoding", "gzip").json(json!({}));
    zipped.send().await.assert_error(415, "unsupported_media_type");
    let form = post("/v1/agents").body("application/x-www-form-urlencoded", "agent_name=a");
    form.send().await.assert_error(415, "unsupported_media_type");

    let duplicate_email = json!({ "email": dana.email, "password": PASSWORD });
    app.post("/v1/auth/register").json(duplicate_email).send().await.assert_error(409, "conflict");

    let invalid = post("/v1/api-keys").json(json!({ "name": "" })).send().await;
    invalid.assert_error(422, "validation_failed").assert_field("name");

    app.clock.advance(Duration::from_hours(1));
    app.get("/v1/agents").bearer(token).send().await.assert_error(401, "token_expired");
}

#[tokio::test]
async fn database_outage_is_503_and_never_401() {
    let app = TestApp::start_with(&[("database.acquire_timeout_seconds", "1")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "admin").await;
    app.database.allow_connections(false).await;

    let login = json!({ "email": dana.email, "password": PASSWORD });
    let refresh = json!({ "refresh_token": dana.refresh_token });
    for call in [
        app.get("/v1/agents").bearer(&key.secret),
        app.get("/v1/agents").bearer(&dana.access_token),
        app.post("/v1/auth/login").json(login.clone()),
        app.post("/v1/auth/refresh").json(refresh),
    ] {
        let answer = call.send().await;
        answer.assert_error(503, "unavailable");
        assert!(answer.header_number("retry-after") >= 1);
        assert!(answer.headers.contains_key("x-ratelimit-limit"));
    }
    let health = app.get("/health").send().await;
    assert_eq!(health.header_number("retry-after"), 1);
    assert_eq!(health.expect_status(503)["checks"]["database"], "down");
    let ready = app.get("/readyz").send().await;
    assert_eq!((ready.status.as_u16(), ready.header_number("retry-after")), (503, 1));
    assert_eq!(app.get("/livez").send().await.status, 200);

    // The service recovers by itself.
    app.database.allow_connections(true).await;
    eventually("requests are served again", async || {
        let answer = app.get("/v1/agents").bearer(&key.secret).send().await;
        assert_ne!(answer.status, 401, "{}", answer.text);
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_valid_request_id_is_kept() {
    let app = TestClient::shared();
    let valid = "req_01jd0zt8q7f7qvs4p2k6x3m9ab";
    let call = |id: &str| app.get("/livez").header("x-request-id", id).send();
    assert_eq!(call(valid).await.header("x-request-id"), valid);
    for invalid in ["1", "user_01jd0zt8q7f7qvs4p2k6x3m9ab", "req_", "<script>"] {
        let answer = call(invalid).await;
        assert_ne!(answer.header("x-request-id"), invalid);
        assert!(answer.header("x-request-id").starts_with("req_"));
    }
}

#[tokio::test]
async fn errors_have_documented_precedence() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "1")]).await;
    let dana = app.register("acme").await;
    let second = app.register("second").await;
    // 404 and 405 before 401.
    app.get("/v1/nothing").bearer("nonsense").send().await.assert_error(404, "not_found");
    app.request("PUT", "/v1/agents")
        .bearer("nonsense")
        .send()
        .await
        .assert_error(405, "method_not_allowed");
    // 403 before the body is read, 429 before 403.
    let session = &dana.access_token;
    let reader = app.create_key(&dana, "reader", "read-only").await;
    let post =
        || app.post("/v1/agents").bearer(&reader.secret).body("text/plain", "no JSON").send();
    post().await.assert_error(403, "insufficient_scope");
    post().await.assert_error(429, "rate_limited");
    app.get("/v1/agents").bearer(session).send().await.assert_error(429, "rate_limited");
    // 415 and 422 before the 404 of a missing row.
    let path = "/v1/agents/agent_01jd0zt8q7f7qvs4p2k6x3m9ab";
    let patch = app.patch(path).bearer(&second.access_token).body("text/plain", "x").send().await;
    patch.assert_error(415, "unsupported_media_type");
    app.clock.advance(Duration::from_mins(1));
    let patch = app.patch(path).bearer(&second.access_token).json(json!({ "agent_name": 7 }));
    patch.send().await.assert_error(422, "validation_failed");
}

#[tokio::test]
async fn every_v1_response_has_common_headers() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    for call in [
        app.get("/v1/agents").bearer(&dana.access_token),
        app.get("/v1/agents"),
        app.get("/v1/nothing"),
        app.get("/v1"),
        app.request("PUT", "/v1/agents"),
        app.post("/v1/auth/login").json(json!({})),
        app.post("/v1/auth/refresh").json(json!({})),
        app.get("/v1/agents").bearer("x").bearer("y"),
        app.get("/v1/auth/verify").bearer(&dana.access_token),
    ] {
        let answer = call.send().await;
        for header in ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"] {
            assert!(answer.header_number(header) >= 0, "{}", answer.text);
        }
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert!(answer.header("x-request-id").starts_with("req_"));
    }
}

#[tokio::test]
async fn challenge_links_to_resource_metadata() {
    let app = TestClient::shared();
    let answer = app.get("/v1/agents").send().await;
    let challenge = answer.header("www-authenticate");
    let url = challenge.split("resource_metadata=\"").nth(1).unwrap().split('"').next().unwrap();
    let path = url.strip_prefix(&app.url).unwrap();
    let metadata = app.get(path).send().await.expect_status(200);
    assert_eq!(metadata["resource"], app.url);
    assert_eq!(metadata["bearer_methods_supported"], json!(["header"]));
    assert_eq!(
        metadata["scopes_supported"],
        json!(["call2me:read", "call2me:write", "call2me:admin"])
    );
}

#[tokio::test]
async fn credential_is_read_only_from_authorization_header() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "admin").await;
    for call in [
        app.get(&format!("/v1/agents?access_token={}&api_key={0}", key.secret)),
        app.get("/v1/agents")
            .header("cookie", &format!("access_token={}; session={0}", key.secret)),
        app.get("/v1/agents").header("x-api-key", &key.secret),
        app.get("/v1/agents").header("authorization", &key.secret),
        app.get("/v1/agents").header("authorization", &format!("Basic {}", key.secret)),
        app.get("/v1/agents").bearer(&dana.refresh_token),
    ] {
        call.send().await.assert_error(401, "unauthorized");
    }
    // Another scheme is not a credential, so the challenge has no error (RFC 6750, section 3.1).
    let basic = app.get("/v1/agents").header("authorization", "Basic eDp5").send().await;
    assert!(!basic.header("www-authenticate").contains("error="));
    let lower = format!("bEaReR {}", key.secret);
    app.get("/v1/agents").header("authorization", &lower).send().await.expect_status(200);
}
