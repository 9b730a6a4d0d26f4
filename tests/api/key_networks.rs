//! `allowed_ips` of API keys: requests from elsewhere are refused, and a restricted key creates no
//! access that works from elsewhere.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    Key, TestApp, TestResponse, TestUser, eventually,
    oauth::{OAuthClient, OAuthExt},
};

const INSIDE: &str = "203.0.113.9";
const OUTSIDE: &str = "198.51.100.7";

async fn proxied_app() -> TestApp {
    TestApp::start_with(&[("server.trusted_proxies", "127.0.0.0/8")]).await
}

/// Sends a request with a key from an address.
async fn send(
    app: &TestApp,
    key: &str,
    address: &str,
    (method, path): (&str, &str),
    body: Value,
) -> TestResponse {
    let request = app.request_as(key, method, path).header("x-forwarded-for", address);
    if method == "GET" { request.send().await } else { request.json(body).send().await }
}

async fn use_key(app: &TestApp, key: &Key, address: &str) -> TestResponse {
    send(app, &key.secret, address, ("GET", "/v1/agents"), Value::Null).await
}

async fn create_key(app: &TestApp, dana: &TestUser, scope: &str, networks: Value) -> Key {
    let body = json!({ "name": "k", "scope": scope, "allowed_ips": networks });
    let created = app.post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
    key_of(&created.expect_status(201))
}

fn key_of(body: &Value) -> Key {
    let text = |field: &str| body[field].as_str().unwrap().to_owned();
    Key { id: text("id"), secret: text("key") }
}

#[tokio::test]
async fn restricted_key_sets_only_networks_within_its_own() {
    let app = proxied_app().await;
    let dana = app.register("acme").await;
    let networks = json!(["203.0.113.0/24", "2001:db8::/32"]);
    let key = create_key(&app, &dana, "admin", networks.clone()).await;
    let target = create_key(&app, &dana, "write", json!(["10.0.0.0/8"])).await;
    let own = format!("/v1/api-keys/{}", key.id);
    let other = format!("/v1/api-keys/{}", target.id);
    let by_key = async |method: &str, path: &str, body: Value| {
        send(&app, &key.secret, INSIDE, (method, path), body).await
    };
    for refused in [
        json!([]),
        json!(["0.0.0.0/0"]),
        json!(["203.0.112.0/23"]),
        json!(["203.0.113.9", "198.51.100.0/24"]),
        json!(["::/0"]),
        json!(["2001:db8::/31"]),
        json!(["::ffff:203.0.112.0/119"]),
    ] {
        for path in [&own, &other] {
            let body = json!({ "allowed_ips": refused });
            by_key("PATCH", path, body).await.assert_error(403, "forbidden");
        }
        if refused != json!([]) {
            let body = json!({ "name": "child", "allowed_ips": refused });
            by_key("POST", "/v1/api-keys", body).await.assert_error(403, "forbidden");
        }
    }
    for (allowed, stored) in [
        (json!(["::ffff:203.0.113.0/121"]), json!(["203.0.113.0/25"])),
        (json!(["2001:db8:1::/48"]), json!(["2001:db8:1::/48"])),
    ] {
        let body = json!({ "name": "child", "allowed_ips": allowed });
        let child = by_key("POST", "/v1/api-keys", body).await.expect_status(201);
        assert_eq!(child["allowed_ips"], stored);
        let patched = by_key("PATCH", &other, json!({ "allowed_ips": allowed })).await;
        assert_eq!(patched.expect_status(200)["allowed_ips"], stored);
    }
    // Without a list, a child gets that of its creator. Other fields can be changed.
    for body in [json!({ "name": "child" }), json!({ "name": "child", "allowed_ips": [] })] {
        let child = by_key("POST", "/v1/api-keys", body).await.expect_status(201);
        assert_eq!(child["allowed_ips"], networks);
    }
    by_key("PATCH", &own, json!({ "name": "renamed" })).await.expect_status(200);
    let narrowed = by_key("PATCH", &own, json!({ "allowed_ips": ["203.0.113.9"] })).await;
    narrowed.expect_status(200);
    let widened = by_key("PATCH", &own, json!({ "allowed_ips": ["203.0.113.0/24"] })).await;
    widened.assert_error(403, "forbidden");
    let by_user = json!({ "allowed_ips": [] });
    app.patch(&own).bearer(&dana.access_token).json(by_user).send().await.expect_status(200);
}

#[tokio::test]
async fn restricted_key_rotates_only_keys_within_its_networks() {
    let app = proxied_app().await;
    let dana = app.register("acme").await;
    let key = create_key(&app, &dana, "admin", json!(["203.0.113.0/24"])).await;
    for (networks, status) in [
        (json!([]), 403),
        (json!(["203.0.0.0/16"]), 403),
        (json!(["2001:db8::/32"]), 403),
        (json!(["203.0.113.128/25"]), 201),
    ] {
        let target = create_key(&app, &dana, "write", networks.clone()).await;
        let path = format!("/v1/api-keys/{}/rotate", target.id);
        let answer = send(&app, &key.secret, INSIDE, ("POST", &path), json!({})).await;
        assert_eq!(answer.status, status, "{networks}: {}", answer.text);
    }
    let path = format!("/v1/api-keys/{}/rotate", key.id);
    let own = send(&app, &key.secret, INSIDE, ("POST", &path), json!({})).await;
    assert_eq!(own.expect_status(201)["allowed_ips"], json!(["203.0.113.0/24"]));
}

#[tokio::test]
async fn restricted_key_enables_only_keys_within_its_networks() {
    let app = proxied_app().await;
    let dana = app.register("acme").await;
    let key = create_key(&app, &dana, "admin", json!(["203.0.113.0/24"])).await;
    let by_key = async |path: &str, body: Value| {
        send(&app, &key.secret, INSIDE, ("PATCH", path), body).await
    };
    for (networks, status) in [
        (json!([]), 403),
        (json!(["203.0.0.0/16"]), 403),
        (json!(["203.0.113.7", "198.51.100.0/24"]), 403),
        (json!(["203.0.113.128/25"]), 200),
    ] {
        let target = create_key(&app, &dana, "write", networks.clone()).await;
        let path = format!("/v1/api-keys/{}", target.id);
        by_key(&path, json!({ "disabled": true })).await.expect_status(200);
        let enabled = by_key(&path, json!({ "disabled": false })).await;
        assert_eq!(enabled.status, status, "{networks}: {}", enabled.text);
        let renamed = by_key(&path, json!({ "disabled": false, "name": "renamed" })).await;
        assert_eq!(renamed.status, status, "{networks}: {}", renamed.text);
        let read = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        assert_eq!(read["status"], if status == 200 { "active" } else { "disabled" });
        assert_eq!(read["name"], if status == 200 { "renamed" } else { "k" });
        // With networks of its own, the key may be enabled.
        let narrowed = json!({ "disabled": false, "allowed_ips": ["203.0.113.7"] });
        by_key(&path, narrowed).await.expect_status(200);
    }
}

/// A key that is enabled, or allowed elsewhere, is access like a new key, which OAuth clients do
/// not create.
#[tokio::test]
async fn oauth_client_restricts_keys_and_widens_none() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "Admin", "scope": "admin", "grant_types": ["client_credentials"] });
    let client = app.post("/v1/oauth/clients").bearer(&dana.access_token).json(body);
    let client = OAuthClient::from_registration(&client.send().await.expect_status(201));
    let fields = [("grant_type", "client_credentials")];
    let token = app.request_token(&client.with_client_credentials(&fields)).await;
    let token = token.expect_status(200)["access_token"].as_str().unwrap().to_owned();
    let key = create_key(&app, &dana, "write", json!(["10.0.0.0/8"])).await;
    let path = format!("/v1/api-keys/{}", key.id);
    let patch = async |by: &str, body: &Value| {
        app.request_as(by, "PATCH", &path).json(body.clone()).send().await
    };
    let widening = [
        json!({ "allowed_ips": [] }),
        json!({ "allowed_ips": ["10.0.0.0/7"] }),
        json!({ "allowed_ips": ["10.1.0.0/16", "192.0.2.1"], "name": "x" }),
    ];
    for body in &widening {
        patch(&token, body).await.assert_error(403, "forbidden");
    }
    for body in [
        json!({ "name": "renamed", "rate_limit_per_minute": 5, "disabled": false }),
        json!({ "allowed_ips": ["10.1.0.0/16"] }),
        json!({ "disabled": true }),
        json!({ "disabled": true, "description": "leaked" }),
    ] {
        patch(&token, &body).await.expect_status(200);
    }
    for body in [json!({ "disabled": false }), json!({ "disabled": false, "name": "x" })] {
        patch(&token, &body).await.assert_error(403, "forbidden");
    }
    let read = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!((&read["status"], &read["name"]), (&json!("disabled"), &json!("renamed")));
    assert_eq!(read["allowed_ips"], json!(["10.1.0.0/16"]));
    for body in [json!({ "disabled": false }), widening[0].clone()] {
        patch(&dana.access_token, &body).await.expect_status(200);
    }
    app.request_as(&token, "DELETE", &path).send().await.expect_status(204);
}

/// Sessions and OAuth clients have no networks, so a restricted key must not create them.
#[tokio::test]
async fn restricted_key_creates_no_access_from_elsewhere() {
    let app = proxied_app().await;
    let dana = app.register_verified("acme").await;
    let viewer = app.add_member(&dana, "viewer").await;
    let client = json!({ "name": "Robot", "redirect_uris": ["https://a.example/cb"] });
    let created = app.post("/v1/oauth/clients").bearer(&dana.access_token).json(client.clone());
    let id = created.send().await.expect_status(201)["id"].as_str().unwrap().to_owned();
    let key = create_key(&app, &dana, "admin", json!(["203.0.113.0/24"])).await;
    let (client_path, secret_path, member_path) = (
        format!("/v1/oauth/clients/{id}"),
        format!("/v1/oauth/clients/{id}/secret"),
        format!("/v1/members/{}", viewer.user_id),
    );
    let refused = [
        ("POST", "/v1/oauth/clients", client),
        ("PATCH", &client_path, json!({ "redirect_uris": ["https://evil.example/cb"] })),
        ("POST", &secret_path, json!({})),
        ("POST", "/v1/invitations", json!({ "email": "eve@new.example", "role": "viewer" })),
        ("PATCH", &member_path, json!({ "role": "admin" })),
    ];
    for (method, path, body) in refused {
        let answer = send(&app, &key.secret, INSIDE, (method, path), body).await;
        answer.assert_error(403, "forbidden");
    }
    let renamed = send(&app, &key.secret, INSIDE, ("PATCH", &client_path), json!({ "name": "b" }));
    renamed.await.expect_status(200);
}

#[tokio::test]
async fn request_from_elsewhere_is_charged_to_its_address() {
    let limits = [
        ("server.trusted_proxies", "127.0.0.0/8"),
        ("rate_limit.per_address_per_minute", "3"),
        ("rate_limit.per_key_per_minute", "5"),
    ];
    let app = TestApp::start_with(&limits).await;
    let dana = app.register("acme").await;
    let key = create_key(&app, &dana, "read-only", json!(["203.0.113.0/24"])).await;
    for remaining in (0..3).rev() {
        let refused = use_key(&app, &key, OUTSIDE).await;
        refused.assert_error(403, "forbidden");
        assert_eq!(refused.header_number("x-ratelimit-limit"), 3);
        assert_eq!(refused.header_number("x-ratelimit-remaining"), remaining);
    }
    use_key(&app, &key, OUTSIDE).await.assert_error(429, "rate_limited");
    let served = use_key(&app, &key, INSIDE).await;
    assert_eq!((served.status.as_u16(), served.header_number("x-ratelimit-remaining")), (200, 4));
    // Every attempt is in the audit log, under the name of the key.
    let query = format!("key_id={}&action=request&ip={OUTSIDE}", key.id);
    let watcher = app.create_key(&dana, "watcher", "read-only").await;
    let events = app.wait_for_event_count(&watcher.secret, &query, 4).await;
    let statuses: Vec<_> = events.iter().map(|event| &event["request"]["status"]).collect();
    assert_eq!(statuses, [429, 403, 403, 403]);
}

#[tokio::test]
async fn request_from_elsewhere_is_no_use_of_the_key() {
    let app = proxied_app().await;
    let dana = app.register("acme").await;
    let key = create_key(&app, &dana, "write", json!(["203.0.113.0/24"])).await;
    let watcher = app.create_key(&dana, "watcher", "admin").await;
    use_key(&app, &key, INSIDE).await.expect_status(200);
    app.database.wait_until_sealed().await;
    app.clock.advance(Duration::from_mins(16));
    for path in ["/v1/agents", "/v1/wallet/balance", "/v1/auth/verify"] {
        let refused = send(&app, &key.secret, OUTSIDE, ("GET", path), Value::Null).await;
        refused.assert_error(403, "forbidden");
    }
    let query = format!("key_id={}&ip={OUTSIDE}", key.id);
    app.wait_for_event_count(&watcher.secret, &query, 3).await;
    app.database.wait_until_sealed().await;
    let path = format!("/v1/api-keys/{}/usage", key.id);
    let usage = app.get(&path).bearer(&watcher.secret).send().await.expect_status(200);
    assert_eq!(usage["total_requests"], 1, "{usage:#}");
    assert_eq!(usage["addresses"].as_array().unwrap().len(), 1);
    assert_eq!(usage["by_status"], json!({ "2xx": 1, "3xx": 0, "4xx": 0, "5xx": 0 }));
    let path = format!("/v1/api-keys/{}", key.id);
    let resource = app.get(&path).bearer(&watcher.secret).send().await.expect_status(200);
    assert_eq!(resource["last_used_ip"], INSIDE);
    eventually("the key is quiet", async || {
        let path = format!("/v1/api-keys/{}?if_quiet=true", key.id);
        (app.delete(&path).bearer(&watcher.secret).send().await.status == 204).then_some(())
    })
    .await;
}
