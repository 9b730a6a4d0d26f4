//! The dashboard in a real browser: with and without JavaScript, light and dark, wide and narrow,
//! by keyboard, and for screen readers. With `SCREENSHOTS=1` the tests save screenshots of all
//! pages in target/screenshots.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::fixture::{
    AccessibilityRules, Browser, Chromium, PASSWORD, SmtpSink, TestApp, TestClient, TestUser,
    eventually, link_token, oauth::OAuthExt,
};

/// Viewport widths of a desktop and of a small phone, in CSS pixels.
const WIDE: u32 = 1280;
const NARROW: u32 = 360;

async fn sign_in(browser: &Chromium, app: &TestApp, person: &TestUser) {
    browser.open(&format!("{}/sign-in?again=1", app.url)).await;
    browser.fill("[name=email]", &person.email).await;
    browser.fill("[name=password]", PASSWORD).await;
    browser.click("main form button").await;
    browser.wait_for_text("/api-keys", "API keys").await;
}

/// Runs a copied command line in a shell and returns its output.
async fn run_in_shell(line: &str) -> String {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", line]).kill_on_drop(true);
    let output = shell.output().await.unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn text_of(browser: &Chromium, css: &str) -> String {
    let found =
        browser.run_script(&format!("return document.querySelector({css:?}).textContent")).await;
    found.as_str().unwrap().to_owned()
}

/// The main user journey, with nothing but what the pages show.
#[tokio::test(flavor = "multi_thread")]
async fn new_user_signs_up_calls_api_and_rotates_key() {
    let app = TestApp::start_with(&[("rotation.quiet_seconds", "2")]).await;
    let browser = Chromium::start().await;
    browser.set_viewport(WIDE, false).await;
    browser.open(&app.url).await;
    browser.wait_for_text("/sign-in", "Create an account").await;
    browser.take_screenshot("sign-in").await;
    browser.click("a[href^='/sign-up']").await;
    browser.wait_for_text("/sign-up", "Create your account").await;
    browser.fill("[name=email]", "dana@acme.example").await;
    browser.fill("[name=password]", PASSWORD).await;
    browser.fill("[name=full_name]", "Dana Meyer").await;
    browser.fill("[name=workspace_name]", "Acme Voice").await;
    browser.click("main form button").await;
    browser.wait_for_text("/api-keys", "No keys yet").await;
    browser.take_screenshot("no-keys").await;
    browser.click("main a[href='/api-keys/new']").await;
    browser.wait_for_text("/api-keys/new", "Choose the lowest scope that works").await;
    browser.fill("[name=name]", "prod-2026-q2").await;
    browser.click("[name=scope][value=write]").await;
    browser.take_screenshot("create-a-key").await;
    browser.click("main form button").await;
    browser.wait_for_text("/api-keys", "Copy it now").await;
    browser.take_screenshot("a-fresh-key").await;
    let (old, curl) = (text_of(&browser, "#secret").await, text_of(&browser, "#curl").await);
    let barriers = browser.accessibility_violations(AccessibilityRules::All).await;
    assert!(barriers.is_empty(), "{barriers:#?}");
    browser.click("[data-copy=curl]").await;
    browser.wait_for_text("/api-keys", "Copied").await;
    println!(
        "interaction to next paint of the copy button: {:.0} ms",
        longest_interaction(&browser).await
    );
    assert!(run_in_shell(&format!("{curl} --silent")).await.contains("prod-2026-q2"));

    // The page shows the request without a reload.
    browser.wait_for_text("/api-keys", "GET /v1/auth/me").await;
    // The log is open when the next request arrives.
    browser.click("a.button[href^='/audit-log?key_id=']").await;
    browser.wait_for_text("/audit-log", "live").await;
    let agents = |key: &str| {
        format!(
            "curl --silent --output /dev/null --write-out '%{{http_code}}' {}/v1/agents -H 'Authorization: Bearer {key}'",
            app.url
        )
    };
    assert_eq!(run_in_shell(&agents(&old)).await, "200");
    browser.wait_for_text("/audit-log", "GET /v1/agents").await;
    for _ in 0..30 {
        app.get("/v1/agents").bearer(&old).send().await.expect_status(200);
    }
    browser.wait_for_count("[data-log] tr", 32).await;
    // New rows move the others smoothly, without a layout shift.
    let (_, shift, moved) = web_vitals(&browser).await;
    assert!(shift <= 0.0, "{shift}: {moved}");
    browser.take_screenshot("the-log-as-it-grows").await;
    browser.click(".side a[href='/api-keys']").await;
    browser.wait_for_text("/api-keys", "prod-2026-q2").await;
    browser.click(".list strong a").await;
    browser.wait_for_count(".chart", 2).await;
    let key = browser.run_script("return location.pathname").await.as_str().unwrap().to_owned();
    browser.click("main .head a[href$='/rotation']").await;
    browser.wait_for_count(".steps [aria-current=step]", 1).await;
    browser.fill("main [name=name]", "prod-2026-q3").await;
    browser.click("main form button").await;
    browser.wait_for_count("#secret", 1).await;
    let new = text_of(&browser, "#secret").await;
    browser.click("a[href$='/rotation']").await;
    browser.wait_for_count(".verdict.wait", 1).await;
    assert_eq!(run_in_shell(&agents(&new)).await, "200");
    // The page updates without interaction. (The test controls the clock of the service.)
    browser.wait_for_count(".facts .number", 1).await;
    eventually("the use of the new key is shown", async || {
        text_of(&browser, ".facts").await.contains("1 request").then_some(())
    })
    .await;
    browser.take_screenshot("a-rotation-under-way").await;
    app.clock.advance(Duration::from_secs(5));
    browser.wait_for_count(".verdict.safe", 1).await;
    assert_eq!(
        text_of(&browser, "[data-verdict]").await,
        "Safe to revoke",
        "screen readers announce the verdict"
    );
    browser.take_screenshot("safe-to-revoke").await;
    browser.click(".verdict a").await;
    browser.wait_for_count("button.danger", 1).await;
    browser.take_screenshot("revoke").await;
    browser.click("main form button.danger").await;
    browser.wait_for_text(&format!("{key}/rotation"), "Key revoked.").await;
    assert_eq!(run_in_shell(&agents(&old)).await, "401");
    assert_eq!(run_in_shell(&agents(&new)).await, "200");
    browser.open(&format!("{}/audit-log?changes=true", app.url)).await;
    browser.wait_for_text("/audit-log", "was used after it was revoked").await;
    // The browser logged no violation of the content security policy.
    let console = browser.post("/se/log", json!({ "type": "browser" })).await;
    let console: Vec<_> =
        console.as_array().unwrap().iter().map(|line| line["message"].to_string()).collect();
    assert!(!console.iter().any(|line| line.contains("Content Security Policy")), "{console:#?}");
}

/// Paths, and the text that each page shows when it is complete.
const PAGES: [(&str, &str); 12] = [
    ("/api-keys", "API keys"),
    ("/api-keys/new", "Choose the lowest scope that works"),
    ("KEY", "Last 48 hours"),
    ("KEY/rotation", "Clients still using the old key"),
    ("KEY/revoke", "Clients in the last hour"),
    ("/audit-log", "Everything that happens"),
    ("EVENT", "JSON"),
    ("/members", "Invite a member"),
    ("/connected-apps", "Connected apps"),
    ("/sessions", "Your sessions"),
    ("/second-factor", "Passkeys"),
    ("/settings", "This workspace"),
];

/// Creates a workspace with keys, requests and an invitation, with long and hostile names. Returns
/// its owner, a viewer, the path of a key and the path of an event.
async fn create_busy_workspace(app: &TestClient) -> (TestUser, TestUser, String, String) {
    let dana = app.register_verified("acme").await;
    let long = format!("<b>{}</b>", "verylongname".repeat(7));
    let key = app.create_key(&dana, &long, "write").await;
    app.request_as(&dana.access_token, "POST", &format!("/v1/api-keys/{}/rotate", key.id))
        .json(json!({}))
        .send()
        .await
        .expect_status(201);
    for number in 0..22 {
        app.create_key(&dana, &format!("key-{number} {}", "&".repeat(40)), "read-only").await;
    }
    for path in ["/v1/agents", "/v1/calls", "/v1/wallet/balance"] {
        app.get(path).bearer(&key.secret).header("user-agent", &long).send().await;
    }
    let body = json!({ "email": "somebody@new.example", "role": "viewer" });
    app.request_as(&dana.access_token, "POST", "/v1/invitations")
        .json(body)
        .send()
        .await
        .expect_status(201);
    let viewer = app.add_member(&dana, "viewer").await;
    let events =
        app.wait_for_event_count(&dana.access_token, &format!("key_id={}", key.id), 3).await;
    let details = format!("/api-keys/{}", key.id);
    let event = format!("/audit-log/{}", events[0]["id"].as_str().unwrap());
    (dana, viewer, details, event)
}

/// A tenth of the layout shift that web.dev calls good. On a busy machine the browser sometimes
/// paints a table before it knows the width of a form control in it.
const MAX_LAYOUT_SHIFT: f64 = 0.01;

/// A page as one role sees it.
#[derive(Clone, Copy)]
struct PageView<'a> {
    path: &'a str,
    /// Text that the page shows when it is complete.
    expected_text: &'a str,
    /// Prefix of the names of its screenshots.
    name: &'a str,
}

/// Checks a page in one width: no horizontal overflow, no layout shift and no accessibility
/// violation. Returns the largest contentful paint in milliseconds.
async fn check_layout(browser: &Chromium, app: &TestApp, view: PageView<'_>, width: u32) -> f64 {
    let PageView { path, expected_text, name } = view;
    let (pathname, _) = path.split_once('?').unwrap_or((path, ""));
    browser.set_viewport(width, false).await;
    browser.open(&format!("{}{path}", app.url)).await;
    browser.wait_for_text(pathname, expected_text).await;
    // Measure first, because taking a screenshot shifts the layout.
    let (paint, shift, moved) = web_vitals(browser).await;
    assert!(shift <= MAX_LAYOUT_SHIFT, "{path} shifts by {shift} at {width}: {moved}");
    browser.take_screenshot(&format!("{name}-{width}-light")).await;
    let wide = browser.run_script("return document.documentElement.scrollWidth - innerWidth").await;
    assert!(wide.as_i64().unwrap() <= 0, "{path} overflows by {wide} at {width}");
    let barriers = browser.accessibility_violations(AccessibilityRules::All).await;
    assert!(barriers.is_empty(), "{path} {width}: {barriers:#?}");
    browser.set_viewport(width, true).await;
    browser.take_screenshot(&format!("{name}-{width}-dark")).await;
    paint
}

/// Checks a page in both widths, the contrast of its dark colors, and that it has the same text
/// without JavaScript. Returns the slowest largest contentful paint in milliseconds.
async fn check_page(browser: &Chromium, app: &TestApp, view: PageView<'_>) -> f64 {
    let PageView { path, expected_text, .. } = view;
    let (pathname, _) = path.split_once('?').unwrap_or((path, ""));
    let mut slowest: f64 = 0.0;
    for width in [WIDE, NARROW] {
        slowest = slowest.max(check_layout(browser, app, view, width).await);
    }
    // The layout is the same as that of the light colors.
    let barriers = browser.accessibility_violations(AccessibilityRules::Contrast).await;
    assert!(barriers.is_empty(), "{path} dark: {barriers:#?}");
    browser.set_viewport(WIDE, false).await;
    browser.set_javascript_enabled(false).await;
    browser.open(&format!("{}{path}", app.url)).await;
    browser.set_javascript_enabled(true).await;
    browser.wait_for_text(pathname, expected_text).await;
    slowest
}

/// The parser of a browser on a busy machine pauses, as does a slow network, and the browser paints
/// the part that it has.
#[tokio::test(flavor = "multi_thread")]
async fn page_that_arrives_in_parts_does_not_shift() {
    let page = TestClient::shared().get("/sign-in").send().await;
    let (start, rest) = page.text.split_at(page.text.find("</svg>").unwrap());
    let start = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\n\
         content-security-policy: {}\r\nconnection: close\r\n\r\n{start}",
        page.header("content-security-policy"),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/sign-in", listener.local_addr().unwrap());
    let rest = rest.to_owned();
    let server = tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let (start, rest) = (start.clone(), rest.clone());
            tokio::spawn(async move {
                if connection.read(&mut [0; 4096]).await? == 0 {
                    return Ok(());
                }
                connection.write_all(start.as_bytes()).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                connection.write_all(rest.as_bytes()).await
            });
        }
    });
    let browser = Chromium::start().await;
    browser.set_viewport(WIDE, false).await;
    browser.open(&url).await;
    browser.wait_for_text("/sign-in", "Sign in").await;
    let (_, shift, moved) = web_vitals(&browser).await;
    assert!(shift <= 0.0, "the page shifts by {shift}: {moved}");
    server.abort();
}

/// Checks every page as an owner and as a viewer.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_accessible_to_owner_and_viewer() {
    let app = TestApp::start().await;
    let (dana, viewer, key, event) = create_busy_workspace(&app).await;
    let browser = Chromium::start().await;
    let mut slowest: f64 = 0.0;
    for (role, person) in [("owner", &dana), ("viewer", &viewer)] {
        browser.set_viewport(WIDE, false).await;
        sign_in(&browser, &app, person).await;
        for (page, expected_text) in PAGES {
            let path = page.replace("KEY", &key).replace("EVENT", &event);
            let is_refused =
                role == "viewer" && ["/api-keys/new", "KEY/revoke", "/members"].contains(&page);
            let expected_text = if is_refused { "admin scope" } else { expected_text };
            let name = page.replace("KEY", "/key").replace("EVENT", "/event").replace('/', "-");
            let name = format!("{role}{name}");
            let view = PageView { path: &path, expected_text, name: &name };
            // A viewer sees the same pages with fewer controls.
            let paint = match role {
                "owner" => check_page(&browser, &app, view).await,
                _ => check_layout(&browser, &app, view, WIDE).await,
            };
            slowest = slowest.max(paint);
        }
    }
    println!("largest contentful paint of the slowest page: {slowest:.0} ms; no layout shift");
}

/// Checks the pages before sign-in, and those that a link leads to.
#[tokio::test(flavor = "multi_thread")]
async fn every_page_before_sign_in_is_accessible() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    let branding = json!({ "brand_name": "Acme Voice", "primary_color": "#ffd43b" });
    app.request_as(&dana.access_token, "PUT", "/v1/users/me/branding")
        .json(branding)
        .send()
        .await
        .expect_status(200);
    let body = json!({ "email": "sam@new.example", "role": "viewer" });
    app.request_as(&dana.access_token, "POST", "/v1/invitations")
        .json(body)
        .send()
        .await
        .expect_status(201);
    let invitation = link_token(&sink.wait_for_email("sam@new.example", "Invitation").await);
    let invitation = format!("/accept-invitation?token={invitation}");
    let lee = app.register("lee").await;
    let verification = link_token(&sink.wait_for_email(&lee.email, "Verify").await);
    let verification = format!("/verify-email?token={verification}");
    let branded = format!("/sign-in?workspace={}", dana.workspace_id);
    let client = app.register_client(json!({})).await;
    let consent = client.authorization_url(&[]);
    let browser = Chromium::start().await;
    let pages = [
        ("/sign-in", "Forgot your password?", "sign-in"),
        (&*branded, "Acme Voice on Call2Me", "sign-in-branded"),
        ("/sign-up", "Create your account", "sign-up"),
        ("/forgot-password", "Send reset link", "forgot-password"),
        ("/reset-password?token=x", "Choose a new password", "reset-password"),
        (&*verification, "Confirm and remove everything", "verify-email"),
        (&*invitation, "Join acme", "accept-invitation"),
        ("/nothing-is-here", "Page not found", "no-page"),
    ];
    for (path, expected_text, name) in pages {
        check_page(&browser, &app, PageView { path, expected_text, name }).await;
    }
    browser.set_viewport(WIDE, false).await;
    sign_in(&browser, &app, &dana).await;
    let pages = [
        (&*consent, "Authorize Example app?", "consent"),
        ("/device", "Connect a device", "device"),
        ("/workspaces", "New workspace", "workspaces"),
    ];
    for (path, expected_text, name) in pages {
        check_page(&browser, &app, PageView { path, expected_text, name }).await;
    }
    browser.open(&format!("{}{consent}", app.url)).await;
    browser.wait_for_text("/oauth/authorize", "Acme Voice on Call2Me").await;
}

/// Returns the largest contentful paint in milliseconds, the cumulative layout shift (Core Web
/// Vitals), and the elements that shifted.
async fn web_vitals(browser: &Chromium) -> (f64, f64, String) {
    let code = "const done = arguments[0]; let paint = 0, shift = 0; const moved = []; \
                new PerformanceObserver((seen) => { for (const entry of seen.getEntries()) paint = entry.startTime; }) \
                .observe({ type: 'largest-contentful-paint', buffered: true }); \
                new PerformanceObserver((seen) => { for (const entry of seen.getEntries()) { \
                    shift += entry.value; \
                    for (const { node, previousRect: from, currentRect: to } of entry.sources) \
                        moved.push(`${node?.nodeName}.${node?.className}: ${from.x},${from.y} to ${to.x},${to.y}`); } }) \
                .observe({ type: 'layout-shift', buffered: true }); \
                setTimeout(() => done([paint, shift, moved.join('; ')]), 50);";
    let found = browser.post("/execute/async", json!({ "script": code, "args": [] })).await;
    let moved = found[2].as_str().unwrap().to_owned();
    (found[0].as_f64().unwrap(), found[1].as_f64().unwrap(), moved)
}

/// Returns the longest interaction to next paint (Core Web Vitals) in milliseconds. The browser
/// does not report interactions of less than 16 ms.
async fn longest_interaction(browser: &Chromium) -> f64 {
    let code = "const done = arguments[0]; let longest = 0; new PerformanceObserver((seen) => { \
                for (const entry of seen.getEntries()) if (entry.interactionId) longest = Math.max(longest, entry.duration); }) \
                .observe({ type: 'event', buffered: true, durationThreshold: 16 }); setTimeout(() => done([performance.interactionCount, longest]), 100);";
    let found = browser.post("/execute/async", json!({ "script": code, "args": [] })).await;
    assert!(found[0].as_u64().unwrap() > 0, "there was no interaction: {found}");
    found[1].as_f64().unwrap()
}

/// Skips the navigation and fills in a form, with the keyboard only.
#[tokio::test(flavor = "multi_thread")]
async fn key_is_created_by_keyboard_alone() {
    const TAB: &str = "\u{e004}";
    const ENTER: &str = "\u{e007}";
    const DOWN: &str = "\u{e015}";
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let browser = Chromium::start().await;
    browser.open(&format!("{}/sign-in", app.url)).await;
    browser.wait_for_text("/sign-in", "Sign in").await;
    browser.type_keys(&format!("{}{TAB}{PASSWORD}{ENTER}", dana.email)).await;
    browser.wait_for_text("/api-keys", "No keys yet").await;
    // The first tab stop skips the navigation.
    browser.type_keys(TAB).await;
    assert_eq!(
        browser.run_script("return document.activeElement.getAttribute('href')").await,
        "#main"
    );
    browser.type_keys(ENTER).await;
    browser.type_keys(TAB).await;
    assert_eq!(
        browser.run_script("return document.activeElement.textContent").await,
        "Create API key"
    );
    let ring = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(browser.run_script(ring).await, "solid", "the focused element has an outline");
    browser.type_keys(ENTER).await;
    browser.wait_for_text("/api-keys/new", "Choose the lowest scope that works").await;
    browser.type_keys(&format!("by-keyboard{TAB}{DOWN}{ENTER}")).await;
    browser.wait_for_text("/api-keys", "Copy it now").await;
    let me = app
        .get("/v1/auth/me")
        .bearer(&text_of(&browser, "#secret").await)
        .send()
        .await
        .expect_status(200);
    assert_eq!((&me["subject"]["name"], &me["scope"]), (&json!("by-keyboard"), &json!("write")));
}

/// A page takes one round trip and less than 60 KB.
#[tokio::test]
async fn every_page_is_small_and_self_contained() {
    let app = TestClient::shared();
    let (dana, _, key, event) = create_busy_workspace(&app).await;
    let logo = format!(
        "data:image/png;base64,{}",
        data_encoding::BASE64.encode(&[&b"\x89PNG\r\n\x1a\n"[..], &[7; 16_000]].concat())
    );
    let branding = json!({ "brand_name": "Acme", "primary_color": "#0b7285", "logo": logo });
    app.request_as(&dana.access_token, "PUT", "/v1/users/me/branding")
        .json(branding)
        .send()
        .await
        .expect_status(200);
    for _ in 0..40 {
        app.request_as(&dana.access_token, "GET", "/v1/agents").send().await.expect_status(200);
    }
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    eventually("the log is full", async || {
        browser.new_window().get("/audit-log").await.text.contains("Older events").then_some(())
    })
    .await;
    let mut largest = (0, String::new());
    for (page, _) in PAGES {
        let path = page.replace("KEY", &key).replace("EVENT", &event);
        let page = browser.get(&path).await;
        assert_eq!(page.status, 200, "{path}");
        let scripts = page.text.matches("<script src=").count();
        let bytes = page.text.len()
            + scripts * include_str!("../../src/http/dashboard/assets/dashboard.js").len();
        assert!(bytes < 60_000, "{path}: {bytes}");
        largest = largest.max((bytes, path));
        // Nothing that delays rendering needs another request.
        assert!(
            !page.text.contains("rel=\"stylesheet\"") && !page.text.contains("<script src=\"http")
        );
        for script in page.text.split("<script").skip(1) {
            assert!(script.split('>').next().unwrap().ends_with(" defer"), "{script}");
        }
        assert!(!page.text.contains("<img src=\"/"), "images are inlined");
    }
    println!("largest page: {} bytes, {}", largest.0, largest.1);
}
