//! Tokens: codes redeemed, grants that go on, clients that act for themselves.

use std::time::Duration;

use serde_json::json;

use crate::fixture::{
    Browser, TestApp,
    oauth::{OAuth, VERIFIER, basic, claims, form},
};

#[tokio::test]
async fn a_code_works_once_and_whoever_has_both_halves_ends_it() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (client, other) = (app.oauth_client(json!({})).await, app.oauth_client(json!({})).await);
    let mut browser = Browser::of(&app, &dana.email).await;
    let code = app.code_by(&mut browser, &client, &[]).await;
    let with = |verifier: &'static str| {
        [("grant_type", "authorization_code"), ("code", &*code), ("code_verifier", verifier)]
    };
    let wrong = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXK";
    // What does not fit uses nothing up.
    app.token(&client.shows(&with(wrong))).await.told(400, "invalid_grant");
    app.token(&client.shows(&with("short"))).await.told(400, "invalid_grant");
    app.token(&client.shows(&with(""))).await.told(400, "invalid_request");
    app.token(&other.shows(&with(VERIFIER))).await.told(400, "invalid_grant");
    let elsewhere = [&with(VERIFIER)[..], &[("redirect_uri", "https://client.example/x")]].concat();
    app.token(&client.shows(&elsewhere)).await.told(400, "invalid_grant");

    let tokens = app.token(&client.shows(&with(VERIFIER))).await.expect(200);
    let [access, refresh] =
        ["access_token", "refresh_token"].map(|name| tokens[name].as_str().unwrap());
    app.by(access, "GET", "/v1/agents").send().await.expect(200);
    // A thief of the code alone cannot even end what it gave.
    app.token(&client.shows(&with(wrong))).await.told(400, "invalid_grant");
    app.token(&other.shows(&with(VERIFIER))).await.told(400, "invalid_grant");
    app.by(access, "GET", "/v1/agents").send().await.expect(200);

    app.token(&client.shows(&with(VERIFIER))).await.told(400, "invalid_grant");
    app.by(access, "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    app.refresh(&client, refresh).await.told(400, "invalid_grant");
    let reuse = app.events_of(&dana.access_token, "action=oauth.reuse_detected", 1).await.remove(0);
    assert_eq!(
        (&reuse["actor"]["id"], &reuse["metadata"]["reason"]),
        (&json!(client.id), &json!("code_reuse"))
    );
}

#[tokio::test]
async fn a_code_lives_for_a_minute() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let code = app.code_by(&mut browser, &client, &[]).await;
    let late = app.code_by(&mut browser, &client, &[("prompt", "consent")]).await;
    app.clock.advance(Duration::from_secs(59));
    app.redeem(&client, &code).await.expect(200);
    app.clock.advance(Duration::from_secs(1));
    app.redeem(&client, &late).await.told(400, "invalid_grant");
    for code in ["", "x", &code[1..], &late.to_lowercase()] {
        let error = if code.is_empty() { "invalid_request" } else { "invalid_grant" };
        app.redeem(&client, code).await.told(400, error);
    }
}

#[tokio::test]
async fn of_a_hundred_redemptions_at_once_one_succeeds() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let code = app.code_by(&mut browser, &client, &[]).await;
    let tries = (0..100)
        .map(|n| if n % 2 == 0 { &app } else { &node })
        .map(|node| node.redeem(&client, &code));
    let answers = futures_util::future::join_all(tries).await;
    let good = answers.iter().filter(|answer| answer.status == 200).count();
    let bad = answers.iter().filter(|answer| answer.body["error"] == "invalid_grant").count();
    assert_eq!((good, bad), (1, 99));
}

#[tokio::test]
async fn a_public_clients_refresh_token_rotates_and_a_lost_answer_breaks_nothing() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let first = tokens["refresh_token"].as_str().unwrap();
    let text = |body: &serde_json::Value| body["refresh_token"].as_str().unwrap().to_owned();

    let answer = app.refresh(&client, first).await.expect(200);
    let second = text(&answer);
    assert_ne!(second, first);
    assert_ne!(answer["access_token"], tokens["access_token"]);
    // The answer was lost. It is asked for again, ten minutes later and ten days later.
    app.clock.advance(Duration::from_mins(10));
    assert_eq!(text(&app.refresh(&client, first).await.expect(200)), second);
    app.clock.advance(Duration::from_hours(240));
    assert_eq!(text(&app.refresh(&client, first).await.expect(200)), second);
    // Once the successor is used, the one before is a reuse.
    let third = text(&app.refresh(&client, &second).await.expect(200));
    assert_eq!(text(&app.refresh(&client, &second).await.expect(200)), third);
    app.refresh(&client, first).await.told(400, "invalid_grant");
    app.refresh(&client, &third).await.told(400, "invalid_grant");
    let dana = app.join(&dana, "admin").await;
    let reuse = app.events_of(&dana.access_token, "action=oauth.reuse_detected", 1).await;
    assert_eq!(reuse[0]["metadata"]["reason"], "refresh_reuse");
}

#[tokio::test]
async fn of_a_hundred_refreshes_at_once_all_get_the_same_successor() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let first = tokens["refresh_token"].as_str().unwrap();
    let tries = (0..100)
        .map(|n| if n % 2 == 0 { &app } else { &node })
        .map(|node| node.refresh(&client, first));
    let answers = futures_util::future::join_all(tries).await;
    let mut successors: Vec<_> =
        answers.into_iter().map(|answer| answer.expect(200)["refresh_token"].to_string()).collect();
    successors.sort();
    successors.dedup();
    assert_eq!(successors.len(), 1);
}

/// Goes on by months, for which the log has partitions.
async fn later(app: &TestApp, by: Duration) {
    app.clock.advance(by);
    app.app.store.create_audit_partitions(app.app.env.clock.now()).await.unwrap();
}

#[tokio::test]
async fn a_confidential_clients_refresh_token_stays() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.confidential_client().await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    for _ in 0..3 {
        let answer = app.refresh(&client, token).await.expect(200);
        assert_eq!(answer["refresh_token"], token);
        let access = answer["access_token"].as_str().unwrap();
        app.by(access, "GET", "/v1/agents").send().await.expect(200);
    }
    // Without the secret it is worth nothing.
    let mut stolen = client.clone();
    stolen.secret = None;
    app.refresh(&stolen, token).await.told(401, "invalid_client");
    // A connection that nobody uses for ninety days is over.
    later(&app, Duration::from_hours(89 * 24)).await;
    app.refresh(&client, token).await.expect(200);
    later(&app, Duration::from_hours(90 * 24)).await;
    app.refresh(&client, token).await.told(400, "invalid_grant");
}

#[tokio::test]
async fn a_refresh_narrows_and_never_widens() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[("scope", "call2me:write")]).await;
    let mut token = tokens["refresh_token"].as_str().unwrap().to_owned();
    for (asked, scope) in [
        ("call2me:read", "call2me:read"),
        ("call2me:read call2me:write call2me:admin", "call2me:read call2me:write"),
        ("offline_access call2me:read", "call2me:read"),
        ("", "call2me:read call2me:write"),
    ] {
        let fields =
            [("grant_type", "refresh_token"), ("refresh_token", &*token), ("scope", asked)];
        let answer = app.token(&client.shows(&fields)).await.expect(200);
        assert_eq!(answer["scope"], scope, "{asked}");
        let claimed = claims(answer["access_token"].as_str().unwrap());
        assert_eq!(claimed["scope"], scope);
        answer["refresh_token"].as_str().unwrap().clone_into(&mut token);
    }
}

#[tokio::test]
async fn foreign_tokens_are_worth_nothing() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let other = app.confidential_client().await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    app.refresh(&other, token).await.told(400, "invalid_grant");
    // Those of the dashboard are of another kind, and the other way round.
    app.refresh(&client, &dana.refresh_token).await.told(400, "invalid_grant");
    let body = json!({ "refresh_token": token });
    app.post("/v1/auth/refresh").json(body).send().await.refused(401, "invalid_refresh_token");
    app.by(token, "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    for made_up in ["", "rt_call2me_x", &dana.access_token, &token[..token.len() - 1]] {
        let error = if made_up.is_empty() { "invalid_request" } else { "invalid_grant" };
        app.refresh(&client, made_up).await.told(400, error);
    }
    app.refresh(&client, token).await.expect(200);
}

#[tokio::test]
async fn clients_show_who_they_are_in_one_way() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let (public, secret) = (app.oauth_client(json!({})).await, app.confidential_client().await);
    let key = secret.secret.as_deref().unwrap();
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &secret, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    let refresh = [("grant_type", "refresh_token"), ("refresh_token", token)];
    let by = |header: String, extra: &[(&str, &str)]| {
        let body = form(&[&refresh[..], extra].concat());
        let post = app.post("/oauth/token").header("authorization", &header);
        post.body("application/x-www-form-urlencoded;charset=UTF-8", body).send()
    };
    by(basic(&secret.id, key), &[]).await.expect(200);
    by(basic(&secret.id, key), &[("client_id", &secret.id)]).await.expect(200);
    // Encoded as RFC 6749 wants it, by those who encode more than they need.
    let encoded = |text: &str| text.replace('_', "%5F").replace('-', "%2D");
    by(basic(&encoded(&secret.id), &encoded(key)), &[]).await.expect(200);

    let wrong = by(basic(&secret.id, "cs_call2me_x"), &[]).await;
    wrong.told(401, "invalid_client");
    assert!(wrong.header("www-authenticate").starts_with("Basic "));
    by(basic(&secret.id, ""), &[]).await.told(401, "invalid_client");
    by(basic("client_01jd0zt8q7f7qvs4p2k6x3m9ab", key), &[]).await.told(401, "invalid_client");
    by("Basic !!!".to_owned(), &[]).await.told(401, "invalid_client");
    by(format!("Bearer {}", dana.access_token), &[]).await.told(401, "invalid_client");
    by(basic(&secret.id, key), &[("client_secret", key)]).await.told(400, "invalid_request");
    by(basic(&secret.id, key), &[("client_id", &public.id)]).await.told(400, "invalid_request");

    app.token(&refresh).await.told(401, "invalid_client");
    let mut twice = secret.shows(&refresh);
    twice.push(("client_id", &secret.id));
    app.token(&twice).await.told(400, "invalid_request");
    let mut pretender = public.clone();
    pretender.secret = secret.secret.clone();
    app.token(&pretender.shows(&refresh)).await.told(401, "invalid_client");
}

#[tokio::test]
async fn malformed_requests_are_told_in_the_words_of_the_rfc() {
    let app = TestApp::start_with(&[("server.max_body_bytes", "20000")]).await;
    let client = app.oauth_client(json!({})).await;
    let of = |fields: &[(&'static str, &'static str)]| {
        let fields = fields.to_vec();
        let (app, client) = (&app, &client);
        async move { app.token(&client.shows(&fields)).await }
    };
    of(&[]).await.told(400, "invalid_request");
    of(&[("grant_type", "password"), ("username", "a")]).await.told(400, "unsupported_grant_type");
    of(&[("grant_type", "implicit")]).await.told(400, "unsupported_grant_type");
    of(&[("grant_type", "client_credentials")]).await.told(400, "unauthorized_client");
    let twice = [("grant_type", "refresh_token"), ("grant_type", "refresh_token")];
    of(&twice).await.told(400, "invalid_request");
    let long: &'static str = Box::leak("x".repeat(5000).into_boxed_str());
    of(&[("grant_type", "refresh_token"), ("refresh_token", long)])
        .await
        .told(400, "invalid_request");
    let body = |kind: &str, text: String| app.post("/oauth/token").body(kind, text).send();
    body("application/json", "{}".to_owned()).await.told(415, "invalid_request");
    body("application/x-www-form-urlencoded", "a=%zz".to_owned())
        .await
        .told(400, "invalid_request");
    body("application/x-www-form-urlencoded", "x".repeat(30_000))
        .await
        .told(413, "invalid_request");
    let many = (0..20_000).map(|n| format!("{n}=1")).collect::<Vec<_>>().join("&");
    body("application/x-www-form-urlencoded", many[..19_000].to_owned())
        .await
        .told(400, "invalid_request");
    // What is in the URL is no credential.
    let query = form(&client.shows(&[("grant_type", "refresh_token"), ("refresh_token", "x")]));
    let in_url = app.post(&format!("/oauth/token?{query}"));
    let in_url = in_url.body("application/x-www-form-urlencoded", "grant_type=refresh_token");
    in_url.send().await.told(401, "invalid_client");
    app.get("/oauth/token").send().await.refused(405, "method_not_allowed");
    app.get("/oauth/nothing").send().await.refused(404, "not_found");
}

#[tokio::test]
async fn an_outage_is_told_as_one_and_never_as_the_end() {
    let app = TestApp::start_with(&[("database.acquire_timeout_seconds", "1")]).await;
    let dana = app.register("acme").await;
    let client = app.confidential_client().await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let code = app.code_by(&mut browser, &client, &[("prompt", "consent")]).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    app.database.allow_connections(false).await;
    for answer in [app.refresh(&client, token).await, app.redeem(&client, &code).await] {
        answer.told(503, "temporarily_unavailable");
        assert!(answer.number("retry-after") >= 1);
    }
    let page = browser.get(&client.authorize(&[])).await;
    assert_eq!(page.status, 503, "{page:#?}");
    app.database.allow_connections(true).await;
    crate::fixture::eventually("PostgreSQL is back", async || {
        (app.refresh(&client, token).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn floods_are_told_to_wait_and_good_tokens_pass() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "30")]).await;
    let dana = app.register("acme").await;
    let client = app.confidential_client().await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    let mut last = None;
    for _ in 0..40 {
        last = Some(app.refresh(&client, "rt_call2me_guess").await);
    }
    let last = last.unwrap();
    last.told(429, "temporarily_unavailable");
    assert!(last.number("retry-after") >= 1);
    // Others behind the same address keep nobody with a good token out.
    app.refresh(&client, token).await.expect(200);
}

/// Who lacks what the workspace asks for is kept out, and not disconnected.
#[tokio::test]
async fn a_second_factor_that_is_asked_for_holds_tokens_back_and_ends_nothing() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.confidential_client().await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let [access, refresh] =
        ["access_token", "refresh_token"].map(|name| tokens[name].as_str().unwrap());
    let ask = async |whether: bool| {
        let mut connection = app.database.connect().await;
        let sql = "UPDATE workspaces SET require_second_factor = $1";
        sqlx::query(sql).bind(whether).execute(&mut connection).await.unwrap();
        app.database.every_node_knows().await;
    };
    ask(true).await;
    let held = app.refresh(&client, refresh).await;
    held.told(503, "temporarily_unavailable");
    assert_eq!(held.number("retry-after"), 60);
    let look = client.shows(&[("token", refresh)]);
    assert_eq!(app.oauth("/oauth/introspect", &look).await.expect(200), json!({ "active": false }));
    // What is given back meanwhile does not come back.
    app.oauth("/oauth/revoke", &client.shows(&[("token", access)])).await.expect(200);
    ask(false).await;
    app.by(access, "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    app.refresh(&client, refresh).await.expect(200);
}

#[tokio::test]
async fn what_is_refused_is_in_the_log_under_the_clients_name() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "Booking", "redirect_uris": ["https://client.example/cb"] });
    let made = app.by(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    let client = crate::fixture::oauth::OAuthClient::of(&made.expect(201));
    let mut browser = Browser::of(&app, &dana.email).await;
    let code = app.code_by(&mut browser, &client, &[]).await;
    let mut wrong = client.clone();
    wrong.secret = Some("cs_call2me_wrong".to_owned());
    app.redeem(&wrong, &code).await.told(401, "invalid_client");
    let rejected = app.events_of(&dana.access_token, "action=oauth.client_rejected", 1).await;
    assert_eq!(rejected[0]["target"]["name"], "Booking");
    app.clock.advance(Duration::from_mins(2));
    app.redeem(&client, &code).await.told(400, "invalid_grant");
    let refused =
        app.events_of(&dana.access_token, "action=oauth.token_refused", 1).await.remove(0);
    assert_eq!(
        (&refused["actor"]["id"], &refused["metadata"]["user_id"]),
        (&json!(client.id), &json!(dana.user_id))
    );
}

/// Who gets tokens does not get them without an end.
#[tokio::test]
async fn one_grant_gives_so_many_tokens_a_minute() {
    let app = TestApp::start_with(&[("rate_limit.per_key_per_minute", "5")]).await;
    let dana = app.register("acme").await;
    let client = app.confidential_client().await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let token = tokens["refresh_token"].as_str().unwrap();
    for _ in 0..4 {
        app.refresh(&client, token).await.expect(200);
    }
    let limited = app.refresh(&client, token).await;
    limited.told(429, "temporarily_unavailable");
    app.clock.advance(Duration::from_secs(limited.number("retry-after").unsigned_abs()));
    app.refresh(&client, token).await.expect(200);
}

#[tokio::test]
async fn a_client_acts_for_itself_in_its_own_workspace() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "Robot", "grant_types": ["client_credentials"], "scope": "write" });
    let made = app.by(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    let client = crate::fixture::oauth::OAuthClient::of(&made.expect(201));
    let fields = [("grant_type", "client_credentials")];
    let tokens = app.token(&client.shows(&fields)).await.expect(200);
    assert_eq!(
        (&tokens["scope"], &tokens["refresh_token"]),
        (&json!("call2me:read call2me:write"), &json!(null))
    );
    let token = tokens["access_token"].as_str().unwrap();
    let claims = claims(token);
    assert_eq!((&claims["sub"], &claims["client_id"]), (&json!(client.id), &json!(client.id)));
    app.by(token, "POST", "/v1/agents").json(json!({ "agent_name": "a" })).send().await.expect(201);
    let me = app.by(token, "GET", "/v1/auth/me").send().await.expect(200);
    assert_eq!((&me["subject"]["type"], me.get("user")), (&json!("oauth_client"), None));
    app.by(token, "GET", "/v1/users/me").send().await.refused(404, "not_found");
    // No more than it was made for.
    let more = [("grant_type", "client_credentials"), ("scope", "call2me:admin")];
    let more = app.token(&client.shows(&more)).await.expect(200);
    assert_eq!(more["scope"], "call2me:read call2me:write");
    // It dies with its client.
    let path = format!("/v1/oauth/clients/{}", client.id);
    app.by(&dana.access_token, "DELETE", &path).send().await.expect(204);
    app.by(token, "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    app.token(&client.shows(&fields)).await.told(401, "invalid_client");
}

#[tokio::test]
async fn a_client_that_asks_twice_at_once_has_one_grant_for_itself() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let body = json!({ "name": "Robot", "grant_types": ["client_credentials"] });
    let made = app.by(&dana.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    let client = crate::fixture::oauth::OAuthClient::of(&made.expect(201));
    let fields = [("grant_type", "client_credentials")];
    let tries = (0..20)
        .map(|n| if n % 2 == 0 { &app } else { &node })
        .map(async |node| node.token(&client.shows(&fields)).await);
    let answers = futures_util::future::join_all(tries).await;
    let grants: std::collections::HashSet<_> = answers
        .into_iter()
        .map(|answer| claims(answer.expect(200)["access_token"].as_str().unwrap())["sid"].clone())
        .map(|sid| sid.to_string())
        .collect();
    assert_eq!(grants.len(), 1, "{grants:?}");
}

#[tokio::test]
async fn tokens_are_for_the_resource_that_was_named() {
    let mcp = "https://mcp.example/mcp";
    let app = TestApp::start_with(&[("oauth.resources", "https://mcp.example/mcp")]).await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens =
        app.tokens_by(&mut browser, &client, &[("resource", "https://mcp.example/mcp/")]).await;
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(claims(token)["aud"], mcp);
    // It is none for this API.
    app.by(token, "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    let refresh = |token: String, resource: &'static str| {
        let client = client.clone();
        let app = &app;
        async move {
            let fields = [
                ("grant_type", "refresh_token"),
                ("refresh_token", &*token),
                ("resource", resource),
            ];
            app.token(&client.shows(&fields)).await
        }
    };
    let text = tokens["refresh_token"].as_str().unwrap().to_owned();
    refresh(text.clone(), "https://elsewhere.example").await.told(400, "invalid_target");
    refresh(text.clone(), "https://mcp.example").await.told(400, "invalid_target");
    let own = app.url.clone();
    refresh(text.clone(), Box::leak(own.into_boxed_str())).await.told(400, "invalid_target");
    let again = refresh(text, mcp).await.expect(200);
    assert_eq!(claims(again["access_token"].as_str().unwrap())["aud"], mcp);

    // Both at once, and then either.
    let both = client.authorize(&[("resource", mcp), ("prompt", "consent")])
        + &format!("&resource={}", form(&[("x", &app.url)]).trim_start_matches("x="));
    let page = browser.get(&both).await;
    let (_, told) = crate::fixture::oauth::told(&browser.consent(&page, &[]).await);
    let tokens = app.redeem(&client, &told["code"]).await.expect(200);
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(claims(token)["aud"], json!([mcp, app.url]));
    app.by(token, "GET", "/v1/agents").send().await.expect(200);
}

#[tokio::test]
async fn an_oauth_token_makes_no_keys_and_changes_no_members() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let member = app.join(&dana, "member").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[("scope", "call2me:admin")]).await;
    let token = tokens["access_token"].as_str().unwrap();
    app.by(token, "GET", "/v1/members").send().await.expect(200);
    let path = format!("/v1/members/{}", member.user_id);
    let invitation = json!({ "email": "a@new.example", "role": "viewer" });
    let uris = json!({ "name": "x", "redirect_uris": ["https://a.example/cb"] });
    for (method, path, body) in [
        ("POST", "/v1/api-keys", json!({ "name": "k" })),
        ("PATCH", &path, json!({ "role": "viewer" })),
        ("DELETE", &path, json!(null)),
        ("POST", "/v1/invitations", invitation),
        ("POST", "/v1/oauth/clients", uris),
        ("GET", "/v1/oauth/grants", json!(null)),
        ("GET", "/v1/auth/sessions", json!(null)),
        ("GET", "/v1/workspaces", json!(null)),
        ("POST", "/v1/auth/logout", json!(null)),
    ] {
        let call = app.by(token, method, path);
        let call = if body.is_null() { call } else { call.json(body) };
        call.send().await.refused(403, "forbidden");
    }
    let key = app.mint(&dana, "old", "write").await;
    let path = format!("/v1/api-keys/{}", key.id);
    app.by(token, "DELETE", &path).send().await.expect(204);
}
