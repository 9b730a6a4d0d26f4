//! The authorization endpoint and the consent page.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{
    Browser, PASSWORD, TestApp, TestClient,
    oauth::{
        CALLBACK, CODE_CHALLENGE, CODE_VERIFIER, OAuthClient, OAuthExt, decode_claims, encode_form,
        redirect_parameters,
    },
};

#[tokio::test]
async fn user_signs_in_and_consents_and_client_gets_tokens() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::new(&app);

    let request = client.authorization_url(&[("scope", "call2me:read call2me:write")]);
    let page = browser.get(&request).await;
    let sign_in = page.redirect_target().unwrap().to_owned();
    assert!(sign_in.starts_with("/sign-in?next=%2Foauth%2Fauthorize%3F"), "{sign_in}");
    let page = browser.get(&sign_in).await;
    let fields = [("email", &*dana.email), ("password", PASSWORD)];
    let page = browser.submit(&page, "/sign-in", &fields).await;
    let continue_url = page.redirect_target().unwrap().to_owned();
    assert!(continue_url.starts_with("/oauth/authorize?"), "{continue_url}");

    let page = browser.get(&continue_url).await;
    for text in ["Example app", "client.example", "acme", "Read and write", "Dana Meyer"] {
        assert!(page.text.contains(text), "{text}: {}", page.text);
    }
    assert!(!page.text.contains("Administer"), "scopes that were not requested are not offered");
    let (redirect_uri, params) = redirect_parameters(&browser.submit_consent(&page, &[]).await);
    assert_eq!(redirect_uri, CALLBACK);
    assert_eq!((&*params["state"], &*params["iss"], params.len()), ("xyz", &*app.url, 3));

    let answer = app.redeem_code(&client, &params["code"]).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let tokens = answer.expect_status(200);
    assert_eq!((&tokens["token_type"], &tokens["expires_in"]), (&json!("Bearer"), &json!(3600)));
    assert_eq!(tokens["scope"], "call2me:read call2me:write");
    let token = tokens["access_token"].as_str().unwrap();
    let claims = decode_claims(token);
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!(app.url), &json!(app.url)));
    assert_eq!((&claims["client_id"], &claims["sub"]), (&json!(client.id), &json!(dana.user_id)));
    assert_eq!(claims["workspace_id"], dana.workspace_id);
    assert!(claims["sid"].as_str().unwrap().starts_with("grant_"));

    // The access token works, and requests are logged with the client's name.
    let body = json!({ "agent_name": "Front desk" });
    app.request_as(token, "POST", "/v1/agents").json(body).send().await.expect_status(201);
    let me = app.request_as(token, "GET", "/v1/auth/me").send().await.expect_status(200);
    assert_eq!(
        me["subject"],
        json!({ "type": "oauth_client", "id": client.id, "name": "Example app" })
    );
    assert_eq!((&me["user"]["id"], &me["scope"]), (&json!(dana.user_id), &json!("write")));
    let events =
        app.wait_for_event_count(&dana.access_token, &format!("actor_id={}", client.id), 3).await;
    let actions: Vec<_> = events.iter().map(|event| &event["action"]).collect();
    assert_eq!(actions, ["request", "request", "oauth.token_issued"]);
    assert!(events.iter().all(|event| event["actor"]["name"] == "Example app"));
    assert_eq!(events[0]["metadata"]["user_id"], dana.user_id);
    let granted =
        app.wait_for_event_count(&dana.access_token, "action=oauth.granted", 1).await.remove(0);
    assert_eq!(
        granted["target"],
        json!({ "type": "oauth_client", "id": client.id, "name": "Example app" })
    );
    assert_eq!(granted["actor"]["id"], dana.user_id);
}

#[tokio::test]
async fn minimal_request_is_granted_read_scope_only() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    // A client with one redirect URI may omit it, and the state is optional.
    let fields = [("redirect_uri", ""), ("state", "")];
    let page = browser.get(&client.authorization_url(&fields)).await;
    let (redirect_uri, params) = redirect_parameters(&browser.submit_consent(&page, &[]).await);
    assert_eq!((&*redirect_uri, params.contains_key("state")), (CALLBACK, false));
    let tokens = app.redeem_code(&client, &params["code"]).await.expect_status(200);
    assert_eq!(tokens["scope"], "call2me:read");
    let token = tokens["access_token"].as_str().unwrap();
    let response = app.request_as(token, "POST", "/v1/agents").json(json!({})).send().await;
    response.assert_error(403, "insufficient_scope");
    let challenge = response.header("www-authenticate");
    assert!(
        challenge.contains("scope=\"call2me:write\"") && challenge.contains("resource_metadata=")
    );
}

#[tokio::test]
async fn state_is_returned_unchanged() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app
        .register_client(json!({ "redirect_uris": ["https://client.example/cb?a=b%20c"] }))
        .await;
    let mut browser = Browser::new(&app);
    let long = "é&=+ %<script>\"".repeat(150);
    // The state also survives the sign-in page.
    let sign_in = browser
        .get(&client.authorization_url(&[("state", &long)]))
        .await
        .redirect_target()
        .unwrap()
        .to_owned();
    let page = browser.get(&sign_in).await;
    let fields = [("email", &*dana.email), ("password", PASSWORD)];
    let page = browser.submit(&page, "/sign-in", &fields).await;
    let page = browser.get(page.redirect_target().unwrap()).await;
    assert!(!page.text.contains("<script>"));
    let (redirect_uri, params) = redirect_parameters(&browser.submit_consent(&page, &[]).await);
    assert_eq!(
        (&*redirect_uri, &params["a"], &params["state"]),
        (CALLBACK, &"b c".to_owned(), &long)
    );
}

#[tokio::test]
async fn granted_scope_is_limited_by_request_and_role() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let admin = [("scope", "call2me:admin")];
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get(&client.authorization_url(&admin)).await;
    let (_, params) =
        redirect_parameters(&browser.submit_consent(&page, &[("scope", "read-only")]).await);
    let tokens = app.redeem_code(&client, &params["code"]).await.expect_status(200);
    assert_eq!(tokens["scope"], "call2me:read");

    let viewer = app.add_member(&dana, "viewer").await;
    let mut browser = Browser::signed_in(&app, &viewer.email).await;
    let page = browser.get(&client.authorization_url(&admin)).await;
    let choices = [("workspace", &*dana.workspace_id), ("scope", "admin")];
    let (_, viewer_params) = redirect_parameters(&browser.submit_consent(&page, &choices).await);
    let tokens = app.redeem_code(&client, &viewer_params["code"]).await.expect_status(200);
    assert_eq!(tokens["scope"], "call2me:read");

    // A forged form cannot exceed the requested scope.
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser
        .get(&client.authorization_url(&[("scope", "call2me:read"), ("prompt", "consent")]))
        .await;
    let (_, forged_params) =
        redirect_parameters(&browser.submit_consent(&page, &[("scope", "admin")]).await);
    let tokens = app.redeem_code(&client, &forged_params["code"]).await.expect_status(200);
    assert_eq!(tokens["scope"], "call2me:read");
}

#[tokio::test]
async fn consent_is_limited_to_own_workspaces() {
    let app = TestClient::shared();
    let (dana, stranger) = (app.register("acme").await, app.register("widgets-inc").await);
    let body = json!({ "name": "labs" });
    let labs = app.request_as(&dana.access_token, "POST", "/v1/workspaces").json(body).send().await;
    let labs = labs.expect_status(201)["id"].as_str().unwrap().to_owned();
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get(&client.authorization_url(&[])).await;
    assert!(page.text.contains("labs (owner)"), "{}", page.text);
    let (_, params) =
        redirect_parameters(&browser.submit_consent(&page, &[("workspace", &labs)]).await);
    let tokens = app.redeem_code(&client, &params["code"]).await.expect_status(200);
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(decode_claims(token)["workspace_id"], labs);
    let own = app.request_as(token, "GET", "/v1/workspace").send().await.expect_status(200);
    assert_eq!(own["id"], labs);

    let page = browser.get(&client.authorization_url(&[])).await;
    let response = browser.submit_consent(&page, &[("workspace", &stranger.workspace_id)]).await;
    assert_eq!(response.status, 403);
    assert!(response.text.contains("are not a member of this workspace"), "{}", response.text);
}

#[tokio::test]
async fn denied_consent_redirects_with_access_denied() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get(&client.authorization_url(&[])).await;
    let (redirect_uri, params) = redirect_parameters(
        &browser.submit(&page, "/oauth/consent", &[("decision", "deny")]).await,
    );
    assert_eq!(
        (&*redirect_uri, &*params["error"], &*params["state"]),
        (CALLBACK, "access_denied", "xyz")
    );
    assert_eq!(params["iss"], app.url);
    app.wait_for_event_count(&dana.access_token, "action=oauth.denied", 1).await;
}

#[tokio::test]
async fn consent_is_remembered_for_same_scope_and_https_redirect() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let uris = json!([CALLBACK, "http://127.0.0.1/cb"]);
    let client = app.register_client(json!({ "redirect_uris": uris })).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let write = [("scope", "call2me:write")];
    let first = app.obtain_tokens(&mut browser, &client, &write).await;

    let again = browser.get(&client.authorization_url(&write)).await;
    let (_, again) = redirect_parameters(&again);
    assert!(again.contains_key("code"), "consent is not requested again: {again:?}");
    for fields in [
        &[("scope", "call2me:admin")][..],
        &[("scope", "call2me:write"), ("prompt", "consent")],
        &[("scope", "call2me:write"), ("redirect_uri", "http://127.0.0.1:4711/cb")],
    ] {
        let page = browser.get(&client.authorization_url(fields)).await;
        assert!(page.status == 200 && page.text.contains("Authorize Example app?"), "{fields:?}");
    }
    // `prompt=none` succeeds if the earlier consent covers the request.
    let none = |scope| [("scope", scope), ("prompt", "none")];
    let (_, covered) =
        redirect_parameters(&browser.get(&client.authorization_url(&none("call2me:read"))).await);
    assert!(covered.contains_key("code"), "{covered:?}");
    let (_, wider) =
        redirect_parameters(&browser.get(&client.authorization_url(&none("call2me:admin"))).await);
    assert_eq!(wider["error"], "consent_required");
    // Without a session, the error stays on a page: nothing is known about the user's consent.
    let signed_out = client.authorization_url(&none("call2me:read"));
    let signed_out = Browser::new(&app).get(&signed_out).await;
    let link = signed_out.link_target("Continue to client.example");
    assert!(signed_out.status == 400 && link.contains("error=login_required"), "{signed_out:#?}");

    // The consent does not cover a redirect URI that was registered later.
    let mut connection = app.database.connect().await;
    let add_uri = "UPDATE oauth_clients SET redirect_uris = redirect_uris || '{https://client.example/other}'";
    sqlx::query(add_uri).execute(&mut connection).await.unwrap();
    let other = [("scope", "call2me:write"), ("redirect_uri", "https://client.example/other")];
    assert_eq!(browser.get(&client.authorization_url(&other)).await.status, 200);

    // The consent ends with its grants.
    let token = first["refresh_token"].as_str().unwrap();
    for token in [
        token,
        app.redeem_code(&client, &again["code"]).await.expect_status(200)["refresh_token"]
            .as_str()
            .unwrap(),
    ] {
        let revoked = app
            .post_form("/oauth/revoke", &client.with_client_credentials(&[("token", token)]))
            .await;
        revoked.expect_status(200);
    }
    let page = browser.get(&client.authorization_url(&write)).await;
    assert!(page.text.contains("Authorize Example app?"));
}

#[tokio::test]
async fn prompt_login_requires_new_sign_in() {
    let app = TestClient::shared();
    let (dana, sam) = (app.register("acme").await, app.register("widgets-inc").await);
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let fields = [("prompt", "login"), ("login_hint", &*sam.email)];
    let page = browser.get(&client.authorization_url(&fields)).await;
    let sign_in = page.redirect_target().unwrap().to_owned();
    let page = browser.get(&sign_in).await;
    assert!(page.text.contains(&sam.email) && page.text.contains("Password"), "{}", page.text);
    let fields = [("email", &*sam.email), ("password", PASSWORD)];
    let page = browser.submit(&page, "/sign-in", &fields).await;
    let page = browser.get(page.redirect_target().unwrap()).await;
    assert!(page.text.contains("widgets-inc") && page.text.contains("Authorize Example app?"));
    // `prompt=login consent` requires both.
    assert!(redirect_parameters(&browser.submit_consent(&page, &[]).await).1.contains_key("code"));
    let page = browser.get(&client.authorization_url(&[("prompt", "login consent")])).await;
    assert!(page.redirect_target().unwrap().contains("prompt%3Dconsent"), "{page:#?}");
}

#[tokio::test]
async fn head_request_grants_nothing() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    app.obtain_tokens(&mut browser, &client, &[]).await;
    let cookies: Vec<_> =
        browser.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let head =
        app.request("HEAD", &client.authorization_url(&[])).header("cookie", &cookies.join("; "));
    let head = head.send().await;
    assert_eq!((head.status.as_u16(), head.header("location")), (405, ""));
}

#[tokio::test]
async fn admin_scope_requires_recent_sign_in() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let admin = client.authorization_url(&[("scope", "call2me:admin")]);
    let page = browser.get(&admin).await;
    assert!(
        page.status == 200 && !page.text.contains("\" checked"),
        "the admin scope is not preselected"
    );
    app.clock.advance(Duration::from_mins(16));
    let response = browser.submit_consent(&page, &[("scope", "admin")]).await;
    assert!(
        response.status == 403 && response.text.contains("requires a recent sign-in"),
        "{response:#?}"
    );
    // A lower scope does not require a recent sign-in.
    let lower = browser.submit_consent(&page, &[("scope", "write")]).await;
    assert!(redirect_parameters(&lower).1.contains_key("code"));
    let silent = client.authorization_url(&[("scope", "call2me:admin"), ("prompt", "none")]);
    assert_eq!(redirect_parameters(&browser.get(&silent).await).1["error"], "login_required");
    let sign_in = browser.get(&admin).await.redirect_target().unwrap().to_owned();
    let page = browser.get(&sign_in).await;
    let fields = [("email", &*dana.email), ("password", PASSWORD)];
    let page = browser.submit(&page, "/sign-in", &fields).await;
    let page = browser.get(page.redirect_target().unwrap()).await;
    assert!(
        redirect_parameters(&browser.submit_consent(&page, &[("scope", "admin")]).await)
            .1
            .contains_key("code")
    );
}

#[tokio::test]
async fn redirect_to_custom_scheme_requires_consent() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let uri = "vscode://vscode.git/clone?url=https://evil.example/x.git";
    let client = app.register_client(json!({ "redirect_uris": [uri] })).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    for fields in [("response_type", ""), ("prompt", "none")] {
        let page = browser.get(&client.authorization_url(&[fields])).await;
        assert!(page.status == 400 && !page.headers.contains_key("location"), "{page:#?}");
        assert!(page.link_target("Continue to vscode:").starts_with(uri), "{page:#?}");
    }
    // After consent, the redirect goes to the custom scheme.
    let page = browser.get(&client.authorization_url(&[])).await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(!policy.contains("form-action"), "{policy}");
    assert!(redirect_parameters(&browser.submit_consent(&page, &[]).await).1.contains_key("code"));
    let page = browser.get(&client.authorization_url(&[("response_type", "")])).await;
    assert!(page.link_target("Back to the app").starts_with(uri), "{page:#?}");
}

#[tokio::test]
async fn invalid_client_or_redirect_uri_is_never_redirected() {
    let app = TestApp::start().await;
    let uris = json!([CALLBACK, "https://client.example/other?x=1"]);
    let client = app.register_client(json!({ "redirect_uris": uris })).await;
    let mut browser = Browser::new(&app);
    let similar_uris = [
        "https://client.example/cb/",
        "https://client.example/cb?x=1",
        "https://client.example/cb/../cb",
        "https://client.example/CB",
        "https://CLIENT.example/cb",
        "https://client.example:443/cb",
        "https://client.example/c%62",
        "https://client.example%2fcb",
        "https://client.example.evil.example/cb",
        "https://client.example@evil.example/cb",
        "https://evil.example/https://client.example/cb",
        "https://client.example/cb#x",
        "https://client.example/other",
        "https://client.example/other?x=2",
        "http://client.example/cb",
        "//client.example/cb",
        "/cb",
        "javascript:alert(1)//client.example/cb",
        "data:text/html,x",
    ];
    let mut requests: Vec<_> =
        similar_uris.iter().map(|uri| client.authorization_url(&[("redirect_uri", uri)])).collect();
    requests.extend([
        client.authorization_url(&[("redirect_uri", "")]),
        client.authorization_url(&[("client_id", "")]),
        client.authorization_url(&[("client_id", "client_01jd0zt8q7f7qvs4p2k6x3m9ab")]),
        client.authorization_url(&[("client_id", "call2me-dashboard")]),
        client.authorization_url(&[]) + "&redirect_uri=https%3A%2F%2Fclient.example%2Fcb",
        client.authorization_url(&[]) + &format!("&client_id={}", client.id),
        "/oauth/authorize".to_owned(),
    ]);
    for request in requests {
        let page = browser.get(&request).await;
        assert_eq!(page.status, 400, "{request}: {page:#?}");
        assert!(!page.headers.contains_key("location") && page.text.contains("does not work"));
    }
    assert_eq!(browser.get("/oauth/authorize?state=%zz").await.status, 400);
}

#[tokio::test]
async fn other_errors_redirect_to_authorized_client() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    app.obtain_tokens(&mut browser, &client, &[]).await;
    let long = "x".repeat(5000);
    let resource = [("resource", "https://elsewhere.example")];
    for (request, error) in [
        (client.authorization_url(&[("response_type", "token")]), "unsupported_response_type"),
        (client.authorization_url(&[("response_type", "code token")]), "unsupported_response_type"),
        (client.authorization_url(&[("response_type", "")]), "invalid_request"),
        (client.authorization_url(&[("response_mode", "fragment")]), "invalid_request"),
        (client.authorization_url(&[("code_challenge", "")]), "invalid_request"),
        (
            client.authorization_url(&[
                ("code_challenge", CODE_VERIFIER),
                ("code_challenge_method", "plain"),
            ]),
            "invalid_request",
        ),
        (client.authorization_url(&[("code_challenge_method", "")]), "invalid_request"),
        (client.authorization_url(&[("code_challenge", "short")]), "invalid_request"),
        (client.authorization_url(&resource), "invalid_target"),
        (client.authorization_url(&[("prompt", "none login")]), "invalid_request"),
        (client.authorization_url(&[("request", "eyJ")]), "invalid_request"),
        (client.authorization_url(&[("request_uri", "https://evil.example")]), "invalid_request"),
        (client.authorization_url(&[("login_hint", &long)]), "invalid_request"),
        (client.authorization_url(&[("login_hint", "a\u{0}b")]), "invalid_request"),
        (
            client.authorization_url(&[("scope", "call2me:read")]) + "&scope=call2me%3Aadmin",
            "invalid_request",
        ),
        (
            client.authorization_url(&[]) + &format!("&code_challenge={CODE_CHALLENGE}"),
            "invalid_request",
        ),
    ] {
        let (redirect_uri, params) = redirect_parameters(&browser.get(&request).await);
        assert_eq!((&*redirect_uri, &*params["error"]), (CALLBACK, error), "{request}");
        assert_eq!((&*params["state"], &*params["iss"]), ("xyz", &*app.url), "{request}");
    }
    // A repeated state is ambiguous, so it is not returned.
    let (_, params) =
        redirect_parameters(&browser.get(&(client.authorization_url(&[]) + "&state=abc")).await);
    assert_eq!((&*params["error"], params.contains_key("state")), ("invalid_request", false));
    // Unknown parameters are ignored.
    let page = Browser::new(&app)
        .get(&client.authorization_url(&[("audience", "x"), ("nonce", "n"), ("x", "y")]))
        .await;
    assert!(page.redirect_target().unwrap().starts_with("/sign-in"));
}

/// Anyone can register a client and authorize it, so a redirect to one that the signed-in user has
/// not authorized would be an open redirect.
#[tokio::test]
async fn error_for_client_without_consent_stays_on_page() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({ "client_name": "Fresh <app>" })).await;
    let mut signed_in = Browser::signed_in(&app, &dana.email).await;
    let errors = [
        (client.authorization_url(&[("response_type", "token")]), "must be code", false),
        (client.authorization_url(&[("code_challenge", "short")]), "must be a SHA-256 hash", false),
        (client.authorization_url(&[("prompt", "none")]), "not signed in", false),
        (client.authorization_url(&[("prompt", "none")]), "must consent", true),
    ];
    for (request, reason, is_signed_in) in &errors {
        let mut anonymous = Browser::new(&app);
        let browser = if *is_signed_in { &mut signed_in } else { &mut anonymous };
        let page = browser.get(request).await;
        assert!(page.status == 400 && page.text.contains(reason), "{request}: {page:#?}");
        assert!(page.text.contains("Fresh &#60;app&#62;"), "{page:#?}");
        let link = page.link_target("Continue to client.example");
        assert!(link.starts_with(&format!("{CALLBACK}?error=")), "{link}");
    }
    // The user's own decision redirects, and a denial is no consent.
    let page = signed_in.get(&client.authorization_url(&[])).await;
    let denied = signed_in.submit(&page, "/oauth/consent", &[("decision", "deny")]).await;
    assert_eq!(redirect_parameters(&denied).1["error"], "access_denied");
    assert_eq!(signed_in.get(&errors[0].0).await.status, 400);
    // The consent of one user redirects that user only: anyone can consent to their own client.
    app.obtain_tokens(&mut signed_in, &client, &[]).await;
    let sam = app.register("widgets-inc").await;
    let mut other = Browser::signed_in(&app, &sam.email).await;
    for (request, ..) in &errors[..2] {
        let page = signed_in.get(request).await;
        assert!(redirect_parameters(&page).1.contains_key("error"), "{request}");
        for browser in [&mut Browser::new(&app), &mut other] {
            let page = browser.get(request).await;
            assert!(page.status == 400 && page.redirect_target().is_none(), "{request}: {page:#?}");
        }
    }
    // And only while the app is connected.
    let apps = app.request_as(&dana.access_token, "GET", "/v1/oauth/grants").send().await;
    for grant in apps.expect_status(200)["grants"].as_array().unwrap() {
        let path = format!("/v1/oauth/grants/{}", grant["id"].as_str().unwrap());
        app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    }
    assert_eq!(signed_in.get(&errors[0].0).await.status, 400);
}

#[tokio::test]
async fn error_for_client_of_workspace_redirects_its_members() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let body = json!({ "name": "Own app", "redirect_uris": [CALLBACK] });
    let call = app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(body);
    let client = OAuthClient::from_registration(&call.send().await.expect_status(201));
    let sam = app.register("widgets-inc").await;
    let mut member = Browser::signed_in(&app, &dana.email).await;
    let mut other = Browser::signed_in(&app, &sam.email).await;
    for (fields, error) in [
        (("response_type", "token"), "unsupported_response_type"),
        (("code_challenge", ""), "invalid_request"),
        (("prompt", "none"), "consent_required"),
    ] {
        let request = client.authorization_url(&[fields]);
        let (redirect_uri, params) = redirect_parameters(&member.get(&request).await);
        assert_eq!((&*redirect_uri, &*params["error"]), (CALLBACK, error));
        for browser in [&mut Browser::new(&app), &mut other] {
            let page = browser.get(&request).await;
            assert!(page.status == 400 && page.redirect_target().is_none(), "{request}: {page:#?}");
        }
    }
}

#[tokio::test]
async fn loopback_redirect_takes_any_port_and_warns_user() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({ "redirect_uris": ["http://127.0.0.1/cb"] })).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let fields = [("redirect_uri", "http://127.0.0.1:51004/cb")];
    let page = browser.get(&client.authorization_url(&fields)).await;
    assert!(page.text.contains("a program on this machine"), "{}", page.text);
    let (redirect_uri, params) = redirect_parameters(&browser.submit_consent(&page, &[]).await);
    assert_eq!(redirect_uri, "http://127.0.0.1:51004/cb");
    // The token request must repeat the redirect URI with its port.
    let fields = [
        ("grant_type", "authorization_code"),
        ("code", &*params["code"]),
        ("code_verifier", CODE_VERIFIER),
        ("redirect_uri", "http://127.0.0.1/cb"),
    ];
    app.request_token(&client.with_client_credentials(&fields))
        .await
        .assert_oauth_error(400, "invalid_grant");
    let mut fields = fields;
    fields[3].1 = "http://127.0.0.1:51004/cb";
    app.request_token(&client.with_client_credentials(&fields)).await.expect_status(200);
}

#[tokio::test]
async fn posted_authorization_request_is_accepted() {
    let app = TestClient::shared();
    let client = app.register_client(json!({})).await;
    let request = client.authorization_url(&[("state", "a b&c")]);
    let (path, query) = request.split_once('?').unwrap();
    // A cross-site POST of a browser carries no cookies.
    let post = app.post(path).body("application/x-www-form-urlencoded", query.to_owned());
    let answer = post.header("sec-fetch-site", "cross-site").send().await;
    assert_eq!(answer.status, 303);
    let page = Browser::new(&app).get(answer.header("location")).await;
    let sign_in = page.redirect_target().unwrap();
    assert!(sign_in.contains("state%3Da%2520b%2526c"), "{sign_in}");
    let long = format!("{query}&x={}", "x".repeat(20_000));
    let post = app.post(path).body("application/x-www-form-urlencoded", long);
    assert_eq!(post.send().await.status, 413);
}

#[tokio::test]
async fn forged_consent_is_rejected() {
    let app = TestClient::shared();
    let (dana, mallory) = (app.register("acme").await, app.register("mallory").await);
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let mut foreign_browser = Browser::signed_in(&app, &mallory.email).await;
    let page = browser.get(&client.authorization_url(&[])).await;
    let foreign_page = foreign_browser.get(&client.authorization_url(&[])).await;
    // Mallory's form in Dana's browser, and Dana's form from another site.
    let response =
        browser.submit_consent(&foreign_page, &[("workspace", &dana.workspace_id)]).await;
    assert_eq!(response.status, 403, "{response:#?}");
    let mut fields = page.hidden_fields("/oauth/consent");
    for (name, value) in
        [("workspace", &*dana.workspace_id), ("scope", "read-only"), ("decision", "allow")]
    {
        fields.push((name.to_owned(), value.to_owned()));
    }
    for headers in [&[("sec-fetch-site", "cross-site")][..], &[("origin", "https://evil.example")]]
    {
        let response = browser.post("/oauth/consent", &fields, headers).await;
        assert_eq!(response.status, 403);
    }
    // The page cannot be framed.
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.headers["x-frame-options"], "DENY");
    // Its form may lead anywhere: browsers apply `form-action` to the redirects of the client, too.
    assert!(!policy.contains("form-action"), "{policy}");
    assert!(!page.headers.contains_key("cross-origin-opener-policy"), "a popup keeps its opener");
    // A form without a decision denies access.
    fields.retain(|(name, _)| name != "decision");
    let answer =
        browser.post("/oauth/consent", &fields, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(redirect_parameters(&answer).1["error"], "access_denied");
}

#[tokio::test]
async fn only_sign_in_for_a_client_allows_redirects_elsewhere() {
    let app = TestClient::shared();
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::new(&app);
    for (next, is_restricted) in [
        (&*client.authorization_url(&[]), false),
        ("/sessions", true),
        ("/oauth/authorizes?redirect_uri=https://evil.example", true),
        ("//evil.example/oauth/authorize?x", true),
    ] {
        for path in ["/sign-in", "/sign-up"] {
            let page = browser.get(&format!("{path}?{}", encode_form(&[("next", next)]))).await;
            let policy = page.headers["content-security-policy"].to_str().unwrap();
            assert_eq!(policy.ends_with("; form-action 'self'"), is_restricted, "{next} {policy}");
        }
    }
}

#[tokio::test]
async fn consent_is_rejected_without_required_second_factor() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let mut connection = app.database.connect().await;
    sqlx::query("UPDATE workspaces SET require_second_factor = true")
        .execute(&mut connection)
        .await
        .unwrap();
    app.database.wait_for_invalidation().await;
    let page = browser.get(&client.authorization_url(&[])).await;
    assert!(page.text.contains("requires two-factor authentication"), "{}", page.text);
    let response = browser.submit_consent(&page, &[]).await;
    assert_eq!(response.status, 403, "{response:#?}");
    let token = tokens["access_token"].as_str().unwrap();
    app.request_as(token, "GET", "/v1/agents").send().await.assert_error(403, "forbidden");
}
