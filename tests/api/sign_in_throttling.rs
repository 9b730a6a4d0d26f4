//! Sign-in throttling: pauses grow with failed attempts, and attempts from other addresses do not
//! delay the owner.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{PASSWORD, TestApp, TestResponse};

async fn sign_in_from(app: &TestApp, ip: &str, email: &str, password: &str) -> TestResponse {
    let body = json!({ "email": email, "password": password });
    app.post("/v1/auth/login").header("x-forwarded-for", ip).json(body).send().await
}

/// A stranger can neither lock the owner out nor learn if an account exists.
#[tokio::test]
async fn sign_in_pauses_grow_for_the_guessing_address_only() {
    let proxy = [("server.trusted_proxies", "[\"127.0.0.1\"]")];
    let app = TestApp::start_with(&proxy).await;
    let node = TestApp::start_on(
        app.database.clone(),
        &[("server.public_url", &app.url), ("server.trusted_proxies", "[\"127.0.0.1\"]")],
    )
    .await;
    let dana = app.register("acme").await;
    for email in [&*dana.email, "nobody@acme.example"] {
        for index in 0..5 {
            // Attempts on both nodes and in any letter case count together.
            let node = if index % 2 == 0 { &app } else { &node };
            let guess =
                sign_in_from(node, "203.0.113.9", &email.to_uppercase(), "not this one at all")
                    .await;
            guess.assert_error(401, "invalid_credentials");
        }
        let early = sign_in_from(&node, "203.0.113.9", email, "not this one at all").await;
        early.assert_error(429, "rate_limited");
        assert!((1..=2).contains(&early.header_number("retry-after")));
    }
    // During the pause, the correct password is rejected too. From another email address, it works.
    sign_in_from(&app, "203.0.113.9", &dana.email, PASSWORD)
        .await
        .assert_error(429, "rate_limited");
    sign_in_from(&app, "203.0.113.10", &dana.email, PASSWORD).await.expect_status(200);
    // An IPv6 /64 network counts as one address.
    for last in 1..=5 {
        sign_in_from(&app, &format!("2001:db8::{last}"), &dana.email, "not this one at all").await;
    }
    sign_in_from(&app, "2001:db8::6", &dana.email, PASSWORD)
        .await
        .assert_error(429, "rate_limited");
    sign_in_from(&app, "2001:db8:0:1::6", &dana.email, PASSWORD).await.expect_status(200);

    let mut pauses = Vec::new();
    for _ in 0..12 {
        let early = sign_in_from(&app, "203.0.113.9", &dana.email, PASSWORD).await;
        early.assert_error(429, "rate_limited");
        let pause = early.header_number("retry-after");
        for node in [&app, &node] {
            node.clock.advance(Duration::from_secs(pause.unsigned_abs()));
        }
        pauses.push(pause);
        sign_in_from(&app, "203.0.113.9", &dana.email, "not this one at all")
            .await
            .assert_error(401, "invalid_credentials");
    }
    assert!(pauses.is_sorted() && pauses[0] <= 2, "{pauses:?}");
    assert!((890..=901).contains(pauses.last().unwrap()), "{pauses:?}");
    app.clock.advance(Duration::from_secs(901));
    sign_in_from(&app, "203.0.113.9", &dana.email, PASSWORD).await.expect_status(200);
    // The sign-in has reset the count.
    for _ in 0..5 {
        let guess = sign_in_from(&app, "203.0.113.9", &dana.email, "not this one at all").await;
        guess.assert_error(401, "invalid_credentials");
    }
}

/// Attempts that run at the same time, on different nodes, increment one counter.
#[tokio::test]
async fn concurrent_wrong_passwords_on_two_nodes_all_count() {
    let app = TestApp::start().await;
    let node = TestApp::start_on(app.database.clone(), &[("server.public_url", &app.url)]).await;
    let dana = app.register("acme").await;
    let guess = async |node: &TestApp| {
        let body = json!({ "email": dana.email, "password": "not this one at all" });
        node.post("/v1/auth/login").json(body).send().await
    };
    let guesses = tokio::join!(guess(&app), guess(&node), guess(&app), guess(&node), guess(&app));
    for guess in <[TestResponse; 5]>::from(guesses) {
        guess.assert_error(401, "invalid_credentials");
    }
    for node in [&app, &node] {
        guess(node).await.assert_error(429, "rate_limited");
    }
}

/// A session does not prove that its bearer knows the password.
#[tokio::test]
async fn session_cannot_guess_password_faster() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let change = async || {
        let body = json!({ "current_password": "not this one at all", "new_password": PASSWORD });
        app.request_as(&dana.access_token, "POST", "/v1/auth/password/change")
            .json(body)
            .send()
            .await
    };
    for _ in 0..5 {
        change().await.assert_error(422, "validation_failed").assert_field("current_password");
    }
    change().await.assert_error(429, "rate_limited");
    let delete = app.request_as(&dana.access_token, "DELETE", "/v1/workspace");
    let delete = delete.json(json!({ "password": PASSWORD })).send().await;
    delete.assert_error(429, "rate_limited");
}
