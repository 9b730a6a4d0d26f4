//! Pages: sign-in by cookie, and what mailed links lead to. What others cannot make of them is in
//! `pages_guarded.rs`.

use std::time::Duration;

use call2me_auth::env::Clock as _;
use serde_json::json;

use crate::{
    fixture::{Browser, PASSWORD, Page, SmtpSink, TestApp, token_in},
    mfa,
};

pub const SESSION: &str = "call2me_session";
const DAY: Duration = Duration::from_hours(24);
const NEW_PASSWORD: &str = "another horse, another battery";

/// Whether a browser is signed in.
pub async fn is_in(browser: &mut Browser<'_>) -> bool {
    let page = browser.get("/sessions").await;
    match page.status {
        200 => true,
        303 => {
            assert_eq!(page.leads_to(), Some("/sign-in?next=%2Fsessions"));
            false
        }
        _ => panic!("{page:#?}"),
    }
}

pub async fn sign_in(browser: &mut Browser<'_>, from: &str, email: &str, password: &str) -> Page {
    let page = browser.get(from).await;
    browser.submit(&page, "/sign-in", &[("email", email), ("password", password)]).await
}

#[tokio::test]
async fn somebody_signs_in_sees_their_sessions_and_signs_out() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut browser = Browser::new(&app);
    let front = browser.get("/").await;
    assert_eq!(front.leads_to(), Some("/api-keys"));
    assert!(!is_in(&mut browser).await);

    let done =
        sign_in(&mut browser, "/sign-in?next=%2Fsessions%3Flimit%3D5", &dana.email, PASSWORD);
    assert_eq!(done.await.leads_to(), Some("/sessions?limit=5"));
    let cookie = browser.set.iter().find(|cookie| cookie.starts_with(SESSION)).unwrap();
    for attribute in ["; HttpOnly", "; SameSite=Lax", "; Path=/", "; Max-Age=7776000"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
    let page = browser.get("/sessions").await;
    assert!(page.text.contains("Dana Meyer") && page.text.contains("this one</span>"));
    // Who is in already is not asked again.
    assert_eq!(browser.get("/sign-in?next=/sessions").await.leads_to(), Some("/sessions"));

    let old = browser.cookies.clone();
    let out = browser.submit(&page, "/sign-out", &[]).await;
    assert_eq!(out.leads_to(), Some("/sign-in"));
    assert!(!browser.cookies.contains_key(SESSION));
    browser.cookies = old;
    assert!(!is_in(&mut browser).await, "the session itself has ended");
    // The pages that the person looked at are in the log, under their name.
    let key = app.mint(&dana, "log", "admin").await.secret;
    let query = format!("method=GET&status=200&actor_id={}", dana.user_id);
    let events = app.events_of(&key, &query, 1).await;
    assert_eq!(events[0]["request"]["path"], "/sessions", "{events:#?}");
}

#[tokio::test]
async fn a_wrong_password_is_told_on_the_page_and_nothing_is_let_through_it() {
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
        assert!(page.text.contains("e-mail address or the password is wrong"));
        assert!(!page.text.contains("<script"), "{}", page.text);
        assert!(!page.text.contains(PASSWORD), "{}", page.text);
        assert!(!browser.cookies.contains_key(SESSION));
    }
    // Whoever guesses waits, and is told how long.
    for _ in 0..6 {
        sign_in(&mut browser, "/sign-in", &dana.email, "wrong").await;
    }
    let page = sign_in(&mut browser, "/sign-in", &dana.email, PASSWORD).await;
    assert_eq!(page.status, 429, "{page:#?}");
    assert!(page.headers.contains_key("retry-after") && page.text.contains("Too many attempts"));
}

#[tokio::test]
async fn a_second_factor_is_asked_for_on_the_next_page() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (secret, recovery) = mfa::with_factor(&app, &dana).await;
    let mut browser = Browser::new(&app);
    let page = sign_in(&mut browser, "/sign-in?next=/sessions", &dana.email, PASSWORD).await;
    assert!(page.status == 200 && !browser.cookies.contains_key(SESSION), "{page:#?}");
    let path = "/sign-in/second-factor";
    let wrong = browser.submit(&page, path, &[("code", "000000")]).await;
    assert!(wrong.status == 422 && wrong.text.contains("code is wrong"), "{wrong:#?}");
    app.clock.advance(Duration::from_secs(30));
    let code = mfa::code(&secret, app.clock.now().unix_timestamp());
    let done = browser.submit(&wrong, path, &[("code", &format!(" {code} "))]).await;
    assert_eq!(done.leads_to(), Some("/sessions"));
    assert!(is_in(&mut browser).await);
    // The form works once, and not in another browser.
    let again = browser.submit(&wrong, path, &[("code", &recovery[0])]).await;
    assert_eq!(again.status, 422);
    let mut other = Browser::new(&app);
    let page = sign_in(&mut other, "/sign-in", &dana.email, PASSWORD).await;
    assert_eq!(browser.submit(&page, path, &[("code", &recovery[0])]).await.status, 403);
    let done = other.submit(&page, path, &[("code", &recovery[0])]).await;
    assert_eq!(done.leads_to(), Some("/api-keys"));
}

#[tokio::test]
async fn who_lacks_the_second_factor_that_a_workspace_asks_for_sets_it_up() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let member = app.join(&dana, "member").await;
    mfa::with_factor(&app, &dana).await;
    let body = json!({ "require_second_factor": true });
    app.by(&dana.access_token, "PATCH", "/v1/workspace").json(body).send().await.expect(200);
    let mut browser = Browser::of(&app, &member.email).await;
    // Whatever page they want, they are led there.
    assert_eq!(browser.get("/api-keys").await.leads_to(), Some("/second-factor"));
    let link = browser.get("/sessions").await.link("Set one up");
    let page = browser.get(&link).await;
    assert!(page.text.contains("Set one up to go on"), "{page:#?}");
    assert!(!page.text.contains("name=\"password\""), "who has just signed in is not asked");
    // Later the password is asked for.
    app.clock.advance(Duration::from_mins(20));
    assert!(browser.get(&link).await.text.contains("name=\"password\""));
    let refused = browser.submit(&page, "/second-factor/set-up", &[]).await;
    assert!(refused.status == 403 && refused.text.contains("password"), "{refused:#?}");
    let fields = [("password", PASSWORD)];
    let page = browser.submit(&page, "/second-factor/set-up", &fields).await;
    assert!(page.text.contains("<svg") && !page.text.contains(" style="), "{page:#?}");
    let path = "/second-factor/confirm";
    let secret = page.hidden(path).iter().find(|(name, _)| name == "secret").unwrap().1.clone();
    let wrong = browser.submit(&page, path, &[("code", "000000")]).await;
    assert!(wrong.status == 422 && wrong.text.contains(&secret), "{wrong:#?}");
    let code = mfa::code(&secret, app.clock.now().unix_timestamp());
    let done = browser.submit(&wrong, path, &[("code", &code)]).await;
    assert_eq!(done.text.matches("<li><code>").count(), 10, "{done:#?}");
    let agents = app.by(&member.access_token, "GET", "/v1/agents");
    agents.send().await.refused(401, "unauthorized");
    assert!(!browser.get("/sessions").await.text.contains("Set one up"));

    let page = browser.get("/second-factor").await;
    let path = "/second-factor/recovery-codes";
    assert_eq!(browser.submit(&page, path, &[("password", "wrong")]).await.status, 422);
    let codes = browser.submit(&page, path, &fields).await;
    assert!(codes.text.contains("<li><code>") && codes.text != done.text);
    let path = "/second-factor/remove";
    assert_eq!(browser.submit(&page, path, &[("password", "wrong")]).await.status, 422);
    let gone = browser.submit(&page, path, &fields).await;
    assert_eq!(gone.leads_to(), Some("/second-factor"));
    assert!(browser.get("/second-factor").await.text.contains("Set one up to go on"));
}

#[tokio::test]
async fn a_forgotten_password_is_replaced_by_a_mailed_link() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let mut signed_in = Browser::of(&app, &dana.email).await;
    let mut browser = Browser::new(&app);
    let page = browser.get("/forgot-password").await;
    let bad = browser.submit(&page, "/forgot-password", &[("email", "no address")]).await;
    assert!(bad.status == 422 && bad.text.contains("role=\"alert\""), "{bad:#?}");
    let sent = browser.submit(&page, "/forgot-password", &[("email", &dana.email)]).await;
    let unknown = browser.submit(&page, "/forgot-password", &[("email", "x@y.example")]).await;
    assert_eq!((sent.status, &sent.text), (200, &unknown.text));

    let mail = sink.mail(&dana.email, "Reset").await;
    let path = format!("/reset-password?token={}", token_in(&mail));
    assert!(mail["text"].as_str().unwrap().contains(&format!("{}{path}", app.url)), "{mail:#}");
    // Opened by whoever scans mails, too: nothing happens.
    for _ in 0..3 {
        Browser::new(&app).get(&path).await;
    }
    let page = browser.get(&path).await;
    let weak = [("new_password", "password1234")];
    let weak = browser.submit(&page, "/reset-password", &weak).await;
    assert!(weak.status == 422 && weak.text.contains("common"), "{weak:#?}");
    let fields = [("new_password", NEW_PASSWORD)];
    let done = browser.submit(&weak, "/reset-password", &fields).await;
    assert!(done.status == 200 && done.text.contains("was changed"), "{done:#?}");
    assert!(!is_in(&mut signed_in).await, "all sessions have ended");
    let again = browser.submit(&weak, "/reset-password", &fields).await;
    assert_eq!(again.status, 422);
    assert_eq!(sign_in(&mut browser, "/sign-in", &dana.email, PASSWORD).await.status, 422);
    let done = sign_in(&mut browser, "/sign-in", &dana.email, NEW_PASSWORD).await;
    assert_eq!(done.leads_to(), Some("/api-keys"));
}

#[tokio::test]
async fn an_address_is_verified_by_a_button_behind_the_link() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let path = format!("/verify-email?token={}", token_in(&sink.mail(&dana.email, "Verify").await));
    let is_verified = async || {
        let me = app.by(&dana.access_token, "GET", "/v1/auth/me").send().await.expect(200);
        me["user"]["email_verified"] == true
    };
    let mut browser = Browser::new(&app);
    let page = browser.get(&path).await;
    assert!(!is_verified().await);
    assert_eq!(browser.submit(&page, "/verify-email", &[]).await.status, 200);
    assert!(is_verified().await);
    assert_eq!(browser.submit(&page, "/verify-email", &[]).await.status, 422);
}

#[tokio::test]
async fn an_invitation_is_accepted_by_somebody_new_or_by_whoever_has_the_address() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let lee = app.register("lee").await;
    let link = async |email: &str| {
        let body = json!({ "email": email, "role": "member" });
        let call = app.by(&dana.access_token, "POST", "/v1/invitations").json(body);
        call.send().await.expect(201);
        format!("/accept-invitation?token={}", token_in(&sink.mail(email, "Invitation").await))
    };
    let action = "/accept-invitation";

    let path = link("sam@new.example").await;
    let mut sam = Browser::new(&app);
    let page = sam.get(&path).await;
    assert!(page.text.contains("sam@new.example") && page.text.contains("acme"), "{page:#?}");
    let fields = [("full_name", "Sam <b>Lee</b>"), ("password", "password1234")];
    let weak = sam.submit(&page, action, &fields).await;
    assert!(weak.status == 422 && !weak.text.contains("<b>Lee"), "{weak:#?}");
    let fields = [("full_name", "Sam Lee"), ("password", PASSWORD)];
    let done = sam.submit(&page, action, &fields).await;
    assert_eq!(done.leads_to(), Some("/"), "{done:#?}");
    assert!(is_in(&mut sam).await);
    assert_eq!(sam.get(&path).await.status, 422, "the link worked once");

    // An account that exists is never entered by a link: it signs in, and comes back to join.
    let path = link(&lee.email).await;
    let mut browser = Browser::new(&app);
    let page = browser.get(&path).await;
    assert!(!page.text.contains("name=\"password\""), "{page:#?}");
    let to = page.link("Sign in to join");
    let done = sign_in(&mut browser, &to, &lee.email, PASSWORD).await;
    assert_eq!(done.leads_to(), Some(path.as_str()));
    // Somebody else's session does not take it.
    let mut other = Browser::of(&app, &dana.email).await;
    let page = other.get(&path).await;
    let refused = other.submit(&page, action, &[]).await;
    assert!(refused.status == 403 && refused.text.contains("another address"), "{refused:#?}");
    let page = browser.get(&path).await;
    assert!(page.text.contains("You are signed in as"), "{page:#?}");
    assert_eq!(browser.submit(&page, action, &[]).await.leads_to(), Some("/"));
    let members = app.by(&dana.access_token, "GET", "/v1/members").send().await.expect(200);
    assert_eq!(members["members"].as_array().unwrap().len(), 3, "{members:#}");
}

#[tokio::test]
async fn a_cookie_dies_with_its_session_at_once_on_every_node() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let mut here = Browser::of(&app, &dana.email).await;
    let mut there = Browser::new(&node);
    there.cookies.clone_from(&here.cookies);
    assert!(is_in(&mut there).await);
    let page = here.get("/sessions").await;
    let own = page.text.split("this one</span>").nth(1).unwrap();
    let own = own.split("action=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert_eq!(here.submit(&page, &own, &[]).await.leads_to(), Some("/sign-in"));
    assert!(!is_in(&mut there).await);

    for (method, path, body) in [
        ("DELETE", "/v1/auth/sessions", json!({})),
        (
            "POST",
            "/v1/auth/password/change",
            json!({ "current_password": PASSWORD, "new_password": NEW_PASSWORD }),
        ),
    ] {
        let mut browser = Browser::of(&node, &dana.email).await;
        app.by(&dana.access_token, method, path).json(body).send().await.expect(204);
        assert!(!is_in(&mut browser).await, "{path}");
    }
}

#[tokio::test]
async fn a_session_that_is_used_goes_on_for_ninety_days_and_an_idle_one_for_thirty() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (mut used, mut idle) =
        (Browser::of(&app, &dana.email).await, Browser::of(&app, &dana.email).await);
    for _ in 0..4 {
        app.clock.advance(DAY * 20);
        assert!(is_in(&mut used).await);
    }
    assert!(!is_in(&mut idle).await);
    app.clock.advance(DAY * 11);
    assert!(!is_in(&mut used).await, "at most ninety days");
}

#[tokio::test]
async fn who_is_no_longer_a_member_is_asked_to_sign_in() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let viewer = app.join(&dana, "viewer").await;
    let mut browser = Browser::of(&app, &viewer.email).await;
    assert!(is_in(&mut browser).await);
    let path = format!("/v1/members/{}", viewer.user_id);
    app.by(&dana.access_token, "DELETE", &path).send().await.expect(204);
    assert!(!is_in(&mut browser).await);
}
