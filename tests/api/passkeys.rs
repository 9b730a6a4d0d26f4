//! /v1/auth/passkeys and sign-in with a passkey: with a simulated authenticator that can send
//! invalid data, and in a real browser.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::{
    fixture::{
        Browser, Chromium, LOCALHOST, PASSWORD, SmtpSink, TestApp, TestResponse, TestUser,
        authenticator::{
            ATTESTED_CREDENTIAL, BACKED_UP, BACKUP_ELIGIBLE, TestAuthenticator, USER_PRESENT,
            USER_VERIFIED, base64url,
        },
    },
    mfa,
};

/// Starts the service at `localhost`, because an IP address is not a valid relying party id.
pub async fn start_app() -> TestApp {
    TestApp::start_with(&[("server.public_url", LOCALHOST)]).await
}

/// Requests the options for the registration of a passkey.
pub async fn fetch_registration_options(app: &TestApp, user: &TestUser) -> Value {
    let call = app.request_as(&user.access_token, "POST", "/v1/auth/passkeys/options");
    call.json(json!({})).send().await.expect_status(200)["options"].clone()
}

pub async fn add_passkey(app: &TestApp, user: &TestUser, credential: &Value) -> TestResponse {
    let body = json!({ "name": "phone", "credential": credential });
    app.request_as(&user.access_token, "POST", "/v1/auth/passkeys").json(body).send().await
}

/// Creates an authenticator, adds its passkey to a user and stores the new tokens of the session.
pub async fn register_authenticator(app: &TestApp, user: &mut TestUser) -> TestAuthenticator {
    let authenticator = TestAuthenticator::new(app);
    let credential =
        authenticator.attestation_response(&fetch_registration_options(app, user).await);
    let added = add_passkey(app, user, &credential).await.expect_status(201);
    user.set_tokens(&added);
    authenticator
}

/// Creates an authenticator and returns its attestation response for a user.
pub async fn create_attestation_response(app: &TestApp, user: &TestUser) -> Value {
    TestAuthenticator::new(app).attestation_response(&fetch_registration_options(app, user).await)
}

/// Requests the options for a sign-in with a passkey.
pub async fn fetch_authentication_options(app: &TestApp) -> Value {
    app.post("/v1/auth/login/passkey/options").send().await.expect_status(200)["options"].clone()
}

pub async fn sign_in_with_passkey(app: &TestApp, credential: &Value) -> TestResponse {
    app.post("/v1/auth/login/passkey").json(json!({ "credential": credential })).send().await
}

#[tokio::test]
async fn passkey_signs_in_alone_until_it_is_removed() {
    let sink = SmtpSink::start();
    let settings = [("server.public_url", LOCALHOST), ("mail.url", &*sink.url())];
    let app = TestApp::start_with(&settings).await;
    let mut dana = app.register_verified("acme").await;
    let registration = fetch_registration_options(&app, &dana).await;
    assert_eq!(registration["rp"]["id"], "localhost");
    assert_eq!(registration["authenticatorSelection"]["userVerification"], "required");
    assert_eq!(registration["user"]["name"], json!(dana.email));
    let mut authenticator = TestAuthenticator::new(&app);
    let passkey = add_passkey(&app, &dana, &authenticator.attestation_response(&registration))
        .await
        .expect_status(201);
    dana.set_tokens(&passkey);
    // Even if the user has TOTP: a passkey counts as two factors.
    mfa::enable_totp(&app, &mut dana).await;
    authenticator.sign_count = 1;
    let pair = sign_in_with_passkey(
        &app,
        &authenticator.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await
    .expect_status(200);
    let token = pair["access_token"].as_str().unwrap().to_owned();
    let me = app.request_as(&token, "GET", "/v1/auth/me").send().await.expect_status(200);
    assert_eq!(me["subject"]["id"], json!(dana.user_id));
    let listed = app.request_as(&token, "GET", "/v1/auth/passkeys").send().await.expect_status(200);
    let [listed] = &listed["passkeys"].as_array().unwrap()[..] else { panic!("{listed:#}") };
    assert_eq!((&listed["id"], &listed["name"]), (&passkey["id"], &json!("phone")));
    assert!(listed["last_used_at"].is_string());
    // The options exclude the known passkey, so browsers create no other one on the same device.
    let next_registration =
        fetch_registration_options(&app, &TestUser { access_token: token.clone(), ..dana.clone() })
            .await;
    assert_eq!(
        next_registration["excludeCredentials"][0]["id"],
        json!(base64url(&authenticator.credential_id))
    );

    let path = format!("/v1/auth/passkeys/{}", passkey["id"].as_str().unwrap());
    let mallory = app.register("mallory").await;
    let remove = |token: &str| app.request_as(token, "DELETE", &path).json(json!({}));
    remove(&mallory.access_token).send().await.assert_error(404, "not_found");
    let removed = remove(&token).send().await.expect_status(200);
    authenticator.sign_count = 2;
    let refused = sign_in_with_passkey(
        &app,
        &authenticator.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await;
    refused.assert_error(401, "invalid_credentials");
    sink.wait_for_email(&dana.email, "new passkey").await;
    sink.wait_for_email(&dana.email, "passkey was removed").await;
    let key = app.create_key(&dana.with_tokens(&removed), "log", "admin").await.secret;
    app.wait_for_event_count(&key, "action=member.passkey_added", 1).await;
    app.wait_for_event_count(&key, "action=member.passkey_removed", 1).await;
}

#[tokio::test]
async fn passkey_registration_needs_recent_sign_in_or_password() {
    let app = start_app().await;
    let dana = app.register_verified("acme").await;
    let key = app.create_key(&dana, "server", "admin").await.secret;
    app.clock.advance(Duration::from_mins(20));
    let request_options = async |token: &str, body: Value| {
        app.request_as(token, "POST", "/v1/auth/passkeys/options").json(body).send().await
    };
    request_options(&dana.access_token, json!({})).await.assert_error(403, "forbidden");
    request_options(&key, json!({ "password": PASSWORD })).await.assert_error(403, "forbidden");
    let wrong = request_options(&dana.access_token, json!({ "password": "wrong" })).await;
    wrong.assert_error(422, "validation_failed").assert_field("password");
    request_options(&dana.access_token, json!({ "password": PASSWORD })).await.expect_status(200);
    // An IP address is not a valid relying party id.
    let ip_app = TestApp::start().await;
    let dana = ip_app.register("acme").await;
    let request =
        ip_app.request_as(&dana.access_token, "POST", "/v1/auth/passkeys/options").json(json!({}));
    request.send().await.assert_error(409, "conflict");
    ip_app.post("/v1/auth/login/passkey/options").send().await.assert_error(409, "conflict");
}

#[tokio::test]
async fn invalid_webauthn_response_is_rejected() {
    type Tamper = fn(&mut TestAuthenticator);
    let app = start_app().await;
    let mut dana = app.register_verified("acme").await;
    let cases: [(&str, Tamper); 12] = [
        ("another origin", |device| device.origin = "https://evil.example".into()),
        ("a subdomain as origin", |device| device.origin = "http://evil.localhost".into()),
        ("another port", |device| device.origin = "http://localhost:1".into()),
        ("another relying party", |device| device.rp_id = "evil.example".into()),
        ("in a cross-origin frame", |device| {
            device.extra_client_data = json!({ "crossOrigin": true });
        }),
        ("below another top-level origin", |device| {
            device.extra_client_data = json!({ "topOrigin": "https://evil.example" });
        }),
        ("another client data type", |device| device.client_data_type = Some("payment.get")),
        ("an unknown challenge", |device| device.challenge = Some("AAAA".into())),
        ("no user presence", |device| device.flags = USER_VERIFIED),
        ("no user verification", |device| device.flags = USER_PRESENT),
        ("backed up but not eligible", |device| {
            device.flags = USER_PRESENT | USER_VERIFIED | BACKED_UP;
        }),
        ("an oversized credential id", |device| device.credential_id = vec![7; 1024]),
    ];
    let mut checked = 0;
    for (case, tamper) in &cases {
        let mut authenticator = TestAuthenticator::new(&app);
        tamper(&mut authenticator);
        let response = add_passkey(
            &app,
            &dana,
            &authenticator.attestation_response(&fetch_registration_options(&app, &dana).await),
        )
        .await;
        assert_eq!(response.status, 422, "{case}: {}", response.text);
        checked += 1;
    }
    for (case, tamper) in &cases[..11] {
        let mut authenticator = register_authenticator(&app, &mut dana).await;
        authenticator.sign_count = 1;
        tamper(&mut authenticator);
        let response = sign_in_with_passkey(
            &app,
            &authenticator.assertion_response(&fetch_authentication_options(&app).await),
        )
        .await;
        assert!([401, 422].contains(&response.status.as_u16()), "{case}: {}", response.text);
        checked += 1;
    }
    assert_eq!(checked, 23);
}

#[tokio::test]
async fn invalid_webauthn_assertion_is_rejected() {
    let app = start_app().await;
    let mut dana = app.register_verified("acme").await;
    let other_tokens = mfa::sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    let other_options = fetch_registration_options(&app, &dana.with_tokens(&other_tokens)).await;
    let mut authenticator = register_authenticator(&app, &mut dana).await;
    authenticator.sign_count = 5;
    let valid = authenticator.assertion_response(&fetch_authentication_options(&app).await);
    for (field, index) in [("signature", 40), ("signature", 1), ("authenticatorData", 36)] {
        let mut invalid = valid.clone();
        let text = invalid["response"][field].as_str().unwrap();
        let mut bytes = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
        let last = bytes.len() - 1;
        bytes[index.min(last)] ^= 1;
        invalid["response"][field] = json!(BASE64URL_NOPAD.encode(&bytes));
        sign_in_with_passkey(&app, &invalid).await.assert_error(401, "invalid_credentials");
    }
    let mut without_user_handle = valid.clone();
    without_user_handle["response"].as_object_mut().unwrap().remove("userHandle");
    sign_in_with_passkey(&app, &without_user_handle).await.assert_error(422, "validation_failed");
    // Malformed data gets the same error for a known and an unknown passkey.
    for id in [&authenticator.credential_id, &vec![9; 32]] {
        for field in ["signature", "authenticatorData", "userHandle"] {
            let mut malformed = valid.clone();
            malformed["rawId"] = json!(base64url(id));
            malformed["response"][field] = json!("not base64url!");
            sign_in_with_passkey(&app, &malformed).await.assert_error(422, "validation_failed");
        }
    }
    let impostor = TestAuthenticator {
        credential_id: authenticator.credential_id.clone(),
        sign_count: 9,
        ..TestAuthenticator::new(&app)
    };
    impostor.attestation_response(&fetch_registration_options(&app, &dana).await);
    let response = sign_in_with_passkey(
        &app,
        &impostor.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await;
    response.assert_error(401, "invalid_credentials");
    let mut wrong_user = valid.clone();
    wrong_user["response"]["userHandle"] = json!(base64url(&[1; 16]));
    sign_in_with_passkey(&app, &wrong_user).await.assert_error(401, "invalid_credentials");
    // A registration challenge is not valid for a sign-in, nor the other way round.
    authenticator.challenge =
        fetch_registration_options(&app, &dana).await["challenge"].as_str().map(str::to_owned);
    let response = sign_in_with_passkey(&app, &authenticator.assertion_response(&json!({}))).await;
    response.assert_error(422, "validation_failed");
    let swapped = TestAuthenticator {
        challenge: fetch_authentication_options(&app).await["challenge"]
            .as_str()
            .map(str::to_owned),
        ..TestAuthenticator::new(&app)
    };
    add_passkey(&app, &dana, &swapped.attestation_response(&json!({})))
        .await
        .assert_error(422, "validation_failed");
    // A session cannot use the challenge of another user or of another session, which may have
    // presented more factors.
    let mallory = app.register_verified("mallory").await;
    let other_credential = TestAuthenticator::new(&app)
        .attestation_response(&fetch_registration_options(&app, &mallory).await);
    add_passkey(&app, &dana, &other_credential).await.assert_error(422, "validation_failed");
    let credential = TestAuthenticator::new(&app).attestation_response(&other_options);
    add_passkey(&app, &dana, &credential).await.assert_error(422, "validation_failed");
    // The valid assertion was valid all the time, and it works once.
    sign_in_with_passkey(&app, &valid).await.expect_status(200);
    sign_in_with_passkey(&app, &valid).await.assert_error(401, "invalid_credentials");
    // A clone is detected by its signature counter, or by its changed backup eligibility.
    authenticator.challenge = None;
    sign_in_with_passkey(
        &app,
        &authenticator.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await
    .assert_error(401, "invalid_credentials");
    authenticator.sign_count = 6;
    authenticator.flags |= BACKUP_ELIGIBLE;
    sign_in_with_passkey(
        &app,
        &authenticator.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await
    .assert_error(401, "invalid_credentials");
    authenticator.flags = USER_PRESENT | USER_VERIFIED;
    sign_in_with_passkey(
        &app,
        &authenticator.assertion_response(&fetch_authentication_options(&app).await),
    )
    .await
    .expect_status(200);
}

#[tokio::test]
async fn passkey_challenge_works_once_and_in_time_on_all_nodes() {
    let app = start_app().await;
    let public_url = app.app.settings.public_url.clone();
    let node = TestApp::start_on(app.database.clone(), &[("server.public_url", &public_url)]).await;
    let [mut dana, mallory] =
        [app.register_verified("acme").await, app.register_verified("mallory").await];
    let device = TestAuthenticator::new(&app);
    let credential = device.attestation_response(&fetch_registration_options(&app, &dana).await);
    dana.set_tokens(&add_passkey(&app, &dana, &credential).await.expect_status(201));
    add_passkey(&node, &dana, &credential).await.assert_error(422, "validation_failed");
    // No other user can add the same passkey, even with a challenge of their own.
    let handle = device.user_handle.borrow().clone();
    let second_credential =
        device.attestation_response(&fetch_registration_options(&app, &mallory).await);
    device.user_handle.replace(handle);
    add_passkey(&app, &mallory, &second_credential).await.assert_error(409, "conflict");
    // Two concurrent uses on two nodes create one session.
    let authenticator = TestAuthenticator { sign_count: 1, ..device };
    let assertion = authenticator.assertion_response(&fetch_authentication_options(&node).await);
    let (first, second) = tokio::join!(
        sign_in_with_passkey(&app, &assertion),
        sign_in_with_passkey(&node, &assertion)
    );
    let mut statuses = [first.status.as_u16(), second.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
    let late_device = TestAuthenticator::new(&app);
    let (registration, authentication) =
        (fetch_registration_options(&app, &dana).await, fetch_authentication_options(&app).await);
    app.clock.advance(Duration::from_mins(11));
    add_passkey(&app, &dana, &late_device.attestation_response(&registration))
        .await
        .assert_error(422, "validation_failed");
    app.clock.advance(Duration::from_mins(20));
    let authenticator = TestAuthenticator { sign_count: 2, ..authenticator };
    sign_in_with_passkey(&app, &authenticator.assertion_response(&authentication))
        .await
        .assert_error(422, "validation_failed");
}

#[tokio::test]
async fn authenticator_data_is_parsed_strictly() {
    let app = start_app().await;
    let dana = app.register_verified("acme").await;
    let authenticator = TestAuthenticator::new(&app);
    let (head, id) = (
        authenticator.authenticator_data(ATTESTED_CREDENTIAL),
        authenticator.credential_id.clone(),
    );
    let with_key = |key: &[u8]| {
        let id = [&[0; 16][..], &32_u16.to_be_bytes(), &id].concat();
        [&head[..], &id, key].concat()
    };
    let cose = authenticator.cose_public_key();
    let mut off_curve = cose.clone();
    let last = off_curve.len() - 1;
    off_curve[last] ^= 1;
    let rsa = |modulus: &[u8], exponent: &[u8]| {
        let mut encoder = minicbor::Encoder::new(Vec::new());
        encoder.map(4).unwrap().u8(1).unwrap().u8(3).unwrap().u8(3).unwrap().i16(-257).unwrap();
        encoder.i8(-1).unwrap().bytes(modulus).unwrap().i8(-2).unwrap().bytes(exponent).unwrap();
        with_key(&encoder.into_writer())
    };
    for (case, data) in [
        ("empty data", Vec::new()),
        ("no credential", authenticator.authenticator_data(0)),
        ("truncated data", with_key(&cose)[..100].to_vec()),
        ("trailing data", with_key(&[&cose[..], &[0]].concat())),
        ("an empty key", with_key(&[0xa0])),
        ("a point off the curve", with_key(&off_curve)),
        ("a small modulus", rsa(&[0xff; 255], &[1, 0, 1])),
        ("a huge modulus", rsa(&[0xff; 1025], &[1, 0, 1])),
        ("a padded modulus", rsa(&[&[0][..], &[0xff; 256]].concat(), &[1, 0, 1])),
        ("an even exponent", rsa(&[0xff; 256], &[1, 0, 2])),
        ("no exponent", rsa(&[0xff; 256], &[])),
        ("a list instead of a key", with_key(&[0x80])),
        ("an indefinite map", with_key(&[0xbf])),
        ("a map of billions of entries", with_key(&[0xba, 0xff, 0xff, 0xff, 0xff])),
        (
            "a byte string of 2^63 - 1 bytes",
            with_key(&[0xa1, 0x21, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("deep nesting", with_key(&[[0xa1, 0x00].repeat(4000), vec![0]].concat())),
    ] {
        let credential = authenticator
            .attestation_response_with(&fetch_registration_options(&app, &dana).await, &data);
        let response = add_passkey(&app, &dana, &credential).await;
        assert_eq!(response.status, 422, "{case}: {}", response.text);
    }
    let options = fetch_registration_options(&app, &dana).await;
    for (field, text) in [
        ("clientDataJSON", "e30"),
        ("clientDataJSON", "not base64url!"),
        ("attestationObject", "oA"),
        ("attestationObject", ""),
    ] {
        let mut credential = authenticator.attestation_response(&options);
        credential["response"][field] = json!(text);
        add_passkey(&app, &dana, &credential).await.assert_error(422, "validation_failed");
    }
    // The attestation statement is not verified, but each field must be present exactly once.
    let valid_data = with_key(&cose);
    for (case, fields) in [
        ("no format", &["attStmt", "authData"][..]),
        ("no statement", &["fmt", "authData"]),
        ("no authenticator data", &["fmt", "attStmt"]),
        ("two formats", &["fmt", "fmt", "attStmt", "authData"]),
        ("two statements", &["fmt", "attStmt", "attStmt", "authData"]),
        ("authenticator data twice", &["fmt", "attStmt", "authData", "authData"]),
        ("an unknown field", &["fmt", "attStmt", "authData", "x"]),
    ] {
        let mut encoder = minicbor::Encoder::new(Vec::new());
        encoder.map(fields.len() as u64).unwrap();
        for field in fields {
            let encoder = encoder.str(field).unwrap();
            match *field {
                "authData" => encoder.bytes(&valid_data).unwrap(),
                "attStmt" => encoder.map(0).unwrap(),
                _ => encoder.str("none").unwrap(),
            };
        }
        let mut credential = authenticator.attestation_response(&options);
        credential["response"]["attestationObject"] = json!(base64url(&encoder.into_writer()));
        let response = add_passkey(&app, &dana, &credential).await;
        assert_eq!(response.status, 422, "{case}: {}", response.text);
    }
    let mut credential = authenticator.attestation_response(&options);
    credential["response"]["attestationObject"] = json!("A".repeat(100_000));
    add_passkey(&app, &dana, &credential).await.assert_error(422, "validation_failed");
    add_passkey(&app, &dana, &json!("x")).await.assert_error(422, "validation_failed");
}

#[tokio::test]
async fn real_browser_creates_passkey_and_signs_in() {
    let app = start_app().await;
    let dana = app.register_verified("acme").await;
    let url = app.app.settings.public_url.clone();
    let browser = Chromium::start().await;
    let authenticator = json!({
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": true,
        "hasUserVerification": true, "isUserVerified": true, "isUserConsenting": true,
    });
    browser.post("/webauthn/authenticator", authenticator).await;
    browser.open(&format!("{url}/sign-in?next=/second-factor")).await;
    browser.fill("[name=email]", &dana.email).await;
    browser.fill("[name=password]", PASSWORD).await;
    browser.click("form[action='/sign-in'] button").await;
    browser.wait_for_text("/second-factor", "Sign in with a passkey instead").await;
    browser.click("form[action='/second-factor/passkeys/new'] button").await;
    browser.wait_for_text("/second-factor/passkeys/new", "Passkey name").await;
    browser.wait_for_count("[data-without-passkeys]:not([hidden])", 0).await;
    browser.click("form[action='/second-factor/passkeys'] button").await;
    browser.wait_for_text("/second-factor", "My passkey").await;
    browser.open(&format!("{url}/sessions")).await;
    browser.click("form[action='/sign-out'] button").await;
    browser.wait_for_text("/sign-in", "Sign in with a passkey").await;
    browser.click("form[action='/sign-in/passkey'] button").await;
    browser.wait_for_text("/api-keys", "API keys").await;
    let listed = app
        .request_as(&dana.access_token, "GET", "/v1/auth/passkeys")
        .send()
        .await
        .expect_status(200);
    assert!(listed["passkeys"][0]["last_used_at"].is_string(), "{listed:#}");
    // A removed passkey no longer signs in, and the page says so.
    browser.open(&format!("{url}/second-factor")).await;
    browser.click(".rows summary").await;
    browser.click(".rows button").await;
    browser.wait_for_count(".rows", 0).await;
    browser.open(&format!("{url}/sessions")).await;
    browser.click("form[action='/sign-out'] button").await;
    browser.wait_for_text("/sign-in", "Sign in with a passkey").await;
    browser.click("form[action='/sign-in/passkey'] button").await;
    browser.wait_for_text("/sign-in/passkey", "passkey does not work here").await;
}

#[tokio::test]
async fn passkey_pages_report_errors_without_javascript() {
    let app = start_app().await;
    let dana = app.register_verified("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/second-factor").await;
    let page = browser.submit(&page, "/second-factor/passkeys/new", &[]).await;
    assert!(page.text.contains("Passkeys require JavaScript"), "{page:#?}");
    let form_token = page.text.split("form_token\" value=\"").nth(1).unwrap();
    let form_token = form_token.split('"').next().unwrap();
    for credential in ["", "{}", "null", "[1"] {
        let fields = [("form_token", form_token), ("name", "phone"), ("credential", credential)];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let path = "/second-factor/passkeys";
        let response = browser.post(path, &fields, &[("sec-fetch-site", "same-origin")]).await;
        assert!(
            response.status == 422 && response.text.contains("role=\"alert\""),
            "{response:#?}"
        );
    }
}
