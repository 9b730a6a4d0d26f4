//! Sign-in throttling: pauses grow with failed attempts, and attempts from other addresses do not
//! delay the owner.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{PASSWORD, SmtpSink, TestApp, TestClient, TestResponse};

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
    let app = TestClient::shared();
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

const GUESS: &str = "not this one at all";

/// Sign-ins with a wrong password from these addresses, one after the other. Returns the number
/// that was evaluated; all others must be 429.
async fn count_evaluated(app: &TestApp, email: &str, addresses: &[String]) -> usize {
    let mut evaluated = 0;
    for ip in addresses {
        let guess = sign_in_from(app, ip, email, GUESS).await;
        if guess.status == 401 {
            evaluated += 1;
        } else {
            guess.assert_error(429, "rate_limited");
            assert!((1..=60).contains(&guess.header_number("retry-after")));
        }
    }
    evaluated
}

/// The owner signs in from a known network meanwhile.
#[tokio::test]
async fn guesses_at_one_account_are_limited_over_all_networks() {
    let settings =
        [("server.trusted_proxies", "[\"127.0.0.1\"]"), ("rate_limit.sign_in_per_minute", "10")];
    for network in 0..3 {
        let app = TestApp::start_with(&settings).await;
        let dana = app.register("acme").await;
        let address = |n: usize| match network {
            0 => format!("2001:db8:1:{n:x}::1"),
            1 => format!("203.0.113.{n}"),
            _ => format!("198.51.{n}.1"),
        };
        let addresses: Vec<_> = (0..120).map(address).collect();
        for email in [&*dana.email, "nobody@acme.example"] {
            let evaluated = count_evaluated(&app, email, &addresses).await;
            assert!((1..=10).contains(&evaluated), "{evaluated} from {}", addresses[0]);
            // The buckets of the networks are full again.
            app.clock.advance(Duration::from_mins(2));
        }
        app.sign_in_again(&dana).await;
    }
}

/// A network cannot guess at many accounts either: /48 and /24 have a limit too.
#[tokio::test]
async fn sign_ins_of_one_network_are_limited() {
    let settings =
        [("server.trusted_proxies", "[\"127.0.0.1\"]"), ("rate_limit.sign_in_per_minute", "2")];
    for (prefix, suffix, expected) in
        [("2001:db8:1:", "::1", 8), ("2001:db8:1:", "00::1", 16), ("203.0.113.", "", 16)]
    {
        let app = TestApp::start_with(&settings).await;
        let mut evaluated = 0;
        for n in 1..40 {
            let ip = format!("{prefix}{n}{suffix}");
            let email = format!("user{n}@acme.example");
            evaluated += count_evaluated(&app, &email, &[ip]).await;
        }
        assert_eq!(evaluated, expected, "{prefix}…{suffix}");
    }
}

#[tokio::test]
async fn parallel_guesses_are_counted_before_they_are_evaluated() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let change = json!({ "current_password": GUESS, "new_password": PASSWORD });
    for (method, path, body) in [
        ("POST", "/v1/auth/password/change", change),
        ("DELETE", "/v1/workspace", json!({ "password": GUESS })),
        ("POST", "/v1/auth/login", json!({ "email": dana.email, "password": GUESS })),
    ] {
        app.clock.advance(Duration::from_hours(1));
        let dana = app.sign_in_again(&dana).await;
        let guess = || app.request_as(&dana.access_token, method, path).json(body.clone()).send();
        let guesses = futures_util::future::join_all((0..60).map(|_| guess())).await;
        let evaluated = guesses.iter().filter(|guess| guess.status != 429).count();
        assert_eq!(evaluated, 5, "{path}");
    }
}

#[tokio::test]
async fn owner_is_notified_of_guesses_once_a_day() {
    let sink = SmtpSink::start();
    let proxy = ("server.trusted_proxies", "[\"127.0.0.1\"]");
    let app = TestApp::start_with(&[proxy, ("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    let guess_from = async |network: u8, count: u8| {
        let addresses: Vec<_> = (0..count).map(|n| format!("203.{network}.{n}.1")).collect();
        for email in [&*dana.email, "nobody@acme.example"] {
            assert_eq!(count_evaluated(&app, email, &addresses).await, usize::from(count));
        }
    };
    let notifications = || {
        let emails = sink.emails_to(&dana.email).into_iter();
        emails.filter(|email| email["subject"].as_str().unwrap().contains("guess")).count()
    };
    // The owner's own mistakes do not count.
    for _ in 0..4 {
        app.post("/v1/auth/login")
            .json(json!({ "email": dana.email, "password": GUESS }))
            .send()
            .await
            .assert_error(401, "invalid_credentials");
    }
    guess_from(1, 19).await;
    assert_eq!(notifications(), 0);
    guess_from(2, 30).await;
    let email = sink.wait_for_email(&dana.email, "guess").await;
    assert!(email["text"].as_str().unwrap().contains("IP address: 203.2.0.1"), "{email:#}");
    app.clock.advance(Duration::from_hours(23));
    guess_from(3, 30).await;
    app.clock.advance(Duration::from_hours(2));
    guess_from(4, 30).await;
    crate::fixture::eventually("the second email", async || (notifications() == 2).then_some(()))
        .await;
    assert!(sink.emails_to("nobody@acme.example").is_empty());
}
