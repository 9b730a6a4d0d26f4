//! The sessions that may change second factors and passkeys, and workspaces that require a second
//! factor.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    fixture::{
        Browser, LOCALHOST, PASSWORD, SmtpSink, TestApp, TestResponse, TestUser,
        authenticator::TestAuthenticator, link_token,
    },
    mfa::{
        compute_totp_code, confirm_totp, disable_totp, enable_totp, enroll_totp,
        sign_in_with_password, unix_now,
    },
    passkeys::{
        self, add_passkey, create_attestation_response, fetch_authentication_options,
        fetch_registration_options, register_authenticator, sign_in_with_passkey,
    },
};

#[tokio::test]
async fn workspace_can_require_second_factor() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let mut dana = app.register("acme").await;
    let [admin, member] =
        [app.add_member(&dana, "admin").await, app.add_member(&dana, "member").await];
    let key = app.create_key(&dana, "server", "write").await;
    let patch_workspace = async |bearer: &str, body: Value| {
        app.request_as(bearer, "PATCH", "/v1/workspace").json(body).send().await
    };
    let enable = json!({ "require_second_factor": true });
    let agents = async |app: &TestApp, bearer: &str| {
        app.request_as(bearer, "GET", "/v1/agents").send().await.status
    };
    // Only an owner with a second factor may, after a recent sign-in or with the password.
    patch_workspace(&admin.access_token, enable.clone()).await.assert_error(403, "forbidden");
    patch_workspace(&key.secret, enable.clone()).await.assert_error(403, "insufficient_scope");
    let admin_key = app.create_key(&dana, "admin", "admin").await.secret;
    patch_workspace(&admin_key, enable.clone()).await.assert_error(403, "forbidden");
    patch_workspace(&dana.access_token, enable.clone()).await.assert_error(403, "forbidden");
    enable_totp(&app, &mut dana).await;
    app.clock.advance(Duration::from_mins(20));
    patch_workspace(&dana.access_token, enable.clone()).await.assert_error(403, "forbidden");
    assert_eq!(agents(&node, &member.access_token).await, 200);
    let body = json!({ "require_second_factor": true, "password": PASSWORD });
    let changed = patch_workspace(&dana.access_token, body).await.expect_status(200);
    assert_eq!(changed["require_second_factor"], true);

    // Members without a factor can only enroll one. This applies at once on every node.
    for app in [&app, &node] {
        assert_eq!(agents(app, &member.access_token).await, 403);
        assert_eq!(agents(app, &dana.access_token).await, 200);
        assert_eq!(agents(app, &key.secret).await, 200, "API keys are not affected");
    }
    let call =
        app.request_as(&admin.access_token, "POST", "/v1/api-keys").json(json!({ "name": "k" }));
    call.send().await.assert_error(403, "forbidden");
    let fresh = sign_in_with_password(&app, &member, PASSWORD).await.expect_status(200);
    let bearer = fresh["access_token"].as_str().unwrap();
    assert_eq!(agents(&app, bearer).await, 403);
    let own = app.request_as(bearer, "GET", "/v1/auth/sessions").send().await;
    own.expect_status(200);
    // Other workspaces do not require it.
    let listed = app.request_as(bearer, "GET", "/v1/workspaces").send().await.expect_status(200);
    let mut workspaces = listed["workspaces"].as_array().unwrap().iter();
    let other = workspaces.find(|own| own["id"] != json!(dana.workspace_id)).unwrap();
    let body = json!({ "workspace_id": other["id"] });
    let call = app.request_as(bearer, "POST", "/v1/auth/switch-workspace").json(body);
    let switched = call.send().await.expect_status(200);
    assert_eq!(agents(&app, switched["access_token"].as_str().unwrap()).await, 200);

    let access_token = fresh_access_token(&app, &member).await;
    let mut enrolling = TestUser { access_token, ..member.clone() };
    assert_eq!(agents(&node, &enrolling.access_token).await, 403);
    enable_totp(&app, &mut enrolling).await;
    // Earlier sessions without the factor have ended, because an attacker may hold them.
    app.request_as(&member.access_token, "GET", "/v1/auth/me")
        .send()
        .await
        .assert_error(401, "unauthorized");
    let mut member = enrolling;
    for app in [&app, &node] {
        assert_eq!(
            agents(app, &member.access_token).await,
            200,
            "access returns as soon as the factor is confirmed"
        );
    }
    let body = json!({ "password": PASSWORD });
    let call = app.request_as(&member.access_token, "DELETE", "/v1/auth/mfa/totp").json(body);
    member.set_tokens(&call.send().await.expect_status(200));
    for app in [&app, &node] {
        assert_eq!(agents(app, &member.access_token).await, 403);
    }
    let body = json!({ "require_second_factor": false, "password": PASSWORD });
    patch_workspace(&dana.access_token, body).await.expect_status(200);
    for app in [&app, &node] {
        assert_eq!(agents(app, &member.access_token).await, 200);
    }
    let events = app.wait_for_event_count(&admin_key, "action=workspace.updated", 2).await;
    assert_eq!(events[0]["metadata"]["require_second_factor"], false);
    assert_eq!(events[1]["metadata"]["require_second_factor"], true);
}

#[tokio::test]
async fn session_that_ends_meanwhile_changes_no_factor() {
    let app = TestApp::start_with(&[("server.public_url", LOCALHOST)]).await;
    let [dana, lee] = [app.register_verified("acme").await, app.register_verified("lee").await];
    let enrollment = enroll_totp(&app, &dana, json!({})).await.expect_status(200);
    let code = compute_totp_code(enrollment["secret"].as_str().unwrap(), unix_now(&app));
    let passkey =
        json!({ "name": "phone", "credential": create_attestation_response(&app, &lee).await });
    let [mut kim, mut sam] = [app.register("kim").await, app.register("sam").await];
    enable_totp(&app, &mut kim).await;
    enable_totp(&app, &mut sam).await;
    let password = json!({ "password": PASSWORD });
    for (person, method, path, body) in [
        (&dana, "POST", "/v1/auth/mfa/totp/confirm", json!({ "code": code })),
        (&lee, "POST", "/v1/auth/passkeys", passkey),
        (&kim, "POST", "/v1/auth/mfa/recovery-codes", password.clone()),
        (&sam, "DELETE", "/v1/auth/mfa/totp", password),
    ] {
        let mut connection = app.database.connect().await;
        let mut tx = connection.begin().await.unwrap();
        sqlx::query("SELECT FROM users FOR NO KEY UPDATE").execute(&mut *tx).await.unwrap();
        let end = async {
            app.database.wait_for_blocked_statement().await;
            let sql = "UPDATE sessions SET ended_at = now() FROM users u
                       WHERE u.id = user_id AND u.email = $1";
            sqlx::query(sql).bind(&person.email).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        };
        let call = app.request_as(&person.access_token, method, path).json(body).send();
        let (answer, ()) = tokio::join!(call, end);
        answer.assert_error(401, "unauthorized");
    }
    let mut connection = app.database.connect().await;
    let sql = "SELECT (SELECT count(*) FROM passkeys)
                      + (SELECT count(*) FROM totp_factors WHERE confirmed_at IS NOT NULL)";
    let factors: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(factors, 2, "only the earlier factors exist");
}

/// Signs in to the workspace of the user and returns the access token.
async fn fresh_access_token(app: &TestApp, person: &TestUser) -> String {
    let body = json!({
        "email": person.email, "password": PASSWORD, "workspace_id": person.workspace_id,
    });
    let pair = app.post("/v1/auth/login").json(body).send().await.expect_status(200);
    pair["access_token"].as_str().unwrap().to_owned()
}

/// Checks that a session cannot change factors if the user has a passkey and did not present it
/// there.
async fn assert_cannot_change_factors(app: &TestApp, person: &TestUser, passkey: &str) {
    let assert_forbidden = async |method: &str, path: &str, body: Value| {
        let answer = app.request_as(&person.access_token, method, path).json(body).send().await;
        answer.assert_error(403, "forbidden");
        assert!(answer.text.contains("passkey"), "{}", answer.text);
    };
    let password = json!({ "password": PASSWORD });
    assert_forbidden("POST", "/v1/auth/mfa/totp", password.clone()).await;
    assert_forbidden("POST", "/v1/auth/passkeys/options", password.clone()).await;
    assert_forbidden("DELETE", &format!("/v1/auth/passkeys/{passkey}"), password).await;
}

async fn first_passkey_id(app: &TestApp, person: &TestUser) -> String {
    let listed = app
        .request_as(&person.access_token, "GET", "/v1/auth/passkeys")
        .send()
        .await
        .expect_status(200);
    listed["passkeys"][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn password_alone_does_not_bypass_passkey() {
    let app = passkeys::start_app().await;
    let node = TestApp::start_on(
        app.database.clone(),
        &[("server.public_url", &app.app.settings.public_url)],
    )
    .await;
    let mut dana = app.register("acme").await;
    let mut lee = app.add_member(&dana, "member").await;
    app.set_verified(&lee, true).await;
    enable_totp(&app, &mut dana).await;
    let body = json!({ "require_second_factor": true });
    app.request_as(&dana.access_token, "PATCH", "/v1/workspace")
        .json(body)
        .send()
        .await
        .expect_status(200);
    let agents = async |app: &TestApp, person: &TestUser| {
        app.request_as(&person.access_token, "GET", "/v1/agents").send().await.status
    };
    // Started while the password was the only credential.
    let stolen =
        lee.with_tokens(&sign_in_with_password(&app, &lee, PASSWORD).await.expect_status(200));
    let enrollment = enroll_totp(&app, &stolen, json!({})).await.expect_status(200);
    let attacker_passkey = create_attestation_response(&app, &stolen).await;
    assert_eq!(agents(&app, &lee).await, 403);
    let device =
        TestAuthenticator { sign_count: 1, ..register_authenticator(&app, &mut lee).await };
    for app in [&app, &node] {
        assert_eq!(agents(app, &lee).await, 200, "adding a passkey counts as presenting it");
        assert_eq!(agents(app, &stolen).await, 403);
    }
    let passkey = first_passkey_id(&app, &lee).await;
    let totp_code = compute_totp_code(enrollment["secret"].as_str().unwrap(), unix_now(&app));
    confirm_totp(&app, &stolen, &totp_code).await.assert_error(403, "forbidden");
    add_passkey(&app, &stolen, &attacker_passkey).await.assert_error(403, "forbidden");
    assert_cannot_change_factors(&app, &stolen, &passkey).await;
    let by_password =
        lee.with_tokens(&sign_in_with_password(&app, &lee, PASSWORD).await.expect_status(200));
    assert_cannot_change_factors(&node, &by_password, &passkey).await;
    assert_eq!(agents(&app, &by_password).await, 403);
    // The page says what to do, and offers no action that would be rejected.
    let mut browser = Browser::signed_in(&app, &lee.email).await;
    let page = browser.get("/second-factor").await;
    assert!(page.text.contains("sign in with your passkey"), "{page:#?}");
    for form in ["/second-factor/set-up", "/second-factor/passkeys/new", "/remove"] {
        assert!(!page.text.contains(form), "{form}");
    }

    let by_passkey = lee.with_tokens(
        &sign_in_with_passkey(
            &app,
            &device.assertion_response(&fetch_authentication_options(&app).await),
        )
        .await
        .expect_status(200),
    );
    assert_eq!(agents(&node, &by_passkey).await, 200);
    fetch_registration_options(&app, &by_passkey).await;
    // Removing the passkey ends the other sessions at once on every node.
    let path = format!("/v1/auth/passkeys/{passkey}");
    let call = app.request_as(&by_passkey.access_token, "DELETE", &path).json(json!({}));
    let by_passkey = lee.with_tokens(&call.send().await.expect_status(200));
    for app in [&app, &node] {
        assert_eq!(agents(app, &lee).await, 401);
        assert_eq!(
            agents(app, &by_passkey).await,
            403,
            "the session has presented no existing factor"
        );
    }
    // The user has no factor left to present, and may enroll one after a new sign-in.
    lee = lee.with_tokens(&sign_in_with_password(&app, &lee, PASSWORD).await.expect_status(200));
    enable_totp(&app, &mut lee).await;
    assert_eq!(agents(&node, &lee).await, 200);
    let owner = app.create_key(&dana, "log", "admin").await.secret;
    let is_passkey_removal = |event: &Value| event["metadata"]["reason"] == "passkey_removed";
    app.wait_for_event(&owner, "action=session.ended", is_passkey_removal).await;
}

#[tokio::test]
async fn mfa_challenge_is_bound_to_its_authenticator() {
    let app = passkeys::start_app().await;
    let mut dana = app.register_verified("acme").await;
    enable_totp(&app, &mut dana).await;
    // An attacker with the password keeps a challenge while the authenticator is replaced.
    let challenge = sign_in_with_password(&app, &dana, PASSWORD).await;
    challenge.assert_error(401, "mfa_required");
    let token = challenge.body["mfa_token"].as_str().unwrap();
    disable_totp(&app, &mut dana).await;
    let stolen =
        dana.with_tokens(&sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200));
    let enrollment = enroll_totp(&app, &stolen, json!({})).await.expect_status(200);
    register_authenticator(&app, &mut dana).await;
    let code = compute_totp_code(enrollment["secret"].as_str().unwrap(), unix_now(&app));
    let body = json!({ "mfa_token": token, "code": code });
    let answer = app.post("/v1/auth/mfa/verify").json(body.clone()).send().await;
    answer.assert_error(401, "invalid_credentials");
    assert_cannot_change_factors(&app, &stolen, &first_passkey_id(&app, &dana).await).await;
    // Not even if the challenge were unused: an unconfirmed authenticator completes no challenge.
    let mut connection = app.database.connect().await;
    let sql = "UPDATE mfa_challenges SET used_at = NULL";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    let answer = app.post("/v1/auth/mfa/verify").json(body).send().await;
    answer.assert_error(401, "invalid_credentials");
    // A confirmed authenticator does not complete the challenge of a removed one either.
    let mut lee = app.register("lee").await;
    enable_totp(&app, &mut lee).await;
    let challenge = sign_in_with_password(&app, &lee, PASSWORD).await.body["mfa_token"].clone();
    disable_totp(&app, &mut lee).await;
    let (_, codes) = enable_totp(&app, &mut lee).await;
    let body = json!({ "mfa_token": challenge, "code": codes[0] });
    let answer = app.post("/v1/auth/mfa/verify").json(body).send().await;
    answer.assert_error(401, "invalid_credentials");
    let challenge = sign_in_with_password(&app, &lee, PASSWORD).await.body["mfa_token"].clone();
    let body = json!({ "mfa_token": challenge, "code": codes[0] });
    app.post("/v1/auth/mfa/verify").json(body).send().await.expect_status(200);
}

#[tokio::test]
async fn removed_passkey_ends_sessions_of_lost_device() {
    let app = passkeys::start_app().await;
    let mut dana = app.register_verified("acme").await;
    let lost = TestAuthenticator { sign_count: 1, ..register_authenticator(&app, &mut dana).await };
    let passkey = first_passkey_id(&app, &dana).await;
    let mut finder = dana.with_tokens(
        &sign_in_with_passkey(
            &app,
            &lost.assertion_response(&fetch_authentication_options(&app).await),
        )
        .await
        .expect_status(200),
    );
    // The finder of the device adds another passkey before the owner notices.
    register_authenticator(&app, &mut finder).await;
    let path = format!("/v1/auth/passkeys/{passkey}");
    app.request_as(&dana.access_token, "DELETE", &path)
        .json(json!({}))
        .send()
        .await
        .expect_status(200);
    let me = app.request_as(&finder.access_token, "GET", "/v1/auth/me").send().await;
    me.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn totp_is_not_disabled_by_session_that_cannot_enroll_it() {
    let app = passkeys::start_app().await;
    let mut dana = app.register_verified("acme").await;
    register_authenticator(&app, &mut dana).await;
    let (secret, _) = enable_totp(&app, &mut dana).await;
    let challenge = sign_in_with_password(&app, &dana, PASSWORD).await.body["mfa_token"].clone();
    let body =
        json!({ "mfa_token": challenge, "code": compute_totp_code(&secret, unix_now(&app) + 30) });
    let pair = app.post("/v1/auth/mfa/verify").json(body).send().await.expect_status(200);
    let by_code = dana.with_tokens(&pair);
    let remove_totp = async |person: &TestUser| {
        let call = app.request_as(&person.access_token, "DELETE", "/v1/auth/mfa/totp");
        call.json(json!({ "password": PASSWORD })).send().await
    };
    remove_totp(&by_code).await.assert_error(409, "conflict");
    // A session that presented the passkey may disable it.
    remove_totp(&dana).await.expect_status(200);
}

#[tokio::test]
async fn passkey_requires_verified_email() {
    let app = passkeys::start_app().await;
    // Mallory signs up with the email address of another person.
    let mallory = app.register("acme").await;
    let request =
        app.request_as(&mallory.access_token, "POST", "/v1/auth/passkeys/options").json(json!({}));
    request.send().await.assert_error(403, "forbidden");
    app.set_verified(&mallory, true).await;
    let credential = create_attestation_response(&app, &mallory).await;
    app.set_verified(&mallory, false).await;
    add_passkey(&app, &mallory, &credential).await.assert_error(403, "forbidden");
    app.set_verified(&mallory, true).await;
    add_passkey(&app, &mallory, &credential).await.expect_status(201);
}

#[tokio::test]
async fn password_reset_mail_lists_remaining_passkeys() {
    let sink = SmtpSink::start();
    let settings = [("server.public_url", LOCALHOST), ("mail.url", &*sink.url())];
    let app = TestApp::start_with(&settings).await;
    let mut dana = app.register_verified("acme").await;
    let device =
        TestAuthenticator { sign_count: 1, ..register_authenticator(&app, &mut dana).await };
    let body = json!({ "email": dana.email });
    app.post("/v1/auth/password/forgot").json(body).send().await.expect_status(202);
    let token = link_token(&sink.wait_for_email(&dana.email, "Reset").await);
    let body = json!({ "token": token, "new_password": "another horse, another battery" });
    app.post("/v1/auth/password/reset").json(body).send().await.expect_status(204);
    let mail = sink.wait_for_email(&dana.email, "Your password was changed").await;
    assert!(mail["text"].as_str().unwrap().contains("can still sign in: phone."), "{mail}");
    let pair = sign_in_with_passkey(
        &app,
        &device.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await
    .expect_status(200);
    let by_passkey = dana.with_tokens(&pair);
    // The operator removes the factors of a user without a device.
    let auth = &app.app.auth;
    auth.second_factors.remove_all_as_operator(&dana.email).await.unwrap();
    auth.second_factors.remove_all_as_operator(&dana.email).await.unwrap_err();
    let device = TestAuthenticator { sign_count: 2, ..device };
    let answer: TestResponse = sign_in_with_passkey(
        &app,
        &device.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await;
    answer.assert_error(401, "invalid_credentials");
    // The session of the lost passkey has ended.
    let me = app.request_as(&by_passkey.access_token, "GET", "/v1/auth/me").send().await;
    me.assert_error(401, "unauthorized");
    let pair = sign_in_with_password(&app, &dana, "another horse, another battery")
        .await
        .expect_status(200);
    let key = app.create_key(&dana.with_tokens(&pair), "log", "admin").await.secret;
    app.wait_for_event_count(&key, "action=member.passkey_removed", 1).await;
    sink.wait_for_email(&dana.email, "Your authenticator app and passkeys were removed").await;
    // An unconfirmed authenticator does not count as a factor.
    enroll_totp(&app, &dana.with_tokens(&pair), json!({})).await.expect_status(200);
    auth.second_factors.remove_all_as_operator(&dana.email).await.unwrap_err();
    app.request_as(&key, "GET", "/v1/auth/verify").send().await.expect_status(200);
}
