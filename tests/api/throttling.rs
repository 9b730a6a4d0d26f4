//! Guesses at passwords: fewer and fewer, and no stranger's cost the owner anything.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{Answer, PASSWORD, TestApp};

async fn from(app: &TestApp, ip: &str, email: &str, password: &str) -> Answer {
    let body = json!({ "email": email, "password": password });
    app.post("/v1/auth/login").header("x-forwarded-for", ip).json(body).send().await
}

/// The owner is not kept out by a stranger, and a stranger does not learn whether there is an account.
#[tokio::test]
async fn guesses_wait_longer_and_longer_and_strangers_for_themselves_alone() {
    let proxy = [("server.trusted_proxies", "[\"127.0.0.1\"]")];
    let app = TestApp::start_with(&proxy).await;
    let node = TestApp::start_on(
        app.database.clone(),
        &[("server.public_url", &app.url), ("server.trusted_proxies", "[\"127.0.0.1\"]")],
    )
    .await;
    let dana = app.register("acme").await;
    for email in [&*dana.email, "nobody@acme.example"] {
        for at in 0..5 {
            // On whatever node, and with whatever case.
            let node = if at % 2 == 0 { &app } else { &node };
            let guess =
                from(node, "203.0.113.9", &email.to_uppercase(), "not this one at all").await;
            guess.refused(401, "invalid_credentials");
        }
        let early = from(&node, "203.0.113.9", email, "not this one at all").await;
        early.refused(429, "rate_limited");
        assert!((1..=2).contains(&early.number("retry-after")));
    }
    // During the pause a right one is not looked at either; elsewhere it is.
    from(&app, "203.0.113.9", &dana.email, PASSWORD).await.refused(429, "rate_limited");
    from(&app, "203.0.113.10", &dana.email, PASSWORD).await.expect(200);
    // Of IPv6, the /64.
    for last in 1..=5 {
        from(&app, &format!("2001:db8::{last}"), &dana.email, "not this one at all").await;
    }
    from(&app, "2001:db8::6", &dana.email, PASSWORD).await.refused(429, "rate_limited");
    from(&app, "2001:db8:0:1::6", &dana.email, PASSWORD).await.expect(200);

    let mut pauses = Vec::new();
    for _ in 0..12 {
        let early = from(&app, "203.0.113.9", &dana.email, PASSWORD).await;
        early.refused(429, "rate_limited");
        let pause = early.number("retry-after");
        for node in [&app, &node] {
            node.clock.advance(Duration::from_secs(pause.unsigned_abs()));
        }
        pauses.push(pause);
        from(&app, "203.0.113.9", &dana.email, "not this one at all")
            .await
            .refused(401, "invalid_credentials");
    }
    assert!(pauses.is_sorted() && pauses[0] <= 2, "{pauses:?}");
    assert!((890..=901).contains(pauses.last().unwrap()), "{pauses:?}");
    app.clock.advance(Duration::from_secs(901));
    from(&app, "203.0.113.9", &dana.email, PASSWORD).await.expect(200);
    // And it is forgotten.
    for _ in 0..5 {
        let guess = from(&app, "203.0.113.9", &dana.email, "not this one at all").await;
        guess.refused(401, "invalid_credentials");
    }
}

/// Who holds a session has not the password.
#[tokio::test]
async fn the_bearer_of_a_session_guesses_as_rarely() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let change = async || {
        let body = json!({ "current_password": "not this one at all", "new_password": PASSWORD });
        app.by(&dana.access_token, "POST", "/v1/auth/password/change").json(body).send().await
    };
    for _ in 0..5 {
        change().await.refused(422, "validation_failed").blames("current_password");
    }
    change().await.refused(429, "rate_limited");
    let delete = app.by(&dana.access_token, "DELETE", "/v1/workspace");
    let delete = delete.json(json!({ "password": PASSWORD })).send().await;
    delete.refused(429, "rate_limited");
}
