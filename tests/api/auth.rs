//! /v1/auth: registration, sign-in, refresh, sign-out and the current identity.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::fixture::{PASSWORD, TestApp, TestClient, TestUser};

async fn sign_in(app: &TestClient, email: &str, password: &str) -> crate::fixture::TestResponse {
    let body = json!({ "email": email, "password": password });
    app.post("/v1/auth/login").json(body).send().await
}

async fn refresh(app: &TestClient, token: &str) -> crate::fixture::TestResponse {
    app.post("/v1/auth/refresh").json(json!({ "refresh_token": token })).send().await
}

async fn is_accepted(app: &TestClient, credential: &str) -> bool {
    app.get("/v1/agents").bearer(credential).send().await.status == 200
}

/// Decodes the claims of a token without verifying it.
fn decode_claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn registration_creates_workspace_and_signs_in() {
    let app = TestApp::start().await;
    let body = json!({ "email": "Dana@Acme.Example", "password": PASSWORD, "full_name": "Dana" });
    let answer = app.post("/v1/auth/register").json(body).send().await;
    assert_eq!(answer.header("location"), "/v1/auth/me");
    assert_eq!(answer.header("cache-control"), "no-store");
    let answer = answer.expect_status(201);
    assert_eq!(answer["expires_in"], 3600);
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["user"]["email"], "Dana@Acme.Example");
    assert_eq!(answer["workspace"]["name"], "Dana's workspace");
    let me = app.get("/v1/auth/me").bearer(answer["access_token"].as_str().unwrap()).send().await;
    let me = me.expect_status(200);
    assert_eq!(me["subject"]["type"], "user");
    assert_eq!(me["subject"]["id"], answer["user"]["id"]);
    assert_eq!(me["role"], "owner");
    assert_eq!(me["scope"], "admin");
    assert_eq!(me["workspace"]["id"], answer["workspace"]["id"]);
}

#[tokio::test]
async fn email_is_registered_once_in_any_case() {
    let app = TestApp::start().await;
    app.register("acme").await;
    let body = json!({ "email": "OWNER@ACME.EXAMPLE", "password": PASSWORD });
    app.post("/v1/auth/register").json(body).send().await.assert_error(409, "conflict");
    assert_eq!(sign_in(&app, "Owner@Acme.Example", PASSWORD).await.status, 200);
}

#[tokio::test]
async fn concurrent_registrations_create_one_account() {
    let app = TestApp::start().await;
    let attempt = || {
        let body = json!({ "email": "dana@acme.example", "password": PASSWORD });
        app.post("/v1/auth/register").json(body).send()
    };
    let (a, b, c) = tokio::join!(attempt(), attempt(), attempt());
    let mut statuses = [a, b, c].map(|answer| answer.status.as_u16());
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409]);
}

#[tokio::test]
async fn registration_is_rejected_unless_open() {
    for mode in ["invite", "closed"] {
        let app = TestApp::start_with(&[("sessions.registration", mode)]).await;
        let body = json!({ "email": "dana@acme.example", "password": PASSWORD });
        app.post("/v1/auth/register").json(body).send().await.assert_error(403, "forbidden");
        app.post("/v1/auth/register").send().await.assert_error(403, "forbidden");
    }
}

#[tokio::test]
async fn invalid_registration_fields_are_rejected_by_name() {
    let app = TestApp::start().await;
    let valid = json!({ "email": "dana@acme.example", "password": PASSWORD });
    for (field, value) in [
        ("email", json!("dana")),
        ("email", json!(7)),
        ("email", json!("dana@acme.example\u{0}")),
        ("password", json!("short")),
        ("password", json!("x".repeat(257))),
        ("password", json!("dana@acme.example")),
        ("password", json!("password1234")),
        ("password", json!("qwertyuiop123")),
        ("password", json!(["a"])),
        ("full_name", json!("")),
        ("full_name", json!("a\u{7}b")),
        ("workspace_name", json!("w".repeat(101))),
        ("expires_at", json!("2030-01-01T00:00:00Z")),
    ] {
        let mut body = valid.clone();
        body[field] = value;
        let answer = app.post("/v1/auth/register").json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field(field);
    }
    for field in ["email", "password"] {
        let mut body = valid.clone();
        body.as_object_mut().unwrap().remove(field);
        let answer = app.post("/v1/auth/register").json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field(field);
    }
    assert_eq!(sign_in(&app, "dana@acme.example", PASSWORD).await.status, 401);
}

#[tokio::test]
async fn sign_in_response_has_four_fields_only() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let answer = sign_in(&app, &dana.email, PASSWORD).await.expect_status(200);
    let fields: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["access_token", "refresh_token", "expires_in", "token_type"]);
    assert_eq!(
        (answer["expires_in"].as_i64(), &answer["token_type"]),
        (Some(3600), &json!("Bearer"))
    );
    let token = answer["access_token"].as_str().unwrap();
    let claims = decode_claims(token);
    assert_eq!(claims["iss"], app.url);
    assert_eq!(claims["aud"], app.url);
    assert_eq!(claims["sub"], dana.user_id);
    assert_eq!(claims["workspace_id"], dana.workspace_id);
    assert_eq!(claims["scope"], "call2me:read call2me:write call2me:admin");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    for claim in ["jti", "client_id", "sid"] {
        assert!(claims[claim].is_string(), "{claim}");
    }
}

#[tokio::test]
async fn wrong_password_and_unknown_email_look_alike() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let wrong = sign_in(&app, &dana.email, "wrong horse battery staple").await;
    let unknown = sign_in(&app, "nobody@acme.example", PASSWORD).await;
    let garbage = sign_in(&app, "not an address", PASSWORD).await;
    let long = sign_in(&app, &dana.email, &"x".repeat(100_000)).await;
    for answer in [&wrong, &unknown, &garbage, &long] {
        answer.assert_error(401, "invalid_credentials");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"call2me\"");
        assert_eq!(answer.body["detail"], wrong.body["detail"]);
    }
    // The wrong password and the overlong one; the other two attempts name no user.
    let events = app.wait_for_event_count(&dana.access_token, "action=login.failed", 2).await;
    assert_eq!(events[0]["target"]["id"], dana.user_id);
    assert_eq!(events[0]["actor"]["type"], "anonymous");
    assert_eq!(events[0]["request"]["status"], 401);
}

#[tokio::test]
async fn sign_in_selects_requested_or_last_used_workspace() {
    let app = TestClient::shared();
    let acme = app.register("acme").await;
    let stranger = app.register("widgets-inc").await;
    let member = app.add_member(&acme, "member").await;
    assert_eq!(decode_claims(&member.access_token)["workspace_id"], acme.workspace_id);
    let again = sign_in(&app, &member.email, PASSWORD).await.expect_status(200);
    let token = again["access_token"].as_str().unwrap();
    assert_eq!(decode_claims(token)["workspace_id"], acme.workspace_id);
    let body = json!({
        "email": member.email, "password": PASSWORD, "workspace_id": stranger.workspace_id,
    });
    app.post("/v1/auth/login").json(body).send().await.assert_error(403, "forbidden");
    // A correct password without a membership is logged as a failed sign-in, too.
    let events = app.wait_for_event_count(&acme.access_token, "action=login.failed", 1).await;
    assert_eq!(events[0]["metadata"]["reason"], "not_a_member");
    assert_eq!(events[0]["request"]["status"], 403);
}

#[tokio::test]
async fn key_of_removed_member_cannot_access_profile() {
    let app = TestApp::start().await;
    let acme = app.register("acme").await;
    let admin = app.add_member(&acme, "admin").await;
    let key = app.create_key(&admin, "k", "write").await;
    app.get("/v1/users/me").bearer(&key.secret).send().await.expect_status(200);
    update_membership(&app, &admin, "DELETE FROM memberships WHERE user_id = $1").await;
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    app.get("/v1/users/me").bearer(&key.secret).send().await.assert_error(404, "not_found");
    let rename = json!({ "full_name": "Gone" });
    app.patch("/v1/users/me")
        .bearer(&key.secret)
        .json(rename)
        .send()
        .await
        .assert_error(404, "not_found");
}

#[tokio::test]
async fn retried_refresh_returns_same_successor() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let first = refresh(&app, &dana.refresh_token).await.expect_status(200);
    assert_eq!(first["expires_in"], 3600);
    assert_ne!(first["refresh_token"], dana.refresh_token);
    app.clock.advance(Duration::from_secs(9));
    let retry = refresh(&app, &dana.refresh_token).await.expect_status(200);
    assert_eq!(retry["refresh_token"], first["refresh_token"]);
    assert!(is_accepted(&app, retry["access_token"].as_str().unwrap()).await);
    let second = refresh(&app, first["refresh_token"].as_str().unwrap()).await.expect_status(200);
    assert!(is_accepted(&app, second["access_token"].as_str().unwrap()).await);
}

#[tokio::test]
async fn late_refresh_token_reuse_ends_session() {
    let app = TestApp::start().await;
    let watcher = app.register("acme").await;
    let mut dana = watcher.clone();
    dana.set_tokens(&sign_in(&app, &watcher.email, PASSWORD).await.expect_status(200));
    let next = refresh(&app, &dana.refresh_token).await.expect_status(200);
    app.clock.advance(Duration::from_secs(11));
    refresh(&app, &dana.refresh_token).await.assert_error(401, "invalid_refresh_token");
    let successor = next["refresh_token"].as_str().unwrap();
    refresh(&app, successor).await.assert_error(401, "invalid_refresh_token");
    let access = next["access_token"].as_str().unwrap();
    let answer = app.get("/v1/agents").bearer(access).send().await;
    answer.assert_error(401, "unauthorized");
    let events =
        app.wait_for_event(&watcher.access_token, "action=session.reuse_detected", |_| true).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["actor"]["id"], dana.user_id);
    assert!(is_accepted(&app, &watcher.access_token).await, "other sessions are not affected");
}

#[tokio::test]
async fn reuse_of_older_refresh_token_ends_session() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let first = refresh(&app, &dana.refresh_token).await.expect_status(200);
    let second = refresh(&app, first["refresh_token"].as_str().unwrap()).await.expect_status(200);
    // Within the retry window, but two generations old.
    refresh(&app, &dana.refresh_token).await.assert_error(401, "invalid_refresh_token");
    let newest = second["refresh_token"].as_str().unwrap();
    refresh(&app, newest).await.assert_error(401, "invalid_refresh_token");
}

#[tokio::test]
async fn hundred_concurrent_refreshes_give_one_successor() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let attempts = (0..100).map(|_| refresh(&app, &dana.refresh_token));
    let mut successors: Vec<_> = futures_util::future::join_all(attempts)
        .await
        .into_iter()
        .map(|answer| answer.expect_status(200)["refresh_token"].as_str().unwrap().to_owned())
        .collect();
    successors.sort();
    successors.dedup();
    assert_eq!(successors.len(), 1);
}

#[tokio::test]
async fn refresh_token_expires_by_idleness_and_by_age() {
    let app = TestApp::start_with(&[
        ("sessions.refresh_token_seconds", "1000"),
        ("sessions.absolute_seconds", "2500"),
    ])
    .await;
    let idle = app.register("idle").await;
    app.clock.advance(Duration::from_secs(1001));
    refresh(&app, &idle.refresh_token).await.assert_error(401, "invalid_refresh_token");

    let mut busy = app.register("busy").await;
    for _ in 0..2 {
        app.clock.advance(Duration::from_mins(15));
        busy.set_tokens(&refresh(&app, &busy.refresh_token).await.expect_status(200));
    }
    app.clock.advance(Duration::from_mins(15));
    refresh(&app, &busy.refresh_token).await.assert_error(401, "invalid_refresh_token");
    let answer = app.get("/v1/agents").bearer(&busy.access_token).send().await;
    answer.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn forged_refresh_token_is_rejected_and_ends_no_session() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut forged = BASE64URL_NOPAD
        .decode(dana.refresh_token.strip_prefix("rt_call2me_").unwrap().as_bytes())
        .unwrap();
    *forged.last_mut().unwrap() ^= 1;
    let forged = format!("rt_call2me_{}", BASE64URL_NOPAD.encode(&forged));
    for token in [forged.as_str(), "", "rt_call2me_", "rt_call2me_AAAA", &dana.access_token, "💥"]
    {
        let answer = refresh(&app, token).await;
        answer.assert_error(401, "invalid_refresh_token");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"call2me\"");
    }
    assert!(is_accepted(&app, &dana.access_token).await);
    refresh(&app, &dana.refresh_token).await.expect_status(200);
}

#[tokio::test]
async fn sign_out_ends_all_tokens_of_session() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let answer = app.post("/v1/auth/logout").bearer(&dana.access_token).send().await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.text, "");
    app.get("/v1/auth/me")
        .bearer(&dana.access_token)
        .send()
        .await
        .assert_error(401, "unauthorized");
    refresh(&app, &dana.refresh_token).await.assert_error(401, "invalid_refresh_token");
    assert_eq!(sign_in(&app, &dana.email, PASSWORD).await.status, 200);
}

#[tokio::test]
async fn access_token_expires_after_one_hour() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.clock.advance(Duration::from_secs(3590));
    assert!(is_accepted(&app, &dana.access_token).await);
    app.clock.advance(Duration::from_secs(10));
    let answer = app.get("/v1/agents").bearer(&dana.access_token).send().await;
    answer.assert_error(401, "token_expired");
    assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""));
    // The error takes precedence over the one of an ended session.
    let dana = app.register("later").await;
    app.post("/v1/auth/logout").bearer(&dana.access_token).send().await.expect_status(204);
    app.clock.advance(Duration::from_hours(1));
    app.get("/v1/agents")
        .bearer(&dana.access_token)
        .send()
        .await
        .assert_error(401, "token_expired");
}

/// Changes the header (part 0) or the claims (part 1) of a token and keeps its signature.
fn tamper(token: &str, part: usize, modify: impl Fn(&mut Value)) -> String {
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    let bytes = BASE64URL_NOPAD.decode(parts[part].as_bytes()).unwrap();
    let mut value: Value = serde_json::from_slice(&bytes).unwrap();
    modify(&mut value);
    parts[part] = BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    parts.join(".")
}

#[tokio::test]
async fn forged_access_token_is_rejected() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let token = &dana.access_token;
    let unsigned = tamper(token, 0, |header| header["alg"] = json!("none"));
    let without_signature = format!("{}.", unsigned.rsplit_once('.').unwrap().0);
    let forged_tokens = [
        unsigned,
        without_signature,
        tamper(token, 0, |header| header["alg"] = json!("HS256")),
        tamper(token, 0, |header| header["alg"] = json!("ES256")),
        tamper(token, 0, |header| header["typ"] = json!("JWT")),
        tamper(token, 0, |header| header["kid"] = json!("../../etc/passwd")),
        tamper(token, 0, |header| header["kid"] = json!(7)),
        tamper(token, 0, |header| header["jku"] = json!("https://evil.example/jwks.json")),
        tamper(token, 0, |header| header["jwk"] = json!({ "kty": "OKP" })),
        tamper(token, 0, |header| header["crit"] = json!(["exp"])),
        tamper(token, 1, |claims| claims["exp"] = json!(99_999_999_999_i64)),
        tamper(token, 1, |claims| claims["scope"] = json!("call2me:admin")),
        tamper(token, 1, |claims| claims["iss"] = json!("https://evil.example")),
        format!("{token}A"),
        format!("{token}="),
        token[..token.len() - 1].to_owned(),
        format!("{}.{token}", "A".repeat(3000)),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "eyJ.eyJ.eyJ".to_owned(),
    ];
    for token in forged_tokens {
        let answer = app.get("/v1/agents").bearer(&token).send().await;
        answer.assert_error(401, "unauthorized");
    }
    // The original token is valid.
    assert!(is_accepted(&app, token).await);
    // A valid token of another deployment.
    let other = TestApp::start().await;
    let foreign = other.register("acme").await;
    app.get("/v1/agents")
        .bearer(&foreign.access_token)
        .send()
        .await
        .assert_error(401, "unauthorized");
}

#[tokio::test]
async fn jwks_verifies_access_token_offline() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let answer = app.get("/.well-known/jwks.json").send().await;
    assert_eq!(answer.header("cache-control"), "public, max-age=300");
    let jwks: jsonwebtoken::jwk::JwkSet =
        serde_json::from_value(answer.expect_status(200)).unwrap();
    let header = jsonwebtoken::decode_header(&dana.access_token).unwrap();
    assert_eq!(header.typ.as_deref(), Some("at+jwt"));
    let key =
        jsonwebtoken::DecodingKey::from_jwk(jwks.find(&header.kid.unwrap()).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
    validation.set_audience(&[&app.url]);
    validation.set_issuer(&[&app.url]);
    let token = jsonwebtoken::decode::<Value>(&dana.access_token, &key, &validation).unwrap();
    assert_eq!(token.claims["sub"], dana.user_id);
    assert!(!app.get("/.well-known/jwks.json").send().await.text.contains("\"d\""));
}

#[tokio::test]
async fn membership_change_applies_to_existing_tokens() {
    let app = TestApp::start().await;
    let acme = app.register("acme").await;
    let member = app.add_member(&acme, "member").await;
    let create = |token: &str| {
        app.post("/v1/agents").bearer(token).json(json!({ "agent_name": "a" })).send()
    };
    create(&member.access_token).await.expect_status(201);
    update_membership(&app, &member, "UPDATE memberships SET role = 'viewer' WHERE user_id = $1")
        .await;
    create(&member.access_token).await.assert_error(403, "insufficient_scope");
    assert!(is_accepted(&app, &member.access_token).await);
    // A promotion takes effect at the next refresh.
    update_membership(&app, &member, "UPDATE memberships SET role = 'admin' WHERE user_id = $1")
        .await;
    app.get("/v1/members")
        .bearer(&member.access_token)
        .send()
        .await
        .assert_error(403, "insufficient_scope");
    let next = refresh(&app, &member.refresh_token).await.expect_status(200);
    let token = next["access_token"].as_str().unwrap();
    app.get("/v1/members").bearer(token).send().await.expect_status(200);
    update_membership(&app, &member, "DELETE FROM memberships WHERE user_id = $1").await;
    app.get("/v1/agents").bearer(token).send().await.assert_error(401, "unauthorized");
}

async fn update_membership(app: &TestApp, person: &TestUser, sql: &'static str) {
    let id = call2me_auth::model::id::parse("user", &person.user_id).unwrap();
    let mut connection = app.database.connect().await;
    sqlx::query(sql).bind(id).execute(&mut connection).await.unwrap();
    app.database.wait_for_invalidation().await;
}

#[tokio::test]
async fn weak_password_hash_is_upgraded_at_sign_in() {
    let app = TestApp::start_with_recommended_password_cost().await;
    let dana = app.register("acme").await;
    let weak = argon2::Argon2::new(
        argon2::Algorithm::Argon2id,
        argon2::Version::V0x13,
        argon2::Params::new(1024, 1, 1, None).unwrap(),
    );
    let hash: argon2::password_hash::phc::PasswordHash =
        argon2::PasswordHasher::hash_password_with_salt(&weak, PASSWORD.as_bytes(), &[3; 16])
            .unwrap();
    let mut connection = app.database.connect().await;
    sqlx::query("UPDATE users SET password_hash = $1")
        .bind(hash.to_string())
        .execute(&mut connection)
        .await
        .unwrap();
    sign_in(&app, &dana.email, PASSWORD).await.expect_status(200);
    let stored: String = sqlx::query_scalar("SELECT password_hash FROM users")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
}
