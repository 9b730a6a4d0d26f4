//! A change of the password or of a factor replaces the cookie and the tokens of its session: a
//! thief of the session loses it.

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    fixture::{
        Browser, LOCALHOST, PASSWORD, StreamBlock, TestApp, TestClient, TestRequest, TestUser,
        oauth::decode_claims, with_timeout,
    },
    mfa::{compute_totp_code, enable_totp, enroll_totp, sign_in_with_password, unix_now},
    pages::{SESSION_COOKIE, is_signed_in},
    passkeys::{create_attestation_response, register_authenticator},
};

/// Starts two nodes that support passkeys.
async fn start_nodes() -> (TestApp, TestApp) {
    let app = TestApp::start_with(&[("server.public_url", LOCALHOST)]).await;
    let public_url = app.app.settings.public_url.clone();
    let node =
        TestApp::start_on(app.database.clone(), &[("server.public_url", &*public_url)]).await;
    (app, node)
}

async fn is_accepted(app: &TestClient, user: &TestUser) -> bool {
    app.request_as(&user.access_token, "GET", "/v1/auth/me").send().await.status == 200
}

async fn refresh(app: &TestClient, user: &TestUser) -> u16 {
    let body = json!({ "refresh_token": user.refresh_token });
    app.post("/v1/auth/refresh").json(body).send().await.status.as_u16()
}

/// Sends a change with the access token of `user`. Checks that the earlier tokens end on both
/// nodes, and stores the new ones of the response.
async fn change(
    [app, node]: [&TestApp; 2],
    user: &mut TestUser,
    request: TestRequest,
    status: u16,
) -> Value {
    let stolen = user.clone();
    // Both nodes have cached the session.
    assert!(is_accepted(app, &stolen).await && is_accepted(node, &stolen).await);
    let body = request.bearer(&user.access_token).send().await.expect_status(status);
    assert_eq!((&body["token_type"], &body["expires_in"]), (&json!("Bearer"), &json!(3600)));
    user.set_tokens(&body);
    for app in [node, app] {
        assert!(!is_accepted(app, &stolen).await);
        assert!(is_accepted(app, user).await);
        assert_eq!(refresh(app, &stolen).await, 401);
    }
    let [old, new] = [&stolen, &*user].map(|user| decode_claims(&user.access_token)["sid"].clone());
    assert_eq!(old, new, "the session stays");
    body
}

#[tokio::test]
async fn change_of_password_or_factor_replaces_tokens_on_every_node() {
    let (app, node) = start_nodes().await;
    let nodes = [&app, &node];
    let mut dana = app.register_verified("acme").await;
    let new = "a walk in the old park";
    let body = json!({ "current_password": PASSWORD, "new_password": new });
    let call = app.post("/v1/auth/password/change").json(body);
    change(nodes, &mut dana, call, 200).await;

    let credential = create_attestation_response(&app, &dana).await;
    let body = json!({ "name": "phone", "credential": credential });
    let passkey =
        change(nodes, &mut dana, app.post("/v1/auth/passkeys").json(body), 201).await["id"].clone();

    let enrollment = enroll_totp(&app, &dana, json!({})).await.expect_status(200);
    let code = compute_totp_code(enrollment["secret"].as_str().unwrap(), unix_now(&app));
    let call = app.post("/v1/auth/mfa/totp/confirm").json(json!({ "code": code }));
    let confirmed = change(nodes, &mut dana, call, 200).await;
    assert_eq!(confirmed["recovery_codes"].as_array().unwrap().len(), 10);

    let password = json!({ "password": new });
    let call = app.post("/v1/auth/mfa/recovery-codes").json(password.clone());
    change(nodes, &mut dana, call, 200).await;
    let call = app.delete("/v1/auth/mfa/totp").json(password.clone());
    change(nodes, &mut dana, call, 200).await;
    let call = app.delete(&format!("/v1/auth/passkeys/{}", passkey.as_str().unwrap()));
    change(nodes, &mut dana, call.json(password), 200).await;
    // The newest refresh token works, and the session is the one of the registration.
    assert_eq!(refresh(&node, &dana).await, 200);
}

#[tokio::test]
async fn other_sessions_end_with_totp_but_not_with_new_passkey() {
    let app = TestApp::start_with(&[("server.public_url", LOCALHOST)]).await;
    let mut dana = app.register_verified("acme").await;
    let pair = sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    let other = dana.with_tokens(&pair);
    // The other session may be the only one of the owner, if a thief adds the passkey.
    register_authenticator(&app, &mut dana).await;
    assert!(is_accepted(&app, &other).await);
    enable_totp(&app, &mut dana).await;
    assert!(!is_accepted(&app, &other).await);
    assert!(is_accepted(&app, &dana).await);
}

#[tokio::test]
async fn change_on_page_replaces_cookie_on_every_node() {
    let (app, node) = start_nodes().await;
    let dana = app.register_verified("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let mut secret = String::new();
    for path in ["password", "confirm", "recovery-codes", "remove"] {
        let mut page = browser.get("/second-factor").await;
        let mut fields = vec![("password", PASSWORD.to_owned())];
        if path == "password" {
            fields = vec![
                ("current_password", PASSWORD.to_owned()),
                ("new_password", PASSWORD.to_owned()),
            ];
        }
        if path == "confirm" {
            page = browser.submit(&page, "/second-factor/set-up", &[]).await;
            let hidden = page.hidden_fields("/second-factor/confirm");
            secret.clone_from(&hidden.iter().find(|(name, _)| name == "secret").unwrap().1);
            fields = vec![("code", compute_totp_code(&secret, unix_now(&app)))];
        }
        let mut stolen = Browser::new(&node);
        stolen.cookies.clone_from(&browser.cookies);
        assert!(is_signed_in(&mut stolen).await, "{path}");
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &**value)).collect();
        let done = browser.submit(&page, &format!("/second-factor/{path}"), &fields).await;
        assert!([200, 303].contains(&done.status), "{path}: {done:#?}");
        assert_ne!(browser.cookies[SESSION_COOKIE], stolen.cookies[SESSION_COOKIE], "{path}");
        assert!(!is_signed_in(&mut stolen).await, "{path}");
        assert!(is_signed_in(&mut browser).await, "{path}");
    }
}

#[tokio::test]
async fn stream_ends_with_replaced_access_token() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut stream = app.get("/v1/audit-log/stream").bearer(&dana.access_token).open_stream().await;
    let body = json!({ "current_password": PASSWORD, "new_password": "a walk in the old park" });
    let call = app.request_as(&dana.access_token, "POST", "/v1/auth/password/change").json(body);
    call.send().await.expect_status(200);
    let end = async { while stream.next_block().await != StreamBlock::End {} };
    with_timeout("the stream ends", end).await;
}

/// What stands in logs, tokens or a dump of the database does not make a cookie.
#[tokio::test]
async fn cookie_requires_its_own_secret() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let cookie = browser.cookies[SESSION_COOKIE].clone();
    let mut connection = app.database.connect().await;
    let sql = "SELECT id, cookie_digest, refresh_seed FROM sessions ORDER BY id DESC LIMIT 1";
    let (id, digest, seed): (uuid::Uuid, Vec<u8>, Vec<u8>) =
        sqlx::query_as(sql).fetch_one(&mut connection).await.unwrap();
    for secret in [&digest, &seed, &vec![0; 32], &Vec::new()] {
        let forged =
            data_encoding::BASE64URL_NOPAD.encode(&[&id.as_bytes()[..], &secret[..]].concat());
        browser.cookies.insert(SESSION_COOKIE.to_owned(), forged);
        assert!(!is_signed_in(&mut browser).await);
    }
    // A session of an API client has no cookie that anyone knows, and the secret of one session
    // does not open another.
    let sid = decode_claims(&dana.access_token)["sid"].as_str().unwrap().to_owned();
    let other = call2me_auth::model::id::parse("session", &sid).unwrap();
    let bytes = data_encoding::BASE64URL_NOPAD.decode(cookie.as_bytes()).unwrap();
    let forged =
        data_encoding::BASE64URL_NOPAD.encode(&[&other.as_bytes()[..], &bytes[16..]].concat());
    browser.cookies.insert(SESSION_COOKIE.to_owned(), forged);
    assert!(!is_signed_in(&mut browser).await);
    browser.cookies.insert(SESSION_COOKIE.to_owned(), cookie);
    assert!(is_signed_in(&mut browser).await);
}

/// A request that was authenticated before the credentials of its session were replaced changes
/// nothing afterwards.
#[tokio::test]
async fn request_in_flight_fails_after_credentials_are_replaced() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    app.set_verified(&dana, true).await;
    let enrollment = enroll_totp(&app, &dana, json!({})).await.expect_status(200);
    let secret = enrollment["secret"].as_str().unwrap();
    let code = compute_totp_code(secret, unix_now(&app));
    let password = json!({ "current_password": PASSWORD, "new_password": "a walk in a new park" });
    let replace = "UPDATE sessions SET credential_generation = credential_generation + 1";
    for (lock, path, body) in [
        ("users FOR UPDATE", "/v1/auth/mfa/totp/confirm", json!({ "code": code })),
        ("users FOR UPDATE", "/v1/auth/password/change", password),
        (
            "sessions FOR UPDATE",
            "/v1/auth/switch-workspace",
            json!({ "workspace_id": dana.workspace_id }),
        ),
        ("workspaces FOR NO KEY UPDATE", "/v1/api-keys", json!({ "name": "backdoor" })),
        ("workspaces FOR NO KEY UPDATE", "/v1/oauth/clients", oauth_client()),
    ] {
        let thief = app.sign_in_again(&dana).await;
        let mut connection = app.database.connect().await;
        let mut tx = connection.begin().await.unwrap();
        let lock = format!("SELECT FROM {lock}");
        sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *tx).await.unwrap();
        let replaced = async {
            app.database.wait_for_blocked_statement().await;
            sqlx::query(replace).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        };
        let call = app.request_as(&thief.access_token, "POST", path).json(body);
        let (answer, ()) = tokio::join!(call.send(), replaced);
        answer.assert_error(401, "unauthorized");
    }
    let mut connection = app.database.connect().await;
    let created = "SELECT (SELECT count(*) FROM api_keys) + (SELECT count(*) FROM oauth_clients)";
    let created: i64 = sqlx::query_scalar(created).fetch_one(&mut connection).await.unwrap();
    assert_eq!(created, 0);
}

fn oauth_client() -> Value {
    json!({ "name": "backdoor", "redirect_uris": ["https://a.example/cb"] })
}
