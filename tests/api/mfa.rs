//! /v1/auth/mfa/…: a second factor, with the authenticator's codes made by the test itself.

use std::time::Duration;

use aws_lc_rs::hmac;
use call2me_auth::env::Clock as _;
use data_encoding::BASE32_NOPAD;
use serde_json::{Value, json};

use crate::fixture::{Answer, PASSWORD, Person, SmtpSink, TestApp, token_in};

/// An authenticator, from the RFC and not from the service.
pub fn code(secret: &str, unix_seconds: i64) -> String {
    let key = BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key);
    let mac = hmac::sign(&key, &(unix_seconds / 30).to_be_bytes());
    let offset = usize::from(mac.as_ref()[19] & 15);
    let word: [u8; 4] = mac.as_ref()[offset..offset + 4].try_into().unwrap();
    format!("{:06}", (u32::from_be_bytes(word) & 0x7fff_ffff) % 1_000_000)
}

pub fn now(app: &TestApp) -> i64 {
    app.clock.now().unix_timestamp()
}

pub async fn login(app: &TestApp, person: &Person, password: &str) -> Answer {
    let body = json!({ "email": person.email, "password": password });
    app.post("/v1/auth/login").json(body).send().await
}

/// Signs in as far as the password goes.
async fn challenge(app: &TestApp, person: &Person) -> String {
    let answer = login(app, person, PASSWORD).await;
    answer.refused(401, "mfa_required");
    answer.body["mfa_token"].as_str().unwrap().to_owned()
}

async fn verify(app: &TestApp, token: &str, code: &str) -> Answer {
    let body = json!({ "mfa_token": token, "code": code });
    app.post("/v1/auth/mfa/verify").json(body).send().await
}

pub async fn enrol(app: &TestApp, person: &Person, body: Value) -> Answer {
    app.by(&person.access_token, "POST", "/v1/auth/mfa/totp").json(body).send().await
}

pub async fn confirm(app: &TestApp, person: &Person, code: &str) -> Answer {
    let body = json!({ "code": code });
    app.by(&person.access_token, "POST", "/v1/auth/mfa/totp/confirm").json(body).send().await
}

/// Sets an authenticator up: its secret and the recovery codes. The code of this step is used up.
pub async fn with_factor(app: &TestApp, person: &Person) -> (String, Vec<String>) {
    let enrolment = enrol(app, person, json!({})).await.expect(200);
    let secret = enrolment["secret"].as_str().unwrap().to_owned();
    let codes = confirm(app, person, &code(&secret, now(app))).await.expect(200);
    let codes = serde_json::from_value(codes["recovery_codes"].clone()).unwrap();
    (secret, codes)
}

#[tokio::test]
async fn a_sign_in_takes_a_code_once_an_authenticator_is_confirmed() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "server", "write").await;
    let first = enrol(&app, &dana, json!({})).await.expect(200);
    let uri = first["otpauth_uri"].as_str().unwrap();
    let secret = first["secret"].as_str().unwrap();
    assert!(
        uri.starts_with("otpauth://totp/") && uri.contains(&format!("secret={secret}&")),
        "{uri}"
    );
    assert!(uri.contains("owner%40acme%2Eexample"), "{uri}");
    // Not yet: nobody is locked out by a code that was never scanned.
    login(&app, &dana, PASSWORD).await.expect(200);
    confirm(&app, &dana, "000000").await.refused(422, "validation_failed").blames("code");
    let (secret, codes) = with_factor(&app, &dana).await;
    assert_eq!(codes.len(), 10);
    sink.mail(&dana.email, "Two-factor sign-in is on").await;
    enrol(&app, &dana, json!({})).await.refused(409, "conflict");
    confirm(&app, &dana, &code(&secret, now(&app))).await.refused(409, "conflict");

    login(&app, &dana, "not this one at all").await.refused(401, "invalid_credentials");
    let token = challenge(&app, &dana).await;
    // The code that confirmed has been used.
    verify(&app, &token, &code(&secret, now(&app))).await.refused(401, "invalid_credentials");
    let next = code(&secret, now(&app) + 30);
    let pair = verify(&app, &token, &next).await.expect(200);
    let me = app.by(pair["access_token"].as_str().unwrap(), "GET", "/v1/auth/me");
    assert_eq!(me.send().await.expect(200)["workspace"]["id"], dana.workspace_id);
    // Neither the challenge nor the code works twice.
    app.clock.advance(Duration::from_secs(30));
    verify(&app, &token, &code(&secret, now(&app) + 30)).await.refused(401, "invalid_credentials");
    let token = challenge(&app, &dana).await;
    verify(&app, &token, &next).await.refused(401, "invalid_credentials");
    // Keys are not affected.
    app.get("/v1/agents").bearer(&key.secret).send().await.expect(200);
    app.events_of(&dana.access_token, "action=member.mfa_enabled", 1).await;
    app.events(&dana.access_token, "action=login.failed", |event| {
        event["metadata"]["reason"] == "wrong_code"
    })
    .await;

    let remove = async |body: Value| {
        app.by(&dana.access_token, "DELETE", "/v1/auth/mfa/totp").json(body).send().await
    };
    let wrong = remove(json!({ "password": "not this one at all" })).await;
    wrong.refused(422, "validation_failed").blames("password");
    assert_eq!(remove(json!({ "password": PASSWORD })).await.status, 204);
    sink.mail(&dana.email, "Two-factor sign-in is off").await;
    login(&app, &dana, PASSWORD).await.expect(200);
    remove(json!({ "password": PASSWORD })).await.refused(404, "not_found");
}

#[tokio::test]
async fn recovery_codes_work_once_each() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (secret, codes) = with_factor(&app, &dana).await;
    for code in [codes[0].to_uppercase(), codes[9].replace('-', "")] {
        let token = challenge(&app, &dana).await;
        verify(&app, &token, &code).await.expect(200);
        let token = challenge(&app, &dana).await;
        verify(&app, &token, &code).await.refused(401, "invalid_credentials");
    }
    // Those of an authenticator that is gone are worth nothing with the next one.
    let remove = app.by(&dana.access_token, "DELETE", "/v1/auth/mfa/totp");
    assert_eq!(remove.json(json!({ "password": PASSWORD })).send().await.status, 204);
    let (another, fresh) = with_factor(&app, &dana).await;
    assert!(another != secret && fresh.iter().all(|code| !codes.contains(code)));
    let token = challenge(&app, &dana).await;
    verify(&app, &token, &codes[1]).await.refused(401, "invalid_credentials");
    verify(&app, &token, &fresh[0]).await.expect(200);
}

#[tokio::test]
async fn codes_are_guessed_a_few_times_only() {
    let app = TestApp::start().await;
    let [dana, sam] = [app.register("acme").await, app.register("widgets-inc").await];
    let ((secret, codes), _) = (with_factor(&app, &dana).await, with_factor(&app, &sam).await);
    let others = challenge(&app, &sam).await;
    let [first, second] = [challenge(&app, &dana).await, challenge(&app, &dana).await];
    for token in [&first, &second] {
        for _ in 0..5 {
            verify(&app, token, "0000000").await.refused(401, "invalid_credentials");
        }
    }
    // The sixth is not looked at, however right.
    verify(&app, &first, &codes[0]).await.refused(401, "invalid_credentials");
    let token = challenge(&app, &dana).await;
    let limited = verify(&app, &token, &codes[0]).await;
    limited.refused(429, "rate_limited");
    let wait = limited.number("retry-after");
    assert!((1..=3600).contains(&wait), "{wait}");
    verify(&app, &others, &codes[0]).await.refused(401, "invalid_credentials");
    app.clock.advance(Duration::from_secs(wait.unsigned_abs()));
    let token = challenge(&app, &dana).await;
    verify(&app, &token, &code(&secret, now(&app))).await.expect(200);
}

#[tokio::test]
async fn a_challenge_runs_out_and_is_no_other_token() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (secret, _) = with_factor(&app, &dana).await;
    let token = challenge(&app, &dana).await;
    app.get("/v1/agents").bearer(&token).send().await.refused(401, "unauthorized");
    let refresh = app.post("/v1/auth/refresh").json(json!({ "refresh_token": token }));
    refresh.send().await.refused(401, "invalid_refresh_token");
    let reset = json!({ "token": token, "new_password": "a walk in the old park" });
    let reset = app.post("/v1/auth/password/reset").json(reset).send().await;
    reset.refused(422, "validation_failed").blames("token");
    for bad in ["", "x", &dana.access_token, &dana.refresh_token] {
        let answer = verify(&app, bad, &code(&secret, now(&app) + 30)).await;
        answer.refused(401, "invalid_credentials");
    }
    app.clock.advance(Duration::from_secs(301));
    verify(&app, &token, &code(&secret, now(&app))).await.refused(401, "invalid_credentials");
}

/// An authenticator that was never confirmed is nobody's to guess at.
#[tokio::test]
async fn an_enrolment_runs_out_and_takes_a_few_guesses() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let enrolment = enrol(&app, &dana, json!({})).await.expect(200);
    let secret = enrolment["secret"].as_str().unwrap();
    for _ in 0..5 {
        confirm(&app, &dana, "0000000").await.refused(422, "validation_failed").blames("code");
    }
    confirm(&app, &dana, &code(secret, now(&app))).await.refused(409, "conflict");
    let enrolment = enrol(&app, &dana, json!({})).await.expect(200);
    app.clock.advance(Duration::from_mins(15));
    let secret = enrolment["secret"].as_str().unwrap();
    confirm(&app, &dana, &code(secret, now(&app))).await.refused(409, "conflict");
    login(&app, &dana, PASSWORD).await.expect(200);
}

/// Who registers somebody else's address does not keep its owner out of it.
#[tokio::test]
async fn a_reset_takes_the_authenticator_of_an_address_that_was_never_verified() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let new = "a walk in the old park";
    let reset = async |person: &Person| {
        let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": person.email }));
        assert_eq!(forgot.send().await.status, 202);
        let token = token_in(&sink.mail(&person.email, "Reset your password").await);
        let body = json!({ "token": token, "new_password": new });
        assert_eq!(app.post("/v1/auth/password/reset").json(body).send().await.status, 204);
    };
    let claimed = app.register("claimed").await;
    with_factor(&app, &claimed).await;
    reset(&claimed).await;
    login(&app, &claimed, new).await.expect(200);
    // Of an address that was verified, it stays: a mailbox alone is no second factor.
    let dana = app.register("acme").await;
    let token = token_in(&sink.mail(&dana.email, "Verify your e-mail address").await);
    let verify = app.post("/v1/auth/verify-email").json(json!({ "token": token }));
    assert_eq!(verify.send().await.status, 204);
    with_factor(&app, &dana).await;
    reset(&dana).await;
    login(&app, &dana, new).await.refused(401, "mfa_required");
    // The operator helps who has lost it.
    app.app.auth.remove_factors_as_operator(&dana.email).await.unwrap();
    login(&app, &dana, new).await.expect(200);
}

/// A sign-in that began with the old password does not end.
#[tokio::test]
async fn a_changed_password_ends_sign_ins_under_way() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (secret, _) = with_factor(&app, &dana).await;
    let token = challenge(&app, &dana).await;
    let body = json!({ "current_password": PASSWORD, "new_password": "a walk in the old park" });
    let change = app.by(&dana.access_token, "POST", "/v1/auth/password/change").json(body);
    assert_eq!(change.send().await.status, 204);
    let late = verify(&app, &token, &code(&secret, now(&app) + 30)).await;
    late.refused(401, "invalid_credentials");
}

#[tokio::test]
async fn of_many_who_use_a_code_at_once_one_signs_in_over_two_nodes() {
    let a = TestApp::start().await;
    let b = a.another_node().await;
    let dana = a.register("acme").await;
    let (secret, _) = with_factor(&a, &dana).await;
    let mut tokens = Vec::new();
    for _ in 0..4 {
        tokens.push(challenge(&a, &dana).await);
    }
    let right = code(&secret, now(&a) + 30);
    let nodes = [&a, &b, &a, &b];
    let tries = tokens.iter().zip(nodes).map(|(token, node)| verify(node, token, &right));
    let answers = futures_util::future::join_all(tries).await;
    let codes: Vec<_> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    assert_eq!(codes.iter().filter(|code| **code == 200).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 401).count(), 3, "{codes:?}");
}

#[tokio::test]
async fn setting_one_up_takes_a_fresh_sign_in_or_the_password() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.clock.advance(Duration::from_mins(16));
    enrol(&app, &dana, json!({})).await.refused(403, "forbidden");
    let wrong = enrol(&app, &dana, json!({ "password": "not this one at all" })).await;
    wrong.refused(422, "validation_failed").blames("password");
    enrol(&app, &dana, json!({ "password": PASSWORD })).await.expect(200);
    let key = app.mint(&dana, "k", "admin").await;
    let by_key = app.by(&key.secret, "POST", "/v1/auth/mfa/totp").send().await;
    by_key.refused(403, "forbidden");
}

#[tokio::test]
async fn recovery_codes_are_made_anew() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let path = "/v1/auth/mfa/recovery-codes";
    let renew = async |password: &str| {
        let call = app.by(&dana.access_token, "POST", path);
        call.json(json!({ "password": password })).send().await
    };
    renew(PASSWORD).await.refused(404, "not_found");
    let (secret, old) = with_factor(&app, &dana).await;
    renew("wrong").await.refused(422, "validation_failed").blames("password");
    // One is used up; what comes anew is whole.
    let token = challenge(&app, &dana).await;
    verify(&app, &token, &old[0]).await.expect(200);
    let mut sets = vec![old];
    for _ in 0..2 {
        let renewed = renew(PASSWORD).await.expect(200);
        sets.push(serde_json::from_value(renewed["recovery_codes"].clone()).unwrap());
    }
    let newest = sets.pop().unwrap();
    assert_eq!(newest.len(), 10);
    let token = challenge(&app, &dana).await;
    for stale in sets.iter().map(|set| &set[1]) {
        verify(&app, &token, stale).await.refused(401, "invalid_credentials");
    }
    verify(&app, &token, &newest[0]).await.expect(200);
    let token = challenge(&app, &dana).await;
    verify(&app, &token, &newest[0]).await.refused(401, "invalid_credentials");
    app.clock.advance(Duration::from_mins(1));
    let token = challenge(&app, &dana).await;
    verify(&app, &token, &code(&secret, now(&app))).await.expect(200);
    sink.mail(&dana.email, "recovery codes").await;
    let key = app.mint(&dana, "log", "admin").await.secret;
    app.events_of(&key, "action=member.recovery_codes_renewed", 2).await;
}
