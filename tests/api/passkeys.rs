//! /v1/auth/passkeys and signing in with one: by a device made here, which can lie, and by a real browser.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::{
    fixture::{
        Answer, Browser, Chromium, LOCALHOST, PASSWORD, Person, SmtpSink, TestApp,
        device::{
            BACKED_UP, BACKUP_ELIGIBLE, Device, HAS_CREDENTIAL, PRESENT, VERIFIED, base64url,
        },
    },
    mfa,
};

pub async fn app() -> TestApp {
    TestApp::start_with(&[("server.public_url", LOCALHOST)]).await
}

/// What a browser is asked for to make a passkey.
pub async fn new_options(app: &TestApp, person: &Person) -> Value {
    let call = app.by(&person.access_token, "POST", "/v1/auth/passkeys/options");
    call.json(json!({})).send().await.expect(200)["options"].clone()
}

pub async fn add(app: &TestApp, person: &Person, credential: &Value) -> Answer {
    let body = json!({ "name": "phone", "credential": credential });
    app.by(&person.access_token, "POST", "/v1/auth/passkeys").json(body).send().await
}

/// A device whose passkey somebody has added.
pub async fn device_of(app: &TestApp, person: &Person) -> Device {
    let device = Device::new(app);
    let made = device.made(&new_options(app, person).await);
    add(app, person, &made).await.expect(201);
    device
}

/// What a device answers that has made a passkey for somebody.
pub async fn new_passkey(app: &TestApp, person: &Person) -> Value {
    Device::new(app).made(&new_options(app, person).await)
}

pub async fn options(app: &TestApp) -> Value {
    app.post("/v1/auth/login/passkey/options").send().await.expect(200)["options"].clone()
}

pub async fn sign_in(app: &TestApp, credential: &Value) -> Answer {
    app.post("/v1/auth/login/passkey").json(json!({ "credential": credential })).send().await
}

#[tokio::test]
async fn a_passkey_signs_in_by_itself_until_it_is_taken_away() {
    let sink = SmtpSink::start();
    let settings = [("server.public_url", LOCALHOST), ("mail.url", &*sink.url())];
    let app = TestApp::start_with(&settings).await;
    let dana = app.register_verified("acme").await;
    let asked = new_options(&app, &dana).await;
    assert_eq!(asked["rp"]["id"], "localhost");
    assert_eq!(asked["authenticatorSelection"]["userVerification"], "required");
    assert_eq!(asked["user"]["name"], json!(dana.email));
    let mut device = Device::new(&app);
    let made = add(&app, &dana, &device.made(&asked)).await.expect(201);
    // Also where a code is asked for with a password: it takes two factors by itself.
    mfa::with_factor(&app, &dana).await;
    device.count = 1;
    let pair = sign_in(&app, &device.signed(&options(&app).await)).await.expect(200);
    let token = pair["access_token"].as_str().unwrap().to_owned();
    let me = app.by(&token, "GET", "/v1/auth/me").send().await.expect(200);
    assert_eq!(me["subject"]["id"], json!(dana.user_id));
    let listed = app.by(&token, "GET", "/v1/auth/passkeys").send().await.expect(200);
    let [listed] = &listed["passkeys"].as_array().unwrap()[..] else { panic!("{listed:#}") };
    assert_eq!((&listed["id"], &listed["name"]), (&made["id"], &json!("phone")));
    assert!(listed["last_used_at"].is_string());
    // It is known: browsers are told not to make another on the same device.
    let again = new_options(&app, &Person { access_token: token.clone(), ..dana.clone() }).await;
    assert_eq!(again["excludeCredentials"][0]["id"], json!(base64url(&device.id)));

    let path = format!("/v1/auth/passkeys/{}", made["id"].as_str().unwrap());
    let mallory = app.register("mallory").await;
    let remove = |token: &str| app.by(token, "DELETE", &path).json(json!({}));
    remove(&mallory.access_token).send().await.refused(404, "not_found");
    remove(&token).send().await.expect(204);
    device.count = 2;
    let refused = sign_in(&app, &device.signed(&options(&app).await)).await;
    refused.refused(401, "invalid_credentials");
    sink.mail(&dana.email, "new passkey").await;
    sink.mail(&dana.email, "taken away").await;
    let key = app.mint(&Person { access_token: token, ..dana }, "log", "admin").await.secret;
    app.events_of(&key, "action=member.passkey_added", 1).await;
    app.events_of(&key, "action=member.passkey_removed", 1).await;
}

#[tokio::test]
async fn whoever_makes_a_passkey_has_just_shown_who_they_are() {
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let key = app.mint(&dana, "server", "admin").await.secret;
    app.clock.advance(Duration::from_mins(20));
    let ask = async |token: &str, body: Value| {
        app.by(token, "POST", "/v1/auth/passkeys/options").json(body).send().await
    };
    ask(&dana.access_token, json!({})).await.refused(403, "forbidden");
    ask(&key, json!({ "password": PASSWORD })).await.refused(403, "forbidden");
    let wrong = ask(&dana.access_token, json!({ "password": "wrong" })).await;
    wrong.refused(422, "validation_failed").blames("password");
    ask(&dana.access_token, json!({ "password": PASSWORD })).await.expect(200);
    // An address is no name.
    let numbered = TestApp::start().await;
    let dana = numbered.register("acme").await;
    let call = numbered.by(&dana.access_token, "POST", "/v1/auth/passkeys/options").json(json!({}));
    call.send().await.refused(409, "conflict");
    numbered.post("/v1/auth/login/passkey/options").send().await.refused(409, "conflict");
}

#[tokio::test]
async fn what_no_passkey_of_ours_would_say_is_refused() {
    type Lie = fn(&mut Device);
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let lies: [(&str, Lie); 12] = [
        ("another origin", |device| device.origin = "https://evil.example".into()),
        ("a neighbour's origin", |device| device.origin = "http://evil.localhost".into()),
        ("another port", |device| device.origin = "http://localhost:1".into()),
        ("another party", |device| device.party = "evil.example".into()),
        ("within another page", |device| device.extra = json!({ "crossOrigin": true })),
        ("below another page", |device| {
            device.extra = json!({ "topOrigin": "https://evil.example" });
        }),
        ("the wrong question", |device| device.kind = Some("payment.get")),
        ("no challenge of ours", |device| device.challenge = Some("AAAA".into())),
        ("nobody there", |device| device.flags = VERIFIED),
        ("nobody verified", |device| device.flags = PRESENT),
        ("backed up and not to be", |device| device.flags = PRESENT | VERIFIED | BACKED_UP),
        ("an id without end", |device| device.id = vec![7; 1024]),
    ];
    let login = mfa::login(&app, &dana, PASSWORD).await.expect(200);
    let for_another = new_options(&app, &dana.with(&login)).await;
    let mut seen = 0;
    for (what, lie) in &lies {
        let mut device = Device::new(&app);
        lie(&mut device);
        let answer = add(&app, &dana, &device.made(&new_options(&app, &dana).await)).await;
        assert_eq!(answer.status, 422, "{what}: {}", answer.text);
        seen += 1;
    }
    for (what, lie) in &lies[..11] {
        let mut device = device_of(&app, &dana).await;
        device.count = 1;
        lie(&mut device);
        let answer = sign_in(&app, &device.signed(&options(&app).await)).await;
        assert!([401, 422].contains(&answer.status.as_u16()), "{what}: {}", answer.text);
        seen += 1;
    }
    assert_eq!(seen, 23);
    // What only an assertion can be wrong about.
    let mut device = device_of(&app, &dana).await;
    device.count = 5;
    let good = device.signed(&options(&app).await);
    for (field, change) in [("signature", 40), ("signature", 1), ("authenticatorData", 36)] {
        let mut bad = good.clone();
        let text = bad["response"][field].as_str().unwrap();
        let mut bytes = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
        let last = bytes.len() - 1;
        bytes[change.min(last)] ^= 1;
        bad["response"][field] = json!(BASE64URL_NOPAD.encode(&bytes));
        sign_in(&app, &bad).await.refused(401, "invalid_credentials");
    }
    let mut nameless = good.clone();
    nameless["response"].as_object_mut().unwrap().remove("userHandle");
    sign_in(&app, &nameless).await.refused(422, "validation_failed");
    // What is malformed is refused alike, whether or not anybody has the passkey.
    for id in [&device.id, &vec![9; 32]] {
        for field in ["signature", "authenticatorData", "userHandle"] {
            let mut malformed = good.clone();
            malformed["rawId"] = json!(base64url(id));
            malformed["response"][field] = json!("not base64url!");
            sign_in(&app, &malformed).await.refused(422, "validation_failed");
        }
    }
    let stranger = Device { id: device.id.clone(), count: 9, ..Device::new(&app) };
    stranger.made(&new_options(&app, &dana).await);
    let answer = sign_in(&app, &stranger.signed(&options(&app).await)).await;
    answer.refused(401, "invalid_credentials");
    let mut other = good.clone();
    other["response"]["userHandle"] = json!(base64url(&[1; 16]));
    sign_in(&app, &other).await.refused(401, "invalid_credentials");
    // A challenge to make one is none to sign in, and the other way round.
    device.challenge = new_options(&app, &dana).await["challenge"].as_str().map(str::to_owned);
    let answer = sign_in(&app, &device.signed(&json!({}))).await;
    answer.refused(422, "validation_failed");
    let crossed = Device {
        challenge: options(&app).await["challenge"].as_str().map(str::to_owned),
        ..Device::new(&app)
    };
    add(&app, &dana, &crossed.made(&json!({}))).await.refused(422, "validation_failed");
    // Nor does the session of somebody who has shown less take what another one asked for.
    let mallory = app.register_verified("mallory").await;
    let theirs = Device::new(&app).made(&new_options(&app, &mallory).await);
    add(&app, &dana, &theirs).await.refused(422, "validation_failed");
    let made = Device::new(&app).made(&for_another);
    add(&app, &dana, &made).await.refused(422, "validation_failed");
    // All that while the good answer was good; and it is so once.
    sign_in(&app, &good).await.expect(200);
    sign_in(&app, &good).await.refused(401, "invalid_credentials");
    // A copy that has not counted along is noticed; so is one that says it may be copied.
    device.challenge = None;
    sign_in(&app, &device.signed(&options(&app).await)).await.refused(401, "invalid_credentials");
    device.count = 6;
    device.flags |= BACKUP_ELIGIBLE;
    sign_in(&app, &device.signed(&options(&app).await)).await.refused(401, "invalid_credentials");
    device.flags = PRESENT | VERIFIED;
    sign_in(&app, &device.signed(&options(&app).await)).await.expect(200);
}

#[tokio::test]
async fn a_passkey_is_added_once_and_in_time_over_all_nodes() {
    let app = app().await;
    let public_url = app.app.settings.public_url.clone();
    let node = TestApp::start_on(app.database.clone(), &[("server.public_url", &public_url)]).await;
    let [dana, mallory] =
        [app.register_verified("acme").await, app.register_verified("mallory").await];
    let device = Device::new(&app);
    let made = device.made(&new_options(&app, &dana).await);
    add(&app, &dana, &made).await.expect(201);
    add(&node, &dana, &made).await.refused(422, "validation_failed");
    // Nobody else gets it, whatever question it answers.
    let handle = device.handle.borrow().clone();
    let again = device.made(&new_options(&app, &mallory).await);
    device.handle.replace(handle);
    add(&app, &mallory, &again).await.refused(409, "conflict");
    // Twice at once, on two nodes: one session.
    let signed = Device { count: 1, ..device };
    let answer = signed.signed(&options(&node).await);
    let (one, two) = tokio::join!(sign_in(&app, &answer), sign_in(&node, &answer));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
    let late = Device::new(&app);
    let (asked, to_sign) = (new_options(&app, &dana).await, options(&app).await);
    app.clock.advance(Duration::from_mins(11));
    add(&app, &dana, &late.made(&asked)).await.refused(422, "validation_failed");
    app.clock.advance(Duration::from_mins(20));
    let signed = Device { count: 2, ..signed };
    sign_in(&app, &signed.signed(&to_sign)).await.refused(422, "validation_failed");
}

#[tokio::test]
async fn what_devices_send_is_read_strictly() {
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let device = Device::new(&app);
    let (head, id) = (device.data(HAS_CREDENTIAL), device.id.clone());
    let with_key = |key: &[u8]| {
        let id = [&[0; 16][..], &32_u16.to_be_bytes(), &id].concat();
        [&head[..], &id, key].concat()
    };
    let cose = device.cose();
    let mut off_curve = cose.clone();
    let last = off_curve.len() - 1;
    off_curve[last] ^= 1;
    let rsa = |modulus: &[u8], exponent: &[u8]| {
        let mut encoder = minicbor::Encoder::new(Vec::new());
        encoder.map(4).unwrap().u8(1).unwrap().u8(3).unwrap().u8(3).unwrap().i16(-257).unwrap();
        encoder.i8(-1).unwrap().bytes(modulus).unwrap().i8(-2).unwrap().bytes(exponent).unwrap();
        with_key(&encoder.into_writer())
    };
    for (what, data) in [
        ("nothing", Vec::new()),
        ("no credential", device.data(0)),
        ("an end in the middle", with_key(&cose)[..100].to_vec()),
        ("more than there should be", with_key(&[&cose[..], &[0]].concat())),
        ("no key", with_key(&[0xa0])),
        ("a point that is on no curve", with_key(&off_curve)),
        ("a small modulus", rsa(&[0xff; 255], &[1, 0, 1])),
        ("a huge modulus", rsa(&[0xff; 1025], &[1, 0, 1])),
        ("a padded modulus", rsa(&[&[0][..], &[0xff; 256]].concat(), &[1, 0, 1])),
        ("an even exponent", rsa(&[0xff; 256], &[1, 0, 2])),
        ("no exponent", rsa(&[0xff; 256], &[])),
        ("a list for a key", with_key(&[0x80])),
        ("a map without end", with_key(&[0xbf])),
        ("a map of millions", with_key(&[0xba, 0xff, 0xff, 0xff, 0xff])),
        (
            "bytes of billions",
            with_key(&[0xa1, 0x21, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("deep nesting", with_key(&[[0xa1, 0x00].repeat(4000), vec![0]].concat())),
    ] {
        let made = device.made_of(&new_options(&app, &dana).await, &data);
        let answer = add(&app, &dana, &made).await;
        assert_eq!(answer.status, 422, "{what}: {}", answer.text);
    }
    let options = new_options(&app, &dana).await;
    for (field, text) in [
        ("clientDataJSON", "e30"),
        ("clientDataJSON", "not base64url!"),
        ("attestationObject", "oA"),
        ("attestationObject", ""),
    ] {
        let mut made = device.made(&options);
        made["response"][field] = json!(text);
        add(&app, &dana, &made).await.refused(422, "validation_failed");
    }
    // What it says of itself is not believed, but has to be there, once.
    let whole = with_key(&cose);
    for (what, fields) in [
        ("no format", &["attStmt", "authData"][..]),
        ("no statement", &["fmt", "authData"]),
        ("no data", &["fmt", "attStmt"]),
        ("two formats", &["fmt", "fmt", "attStmt", "authData"]),
        ("two statements", &["fmt", "attStmt", "attStmt", "authData"]),
        ("data twice", &["fmt", "attStmt", "authData", "authData"]),
        ("more than that", &["fmt", "attStmt", "authData", "x"]),
    ] {
        let mut encoder = minicbor::Encoder::new(Vec::new());
        encoder.map(fields.len() as u64).unwrap();
        for field in fields {
            let encoder = encoder.str(field).unwrap();
            match *field {
                "authData" => encoder.bytes(&whole).unwrap(),
                "attStmt" => encoder.map(0).unwrap(),
                _ => encoder.str("none").unwrap(),
            };
        }
        let mut made = device.made(&options);
        made["response"]["attestationObject"] = json!(base64url(&encoder.into_writer()));
        let answer = add(&app, &dana, &made).await;
        assert_eq!(answer.status, 422, "{what}: {}", answer.text);
    }
    let mut made = device.made(&options);
    made["response"]["attestationObject"] = json!("A".repeat(100_000));
    add(&app, &dana, &made).await.refused(422, "validation_failed");
    add(&app, &dana, &json!("x")).await.refused(422, "validation_failed");
}

#[tokio::test]
async fn in_a_real_browser_a_passkey_is_made_and_signs_in() {
    let app = app().await;
    let dana = app.register_verified("acme").await;
    let url = app.app.settings.public_url.clone();
    let browser = Chromium::start().await;
    let device = json!({
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": true,
        "hasUserVerification": true, "isUserVerified": true, "isUserConsenting": true,
    });
    browser.post("/webauthn/authenticator", device).await;
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
    // Taken away, it signs nobody in any more, and the page says so.
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
async fn without_javascript_the_page_signs_in_by_password() {
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
        let answer = browser.post(path, &fields, &[("sec-fetch-site", "same-origin")]).await;
        assert!(answer.status == 422 && answer.text.contains("role=\"alert\""), "{answer:#?}");
    }
}
