//! HTML pages: sign-in with a cookie, second factors, and the targets of mailed links. Attacks on
//! pages are in `pages_security.rs`.

use std::time::Duration;

use call2me_auth::env::Clock as _;
use serde_json::json;

use crate::{
    fixture::{Browser, PASSWORD, Page, SmtpSink, TestApp, TestClient, link_token},
    mfa,
};

pub const SESSION_COOKIE: &str = "call2me_session";
const DAY: Duration = Duration::from_hours(24);
const NEW_PASSWORD: &str = "another horse, another battery";

/// Returns true if the browser is signed in.
pub async fn is_signed_in(browser: &mut Browser<'_>) -> bool {
    let page = browser.get("/sessions").await;
    match page.status {
        200 => true,
        303 => {
            assert_eq!(page.redirect_target(), Some("/sign-in?next=%2Fsessions"));
            false
        }
        _ => panic!("{page:#?}"),
    }
}

/// Opens a sign-in page and submits its form.
pub async fn sign_in(browser: &mut Browser<'_>, path: &str, email: &str, password: &str) -> Page {
    let page = browser.get(path).await;
    browser.submit(&page, "/sign-in", &[("email", email), ("password", password)]).await
}

#[tokio::test]
async fn user_signs_in_lists_sessions_and_signs_out() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::new(&app);
    let start_page = browser.get("/").await;
    assert_eq!(start_page.redirect_target(), Some("/api-keys"));
    assert!(!is_signed_in(&mut browser).await);

    let done =
        sign_in(&mut browser, "/sign-in?next=%2Fsessions%3Flimit%3D5", &dana.email, PASSWORD);
    assert_eq!(done.await.redirect_target(), Some("/sessions?limit=5"));
    let cookie =
        browser.set_cookies.iter().find(|cookie| cookie.starts_with(SESSION_COOKIE)).unwrap();
    for attribute in ["; HttpOnly", "; SameSite=Lax", "; Path=/", "; Max-Age=7776000"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
    let page = browser.get("/sessions").await;
    assert!(page.text.contains("Dana Meyer") && page.text.contains("this session</span>"));
    // The sign-in page redirects a signed-in user.
    assert_eq!(browser.get("/sign-in?next=/sessions").await.redirect_target(), Some("/sessions"));

    let old_cookies = browser.cookies.clone();
    let signed_out = browser.submit(&page, "/sign-out", &[]).await;
    assert_eq!(signed_out.redirect_target(), Some("/sign-in"));
    assert!(!browser.cookies.contains_key(SESSION_COOKIE));
    browser.cookies = old_cookies;
    assert!(!is_signed_in(&mut browser).await, "the session has ended on the server");
    // Page views are in the audit log with the user as actor.
    let key = app.create_key(&dana, "log", "admin").await.secret;
    let query = format!("method=GET&status=200&actor_id={}", dana.user_id);
    let events = app.wait_for_event_count(&key, &query, 1).await;
    assert_eq!(events[0]["request"]["path"], "/sessions", "{events:#?}");
}

#[tokio::test]
async fn failed_sign_in_shows_error_and_escapes_input() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut browser = Browser::new(&app);
    for (email, password) in [
        (dana.email.as_str(), "wrong"),
        ("nobody@acme.example", PASSWORD),
        ("\"><script>alert(1)</script>", PASSWORD),
        ("", ""),
    ] {
        let page = sign_in(&mut browser, "/sign-in", email, password).await;
        assert_eq!(page.status, 422, "{page:#?}");
        assert!(page.text.contains("email address or password is wrong"));
        assert!(!page.text.contains("<script"), "{}", page.text);
        assert!(!page.text.contains(PASSWORD), "{}", page.text);
        assert!(!browser.cookies.contains_key(SESSION_COOKIE));
    }
    // Further attempts are throttled, and the response says for how long.
    for _ in 0..6 {
        sign_in(&mut browser, "/sign-in", &dana.email, "wrong").await;
    }
    let page = sign_in(&mut browser, "/sign-in", &dana.email, PASSWORD).await;
    assert_eq!(page.status, 429, "{page:#?}");
    assert!(page.headers.contains_key("retry-after") && page.text.contains("Too many attempts"));
}

#[tokio::test]
async fn second_factor_is_requested_on_next_page() {
    let app = TestApp::start().await;
    let mut dana = app.register("acme").await;
    let (secret, recovery) = mfa::enable_totp(&app, &mut dana).await;
    let mut browser = Browser::new(&app);
    let page = sign_in(&mut browser, "/sign-in?next=/sessions", &dana.email, PASSWORD).await;
    assert!(page.status == 200 && !browser.cookies.contains_key(SESSION_COOKIE), "{page:#?}");
    let path = "/sign-in/second-factor";
    let wrong = browser.submit(&page, path, &[("code", "000000")]).await;
    assert!(wrong.status == 422 && wrong.text.contains("code is wrong"), "{wrong:#?}");
    app.clock.advance(Duration::from_secs(30));
    let code = mfa::compute_totp_code(&secret, app.clock.now().unix_timestamp());
    let done = browser.submit(&wrong, path, &[("code", &format!(" {code} "))]).await;
    assert_eq!(done.redirect_target(), Some("/sessions"));
    assert!(is_signed_in(&mut browser).await);
    // The form works only once and only in its own browser.
    let again = browser.submit(&wrong, path, &[("code", &recovery[0])]).await;
    assert_eq!(again.status, 422);
    let mut other = Browser::new(&app);
    let page = sign_in(&mut other, "/sign-in", &dana.email, PASSWORD).await;
    assert_eq!(browser.submit(&page, path, &[("code", &recovery[0])]).await.status, 403);
    let done = other.submit(&page, path, &[("code", &recovery[0])]).await;
    assert_eq!(done.redirect_target(), Some("/api-keys"));
}

#[tokio::test]
async fn member_without_required_second_factor_enrolls_it() {
    let app = TestApp::start().await;
    let mut dana = app.register("acme").await;
    let member = app.add_member(&dana, "member").await;
    app.set_verified(&member, true).await;
    mfa::enable_totp(&app, &mut dana).await;
    let body = json!({ "require_second_factor": true });
    app.request_as(&dana.access_token, "PATCH", "/v1/workspace")
        .json(body)
        .send()
        .await
        .expect_status(200);
    let mut browser = Browser::signed_in(&app, &member.email).await;
    // Pages of the workspace redirect to the enrollment.
    assert_eq!(browser.get("/api-keys").await.redirect_target(), Some("/second-factor"));
    let enrollment_path = browser.get("/sessions").await.link_target("Set it up");
    let page = browser.get(&enrollment_path).await;
    assert!(page.text.contains("Set it up to continue"), "{page:#?}");
    assert!(
        !page.text.contains("name=\"password\""),
        "no password is needed after a recent sign-in"
    );
    // Later, the page requires the password.
    app.clock.advance(Duration::from_mins(20));
    assert!(browser.get(&enrollment_path).await.text.contains("name=\"password\""));
    let refused = browser.submit(&page, "/second-factor/set-up", &[]).await;
    assert!(refused.status == 403 && refused.text.contains("password"), "{refused:#?}");
    let fields = [("password", PASSWORD)];
    let page = browser.submit(&page, "/second-factor/set-up", &fields).await;
    assert!(page.text.contains("<svg") && !page.text.contains(" style="), "{page:#?}");
    let path = "/second-factor/confirm";
    let secret =
        page.hidden_fields(path).iter().find(|(name, _)| name == "secret").unwrap().1.clone();
    let wrong = browser.submit(&page, path, &[("code", "000000")]).await;
    assert!(wrong.status == 422 && wrong.text.contains(&secret), "{wrong:#?}");
    let code = mfa::compute_totp_code(&secret, app.clock.now().unix_timestamp());
    let done = browser.submit(&wrong, path, &[("code", &code)]).await;
    assert_eq!(done.text.matches("<li><code>").count(), 10, "{done:#?}");
    let agents = app.request_as(&member.access_token, "GET", "/v1/agents");
    agents.send().await.assert_error(401, "unauthorized");
    assert!(!browser.get("/sessions").await.text.contains("Set it up"));

    let page = browser.get("/second-factor").await;
    let path = "/second-factor/recovery-codes";
    assert_eq!(browser.submit(&page, path, &[("password", "wrong")]).await.status, 422);
    let codes = browser.submit(&page, path, &fields).await;
    assert!(codes.text.contains("<li><code>") && codes.text != done.text);
    let path = "/second-factor/remove";
    assert_eq!(browser.submit(&page, path, &[("password", "wrong")]).await.status, 422);
    let removed = browser.submit(&page, path, &fields).await;
    assert_eq!(removed.redirect_target(), Some("/second-factor"));
    assert!(browser.get("/second-factor").await.text.contains("Set it up to continue"));
}

#[tokio::test]
async fn forgotten_password_is_reset_by_mailed_link() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let mut signed_in = Browser::signed_in(&app, &dana.email).await;
    let mut browser = Browser::new(&app);
    let page = browser.get("/forgot-password").await;
    let bad = browser.submit(&page, "/forgot-password", &[("email", "no address")]).await;
    assert!(bad.status == 422 && bad.text.contains("role=\"alert\""), "{bad:#?}");
    let sent = browser.submit(&page, "/forgot-password", &[("email", &dana.email)]).await;
    let unknown = browser.submit(&page, "/forgot-password", &[("email", "x@y.example")]).await;
    assert_eq!((sent.status, &sent.text), (200, &unknown.text));

    let mail = sink.wait_for_email(&dana.email, "Reset").await;
    let path = format!("/reset-password?token={}", link_token(&mail));
    assert!(mail["text"].as_str().unwrap().contains(&format!("{}{path}", app.url)), "{mail:#}");
    // Mail scanners open links too: a GET request changes nothing.
    for _ in 0..3 {
        Browser::new(&app).get(&path).await;
    }
    let page = browser.get(&path).await;
    let weak = [("new_password", "password1234")];
    let weak = browser.submit(&page, "/reset-password", &weak).await;
    assert!(weak.status == 422 && weak.text.contains("common"), "{weak:#?}");
    let fields = [("new_password", NEW_PASSWORD)];
    let done = browser.submit(&weak, "/reset-password", &fields).await;
    assert!(done.status == 200 && done.text.contains("Password changed"), "{done:#?}");
    assert!(!is_signed_in(&mut signed_in).await, "all sessions have ended");
    let again = browser.submit(&weak, "/reset-password", &fields).await;
    assert_eq!(again.status, 422);
    assert_eq!(sign_in(&mut browser, "/sign-in", &dana.email, PASSWORD).await.status, 422);
    let done = sign_in(&mut browser, "/sign-in", &dana.email, NEW_PASSWORD).await;
    assert_eq!(done.redirect_target(), Some("/api-keys"));
}

#[tokio::test]
async fn email_is_verified_by_button_behind_mailed_link() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let path = format!(
        "/verify-email?token={}",
        link_token(&sink.wait_for_email(&dana.email, "Verify").await)
    );
    let is_verified = async || {
        let me = app
            .request_as(&dana.access_token, "GET", "/v1/auth/me")
            .send()
            .await
            .expect_status(200);
        me["user"]["email_verified"] == true
    };
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get(&path).await;
    assert!(!is_verified().await);
    assert_eq!(browser.submit(&page, "/verify-email", &[]).await.status, 200);
    assert!(is_verified().await);
    assert_eq!(browser.submit(&page, "/verify-email", &[]).await.status, 422);
}

#[tokio::test]
async fn invitation_is_accepted_by_new_or_existing_user() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    let lee = app.register("lee").await;
    let invite = async |email: &str| {
        let body = json!({ "email": email, "role": "member" });
        let request = app.request_as(&dana.access_token, "POST", "/v1/invitations").json(body);
        request.send().await.expect_status(201);
        format!(
            "/accept-invitation?token={}",
            link_token(&sink.wait_for_email(email, "Invitation").await)
        )
    };
    let action = "/accept-invitation";

    let path = invite("sam@new.example").await;
    let mut sam = Browser::new(&app);
    let page = sam.get(&path).await;
    assert!(page.text.contains("sam@new.example") && page.text.contains("acme"), "{page:#?}");
    let fields = [("full_name", "Sam <b>Lee</b>"), ("password", "password1234")];
    let weak = sam.submit(&page, action, &fields).await;
    assert!(weak.status == 422 && !weak.text.contains("<b>Lee"), "{weak:#?}");
    let fields = [("full_name", "Sam Lee"), ("password", PASSWORD)];
    let done = sam.submit(&page, action, &fields).await;
    assert_eq!(done.redirect_target(), Some("/"), "{done:#?}");
    assert!(is_signed_in(&mut sam).await);
    assert_eq!(sam.get(&path).await.status, 422, "the link works only once");

    // A link never signs in to an existing account: the user signs in and then returns to join.
    let path = invite(&lee.email).await;
    let mut browser = Browser::new(&app);
    let page = browser.get(&path).await;
    assert!(!page.text.contains("name=\"password\""), "{page:#?}");
    let sign_in_path = page.link_target("Sign in to join");
    let done = sign_in(&mut browser, &sign_in_path, &lee.email, PASSWORD).await;
    assert_eq!(done.redirect_target(), Some(path.as_str()));
    // The session of another user cannot accept the invitation.
    let mut other = Browser::signed_in(&app, &dana.email).await;
    let page = other.get(&path).await;
    let refused = other.submit(&page, action, &[]).await;
    assert!(
        refused.status == 403 && refused.text.contains("another email address"),
        "{refused:#?}"
    );
    let page = browser.get(&path).await;
    assert!(page.text.contains("You are signed in as"), "{page:#?}");
    assert_eq!(browser.submit(&page, action, &[]).await.redirect_target(), Some("/"));
    let members =
        app.request_as(&dana.access_token, "GET", "/v1/members").send().await.expect_status(200);
    assert_eq!(members["members"].as_array().unwrap().len(), 3, "{members:#}");
}

#[tokio::test]
async fn cookie_of_ended_session_is_rejected_on_every_node() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let mut first = Browser::signed_in(&app, &dana.email).await;
    let mut second = Browser::new(&node);
    second.cookies.clone_from(&first.cookies);
    assert!(is_signed_in(&mut second).await);
    let page = first.get("/sessions").await;
    let action = page.text.split("this session</span>").nth(1).unwrap();
    let action = action.split("action=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert_eq!(first.submit(&page, &action, &[]).await.redirect_target(), Some("/sign-in"));
    assert!(!is_signed_in(&mut second).await);

    for (method, path, body, status) in [
        ("DELETE", "/v1/auth/sessions", json!({}), 204),
        (
            "POST",
            "/v1/auth/password/change",
            json!({ "current_password": PASSWORD, "new_password": NEW_PASSWORD }),
            200,
        ),
    ] {
        let mut browser = Browser::signed_in(&node, &dana.email).await;
        let call = app.request_as(&dana.access_token, method, path).json(body);
        call.send().await.expect_status(status);
        assert!(!is_signed_in(&mut browser).await, "{path}");
    }
}

#[tokio::test]
async fn browser_session_lasts_ninety_days_or_thirty_idle() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (mut active, mut idle) =
        (Browser::signed_in(&app, &dana.email).await, Browser::signed_in(&app, &dana.email).await);
    for _ in 0..4 {
        app.clock.advance(DAY * 20);
        assert!(is_signed_in(&mut active).await);
    }
    assert!(!is_signed_in(&mut idle).await);
    app.clock.advance(DAY * 11);
    assert!(!is_signed_in(&mut active).await, "at most ninety days");
}

#[tokio::test]
async fn removed_member_must_sign_in_again() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let viewer = app.add_member(&dana, "viewer").await;
    let mut browser = Browser::signed_in(&app, &viewer.email).await;
    assert!(is_signed_in(&mut browser).await);
    let path = format!("/v1/members/{}", viewer.user_id);
    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    assert!(!is_signed_in(&mut browser).await);
}
