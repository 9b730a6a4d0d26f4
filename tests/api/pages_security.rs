//! Attacks on pages: cross-site requests, framing, planted cookies, forged forms and guessing.

use std::time::Duration;

use call2me_auth::http::{dashboard, extract::AccessRule, route_types::PageRoute};
use serde_json::json;

use crate::{
    fixture::{
        Browser, Chromium, PASSWORD, SmtpSink, TestApp, TestClient, link_token,
        oauth::{DEVICE_GRANT, OAuthExt},
    },
    pages::{SESSION_COOKIE, is_signed_in, sign_in},
};

#[tokio::test]
async fn cookies_over_https_are_bound_to_the_host() {
    let app = TestApp::start_with(&[("server.public_url", "https://auth.example")]).await;
    let dana = app.register("acme").await;
    let mut browser = Browser::new(&app);
    sign_in(&mut browser, "/sign-in", &dana.email, PASSWORD).await;
    let names: Vec<_> = browser.cookies.keys().map(String::as_str).collect();
    assert_eq!(names, ["__Host-call2me_browser", "__Host-call2me_session"]);
    let is_bound = |cookie: &String| cookie.contains("; Secure") && cookie.contains("; Path=/");
    assert!(browser.set_cookies.iter().all(is_bound), "{:?}", browser.set_cookies);
    assert!(is_signed_in(&mut browser).await);
    // Another subdomain could set the cookie without the prefix, so the service ignores that name.
    let session = browser.cookies.remove("__Host-call2me_session").unwrap();
    browser.cookies.insert(SESSION_COOKIE.to_owned(), session);
    assert!(!is_signed_in(&mut browser).await);
}

#[tokio::test]
async fn cross_site_form_submission_is_rejected() {
    let app = TestClient::shared();
    let (dana, mallory) = (app.register("acme").await, app.register("mallory").await);
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let mut other_browser = Browser::signed_in(&app, &mallory.email).await;
    let own_fields = browser.get("/sessions").await.hidden_fields("/sessions/end-others");
    let other_fields = other_browser.get("/sessions").await.hidden_fields("/sessions/end-others");
    let same_origin = [("sec-fetch-site", "same-origin")];
    let url = app.url.clone();
    for (fields, headers) in [
        (&own_fields, &[("sec-fetch-site", "cross-site")][..]),
        (&own_fields, &[("sec-fetch-site", "same-site"), ("origin", &url)]),
        (&own_fields, &[("origin", "https://evil.example")]),
        (&own_fields, &[("origin", "null")]),
        (&other_fields, &same_origin),
        (&vec![], &same_origin),
        (&vec![("form_token".to_owned(), "x".to_owned())], &same_origin),
        (&[own_fields.clone(), own_fields.clone()].concat(), &same_origin),
    ] {
        let page = browser.post("/sessions/end-others", fields, headers).await;
        assert!([403, 422].contains(&page.status), "{headers:?} {page:#?}");
    }
    // Nor can another site sign the browser in as another user: a form is only valid in the browser
    // that loaded it.
    let sign_in_page = Browser::new(&app).get("/sign-in").await;
    let mut victim = Browser::new(&app);
    victim.get("/sign-in").await;
    let fields = [("email", &*mallory.email), ("password", PASSWORD)];
    assert_eq!(victim.submit(&sign_in_page, "/sign-in", &fields).await.status, 403);
    let mut fresh = Browser::new(&app);
    assert_eq!(fresh.submit(&sign_in_page, "/sign-in", &fields).await.status, 403);
    // The session still exists. The correct form ends it.
    app.request_as(&dana.access_token, "GET", "/v1/auth/me").send().await.expect_status(200);
    let done = browser.post("/sessions/end-others", &own_fields, &[("origin", &url)]).await;
    assert_eq!(done.redirect_target(), Some("/sessions?done=others-ended"));
    app.request_as(&dana.access_token, "GET", "/v1/auth/me")
        .send()
        .await
        .assert_error(401, "unauthorized");
    assert!(is_signed_in(&mut browser).await);
}

#[tokio::test]
async fn cookie_and_token_are_not_interchangeable() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let cookie = browser.cookies[SESSION_COOKIE].clone();
    // The API ignores cookies, so other sites cannot use it through a browser.
    let request = app.get("/v1/auth/me").header("cookie", &format!("{SESSION_COOKIE}={cookie}"));
    request.send().await.assert_error(401, "unauthorized");
    app.request_as(&cookie, "GET", "/v1/auth/me").send().await.assert_error(401, "unauthorized");
    let form_token = browser.get("/sessions").await.hidden_fields("/sign-out").remove(0).1;
    for planted in [&dana.access_token, &dana.refresh_token, &form_token, "", &cookie[1..]] {
        browser.cookies.insert(SESSION_COOKIE.to_owned(), planted.to_owned());
        assert!(!is_signed_in(&mut browser).await, "{planted}");
    }
    // Two session cookies are rejected as ambiguous.
    browser
        .cookies
        .insert(SESSION_COOKIE.to_owned(), format!("{cookie}; {SESSION_COOKIE}={cookie}"));
    assert!(!is_signed_in(&mut browser).await);
    let page = app.http.get(format!("{}/sessions", app.url)).bearer_auth(&dana.access_token);
    assert_eq!(page.send().await.unwrap().status(), 303, "pages ignore bearer tokens");
}

#[tokio::test]
async fn every_page_has_security_headers_and_no_inline_code() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut signed_in = Browser::signed_in(&app, &dana.email).await;
    let mut checked = 0;
    for route in dashboard::route_table().iter().filter(|route| route.method == "GET") {
        let mut anonymous = Browser::new(&app);
        let browser = match route.access_rule {
            AccessRule::Protected(_) => &mut signed_in,
            _ => &mut anonymous,
        };
        // Streams last until the session ends, and exports are not pages.
        if ["/stream", "/export"].iter().any(|end| route.path.ends_with(end)) {
            continue;
        }
        let page = browser.get(route.path).await;
        if page.status == 303 || route.path.starts_with("/assets/") {
            continue;
        }
        checked += 1;
        let header = |name: &str| page.headers[name].to_str().unwrap();
        let policy = header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(!policy.contains("unsafe") && policy.contains("form-action 'self'"), "{policy}");
        // Before the sign-in, and with an error, a page may be in a popup of an OAuth client.
        let is_isolated = page.headers.contains_key("cross-origin-opener-policy");
        let is_protected = matches!(route.access_rule, AccessRule::Protected(_));
        assert_eq!(is_isolated, is_protected && page.status == 200, "{}", route.path);
        assert_eq!(header("cache-control"), "no-store", "{}", route.path);
        assert_eq!(header("referrer-policy"), "same-origin");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("content-type"), "text/html; charset=utf-8");
        let script_tag = |name| format!("<script src=\"/assets/{name}.js\" defer></script>");
        let markup =
            page.text.replace(&script_tag("passkeys"), "").replace(&script_tag("dashboard"), "");
        for forbidden in ["<script", " style=", " onclick", "http://", "https://", "//"] {
            assert!(!markup.contains(forbidden), "{}: {forbidden}", route.path);
        }
        assert!(page.text.starts_with("<!doctype html>") && page.text.contains("<h1>"));
    }
    assert!(checked >= 20, "{checked}");
}

#[tokio::test]
async fn form_without_csrf_token_is_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut anonymous = Browser::new(&app);
    anonymous.get("/sign-in").await;
    let mut signed_in = Browser::signed_in(&app, &dana.email).await;
    let headers = [("sec-fetch-site", "same-origin")];
    let mut checked = 0;
    // The POST of an OAuth client to the authorization endpoint is not a form of the service: it
    // only redirects to the same endpoint by GET.
    let is_form = |route: &&PageRoute| route.method == "POST" && route.path != "/oauth/authorize";
    for route in dashboard::route_table().iter().filter(is_form) {
        let path = route.path.replace("{id}", "session_01jd0zt8q7f7qvs4p2k6x3m9ab");
        let page = anonymous.post(&path, &[], &headers).await;
        match route.access_rule {
            AccessRule::Protected(_) => {
                assert_eq!(page.redirect_target(), Some("/sign-in?next=%2F"), "{path}");
            }
            _ => assert_eq!(page.status, 403, "{path}"),
        }
        // This form uploads a file and has another content type. `dashboard.rs` tests it.
        let expected = if path == "/settings/brand" { 415 } else { 403 };
        assert_eq!(signed_in.post(&path, &[], &headers).await.status, expected, "{path}");
        checked += 1;
    }
    assert!(checked >= 8, "{checked}");
}

/// An attacker that plants the browser cookie, from a subdomain for example, knows the CSRF token
/// of that browser. It is not valid for what a session does.
#[tokio::test]
async fn planted_browser_cookie_makes_no_form_of_a_session() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let [dana, lee] = [app.register_verified("acme").await, app.register("lee").await];
    let body = json!({ "email": lee.email, "role": "viewer" });
    let invite = app.request_as(&dana.access_token, "POST", "/v1/invitations").json(body);
    invite.send().await.expect_status(201);
    let invitation = link_token(&sink.wait_for_email(&lee.email, "Invitation").await);
    let verification = link_token(&sink.wait_for_email(&lee.email, "Verify").await);
    let grants = json!({ "grant_types": [DEVICE_GRANT], "redirect_uris": [] });
    let client = app.register_client(grants).await;
    let device = client.with_client_credentials(&[("scope", "call2me:write")]);
    let device = app.post_form("/oauth/device_authorization", &device).await.expect_status(200);
    let user_code = device["user_code"].as_str().unwrap();

    let mut attacker = Browser::new(&app);
    let sign_in_page = attacker.get("/sign-in").await;
    let token = sign_in_page.hidden_fields("/sign-in").remove(0).1;
    let mut victim = Browser::signed_in(&app, &lee.email).await;
    let own_page = victim.get("/device").await;
    victim
        .cookies
        .insert("call2me_browser".to_owned(), attacker.cookies["call2me_browser"].clone());
    for (path, name, value) in [
        ("/device", "user_code", user_code),
        ("/device/consent", "user_code", user_code),
        ("/accept-invitation", "token", &*invitation),
        ("/verify-email", "token", &*verification),
    ] {
        let fields = [
            ("form_token", &*token),
            (name, value),
            ("decision", "allow"),
            ("workspace", &*lee.workspace_id),
            ("scope", "write"),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let page = victim.post(path, &fields, &[("sec-fetch-site", "same-origin")]).await;
        assert_eq!(page.status, 403, "{path}: {page:#?}");
    }
    // The form of the session itself works with any browser cookie.
    let page = victim.submit(&own_page, "/device", &[("user_code", user_code)]).await;
    let page = victim.submit_consent(&page, &[]).await;
    assert!(page.status == 200 && page.text.contains("Connected"), "{page:#?}");
}

#[tokio::test]
async fn public_pages_are_rate_limited_by_address() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "5")]).await;
    let mut browser = Browser::new(&app);
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(browser.get("/sign-in").await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429]);
}

#[tokio::test]
async fn password_keeps_spaces_and_form_is_bound_to_session() {
    let app = TestApp::start().await;
    let password = " a walk in the park with a clock ";
    let body = json!({ "email": "sam@acme.example", "password": password });
    let registration = app.post("/v1/auth/register").json(body).send().await.expect_status(201);
    let mut connection = app.database.connect().await;
    let sql = "UPDATE users SET email_verified_at = now()";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    let mut browser = Browser::new(&app);
    sign_in(&mut browser, "/sign-in", "sam@acme.example", password).await;
    app.clock.advance(Duration::from_mins(20));
    let page = browser.get("/second-factor").await;
    let done = browser.submit(&page, "/second-factor/set-up", &[("password", password)]).await;
    assert!(done.status == 200 && done.text.contains("<svg"), "{done:#?}");
    // An attacker that knows a session id does not get its CSRF token by using the id as the
    // browser cookie.
    let token = registration["access_token"].as_str().unwrap();
    let sessions =
        app.request_as(token, "GET", "/v1/auth/sessions").send().await.expect_status(200);
    let id = sessions["sessions"][0]["id"].as_str().unwrap();
    let id = call2me_auth::model::id::parse("session", id).unwrap();
    let mut forger = Browser::new(&app);
    forger.cookies.insert("call2me_browser".to_owned(), id.to_string());
    let forged = forger.get("/sign-in").await.hidden_fields("/sign-in");
    let page = browser.post("/sessions/end-others", &forged, &[]).await;
    assert_eq!(page.status, 403, "{page:#?}");
}

#[tokio::test]
async fn password_reset_form_has_sign_in_rate_limit() {
    let app = TestApp::start_with(&[("rate_limit.sign_in_per_minute", "3")]).await;
    let mut browser = Browser::new(&app);
    let page = browser.get("/forgot-password").await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let fields = [("email", "nobody@acme.example")];
        statuses.push(browser.submit(&page, "/forgot-password", &fields).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
    let refused = browser.submit(&page, "/forgot-password", &[]).await;
    assert!(refused.text.contains("Too many attempts"), "{refused:#?}");
    assert!(refused.headers.contains_key("retry-after"), "{refused:#?}");
}

#[tokio::test]
async fn real_browser_signs_in_and_blocks_other_sites() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let browser = Chromium::start().await;
    browser.open(&format!("{}/", app.url)).await;
    browser.wait_for_text("/sign-in", "Sign in").await;
    // The content security policy allows the service's own style sheet.
    let width = "return getComputedStyle(document.querySelector('main')).maxWidth";
    assert_eq!(browser.run_script(width).await, "416px");
    browser.fill("[name=email]", &dana.email).await;
    browser.fill("[name=password]", "wrong").await;
    browser.click("button").await;
    browser.wait_for_text("/sign-in", "email address or password is wrong").await;
    browser.fill("[name=password]", PASSWORD).await;
    browser.click("button").await;
    browser.wait_for_text("/api-keys", "No keys yet").await;
    assert_eq!(
        browser.run_script("return document.cookie").await,
        "",
        "scripts cannot read cookies"
    );
    let inline = "const s = document.createElement('script'); s.textContent = 'window.ran = true'; \
                  document.body.append(s); return window.ran === undefined";
    assert_eq!(browser.run_script(inline).await, true, "the policy blocks inline scripts");

    // Another site submits a form, with the cookies that the browser includes.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let evil = format!("http://localhost:{}", listener.local_addr().unwrap().port());
    let html = format!(
        "<form method=post action='{0}/sessions/end-others'><button>win</button></form>\
         <iframe src='{0}/sign-in'></iframe>",
        app.url
    );
    let page = axum::routing::get(async || axum::response::Html(html));
    let serve = axum::serve(listener, axum::Router::new().route("/", page));
    tokio::spawn(async { serve.await });
    browser.open(&evil).await;
    let is_blocked = "try { return document.querySelector('iframe').contentDocument === null } \
                  catch { return true }";
    browser.wait_until("pages are not shown in frames", is_blocked).await;
    browser.click("button").await;
    // The request had no cookie, so it redirected to sign-in, and from there to the start page.
    browser.wait_for_text("/api-keys", "No keys yet").await;
    app.request_as(&dana.access_token, "GET", "/v1/auth/me").send().await.expect_status(200);

    browser.open(&format!("{}/sessions", app.url)).await;
    browser.wait_for_text("/sessions", "HeadlessChrome").await;
    browser.click("form[action='/sessions/end-others'] button").await;
    browser.wait_for_count(".rows li", 1).await;
    app.request_as(&dana.access_token, "GET", "/v1/auth/me")
        .send()
        .await
        .assert_error(401, "unauthorized");
    browser.click("form[action='/sign-out'] button").await;
    browser.wait_for_text("/sign-in", "Sign in").await;
}
