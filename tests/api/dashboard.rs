//! The dashboard without JavaScript: plain pages and forms. `dashboard_browser.rs` tests it in a
//! real browser.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{
    Browser, PASSWORD, Page, SmtpSink, TestApp, TestClient, eventually, link_token,
};

/// Reads the secret and the id of a key from the page that shows it once.
fn read_created_key(page: &Page) -> (String, String) {
    assert_eq!(page.status, 201, "{page:#?}");
    let secret = page.text.split("<pre id=\"secret\"").nth(1).unwrap();
    let secret = secret.split('>').nth(1).unwrap().split('<').next().unwrap();
    assert!(secret.starts_with("sk_call2me_live_"), "{secret}");
    let id = page.link_target("Open the key").split_off("/api-keys/".len());
    (secret.to_owned(), id)
}

async fn create_key(browser: &mut Browser<'_>, name: &str, scope: &str) -> (String, String) {
    let page = browser.get("/api-keys/new").await;
    let fields = [("name", name), ("scope", scope)];
    read_created_key(&browser.submit(&page, "/api-keys", &fields).await)
}

/// The main user journey without JavaScript. The old key must be idle for one second instead of
/// fifteen minutes.
#[tokio::test]
async fn sign_up_to_key_revocation_works_without_javascript() {
    let app = TestApp::start_with(&[("rotation.quiet_seconds", "1")]).await;
    let mut browser = Browser::new(&app);
    let page = browser.get("/sign-in").await;
    let page = browser.get(&page.link_target("Create an account")).await;
    let mut fields = vec![
        ("email", "dana@acme.example"),
        ("password", "password1234"),
        ("full_name", "Dana <i>Meyer</i>"),
        ("workspace_name", "Acme & Sons"),
    ];
    let weak = browser.submit(&page, "/sign-up", &fields).await;
    assert!(weak.status == 422 && weak.text.contains("common"), "{weak:#?}");
    assert!(weak.text.contains("Acme &#38; Sons"), "the form keeps its values");
    fields[1].1 = PASSWORD;
    let done = browser.submit(&weak, "/sign-up", &fields).await;
    assert_eq!(done.redirect_target(), Some("/api-keys"), "{done:#?}");
    let page = browser.get("/api-keys").await;
    assert!(page.text.contains("No keys yet") && page.text.contains("Acme &#38; Sons"));
    assert!(page.text.contains("Dana &#60;i&#62;Meyer") && !page.text.contains("<i>"));
    // The email address is registered now.
    let mut other = Browser::new(&app);
    let page = other.get("/sign-up").await;
    let duplicate = other.submit(&page, "/sign-up", &fields).await;
    assert!(
        duplicate.status == 409 && duplicate.text.contains("Sign in instead"),
        "{duplicate:#?}"
    );

    let page = browser.get("/api-keys").await.link_target("Create your first key");
    let page = browser.get(&page).await;
    assert!(page.text.contains("value=\"read-only\" checked"), "the smallest scope is preselected");
    let refused = browser.submit(&page, "/api-keys", &[("name", ""), ("scope", "write")]).await;
    assert!(refused.status == 422 && refused.text.contains("value=\"write\" checked"));
    let fields =
        [("name", "prod-2026-q2"), ("scope", "write"), ("allowed_ips", "127.0.0.0/8, ::1")];
    let page = browser.submit(&refused, "/api-keys", &fields).await;
    let (old, old_id) = read_created_key(&page);
    assert!(page.text.contains(&format!("CALL2ME_API_KEY={old}")));
    assert!(page.text.contains(&format!("curl {}/v1/auth/me", app.url)));
    let me = app.get("/v1/auth/me").bearer(&old).send().await.expect_status(200);
    assert_eq!(me["key"]["allowed_ips"], json!(["127.0.0.0/8", "::1/128"]));
    let details = format!("/api-keys/{old_id}");
    let page = browser.get(&details).await;
    assert!(!page.text.contains(&old), "the secret is shown once");

    // The first request of the key is logged and counted.
    let log = format!("/audit-log?key_id={old_id}");
    eventually("the event is on the page", async || {
        let page = browser.new_window().get(&log).await;
        page.text.contains("<code>GET /v1/auth/me</code>").then_some(())
    })
    .await;
    eventually("the request is counted", async || {
        let mut browser = browser.new_window();
        browser.get(&details).await.text.contains("1 request in the last 48 hours").then_some(())
    })
    .await;

    let rotation = format!("{details}/rotation");
    let page = browser.get(&rotation).await;
    let rotate = format!("{details}/rotate");
    let page = browser.submit(&page, &rotate, &[("name", "prod-2026-q3")]).await;
    let (new, new_id) = read_created_key(&page);
    assert_ne!(old_id, new_id);
    let page = browser.get(&page.link_target("Continue to rotation")).await;
    assert!(
        page.text.contains("Do not revoke yet") && page.text.contains("prod-2026-q3"),
        "{page:#?}"
    );
    // A key has at most one active successor.
    let fields = browser.get("/settings").await.hidden_fields("/settings/workspace");
    let again = browser.post(&rotate, &fields, &[]).await;
    assert!(again.status == 409 && again.text.contains("role=\"alert\""), "{again:#?}");
    // The CSRF token of a user-level form is not valid for the workspace.
    assert_eq!(browser.post(&rotate, &page.hidden_fields("/sign-out"), &[]).await.status, 403);
    app.get("/v1/agents").bearer(&new).send().await.expect_status(200);
    app.clock.advance(Duration::from_secs(3));
    let safe = eventually("it is safe to revoke", async || {
        let mut browser = browser.new_window();
        let page = browser.get(&rotation).await;
        page.text.contains("Safe to revoke").then_some(page)
    })
    .await;
    let revoke = format!("{details}/revoke");
    let page = browser.get(&safe.link_target("Revoke prod-2026-q2")).await;
    assert!(!page.text.contains("name=\"anyway\""), "a safe revocation needs no confirmation");
    let done = browser.submit(&page, &revoke, &[]).await;
    assert_eq!(done.redirect_target(), Some(&*format!("{rotation}?done=revoked")));
    let page = browser.get(done.redirect_target().unwrap()).await;
    assert!(page.text.contains("Done.") && page.text.contains("Key revoked."));
    assert!(!browser.get(&format!("{details}?done=%3Cb%3E")).await.text.contains("<b>"));
    assert!(browser.get(&details).await.text.contains("revoked</span>"));
    app.get("/v1/agents").bearer(&old).send().await.assert_error(401, "unauthorized");
    app.get("/v1/agents").bearer(&new).send().await.expect_status(200);
    eventually("the rejected request is in the log", async || {
        let page = browser.new_window().get("/audit-log?action=api_key.rejected").await;
        page.text.contains("was used after it was revoked").then_some(())
    })
    .await;
    // Active and revoked keys have a list each.
    for (query, listed_id) in [("", &new_id), ("?status=revoked", &old_id)] {
        let page = browser.get(&format!("/api-keys{query}")).await;
        assert_eq!(page.text.matches("<td role=\"cell\"><strong><a").count(), 1, "{query}");
        assert!(page.text.contains(&format!("<a href=\"/api-keys/{listed_id}\">")), "{query}");
    }
}

/// A double click creates one key, and both responses show it.
#[tokio::test]
async fn form_submitted_twice_creates_one_key() {
    let app = TestApp::start().await;
    let dana = app.register_verified("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/api-keys/new").await;
    let fields = [("name", "twice"), ("scope", "read-only")];
    let first = read_created_key(&browser.submit(&page, "/api-keys", &fields).await);
    let second = read_created_key(&browser.submit(&page, "/api-keys", &fields).await);
    assert_eq!(first, second);
    // Once the key has been used, its secret is no longer shown.
    app.get("/v1/agents").bearer(&first.0).send().await.expect_status(200);
    eventually("the use is recorded", async || {
        let page = browser.new_window().submit(&page, "/api-keys", &fields).await;
        (page.status == 303 && !page.text.contains("sk_call2me_live_")).then_some(())
    })
    .await;
    let fields = [("name", "other"), ("scope", "admin")];
    let other = browser.submit(&page, "/api-keys", &fields).await;
    assert!(
        other.status == 409 && other.text.contains("already created a key with this form"),
        "{other:#?}"
    );
    assert!(other.text.contains("value=\"other\"") && other.text.contains("\"admin\" checked"));
    // The same applies to rotations, invitations and workspaces.
    let rotation = format!("/api-keys/{}/rotation", first.1);
    let page = browser.get(&rotation).await;
    let rotate = format!("/api-keys/{}/rotate", first.1);
    let first = read_created_key(&browser.submit(&page, &rotate, &[]).await);
    assert_eq!(first, read_created_key(&browser.submit(&page, &rotate, &[]).await));
    let page = browser.get("/members").await;
    let fields = [("email", "sam@new.example"), ("role", "viewer")];
    for _ in 0..2 {
        let sent = browser.submit(&page, "/members/invite", &fields).await;
        assert_eq!(sent.redirect_target(), Some("/members?done=invited"), "{sent:#?}");
    }
    let page = browser.get("/members?done=invited").await;
    assert!(page.text.contains("Invitation sent."), "{page:#?}");
    assert_eq!(page.text.matches("<strong>sam@new.example</strong>").count(), 1, "{page:#?}");
    let page = browser.get("/workspaces").await;
    let created = browser.submit(&page, "/workspaces", &[("name", "labs")]).await;
    assert_eq!(created.redirect_target(), Some("/api-keys"), "{created:#?}");
    // The session is in the new workspace now, which rejects forms of the previous one.
    let stale = browser.submit(&page, "/workspaces", &[("name", "labs")]).await;
    assert!(stale.status == 403 && stale.text.contains("reload the page"), "{stale:#?}");
    // A window of the previous workspace does not continue with the log of the new one.
    let stream = browser.get(&format!("/audit-log/stream?workspace={}", dana.workspace_id)).await;
    assert_eq!((stream.status, &*stream.text), (204, ""));
    let workspaces = browser.get("/workspaces").await;
    assert_eq!(workspaces.text.matches("<strong>labs</strong>").count(), 1, "{}", workspaces.text);
    // User-level forms are valid in every workspace.
    assert_eq!(browser.submit(&page, "/sign-out", &[]).await.redirect_target(), Some("/sign-in"));
    let keys =
        app.request_as(&dana.access_token, "GET", "/v1/api-keys").send().await.expect_status(200);
    assert_eq!(keys["total"], 2, "{keys:#}");
    // A browser gets an error page, another client the usual error body.
    let request =
        app.http.get(format!("{}/members/invite", app.url)).header("accept", "text/html,*/*");
    let page = request.send().await.unwrap();
    assert_eq!(
        (page.status().as_u16(), page.headers()["content-type"].to_str().unwrap()),
        (405, "text/html; charset=utf-8")
    );
    app.get("/nonsense").send().await.assert_error(404, "not_found");
}

/// Actions that a role does not allow are not offered, and are rejected if they are requested.
#[tokio::test]
async fn viewer_is_offered_no_change_and_cannot_make_one() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let viewer = app.add_member(&dana, "viewer").await;
    let mut browser = Browser::signed_in(&app, &viewer.email).await;
    let details = format!("/api-keys/{}", key.id);
    let rotation = format!("{details}/rotation");
    for path in ["/api-keys", &details, &rotation, "/audit-log", "/settings", "/sessions"] {
        let page = browser.get(path).await;
        assert_eq!(page.status, 200, "{path}");
        for offered in [
            "Create API key",
            "/revoke\"",
            "/rotate\"",
            "href=\"/members\"",
            "/settings/workspace",
            "/settings/brand",
        ] {
            assert!(!page.text.contains(offered), "{path} offers {offered}");
        }
    }
    for path in ["/api-keys/new", &format!("{details}/revoke"), "/members"] {
        let page = browser.get(path).await;
        assert!(page.status == 403 && page.text.contains("admin scope"), "{path} {page:#?}");
    }
    let mut fields = browser.get("/workspaces").await.hidden_fields("/workspaces");
    fields.push(("name".to_owned(), "mine".to_owned()));
    fields.push(("anyway".to_owned(), "yes".to_owned()));
    let own_role = format!("/members/{}/role", viewer.user_id);
    for path in [
        "/api-keys",
        &details,
        &format!("{details}/rotate"),
        &format!("{details}/revoke"),
        "/members/invite",
        &own_role,
        &format!("/members/{}/remove", dana.user_id),
        "/settings/workspace",
        "/settings/second-factor",
        "/settings/delete-workspace",
    ] {
        let page = browser.post(path, &fields, &[("sec-fetch-site", "same-origin")]).await;
        assert_eq!(page.status, 403, "{path} {page:#?}");
    }
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    // Every role may change its own profile.
    let page = browser.get("/settings").await;
    let fields = [("full_name", "Vera")];
    let done = browser.submit(&page, "/settings/profile", &fields).await;
    assert_eq!(done.redirect_target(), Some("/settings?done=saved"));
    assert!(browser.get("/settings").await.text.contains("Vera"));
}

/// No page shows or changes data of another workspace.
#[tokio::test]
async fn page_shows_nothing_of_other_workspaces() {
    let app = TestClient::shared();
    let (dana, mallory) = (app.register("acme").await, app.register("mallory").await);
    let key = app.create_key(&dana, "prod", "write").await;
    let event = app.wait_for_event_count(&dana.access_token, "action=api_key.created", 1).await;
    let event = event[0]["id"].as_str().unwrap().to_owned();
    let mut browser = Browser::signed_in(&app, &mallory.email).await;
    let page = browser.get("/settings").await;
    let mut fields = page.hidden_fields("/settings/workspace");
    fields.extend(
        [("name", "x"), ("anyway", "yes"), ("role", "viewer")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let details = format!("/api-keys/{}", key.id);
    for path in [
        details.clone(),
        format!("{details}/rotation"),
        format!("{details}/revoke"),
        format!("/audit-log/{event}"),
    ] {
        let page = browser.get(&path).await;
        assert!(page.status == 404 && !page.text.contains("prod"), "{path} {page:#?}");
    }
    // A stream reveals nothing and ends.
    let stream = browser.get(&format!("{details}/rotation/stream")).await;
    assert_eq!(stream.text, "event: over\ndata: over\n\n", "{stream:#?}");
    for path in [
        details.clone(),
        format!("{details}/rotate"),
        format!("{details}/revoke"),
        format!("/members/{}/role", dana.user_id),
        format!("/members/{}/remove", dana.user_id),
    ] {
        let page = browser.post(&path, &fields, &[("sec-fetch-site", "same-origin")]).await;
        assert!(page.status == 404 && !page.text.contains("prod"), "{path} {page:#?}");
    }
    let switch_path = format!("/workspaces/{}/enter", dana.workspace_id);
    let user_fields = user_form_fields(&mut browser).await;
    let page = browser.post(&switch_path, &user_fields, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(page.status, 403, "{page:#?}");
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
}

/// Returns the hidden fields of a user-level form, such as sign-out. Its CSRF token is valid in
/// every workspace.
async fn user_form_fields(browser: &mut Browser<'_>) -> Vec<(String, String)> {
    browser.get("/sessions").await.hidden_fields("/sign-out")
}

#[tokio::test]
async fn revoke_page_offers_to_revoke_what_the_key_made() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let root = app.create_key(&dana, "root", "admin").await;
    let create = async |creator: &str, name: &str| {
        let body = json!({ "name": name });
        let created = app.post("/v1/api-keys").bearer(creator).json(body).send().await;
        created.expect_status(201)["key"].as_str().unwrap().to_owned()
    };
    let (_, childless) = create_key(&mut browser, "childless", "write").await;
    let page = browser.get(&format!("/api-keys/{childless}/revoke")).await;
    assert!(!page.text.contains("name=\"cascade\""), "{page:#?}");
    let child = create(&root.secret, "child-of-root").await;
    let path = format!("/api-keys/{}/revoke", root.id);
    let page = eventually("the use of the key is counted", async || {
        let mut browser = browser.new_window();
        let page = browser.get(&path).await;
        page.text.contains("POST /v1/api-keys").then_some(page)
    })
    .await;
    assert!(page.text.contains("child-of-root"), "{page:#?}");
    let done = browser.submit(&page, &path, &[("anyway", "yes"), ("cascade", "yes")]).await;
    assert_eq!(done.status, 303, "{done:#?}");
    for secret in [&root.secret, &child] {
        app.get("/v1/agents").bearer(secret).send().await.assert_error(401, "unauthorized");
    }
}

#[tokio::test]
async fn key_is_disabled_and_enabled_with_buttons() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let (secret, id) = create_key(&mut browser, "prod", "write").await;
    let details = format!("/api-keys/{id}");
    for (action, label, status) in
        [("disable", "disabled</span>", 401), ("enable", "active</span>", 200)]
    {
        let path = format!("{details}/{action}");
        let page = browser.get(&details).await;
        let done = browser.submit(&page, &path, &[]).await;
        assert_eq!(done.redirect_target(), Some(&*format!("{details}?done={action}d")));
        let page = browser.get(&details).await;
        assert!(page.text.contains(label), "{page:#?}");
        assert_eq!(app.get("/v1/agents").bearer(&secret).send().await.status, status);
        let list = browser.get("/api-keys?status=disabled").await;
        assert_eq!(list.text.contains(&id), status == 401, "{list:#?}");
    }
    // The rate limit is changed like the other fields.
    let page = browser.get(&details).await;
    let fields = [("name", "prod"), ("rate_limit_per_minute", "77")];
    assert_eq!(browser.submit(&page, &details, &fields).await.status, 303);
    let answer = app.get("/v1/agents").bearer(&secret).send().await;
    assert_eq!(answer.header_number("x-ratelimit-limit"), 77);
    let page = browser.get(&details).await;
    let fields = [("name", "prod"), ("rate_limit_per_minute", "many")];
    assert_eq!(browser.submit(&page, &details, &fields).await.status, 422);
}

/// Revoking a key that is in use needs an explicit confirmation.
#[tokio::test]
async fn revoking_key_in_use_requires_confirmation() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let (secret, id) = create_key(&mut browser, "busy", "write").await;
    // An unused key needs no confirmation, unless it is used after the page was loaded.
    let (_, unused) = create_key(&mut browser, "unused", "write").await;
    let path = format!("/api-keys/{unused}/revoke");
    let page = browser.get(&path).await;
    assert!(page.text.contains("This key was never used"), "{page:#?}");
    let done = browser.submit(&page, &path, &[]).await;
    assert_eq!(done.redirect_target(), Some(&*format!("/api-keys/{unused}?done=revoked")));
    let revoke = format!("/api-keys/{id}/revoke");
    let stale = browser.get(&revoke).await.hidden_fields(&revoke);
    let call = app.get("/v1/agents").bearer(&secret).header("user-agent", "<b>Zapier</b>");
    call.send().await.expect_status(200);
    let page = eventually("the use is on the page", async || {
        let mut browser = browser.new_window();
        let page = browser.get(&revoke).await;
        page.text.contains("GET /v1/agents").then_some(page)
    })
    .await;
    assert!(page.text.contains("This may break something"), "{page:#?}");
    assert!(page.text.contains("&#60;b&#62;Zapier") && !page.text.contains("<b>"), "{page:#?}");
    let headers = [("sec-fetch-site", "same-origin")];
    assert_eq!(browser.post(&revoke, &stale, &headers).await.status, 409);
    let refused = browser.submit(&page, &revoke, &[]).await;
    assert!(
        refused.status == 409 && refused.text.contains("The key was not revoked"),
        "{refused:#?}"
    );
    app.get("/v1/agents").bearer(&secret).send().await.expect_status(200);
    let done = browser.submit(&refused, &revoke, &[("anyway", "yes")]).await;
    assert_eq!(done.redirect_target(), Some(&*format!("/api-keys/{id}?done=revoked")));
    app.get("/v1/agents").bearer(&secret).send().await.assert_error(401, "unauthorized");
    // An old page that is submitted again succeeds, because the key is revoked already.
    assert_eq!(browser.submit(&refused, &revoke, &[]).await.status, 303);
}

#[tokio::test]
async fn key_form_keeps_values_and_concurrent_changes() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let (_, id) = create_key(&mut browser, "<script>alert(1)</script>", "admin").await;
    let details = format!("/api-keys/{id}");
    let page = browser.get(&details).await;
    assert!(page.text.contains("&#60;script&#62;alert") && !page.text.contains("<script>alert"));
    let fields = [("name", "zapier"), ("description", "the\"desc"), ("allowed_ips", "10.0.0.0/99")];
    let refused = browser.submit(&page, &details, &fields).await;
    assert_eq!(refused.status, 422, "{refused:#?}");
    assert!(refused.text.contains("10.0.0.0/99") && refused.text.contains("the&#34;desc"));
    let fields = [("name", "zapier"), ("description", ""), ("allowed_ips", "10.0.0.0/8\r\n")];
    let done = browser.submit(&refused, &details, &fields).await;
    assert_eq!(done.redirect_target(), Some(&*format!("{details}?done=saved")));
    let page = browser.get(&details).await;
    assert!(page.text.contains("<h1>zapier</h1>") && page.text.contains("<code>10.0.0.0/8</code>"));
    // An old page renames the key, and does not overwrite fields that were changed in between.
    // Neither does a form without the other fields.
    let change = json!({ "description": "one\ntwo", "allowed_ips": ["192.0.2.0/24"] });
    let patch = app.request_as(&dana.access_token, "PATCH", &format!("/v1{details}"));
    patch.json(change).send().await.expect_status(200);
    let fields = [("name", "make"), ("description", ""), ("allowed_ips", "10.0.0.0/8\r\n")];
    browser.submit(&page, &details, &fields).await;
    let page = browser.get(&details).await;
    browser.submit(&page, &details, &[("name", "make-2"), ("description", "one\r\ntwo")]).await;
    let key = app
        .request_as(&dana.access_token, "GET", &format!("/v1{details}"))
        .send()
        .await
        .expect_status(200);
    let expected = json!(["make-2", "one\ntwo", ["192.0.2.0/24"]]);
    assert_eq!(json!([key["name"], key["description"], key["allowed_ips"]]), expected);
}

#[tokio::test]
async fn log_page_is_filtered_by_url_and_exported() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let (secret, id) = create_key(&mut browser, "=cmd()", "read-only").await;
    app.get("/v1/agents").bearer(&secret).send().await.expect_status(200);
    app.post("/v1/agents")
        .bearer(&secret)
        .json(json!({}))
        .send()
        .await
        .assert_error(403, "insufficient_scope");
    app.wait_for_event_count(&dana.access_token, &format!("key_id={id}"), 2).await;
    let rows = |page: &Page| page.text.matches("<a href=\"/audit-log/event_").count();
    let page = browser.get(&format!("/audit-log?key_id={id}&status=403&action=&ip=&since=")).await;
    assert_eq!((page.status, rows(&page)), (200, 1), "{page:#?}");
    assert!(page.text.contains("<option value=\"") && page.text.contains("value=\"403\""));
    // Timestamps are in the format of a datetime-local field.
    let page = browser.get("/audit-log?since=2026-01-31T12:00:00%2B05:00&changes=false").await;
    assert!(page.text.contains("value=\"2026-01-31T07:00\""), "{page:#?}");
    assert!(!page.text.contains("name=\"changes\""), "{page:#?}");
    let page = browser.get("/audit-log?changes=true&until=2020-01-31T12:00").await;
    assert!(page.status == 200 && page.text.contains("No matching events"), "{page:#?}");
    assert!(page.text.contains("value=\"2020-01-31T12:00\""), "{page:#?}");
    // The filter for changes leaves out requests.
    let page = browser.get("/audit-log?changes=true").await;
    assert!(page.text.contains("created the key") && !page.text.contains("> called "), "{page:#?}");
    for invalid in ["ip=nonsense", "status=7", "key_id=%22%3E%3Cb%3E", "cursor=x", "since=tomorrow"]
    {
        let page = browser.get(&format!("/audit-log?{invalid}")).await;
        assert!(page.status == 422 && page.text.contains("role=\"alert\""), "{invalid} {page:#?}");
        assert!(!page.text.contains("\"><b>"), "{invalid}");
    }
    // The page of one event shows all of its data.
    let page = browser.get(&format!("/audit-log?key_id={id}&status=403")).await;
    let event =
        page.text.split("href=\"/audit-log/event_").nth(1).unwrap().split('"').next().unwrap();
    let event = browser.get(&format!("/audit-log/event_{event}")).await;
    assert!(event.text.contains("/v1/agents") && event.text.contains("&#34;status&#34;: 403"));
    assert!(event.text.contains("=cmd()"), "{event:#?}");
    // Older events are on the next page.
    for _ in 0..30 {
        browser.get("/sessions").await;
    }
    let page = eventually("the first page is full", async || {
        let page = browser.new_window().get("/audit-log?action=request&pages=true").await;
        page.text.contains("Older events").then_some(page)
    })
    .await;
    assert_eq!(rows(&page), 20);
    let older = browser.get(&page.link_target("Older events")).await;
    assert!(
        rows(&older) > 0 && !older.text.contains("data-log="),
        "only the newest page is updated live"
    );

    let csv = browser.get(&format!("/audit-log/export?format=csv&key_id={id}")).await;
    assert!(csv.text.contains("'=cmd()"), "{csv:#?}");
    assert_eq!(csv.headers["cache-control"], "no-store");
    assert!(csv.headers["content-disposition"].to_str().unwrap().starts_with("attachment"));
    let lines =
        browser.get(&format!("/audit-log/export?format=ndjson&key_id={id}&status=403")).await;
    assert_eq!(lines.text.lines().count(), 1, "{lines:#?}");
    // Export and stream need a session.
    let mut signed_out = Browser::new(&app);
    for path in ["/audit-log/export?format=csv", "/audit-log/stream"] {
        let page = signed_out.get(path).await;
        assert!(
            page.redirect_target().unwrap().starts_with("/sign-in?next=%2Faudit-log%2F"),
            "{page:#?}"
        );
    }
}

#[tokio::test]
async fn members_are_invited_promoted_and_removed() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/members").await;
    let invalid =
        browser.submit(&page, "/members/invite", &[("email", "nonsense"), ("role", "admin")]);
    let invalid = invalid.await;
    assert!(invalid.status == 422 && invalid.text.contains("value=\"nonsense\""), "{invalid:#?}");
    for email in ["sam@new.example", "withdrawn@new.example"] {
        let page = browser.get("/members").await;
        let fields = [("email", email), ("role", "viewer")];
        let sent = browser.submit(&page, "/members/invite", &fields).await;
        assert_eq!(sent.redirect_target(), Some("/members?done=invited"));
    }
    let page = browser.get("/members").await;
    let withdraw_path = page.text.split("withdrawn@new.example</strong>").nth(1).unwrap();
    let withdraw_path = withdraw_path.split("action=\"").nth(1).unwrap().split('"').next().unwrap();
    let done = browser.submit(&page, withdraw_path, &[]).await;
    assert_eq!(done.redirect_target(), Some("/members?done=withdrawn"));
    let path = format!(
        "/accept-invitation?token={}",
        link_token(&sink.wait_for_email("sam@new.example", "Invitation").await)
    );
    let mut sam = Browser::new(&app);
    let page = sam.get(&path).await;
    let fields = [("full_name", "Sam Lee"), ("password", PASSWORD)];
    sam.submit(&page, "/accept-invitation", &fields).await;
    assert_eq!(sam.get("/members").await.status, 403);

    let page = browser.get("/members").await;
    assert!(page.text.contains("Sam Lee") && !page.text.contains("withdrawn@"), "{page:#?}");
    let action = |page: &Page, end: &str| {
        let mut actions =
            page.text.split("action=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        actions.find(|action| action.ends_with(end)).unwrap().to_owned()
    };
    let role = action(&page, "/role");
    let done = browser.submit(&page, &role, &[("role", "admin")]).await;
    assert_eq!(done.redirect_target(), Some("/members?done=role"));
    // The role applies at once. An admin cannot appoint owners.
    let members_page = sam.get("/members").await;
    assert!(
        members_page.status == 200 && !members_page.text.contains("<option>owner</option>"),
        "{members_page:#?}"
    );
    let mut fields = members_page.hidden_fields("/members/invite");
    fields.push(("role".to_owned(), "owner".to_owned()));
    let refused = sam.post(&role, &fields, &[("sec-fetch-site", "same-origin")]).await;
    assert!(refused.status == 403 && refused.text.contains("role=\"alert\""), "{refused:#?}");
    // Changing ownership needs the password unless the sign-in is recent.
    app.clock.advance(Duration::from_mins(20));
    let page = browser.get("/members").await;
    let refused = browser.submit(&page, &role, &[("role", "owner")]).await;
    assert!(
        refused.status == 403 && refused.text.contains("your password or sign in again"),
        "{refused:#?}"
    );
    let fields = [("role", "owner"), ("password", PASSWORD)];
    assert_eq!(browser.submit(&page, &role, &fields).await.status, 303);
    let page = browser.get("/members").await;
    let remove = action(&page, "/remove");
    let done = browser.submit(&page, &remove, &[]).await;
    assert!(
        done.status == 403 && done.text.contains("your password or sign in again"),
        "{done:#?}"
    );
    browser.submit(&page, &role, &[("role", "viewer"), ("password", PASSWORD)]).await;
    assert_eq!(
        browser.submit(&page, &remove, &[]).await.redirect_target(),
        Some("/members?done=removed")
    );
    assert!(!browser.get("/members").await.text.contains("Sam Lee"));
    assert_eq!(sam.get("/api-keys").await.redirect_target(), Some("/sign-in?next=%2Fapi-keys"));
}

#[tokio::test]
async fn workspace_branding_is_applied_and_validated() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    // Branding fields that only the API sets are kept.
    let stored = json!({ "support_email": "help@acme.example" });
    app.request_as(&dana.access_token, "PUT", "/v1/users/me/branding")
        .json(stored)
        .send()
        .await
        .expect_status(200);
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let png = b"\x89PNG\r\n\x1a\n a picture";
    let form = [("brand_name", "Acme Voice"), ("primary_color", "#0B7285")];
    let page = browser.get("/settings").await;
    let done = browser.upload(&page, "/settings/brand", &form, Some(("logo", png))).await;
    assert_eq!(done.redirect_target(), Some("/settings?done=saved"), "{done:#?}");
    let sign_in = format!("/sign-in?workspace={}", dana.workspace_id);
    for (mut browser, path) in [(Browser::new(&app), &*sign_in), (browser, "/api-keys")] {
        let page = browser.get(path).await;
        assert!(page.text.contains("Acme Voice <small>on Call2Me</small>"), "{page:#?}");
        assert!(page.text.contains("Acme Voice") && page.text.contains("data:image/png;base64,"));
        assert!(page.text.contains(":root{--brand:#0b7285;--on-brand:#ffffff}"), "{page:#?}");
        let policy = page.headers["content-security-policy"].to_str().unwrap();
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
    }
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let settings = app
        .request_as(&dana.access_token, "GET", "/v1/users/me/branding")
        .send()
        .await
        .expect_status(200);
    assert_eq!(settings["support_email"], "help@acme.example");
    // An invalid logo or color is rejected and changes nothing.
    for (color, file) in [
        ("red", &png[..]),
        ("#0b7285", b"<svg onload=alert(1)>"),
        ("#0b7285", &vec![0; 20_000][..]),
        ("#0b7285;}", b""),
    ] {
        let page = browser.get("/settings").await;
        let form = [("brand_name", "Evil"), ("primary_color", color)];
        let refused = browser.upload(&page, "/settings/brand", &form, Some(("logo", file))).await;
        assert!(refused.status == 422 && refused.text.contains("role=\"alert\""), "{refused:#?}");
        assert!(refused.text.contains("Acme Voice"), "{refused:#?}");
        assert!(refused.text.contains(&format!("value=\"{color}\"")), "{refused:#?}");
    }
    // A form of another site is rejected, and so is one that is not multipart.
    let page = browser.get("/settings").await;
    assert_eq!(
        browser.submit_from_site(&page, "/settings/brand", &form, "cross-site").await.status,
        403
    );
    assert_eq!(browser.submit(&page, "/settings/brand", &form).await.status, 415);
    let form = [("brand_name", ""), ("primary_color", ""), ("remove_logo", "true")];
    browser.upload(&page, "/settings/brand", &form, None).await;
    let page = browser.get("/settings").await;
    assert!(
        !page.text.contains("Acme Voice") && !page.text.contains("data:image/png"),
        "{page:#?}"
    );
}

#[tokio::test]
async fn workspaces_are_switched_renamed_and_deleted() {
    let app = TestClient::shared();
    let (dana, lee) = (app.register("acme").await, app.register("labs").await);
    app.insert_membership(&dana, &lee, "viewer").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let switch_to_other = format!("/workspaces/{}/enter", lee.workspace_id);
    let page = browser.get("/workspaces").await;
    let switch_to_own = format!("/workspaces/{}/enter", dana.workspace_id);
    let (switch_path, return_path) = if page.text.contains(&switch_to_other) {
        (&switch_to_other, &switch_to_own)
    } else {
        (&switch_to_own, &switch_to_other)
    };
    assert_eq!(browser.submit(&page, switch_path, &[]).await.redirect_target(), Some("/api-keys"));
    let page = browser.get("/workspaces").await;
    assert_eq!(browser.submit(&page, return_path, &[]).await.redirect_target(), Some("/api-keys"));
    // Rename the user's own workspace.
    let page = browser.get("/workspaces").await;
    if page.text.contains(&switch_to_own) {
        browser.submit(&page, &switch_to_own, &[]).await;
    }
    let page = browser.get("/settings").await;
    let done = browser.submit(&page, "/settings/workspace", &[("name", "Acme GmbH")]).await;
    assert_eq!(done.redirect_target(), Some("/settings?done=saved"));
    let page = browser.get("/settings").await;
    assert!(page.text.contains("Acme GmbH"));
    let last_owner = browser.submit(&page, "/settings/leave", &[]).await;
    assert!(
        last_owner.status == 403 && last_owner.text.contains("role=\"alert\""),
        "the last owner cannot leave"
    );
    let wrong = browser.submit(&page, "/settings/delete-workspace", &[("password", "wrong")]).await;
    assert_eq!(wrong.status, 422, "{wrong:#?}");
    let deleted =
        browser.submit(&page, "/settings/delete-workspace", &[("password", PASSWORD)]).await;
    assert_eq!(deleted.redirect_target(), Some("/sign-in"));
    assert_eq!(browser.get("/api-keys").await.status, 303);
    // After a new sign-in the user is in the remaining workspace, and deletes the account.
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    assert!(browser.get("/api-keys").await.text.contains("labs"));
    let page = browser.get("/settings").await;
    let deleted =
        browser.submit(&page, "/settings/delete-account", &[("password", PASSWORD)]).await;
    assert_eq!(deleted.redirect_target(), Some("/sign-in"), "{deleted:#?}");
    let page = browser.get("/sign-in").await;
    let fields = [("email", &*dana.email), ("password", PASSWORD)];
    assert_eq!(browser.submit(&page, "/sign-in", &fields).await.status, 422);
}

#[tokio::test]
async fn password_is_changed_on_page() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/second-factor").await;
    let path = "/second-factor/password";
    let new = ("new_password", "another horse, another battery");
    let wrong = browser.submit(&page, path, &[("current_password", "wrong"), new]).await;
    assert!(wrong.status == 422 && wrong.text.contains("role=\"alert\""), "{wrong:#?}");
    let done = browser.submit(&wrong, path, &[("current_password", PASSWORD), new]).await;
    assert!(done.status == 200 && done.text.contains("Password changed"), "{done:#?}");
    app.request_as(&dana.access_token, "GET", "/v1/auth/me")
        .send()
        .await
        .assert_error(401, "unauthorized");
    assert_eq!(browser.get("/api-keys").await.status, 200);
}

/// Where registration needs an invitation, sign-up is neither offered nor possible.
#[tokio::test]
async fn sign_up_is_rejected_where_invitation_is_required() {
    let app = TestApp::start_with(&[("sessions.registration", "invite")]).await;
    let mut browser = Browser::new(&app);
    let page = browser.get("/sign-in").await;
    assert!(!page.text.contains("Create an account"));
    let refused = browser.get("/sign-up").await;
    assert!(refused.status == 403 && refused.text.contains("invite"), "{refused:#?}");
    let mut fields = page.hidden_fields("/sign-in");
    fields.extend(
        [("email", "a@b.example"), ("password", PASSWORD)]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let refused = browser.post("/sign-up", &fields, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(refused.status, 403, "{refused:#?}");
}
