//! /v1/auth/passkeys and sign-in with a passkey: with a simulated authenticator that can send
//! invalid data, and in a real browser.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::{
    fixture::{
        Answer, Browser, Chromium, LOCALHOST, PASSWORD, Person, SmtpSink, TestApp,
        device::{
            BACKED_UP, BACKUP_ELIGIBLE, Device, ATTESTED_CREDENTIAL, PRESENT, VERIFIED, base64url,
        },
    },
    mfa,
};

/// Starts the service at `localhost`, because an IP address is not a valid relying party id.
pub async fn app() -> TestApp {
    TestApp::start_with(&[("server.public_url", LOCALHOST)]).await
}

/// Requests the options for the registration of a passkey.
pub async fn fetch_registration_options(app: &TestApp, user: &Person) -> Value {
    let call = app.by(&user.access_token, "POST", "/v1/auth/passkeys/options");
    call.json(json!({})).send().await.expect(200)["options"].clone()
}

pub async fn add(app: &TestApp, user: &Person, credential: &Value) -> Answer {
    let body = json!({ "name": "phone", "credential": credential });
    app.by(&user.access_token, "POST", "/v1/auth/passkeys").json(body).send().await
}

/// Creates an authenticator and adds its passkey to a user.
pub async fn register_authenticator(app: &TestApp, user: &Person) -> Device {
    let authenticator = Device::new(app);
    let credential = authenticator.made(&fetch_registration_options(app, user).await);
    add(app, user, &credential).await.expect(201);
    authenticator
}

/// Creates an authenticator and returns its attestation response for a user.
pub async fn new_passkey(app: &TestApp, user: &Person) -> Value {
    Device::new(app).made(&fetch_registration_options(app, user).await)
}

/// Requests the options for a sign-in with a passkey.
pub async fn options(app: &TestApp) -> Value {
    app.post("/v1/auth/login/passkey/options").send().await.expect(200)["options"].clone()
}

pub async fn sign_in(app: &TestApp, credential: &Value) -> Answer {
    app.post("/v1/auth/login/passkey").json(json!({ "credential": credential })).send().await
}

#[tokio::test]
async fn passkey_signs_in_alone_until_it_is_removed() {
    let sink = SmtpSink::start();
    let settings = [("server.public_url", LOCALHOST), ("mail.url", &*sink.url())];
    let app = TestApp::start_with(&settings).await;
    let dana = app.register_verified("acme").await;
    let registration = fetch_registration_options(&app, &dana).await;
    assert_eq!(registration["rp"]["id"], "localhost");
    assert_eq!(registration["authenticatorSelection"]["userVerification"], "required");
    assert_eq!(registration["user"]["name"], json!(dana.email));
    let mut authenticator = Device::new(&app);
    let passkey = add(&app, &dana, &authenticator.made(&registration)).await.expect(201);
    // Even if the user has TOTP: a passkey counts as two factors.
    mfa::enable_totp(&app, &dana).await;
    authenticator.count = 1;
    let pair = sign_in(&app, &authenticator.signed(&options(&app).await)).await.expect(200);
    let token = pair["access_token"].as_str().unwrap().to_owned();
    let me = app.by(&token, "GET", "/v1/auth/me").send().await.expect(200);
    assert_eq!(me["subject"]["id"], json!(dana.user_id));
    let listed = app.by(&token, "GET", "/v1/auth/passkeys").send().await.expect(200);
    let [listed] = &listed["passkeys"].as_array().unwrap()[..] else { panic!("{listed:#}") };
    assert_eq!((&listed["id"], &listed["name"]), (&passkey["id"], &json!("phone")));
    assert!(listed["last_used_at"].is_string());
    // The options exclude the known passkey, so browsers create no other one on the same device.
    let next_registration =
        fetch_registration_options(&app, &Person { access_token: token.clone(), ..dana.clone() }).await;
    assert_eq!(
        next_registration["excludeCredentials"][0]["id"],
        json!(base64url(&authenticator.id))
    );

    let path = format!("/v1/auth/passkeys/{}", passkey["id"].as_str().unwrap());
    let mallory = app.register("mallory").await;
    let remove = |token: &str| app.by(token, "DELETE", &path).json(json!({}));
    remove(&mallory.access_token).send().await.refused(404, "not_found");
    remove(&token).send().await.expect(204);
    authenticator.count = 2;
    let refused = sign_in(&app, &authenticator.signed(&options(&app).await)).await;
    refused.refused(401, "invalid_credentials");
    sink.mail(&dana.email, "new passkey").await;
    sink.mail(&dana.email, "taken away").await;
    let key = app.mint(&Person { access_token: token, ..dana }, "log", "admin").await.secret;
    app.wait_for_event_count(&key, "action=member.passkey_added", 1).await;
    app.wait_for_event_count(&key, "action=member.passkey_removed", 1).await;
}

#[tokio::test]
async fn passkey_registration_needs_recent_sign_in_or_password() {
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let key = app.mint(&dana, "server", "admin").await.secret;
    app.clock.advance(Duration::from_mins(20));
    let request_options = async |token: &str, body: Value| {
        app.by(token, "POST", "/v1/auth/passkeys/options").json(body).send().await
    };
    request_options(&dana.access_token, json!({})).await.refused(403, "forbidden");
    request_options(&key, json!({ "password": PASSWORD })).await.refused(403, "forbidden");
    let wrong = request_options(&dana.access_token, json!({ "password": "wrong" })).await;
    wrong.refused(422, "validation_failed").blames("password");
    request_options(&dana.access_token, json!({ "password": PASSWORD })).await.expect(200);
    // An IP address is not a valid relying party id.
    let ip_app = TestApp::start().await;
    let dana = ip_app.register("acme").await;
    let request =
        ip_app.by(&dana.access_token, "POST", "/v1/auth/passkeys/options").json(json!({}));
    request.send().await.refused(409, "conflict");
    ip_app.post("/v1/auth/login/passkey/options").send().await.refused(409, "conflict");
}

#[tokio::test]
async fn invalid_webauthn_response_is_rejected() {
    type Tamper = fn(&mut Device);
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let cases: [(&str, Tamper); 12] = [
        ("another origin", |device| device.origin = "https://evil.example".into()),
        ("a subdomain as origin", |device| device.origin = "http://evil.localhost".into()),
        ("another port", |device| device.origin = "http://localhost:1".into()),
        ("another relying party", |device| device.party = "evil.example".into()),
        ("in a cross-origin frame", |device| device.extra = json!({ "crossOrigin": true })),
        ("below another top-level origin", |device| {
            device.extra = json!({ "topOrigin": "https://evil.example" });
        }),
        ("another client data type", |device| device.kind = Some("payment.get")),
        ("an unknown challenge", |device| device.challenge = Some("AAAA".into())),
        ("no user presence", |device| device.flags = VERIFIED),
        ("no user verification", |device| device.flags = PRESENT),
        ("backed up but not eligible", |device| device.flags = PRESENT | VERIFIED | BACKED_UP),
        ("an oversized credential id", |device| device.id = vec![7; 1024]),
    ];
    let other_tokens = mfa::login(&app, &dana, PASSWORD).await.expect(200);
    let other_options = fetch_registration_options(&app, &dana.with(&other_tokens)).await;
    let mut checked = 0;
    for (case, tamper) in &cases {
        let mut authenticator = Device::new(&app);
        tamper(&mut authenticator);
        let response = add(&app, &dana, &authenticator.made(&fetch_registration_options(&app, &dana).await)).await;
        assert_eq!(response.status, 422, "{case}: {}", response.text);
        checked += 1;
    }
    for (case, tamper) in &cases[..11] {
        let mut authenticator = register_authenticator(&app, &dana).await;
        authenticator.count = 1;
        tamper(&mut authenticator);
        let response = sign_in(&app, &authenticator.signed(&options(&app).await)).await;
        assert!([401, 422].contains(&response.status.as_u16()), "{case}: {}", response.text);
        checked += 1;
    }
    assert_eq!(checked, 23);
    // Errors that only an assertion can have.
    let mut authenticator = register_authenticator(&app, &dana).await;
    authenticator.count = 5;
    let valid = authenticator.signed(&options(&app).await);
    for (field, index) in [("signature", 40), ("signature", 1), ("authenticatorData", 36)] {
        let mut invalid = valid.clone();
        let text = invalid["response"][field].as_str().unwrap();
        let mut bytes = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
        let last = bytes.len() - 1;
        bytes[index.min(last)] ^= 1;
        invalid["response"][field] = json!(BASE64URL_NOPAD.encode(&bytes));
        sign_in(&app, &invalid).await.refused(401, "invalid_credentials");
    }
    let mut without_user_handle = valid.clone();
    without_user_handle["response"].as_object_mut().unwrap().remove("userHandle");
    sign_in(&app, &without_user_handle).await.refused(422, "validation_failed");
    // Malformed data gets the same error for a known and an unknown passkey.
    for id in [&authenticator.id, &vec![9; 32]] {
        for field in ["signature", "authenticatorData", "userHandle"] {
            let mut malformed = valid.clone();
            malformed["rawId"] = json!(base64url(id));
            malformed["response"][field] = json!("not base64url!");
            sign_in(&app, &malformed).await.refused(422, "validation_failed");
        }
    }
    let impostor = Device { id: authenticator.id.clone(), count: 9, ..Device::new(&app) };
    impostor.made(&fetch_registration_options(&app, &dana).await);
    let response = sign_in(&app, &impostor.signed(&options(&app).await)).await;
    response.refused(401, "invalid_credentials");
    let mut wrong_user = valid.clone();
    wrong_user["response"]["userHandle"] = json!(base64url(&[1; 16]));
    sign_in(&app, &wrong_user).await.refused(401, "invalid_credentials");
    // A registration challenge is not valid for a sign-in, nor the other way round.
    authenticator.challenge =
        fetch_registration_options(&app, &dana).await["challenge"].as_str().map(str::to_owned);
    let response = sign_in(&app, &authenticator.signed(&json!({}))).await;
    response.refused(422, "validation_failed");
    let swapped = Device {
        challenge: options(&app).await["challenge"].as_str().map(str::to_owned),
        ..Device::new(&app)
    };
    add(&app, &dana, &swapped.made(&json!({}))).await.refused(422, "validation_failed");
    // A session cannot use the challenge of another user or of another session, which may have
    // presented more factors.
    let mallory = app.register_verified("mallory").await;
    let other_credential = Device::new(&app).made(&fetch_registration_options(&app, &mallory).await);
    add(&app, &dana, &other_credential).await.refused(422, "validation_failed");
    let credential = Device::new(&app).made(&other_options);
    add(&app, &dana, &credential).await.refused(422, "validation_failed");
    // The valid assertion was valid all the time, and it works once.
    sign_in(&app, &valid).await.expect(200);
    sign_in(&app, &valid).await.refused(401, "invalid_credentials");
    // A clone is detected by its signature counter, or by its changed backup eligibility.
    authenticator.challenge = None;
    sign_in(&app, &authenticator.signed(&options(&app).await))
        .await
        .refused(401, "invalid_credentials");
    authenticator.count = 6;
    authenticator.flags |= BACKUP_ELIGIBLE;
    sign_in(&app, &authenticator.signed(&options(&app).await))
        .await
        .refused(401, "invalid_credentials");
    authenticator.flags = PRESENT | VERIFIED;
    sign_in(&app, &authenticator.signed(&options(&app).await)).await.expect(200);
}

#[tokio::test]
async fn passkey_challenge_works_once_and_in_time_on_all_nodes() {
    let app = app().await;
    let public_url = app.app.settings.public_url.clone();
    let node = TestApp::start_on(app.database.clone(), &[("server.public_url", &public_url)]).await;
    let [dana, mallory] =
        [app.register_verified("acme").await, app.register_verified("mallory").await];
    let device = Device::new(&app);
    let credential = device.made(&fetch_registration_options(&app, &dana).await);
    add(&app, &dana, &credential).await.expect(201);
    add(&node, &dana, &credential).await.refused(422, "validation_failed");
    // No other user can add the same passkey, even with a challenge of their own.
    let handle = device.handle.borrow().clone();
    let second_credential = device.made(&fetch_registration_options(&app, &mallory).await);
    device.handle.replace(handle);
    add(&app, &mallory, &second_credential).await.refused(409, "conflict");
    // Two concurrent uses on two nodes create one session.
    let authenticator = Device { count: 1, ..device };
    let assertion = authenticator.signed(&options(&node).await);
    let (first, second) = tokio::join!(sign_in(&app, &assertion), sign_in(&node, &assertion));
    let mut statuses = [first.status.as_u16(), second.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
    let late_device = Device::new(&app);
    let (registration, authentication) = (fetch_registration_options(&app, &dana).await, options(&app).await);
    app.clock.advance(Duration::from_mins(11));
    add(&app, &dana, &late_device.made(&registration)).await.refused(422, "validation_failed");
    app.clock.advance(Duration::from_mins(20));
    let authenticator = Device { count: 2, ..authenticator };
    sign_in(&app, &authenticator.signed(&authentication)).await.refused(422, "validation_failed");
}

#[tokio::test]
async fn authenticator_data_is_parsed_strictly() {
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let authenticator = Device::new(&app);
    let (head, id) = (authenticator.data(ATTESTED_CREDENTIAL), authenticator.id.clone());
    let with_key = |key: &[u8]| {
        let id = [&[0; 16][..], &32_u16.to_be_bytes(), &id].concat();
        [&head[..], &id, key].concat()
    };
    let cose = authenticator.cose();
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
        ("no credential", authenticator.data(0)),
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
        let credential = authenticator.attestation_response_with(&fetch_registration_options(&app, &dana).await, &data);
        let response = add(&app, &dana, &credential).await;
        assert_eq!(response.status, 422, "{case}: {}", response.text);
    }
    let options = fetch_registration_options(&app, &dana).await;
    for (field, text) in [
        ("clientDataJSON", "e30"),
        ("clientDataJSON", "not base64url!"),
        ("attestationObject", "oA"),
        ("attestationObject", ""),
    ] {
        let mut credential = authenticator.made(&options);
        credential["response"][field] = json!(text);
        add(&app, &dana, &credential).await.refused(422, "validation_failed");
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
        let mut credential = authenticator.made(&options);
        credential["response"]["attestationObject"] = json!(base64url(&encoder.into_writer()));
        let response = add(&app, &dana, &credential).await;
        assert_eq!(response.status, 422, "{case}: {}", response.text);
    }
    let mut credential = authenticator.made(&options);
    credential["response"]["attestationObject"] = json!("A".repeat(100_000));
    add(&app, &dana, &credential).await.refused(422, "validation_failed");
    add(&app, &dana, &json!("x")).await.refused(422, "validation_failed");
}

#[tokio::test]
async fn real_browser_creates_passkey_and_signs_in() {
    let app = app().await;
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
    browser.shows("/second-factor", "A passkey signs in by itself").await;
    browser.click("form[action='/second-factor/passkeys/new'] button").await;
    browser.shows("/second-factor/passkeys/new", "What you call it").await;
    browser.has("[data-without-passkeys]:not([hidden])", 0).await;
    browser.click("form[action='/second-factor/passkeys'] button").await;
    browser.shows("/second-factor", "My passkey").await;
    browser.open(&format!("{url}/sessions")).await;
    browser.click("form[action='/sign-out'] button").await;
    browser.shows("/sign-in", "Sign in with a passkey").await;
    browser.click("form[action='/sign-in/passkey'] button").await;
    browser.shows("/api-keys", "API keys").await;
    let listed = app.by(&dana.access_token, "GET", "/v1/auth/passkeys").send().await.expect(200);
    assert!(listed["passkeys"][0]["last_used_at"].is_string(), "{listed:#}");
    // A removed passkey no longer signs in, and the page says so.
    browser.open(&format!("{url}/second-factor")).await;
    browser.click(".rows summary").await;
    browser.click(".rows button").await;
    browser.has(".rows", 0).await;
    browser.open(&format!("{url}/sessions")).await;
    browser.click("form[action='/sign-out'] button").await;
    browser.shows("/sign-in", "Sign in with a passkey").await;
    browser.click("form[action='/sign-in/passkey'] button").await;
    browser.shows("/sign-in/passkey", "passkey does not work here").await;
}

#[tokio::test]
async fn passkey_pages_report_errors_without_javascript() {
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let page = browser.get("/second-factor").await;
    let page = browser.submit(&page, "/second-factor/passkeys/new", &[]).await;
    assert!(page.text.contains("Passkeys take JavaScript"), "{page:#?}");
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
