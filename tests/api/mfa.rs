//! /v1/auth/mfa/…: TOTP and recovery codes. The tests compute the TOTP codes themselves.

use std::time::Duration;

use aws_lc_rs::hmac;
use call2me_auth::env::Clock as _;
use data_encoding::BASE32_NOPAD;
use serde_json::{Value, json};

use crate::fixture::{
    Browser, LOCALHOST, PASSWORD, SmtpSink, TestApp, TestResponse, TestUser, link_token,
};

/// Computes a TOTP code according to RFC 6238, without code of the service.
pub fn compute_totp_code(secret: &str, unix_seconds: i64) -> String {
    let key = BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key);
    let mac = hmac::sign(&key, &(unix_seconds / 30).to_be_bytes());
    let offset = usize::from(mac.as_ref()[19] & 15);
    let word: [u8; 4] = mac.as_ref()[offset..offset + 4].try_into().unwrap();
    format!("{:06}", (u32::from_be_bytes(word) & 0x7fff_ffff) % 1_000_000)
}

pub fn unix_now(app: &TestApp) -> i64 {
    app.clock.now().unix_timestamp()
}

pub async fn sign_in_with_password(app: &TestApp, user: &TestUser, password: &str) -> TestResponse {
    let body = json!({ "email": user.email, "password": password });
    app.post("/v1/auth/login").json(body).send().await
}

/// Signs in with the password and returns the `mfa_token` for the second step.
pub async fn start_sign_in(app: &TestApp, user: &TestUser) -> String {
    let response = sign_in_with_password(app, user, PASSWORD).await;
    response.assert_error(401, "mfa_required");
    response.body["mfa_token"].as_str().unwrap().to_owned()
}

pub async fn verify_code(app: &TestApp, token: &str, code: &str) -> TestResponse {
    let body = json!({ "mfa_token": token, "code": code });
    app.post("/v1/auth/mfa/verify").json(body).send().await
}

pub async fn enroll_totp(app: &TestApp, user: &TestUser, body: Value) -> TestResponse {
    app.request_as(&user.access_token, "POST", "/v1/auth/mfa/totp").json(body).send().await
}

pub async fn confirm_totp(app: &TestApp, user: &TestUser, code: &str) -> TestResponse {
    let body = json!({ "code": code });
    app.request_as(&user.access_token, "POST", "/v1/auth/mfa/totp/confirm").json(body).send().await
}

/// Verifies the user's address, enrolls TOTP and stores the new tokens of the session. Returns the
/// secret and the recovery codes. The code of the current time step is used up.
pub async fn enable_totp(app: &TestApp, user: &mut TestUser) -> (String, Vec<String>) {
    app.set_verified(user, true).await;
    let enrollment = enroll_totp(app, user, json!({})).await.expect_status(200);
    let secret = enrollment["secret"].as_str().unwrap().to_owned();
    let confirmed = confirm_totp(app, user, &compute_totp_code(&secret, unix_now(app)))
        .await
        .expect_status(200);
    user.set_tokens(&confirmed);
    let codes = serde_json::from_value(confirmed["recovery_codes"].clone()).unwrap();
    (secret, codes)
}

/// Turns TOTP off and stores the new tokens of the session.
pub async fn disable_totp(app: &TestApp, user: &mut TestUser) {
    let call = app.request_as(&user.access_token, "DELETE", "/v1/auth/mfa/totp");
    let answer = call.json(json!({ "password": PASSWORD })).send().await.expect_status(200);
    user.set_tokens(&answer);
}

#[tokio::test]
async fn sign_in_needs_code_once_totp_is_confirmed() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let mut dana = app.register_verified("acme").await;
    let key = app.create_key(&dana, "server", "write").await;
    let enrollment = enroll_totp(&app, &dana, json!({})).await.expect_status(200);
    let uri = enrollment["otpauth_uri"].as_str().unwrap();
    let secret = enrollment["secret"].as_str().unwrap();
    assert!(
        uri.starts_with("otpauth://totp/") && uri.contains(&format!("secret={secret}&")),
        "{uri}"
    );
    assert!(uri.contains("owner%40acme%2Eexample"), "{uri}");
    // Not before TOTP is confirmed: a secret that was never scanned must not lock the user out.
    sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    confirm_totp(&app, &dana, "000000")
        .await
        .assert_error(422, "validation_failed")
        .assert_field("code");
    let (secret, codes) = enable_totp(&app, &mut dana).await;
    assert_eq!(codes.len(), 10);
    sink.wait_for_email(&dana.email, "Two-factor sign-in is on").await;
    enroll_totp(&app, &dana, json!({})).await.assert_error(409, "conflict");
    confirm_totp(&app, &dana, &compute_totp_code(&secret, unix_now(&app)))
        .await
        .assert_error(409, "conflict");

    sign_in_with_password(&app, &dana, "not this one at all")
        .await
        .assert_error(401, "invalid_credentials");
    let token = start_sign_in(&app, &dana).await;
    // The code that confirmed TOTP is used up.
    verify_code(&app, &token, &compute_totp_code(&secret, unix_now(&app)))
        .await
        .assert_error(401, "invalid_credentials");
    let next = compute_totp_code(&secret, unix_now(&app) + 30);
    let pair = verify_code(&app, &token, &next).await.expect_status(200);
    let me = app.request_as(pair["access_token"].as_str().unwrap(), "GET", "/v1/auth/me");
    assert_eq!(me.send().await.expect_status(200)["workspace"]["id"], dana.workspace_id);
    // A challenge works only once, and so does a code.
    app.clock.advance(Duration::from_secs(30));
    verify_code(&app, &token, &compute_totp_code(&secret, unix_now(&app) + 30))
        .await
        .assert_error(401, "invalid_credentials");
    let token = start_sign_in(&app, &dana).await;
    verify_code(&app, &token, &next).await.assert_error(401, "invalid_credentials");
    // API keys are not affected.
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    app.wait_for_event_count(&dana.access_token, "action=member.mfa_enabled", 1).await;
    app.wait_for_event(&dana.access_token, "action=login.failed", |event| {
        event["metadata"]["reason"] == "wrong_code"
    })
    .await;

    let remove_totp = async |user: &TestUser, password: &str| {
        let call = app.request_as(&user.access_token, "DELETE", "/v1/auth/mfa/totp");
        call.json(json!({ "password": password })).send().await
    };
    let wrong = remove_totp(&dana, "not this one at all").await;
    wrong.assert_error(422, "validation_failed").assert_field("password");
    disable_totp(&app, &mut dana).await;
    sink.wait_for_email(&dana.email, "Two-factor sign-in is off").await;
    sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    remove_totp(&dana, PASSWORD).await.assert_error(404, "not_found");
}

#[tokio::test]
async fn recovery_code_works_once_and_only_for_its_authenticator() {
    let app = TestApp::start().await;
    let mut dana = app.register_verified("acme").await;
    let (secret, codes) = enable_totp(&app, &mut dana).await;
    for code in [codes[0].to_uppercase(), codes[9].replace('-', "")] {
        let token = start_sign_in(&app, &dana).await;
        verify_code(&app, &token, &code).await.expect_status(200);
        let token = start_sign_in(&app, &dana).await;
        verify_code(&app, &token, &code).await.assert_error(401, "invalid_credentials");
    }
    // The codes of a removed authenticator do not work with the next one.
    disable_totp(&app, &mut dana).await;
    let (new_secret, new_codes) = enable_totp(&app, &mut dana).await;
    assert!(new_secret != secret && new_codes.iter().all(|code| !codes.contains(code)));
    let token = start_sign_in(&app, &dana).await;
    verify_code(&app, &token, &codes[1]).await.assert_error(401, "invalid_credentials");
    verify_code(&app, &token, &new_codes[0]).await.expect_status(200);
}

#[tokio::test]
async fn code_guesses_are_limited_per_challenge_and_user() {
    let app = TestApp::start().await;
    let [mut dana, mut sam] =
        [app.register_verified("acme").await, app.register_verified("widgets-inc").await];
    let ((secret, codes), _) =
        (enable_totp(&app, &mut dana).await, enable_totp(&app, &mut sam).await);
    let other_token = start_sign_in(&app, &sam).await;
    let [first, second] = [start_sign_in(&app, &dana).await, start_sign_in(&app, &dana).await];
    for token in [&first, &second] {
        for _ in 0..5 {
            verify_code(&app, token, "0000000").await.assert_error(401, "invalid_credentials");
        }
    }
    // The sixth attempt is rejected without a check, even with a valid code.
    verify_code(&app, &first, &codes[0]).await.assert_error(401, "invalid_credentials");
    let token = start_sign_in(&app, &dana).await;
    let limited = verify_code(&app, &token, &codes[0]).await;
    limited.assert_error(429, "rate_limited");
    let wait = limited.header_number("retry-after");
    assert!((1..=3600).contains(&wait), "{wait}");
    verify_code(&app, &other_token, &codes[0]).await.assert_error(401, "invalid_credentials");
    app.clock.advance(Duration::from_secs(wait.unsigned_abs()));
    let token = start_sign_in(&app, &dana).await;
    verify_code(&app, &token, &compute_totp_code(&secret, unix_now(&app))).await.expect_status(200);
}

#[tokio::test]
async fn mfa_challenge_expires_and_is_no_other_token() {
    let app = TestApp::start().await;
    let mut dana = app.register_verified("acme").await;
    let (secret, _) = enable_totp(&app, &mut dana).await;
    let token = start_sign_in(&app, &dana).await;
    app.get("/v1/agents").bearer(&token).send().await.assert_error(401, "unauthorized");
    let refresh = app.post("/v1/auth/refresh").json(json!({ "refresh_token": token }));
    refresh.send().await.assert_error(401, "invalid_refresh_token");
    let reset = json!({ "token": token, "new_password": "a walk in the old park" });
    let reset = app.post("/v1/auth/password/reset").json(reset).send().await;
    reset.assert_error(422, "validation_failed").assert_field("token");
    for bad in ["", "x", &dana.access_token, &dana.refresh_token] {
        let response =
            verify_code(&app, bad, &compute_totp_code(&secret, unix_now(&app) + 30)).await;
        response.assert_error(401, "invalid_credentials");
    }
    app.clock.advance(Duration::from_secs(301));
    verify_code(&app, &token, &compute_totp_code(&secret, unix_now(&app)))
        .await
        .assert_error(401, "invalid_credentials");
}

/// The code of an unconfirmed enrollment cannot be guessed.
#[tokio::test]
async fn totp_enrollment_expires_and_limits_guesses() {
    let app = TestApp::start().await;
    let dana = app.register_verified("acme").await;
    let enrollment = enroll_totp(&app, &dana, json!({})).await.expect_status(200);
    let secret = enrollment["secret"].as_str().unwrap();
    for _ in 0..5 {
        confirm_totp(&app, &dana, "0000000")
            .await
            .assert_error(422, "validation_failed")
            .assert_field("code");
    }
    confirm_totp(&app, &dana, &compute_totp_code(secret, unix_now(&app)))
        .await
        .assert_error(409, "conflict");
    let enrollment = enroll_totp(&app, &dana, json!({})).await.expect_status(200);
    app.clock.advance(Duration::from_mins(15));
    let secret = enrollment["secret"].as_str().unwrap();
    confirm_totp(&app, &dana, &compute_totp_code(secret, unix_now(&app)))
        .await
        .assert_error(409, "conflict");
    sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
}

/// A factor of an unverified account would keep the owner of the address out, or protect nothing.
#[tokio::test]
async fn second_factor_requires_verified_email() {
    let app = TestApp::start_with(&[("server.public_url", LOCALHOST)]).await;
    let mut dana = app.register("acme").await;
    for path in ["/v1/auth/mfa/totp", "/v1/auth/passkeys/options"] {
        let answer = app.request_as(&dana.access_token, "POST", path).json(json!({})).send().await;
        answer.assert_error(403, "forbidden");
        assert!(answer.text.contains("verify your email address"), "{}", answer.text);
    }
    // An enrollment that began while the address was verified does not end in a factor either.
    app.set_verified(&dana, true).await;
    let enrollment = enroll_totp(&app, &dana, json!({})).await.expect_status(200);
    app.set_verified(&dana, false).await;
    let code = compute_totp_code(enrollment["secret"].as_str().unwrap(), unix_now(&app));
    confirm_totp(&app, &dana, &code).await.assert_error(403, "forbidden");
    sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/second-factor").await;
    assert!(page.text.contains("Verify your email address before"), "{page:#?}");
    for form in ["/second-factor/set-up", "/second-factor/passkeys/new"] {
        assert!(!page.text.contains(form), "{form}");
    }
    enable_totp(&app, &mut dana).await;
}

/// Access to the mailbox alone is not a second factor.
#[tokio::test]
async fn password_reset_keeps_factors_of_verified_email() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let new_password = "a walk in the old park";
    let mut dana = app.register("acme").await;
    enable_totp(&app, &mut dana).await;
    let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": dana.email }));
    assert_eq!(forgot.send().await.status, 202);
    let token = link_token(&sink.wait_for_email(&dana.email, "Reset your password").await);
    let body = json!({ "token": token, "new_password": new_password });
    assert_eq!(app.post("/v1/auth/password/reset").json(body).send().await.status, 204);
    sign_in_with_password(&app, &dana, new_password).await.assert_error(401, "mfa_required");
    // The operator can remove a lost factor.
    app.app.auth.second_factors.remove_all_as_operator(&dana.email).await.unwrap();
    sign_in_with_password(&app, &dana, new_password).await.expect_status(200);
}

/// A sign-in that started with the old password cannot be completed.
#[tokio::test]
async fn password_change_ends_pending_sign_ins() {
    let app = TestApp::start().await;
    let mut dana = app.register_verified("acme").await;
    let (secret, _) = enable_totp(&app, &mut dana).await;
    let token = start_sign_in(&app, &dana).await;
    let body = json!({ "current_password": PASSWORD, "new_password": "a walk in the old park" });
    let change = app.request_as(&dana.access_token, "POST", "/v1/auth/password/change").json(body);
    assert_eq!(change.send().await.status, 200);
    let late = verify_code(&app, &token, &compute_totp_code(&secret, unix_now(&app) + 30)).await;
    late.assert_error(401, "invalid_credentials");
}

#[tokio::test]
async fn concurrent_uses_of_one_code_sign_in_once() {
    let a = TestApp::start().await;
    let b = a.another_node().await;
    let mut dana = a.register_verified("acme").await;
    let (secret, _) = enable_totp(&a, &mut dana).await;
    let mut tokens = Vec::new();
    for _ in 0..4 {
        tokens.push(start_sign_in(&a, &dana).await);
    }
    let valid_code = compute_totp_code(&secret, unix_now(&a) + 30);
    let nodes = [&a, &b, &a, &b];
    let attempts =
        tokens.iter().zip(nodes).map(|(token, node)| verify_code(node, token, &valid_code));
    let responses = futures_util::future::join_all(attempts).await;
    let statuses: Vec<_> = responses.iter().map(|response| response.status.as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 3, "{statuses:?}");
}

#[tokio::test]
async fn totp_enrollment_needs_recent_sign_in_or_password() {
    let app = TestApp::start().await;
    let dana = app.register_verified("acme").await;
    app.clock.advance(Duration::from_mins(16));
    enroll_totp(&app, &dana, json!({})).await.assert_error(403, "forbidden");
    let wrong = enroll_totp(&app, &dana, json!({ "password": "not this one at all" })).await;
    wrong.assert_error(422, "validation_failed").assert_field("password");
    enroll_totp(&app, &dana, json!({ "password": PASSWORD })).await.expect_status(200);
    let key = app.create_key(&dana, "k", "admin").await;
    let by_key = app.request_as(&key.secret, "POST", "/v1/auth/mfa/totp").send().await;
    by_key.assert_error(403, "forbidden");
}

#[tokio::test]
async fn renewed_recovery_codes_replace_the_old_ones() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let mut dana = app.register_verified("acme").await;
    let path = "/v1/auth/mfa/recovery-codes";
    let renew = async |user: &TestUser, password: &str| {
        let call = app.request_as(&user.access_token, "POST", path);
        call.json(json!({ "password": password })).send().await
    };
    renew(&dana, PASSWORD).await.assert_error(404, "not_found");
    let (secret, old) = enable_totp(&app, &mut dana).await;
    renew(&dana, "wrong").await.assert_error(422, "validation_failed").assert_field("password");
    // One code is used. The new set is complete.
    let token = start_sign_in(&app, &dana).await;
    verify_code(&app, &token, &old[0]).await.expect_status(200);
    let mut code_sets = vec![old];
    for _ in 0..2 {
        let renewed = renew(&dana, PASSWORD).await.expect_status(200);
        dana.set_tokens(&renewed);
        code_sets.push(serde_json::from_value(renewed["recovery_codes"].clone()).unwrap());
    }
    let newest = code_sets.pop().unwrap();
    assert_eq!(newest.len(), 10);
    let token = start_sign_in(&app, &dana).await;
    for stale in code_sets.iter().map(|codes| &codes[1]) {
        verify_code(&app, &token, stale).await.assert_error(401, "invalid_credentials");
    }
    verify_code(&app, &token, &newest[0]).await.expect_status(200);
    let token = start_sign_in(&app, &dana).await;
    verify_code(&app, &token, &newest[0]).await.assert_error(401, "invalid_credentials");
    app.clock.advance(Duration::from_mins(1));
    let token = start_sign_in(&app, &dana).await;
    verify_code(&app, &token, &compute_totp_code(&secret, unix_now(&app))).await.expect_status(200);
    sink.wait_for_email(&dana.email, "recovery codes").await;
    let key = app.create_key(&dana, "log", "admin").await.secret;
    app.wait_for_event_count(&key, "action=member.recovery_codes_renewed", 2).await;
}
