//! Requests that widespread clients send and that the specifications do not foresee.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    Browser, PASSWORD, TestApp, TestClient, TestResponse,
    oauth::{CODE_VERIFIER, DEVICE_GRANT, OAuthClient, OAuthExt, encode_form, redirect_parameters},
};

/// Posts a body to an endpoint, with an `Authorization` header.
async fn post_with_authorization(
    app: &TestClient,
    path: &str,
    authorization: &str,
    fields: &[(&str, &str)],
) -> TestResponse {
    let request = app.post(path).header("authorization", authorization);
    request.body("application/x-www-form-urlencoded", encode_form(fields)).send().await
}

/// zapier-platform's OAuth example sends `Authorization: Bearer` with every request.
#[tokio::test]
async fn authorization_of_other_scheme_is_ignored() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let grants = json!({
        "grant_types": ["authorization_code", "refresh_token", DEVICE_GRANT],
        "token_endpoint_auth_method": "client_secret_post",
    });
    let client = app.register_client(grants).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let (access, refresh) =
        (tokens["access_token"].as_str().unwrap(), tokens["refresh_token"].as_str().unwrap());
    let bearer = format!("Bearer {access}");
    for authorization in [&*bearer, "Bearer ", "Digest username=\"x\"", "Negotiate", ""] {
        for (path, fields, status) in [
            (
                "/oauth/token",
                &[("grant_type", "refresh_token"), ("refresh_token", refresh)][..],
                200,
            ),
            ("/oauth/introspect", &[("token", access)], 200),
            ("/oauth/device_authorization", &[], 200),
            ("/oauth/revoke", &[("token", "unknown")], 200),
        ] {
            let fields = client.with_client_credentials(fields);
            let answer = post_with_authorization(&app, path, authorization, &fields).await;
            assert_eq!(answer.status.as_u16(), status, "{authorization} {path}: {}", answer.text);
        }
        let metadata = json!({ "redirect_uris": ["https://client.example/cb"] });
        let register = app.post("/oauth/register").header("authorization", authorization);
        register.json(metadata).send().await.expect_status(201);
    }
    // A header is no replacement for the client's secret, and two headers stay an error.
    let fields = [("client_id", &*client.id), ("grant_type", "refresh_token")];
    let answer = post_with_authorization(&app, "/oauth/token", &bearer, &fields).await;
    answer.assert_oauth_error(401, "invalid_client");
    let malformed = post_with_authorization(&app, "/oauth/token", "Basic !", &fields).await;
    malformed.assert_oauth_error(401, "invalid_client");
}

#[tokio::test]
async fn unknown_scopes_are_dropped() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    for (registered, requested, granted) in [
        ("", "address phone", "call2me:read"),
        ("", "offline_access", "call2me:read"),
        ("", "read,write", "call2me:read"),
        ("", "call2me:read,call2me:write", "call2me:read call2me:write"),
        ("", "address, call2me:write,", "call2me:read call2me:write"),
        ("call2me:read,call2me:write", "CALL2ME:ADMIN", "call2me:read call2me:write"),
    ] {
        let client = app.register_client(json!({ "scope": registered })).await;
        let scope = [("scope", requested)];
        let tokens = app.obtain_tokens(&mut browser, &client, &scope).await;
        assert_eq!(tokens["scope"], granted, "{registered:?} {requested:?}");
        // A refresh with the same parameter keeps what was granted.
        let fields = [
            ("grant_type", "refresh_token"),
            ("refresh_token", tokens["refresh_token"].as_str().unwrap()),
            ("scope", requested),
        ];
        let tokens = app.request_token(&client.with_client_credentials(&fields)).await;
        assert_eq!(tokens.expect_status(200)["scope"], granted, "{registered:?} {requested:?}");
    }
    let grants = json!({ "grant_types": [DEVICE_GRANT], "redirect_uris": [] });
    let device = app.register_client(grants).await;
    let fields = device.with_client_credentials(&[("scope", "address,phone")]);
    app.post_form("/oauth/device_authorization", &fields).await.expect_status(200);
}

#[tokio::test]
async fn pkce_error_names_what_is_missing() {
    let app = TestClient::shared();
    let client = app.register_client(json!({})).await;
    for (fields, reason) in [
        (&[("code_challenge", ""), ("code_challenge_method", "")][..], "code_challenge is missing"),
        (&[("code_challenge", "")], "code_challenge is missing"),
        (&[("code_challenge_method", "")], "code_challenge_method is missing"),
        (
            &[("code_challenge", CODE_VERIFIER), ("code_challenge_method", "plain")],
            "code_challenge_method must be S256",
        ),
        (&[("code_challenge", "short")], "code_challenge must be a SHA-256 hash"),
    ] {
        let page = Browser::new(&app).get(&client.authorization_url(fields)).await;
        let link = page.link_target("Continue to client.example").replace('+', " ");
        assert!(link.contains(reason), "{fields:?}: {link}");
    }
}

/// Posts fields as a JSON object.
async fn post_json(app: &TestClient, path: &str, body: Value) -> TestResponse {
    app.post(path).json(body).send().await
}

#[tokio::test]
async fn json_body_is_read_at_client_endpoints() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let client = app.register_confidential_client().await;
    let code = app.obtain_code(&mut browser, &client, &[]).await;
    let with_client = |fields: Value| {
        let mut all = json!({ "client_id": client.id, "client_secret": client.secret });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        all
    };
    let redeem = with_client(json!({
        "grant_type": "authorization_code", "code": code, "code_verifier": CODE_VERIFIER,
        "redirect_uri": client.redirect_uri, "scope": null, "expires": 1, "resource": [app.url],
    }));
    let tokens = post_json(&app, "/oauth/token", redeem).await.expect_status(200);
    let refresh = json!({
        "grant_type": "refresh_token", "refresh_token": tokens["refresh_token"],
    });
    let refresh = with_client(refresh);
    let tokens = post_json(&app, "/oauth/token", refresh.clone()).await.expect_status(200);
    let token = with_client(json!({ "token": tokens["access_token"] }));
    let state = post_json(&app, "/oauth/introspect", token.clone()).await.expect_status(200);
    assert_eq!(state["active"], true);
    post_json(&app, "/oauth/revoke", token.clone()).await.expect_status(200);
    let state = post_json(&app, "/oauth/introspect", token).await.expect_status(200);
    assert_eq!(state["active"], false);
    for (body, reason) in [
        ("[]".to_owned(), "JSON object"),
        ("{".to_owned(), "JSON object"),
        (
            with_client(json!({ "grant_type": { "a": 1 } })).to_string(),
            "grant_type must be a string",
        ),
        (refresh.to_string().replacen('{', "{\"grant_type\": \"refresh_token\",", 1), "repeated"),
    ] {
        let answer = app.post("/oauth/token").body("application/json", body.clone()).send().await;
        answer.assert_oauth_error(400, "invalid_request");
        assert!(answer.text.contains(reason), "{body}: {}", answer.text);
    }
}

#[tokio::test]
async fn revocation_response_is_json_object() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let [access, refresh] =
        ["access_token", "refresh_token"].map(|name| tokens[name].as_str().unwrap());
    for token in [access, refresh, "unknown"] {
        let fields = client.with_client_credentials(&[("token", token)]);
        let answer = app.post_form("/oauth/revoke", &fields).await;
        assert_eq!((&*answer.text, answer.header("content-type")), ("{}", "application/json"));
        answer.expect_status(200);
    }
}

/// The length of an authorization request that nginx passes on with its default buffers, encoded
/// once: 4 KiB for the headers of a response.
const MAX_LOCATION: usize = 2000;

/// Signs in on the page to which an authorization request leads, and returns the target of the
/// redirect after it.
async fn sign_in_from(browser: &mut Browser<'_>, request: &str, email: &str) -> String {
    let sign_in = browser.get(request).await.redirect_target().unwrap().to_owned();
    assert!(sign_in.starts_with("/sign-in?next=%2Foauth%2Fauthorize%3F"), "{sign_in}");
    assert!(sign_in.len() < MAX_LOCATION, "{}", sign_in.len());
    let page = browser.get(&sign_in).await;
    let fields = [("email", email), ("password", PASSWORD)];
    let page = browser.submit(&page, "/sign-in", &fields).await;
    page.redirect_target().unwrap().to_owned()
}

#[tokio::test]
async fn long_authorization_request_is_kept_on_the_server() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let json_state = json!({ "u": "https://app.example/?a=b&c=d", "t": "%".repeat(700) });
    for state in ["{\"=&%é".repeat(123), "x".repeat(3000), json_state.to_string()] {
        let mut browser = Browser::new(&app);
        let fields = [("state", &*state), ("login_hint", &dana.email), ("prompt", "login")];
        let request = client.authorization_url(&fields);
        let next = sign_in_from(&mut browser, &request, &dana.email).await;
        assert!(next.len() < MAX_LOCATION, "{next}");
        let page = browser.get(&next).await;
        assert!(page.text.contains("Authorize Example app?"), "{page:#?}");
        let (_, params) = redirect_parameters(&browser.submit_consent(&page, &[]).await);
        assert_eq!(params["state"], state);
        // A request by POST is kept, too.
        let (path, query) = request.split_once('?').unwrap();
        let post = app.post(path).body("application/x-www-form-urlencoded", query.to_owned());
        let answer = post.send().await;
        assert!(answer.header("location").len() < MAX_LOCATION, "{}", answer.header("location"));
        sign_in_from(&mut Browser::new(&app), answer.header("location"), &dana.email).await;
    }
}

#[tokio::test]
async fn kept_authorization_request_expires() {
    let app = TestApp::start().await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::new(&app);
    let request = client.authorization_url(&[("state", &"x".repeat(3000))]);
    let next = async |browser: &mut Browser<'_>| {
        let sign_in = browser.get(&request).await.redirect_target().unwrap().to_owned();
        let query = sign_in.split_once('?').unwrap().1;
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, _)| name == "next").unwrap().1.into_owned()
    };
    let first = next(&mut browser).await;
    assert_eq!(browser.get(&first).await.status, 303);
    // The newest requests of an address replace its oldest ones.
    for _ in 0..100 {
        browser.get(&request).await;
    }
    let mut pages = vec![browser.get(&first).await];
    let unknown = format!("{}0000", &first[..first.len() - 4]);
    pages.push(browser.get(&unknown).await);
    let last = next(&mut browser).await;
    app.clock.advance(Duration::from_hours(25));
    pages.push(browser.get(&last).await);
    for page in pages {
        assert_eq!(page.status, 400, "{page:#?}");
        assert!(page.text.contains("Go back to the app and start again"), "{}", page.text);
    }
}

/// A registration can be deleted while the app keeps its id.
#[tokio::test]
async fn unknown_client_gets_advice_on_page() {
    let app = TestClient::shared();
    let client = app.register_client(json!({})).await;
    let unknown = |id: &str| OAuthClient { id: id.to_owned(), ..client.clone() };
    for id in ["client_01jd0zt8q7f7qvs4p2k6x3m9ab", "s6BhdRkqt3", "call2me-dashboard"] {
        let page = Browser::new(&app).get(&unknown(id).authorization_url(&[])).await;
        let advice = "remove the connection to this service and add it again";
        assert!(page.status == 400 && page.text.contains(advice), "{id}: {}", page.text);
    }
    let other = client.authorization_url(&[("redirect_uri", "https://other.example/cb")]);
    let page = Browser::new(&app).get(&other).await;
    assert!(!page.text.contains("add it again") && page.text.contains("redirect_uri"));
}
