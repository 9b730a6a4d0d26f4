//! Connected apps: seen, ended, shrunk with who granted them, on every node at once.

use call2me_auth::env::Clock as _;
use serde_json::{Value, json};

use crate::fixture::{
    Browser, PASSWORD, SmtpSink, TestApp,
    oauth::{OAuth, OAuthClient},
    token_in,
};

async fn connected(app: &TestApp, token: &str, query: &str) -> Vec<Value> {
    let body = app.by(token, "GET", &format!("/v1/oauth/grants{query}")).send().await.expect(200);
    let grants = body["grants"].as_array().unwrap().clone();
    assert_eq!(body["total"], grants.len());
    grants
}

fn access(tokens: &Value) -> &str {
    tokens["access_token"].as_str().unwrap()
}

#[tokio::test]
async fn a_connected_app_is_seen_and_ended_on_every_node_at_once() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    // Asked for, but not yet fetched, is not connected.
    app.code_by(&mut browser, &client, &[]).await;
    assert!(connected(&app, &dana.access_token, "").await.is_empty());
    let tokens = app.tokens_by(&mut browser, &client, &[("scope", "call2me:write")]).await;
    let grants = connected(&app, &dana.access_token, "").await;
    assert_eq!(grants[0]["client"], json!({ "id": client.id, "name": "Example app" }));
    assert_eq!(grants[0]["scope"], "write");
    assert!(grants[0]["created_at"].is_string() && grants[0]["last_used_at"].is_string());

    for node in [&app, &node] {
        node.by(access(&tokens), "GET", "/v1/agents").send().await.expect(200);
    }
    let path = format!("/v1/oauth/grants/{}", grants[0]["id"].as_str().unwrap());
    for _ in 0..2 {
        app.by(&dana.access_token, "DELETE", &path).send().await.expect(204);
        for node in [&app, &node] {
            let ended = node.by(access(&tokens), "GET", "/v1/agents").send().await;
            ended.refused(401, "unauthorized");
        }
    }
    app.refresh(&client, tokens["refresh_token"].as_str().unwrap())
        .await
        .told(400, "invalid_grant");
    assert!(connected(&app, &dana.access_token, "").await.is_empty());
    let ended = app.events_of(&dana.access_token, "action=oauth.grant_ended", 1).await.remove(0);
    assert_eq!(ended["target"]["type"], "oauth_grant");
}

#[tokio::test]
async fn a_person_disconnects_an_app_on_a_page() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let page = browser.get("/connected-apps").await;
    assert!(page.text.contains("No app is connected"), "{}", page.text);
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let page = browser.get("/connected-apps").await;
    assert!(
        page.text
            .contains("<strong>Example app</strong> in acme <span class=\"tag\">read-only</span>"),
        "{}",
        page.text
    );
    let grants = connected(&app, &dana.access_token, "").await;
    let action = format!("/connected-apps/{}/end", grants[0]["id"].as_str().unwrap());
    let done = browser.submit(&page, &action, &[]).await;
    assert_eq!(done.leads_to(), Some("/connected-apps?done=disconnected"));
    app.by(access(&tokens), "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    assert!(browser.get("/connected-apps").await.text.contains("No app is connected"));
}

#[tokio::test]
async fn who_runs_the_workspace_sees_and_ends_all_there_and_others_their_own() {
    let app = TestApp::start().await;
    let (dana, stranger) = (app.register("acme").await, app.register("widgets-inc").await);
    let member = app.join(&dana, "member").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &member.email).await;
    let page = browser.get(&client.authorize(&[])).await;
    let answer = browser.consent(&page, &[("workspace", &dana.workspace_id)]).await;
    let (_, told) = crate::fixture::oauth::told(&answer);
    let tokens = app.redeem(&client, &told["code"]).await.expect(200);

    assert!(connected(&app, &dana.access_token, "").await.is_empty());
    let all = connected(&app, &dana.access_token, "?of=workspace").await;
    assert_eq!(all[0]["user_id"], member.user_id);
    let refused = app.by(&member.access_token, "GET", "/v1/oauth/grants?of=workspace").send().await;
    refused.refused(403, "insufficient_scope");
    app.by(&dana.access_token, "GET", "/v1/oauth/grants?of=all")
        .send()
        .await
        .refused(422, "validation_failed");
    let path = format!("/v1/oauth/grants/{}", all[0]["id"].as_str().unwrap());
    let other = app.join(&dana, "member").await;
    for nobody in [&stranger, &other] {
        app.by(&nobody.access_token, "DELETE", &path).send().await.refused(404, "not_found");
    }
    app.by(access(&tokens), "GET", "/v1/agents").send().await.expect(200);
    app.by(&dana.access_token, "DELETE", &path).send().await.expect(204);
    app.by(access(&tokens), "GET", "/v1/agents").send().await.refused(401, "unauthorized");
}

#[tokio::test]
async fn what_a_member_granted_shrinks_and_ends_with_them() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let member = app.join(&dana, "admin").await;
    let client = app.confidential_client().await;
    let tokens = grant_in(&app, &member.email, &client, &dana.workspace_id, "call2me:admin").await;
    assert_eq!(tokens["scope"], "call2me:read call2me:write call2me:admin");
    for node in [&app, &node] {
        node.by(access(&tokens), "GET", "/v1/members").send().await.expect(200);
    }
    let path = format!("/v1/members/{}", member.user_id);
    let demote = app.by(&dana.access_token, "PATCH", &path).json(json!({ "role": "viewer" }));
    demote.send().await.expect(200);
    for node in [&app, &node] {
        let shrunk = node.by(access(&tokens), "GET", "/v1/members").send().await;
        shrunk.refused(403, "insufficient_scope");
        node.by(access(&tokens), "GET", "/v1/agents").send().await.expect(200);
    }
    let refresh = tokens["refresh_token"].as_str().unwrap();
    let less = app.refresh(&client, refresh).await.expect(200);
    assert_eq!(less["scope"], "call2me:read");
    // Promoted shows at the next refresh.
    let promote = app.by(&dana.access_token, "PATCH", &path).json(json!({ "role": "member" }));
    promote.send().await.expect(200);
    let more = app.refresh(&client, refresh).await.expect(200);
    assert_eq!(more["scope"], "call2me:read call2me:write");

    app.by(&dana.access_token, "DELETE", &path).send().await.expect(204);
    for node in [&app, &node] {
        node.by(access(&more), "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    }
    app.refresh(&client, refresh).await.told(400, "invalid_grant");
    // It does not come back with the person.
    app.admit(&member, &dana, "member").await;
    app.database.every_node_knows().await;
    app.by(access(&more), "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    app.refresh(&client, refresh).await.told(400, "invalid_grant");
}

#[tokio::test]
async fn nobody_has_more_than_fifty_of_one_client() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let first = app.tokens_by(&mut browser, &client, &[]).await;
    for _ in 0..50 {
        app.tokens_by(&mut browser, &client, &[]).await;
    }
    app.by(access(&first), "GET", "/v1/agents").send().await.refused(401, "unauthorized");
    assert_eq!(connected(&app, &dana.access_token, "?limit=100").await.len(), 50);
}

#[tokio::test]
async fn apps_that_nobody_uses_end() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    let mut connection = app.database.connect().await;
    for (days, left) in [(90, 1), (92, 0)] {
        let then = app.clock.now() + time::Duration::days(days);
        let prune = sqlx::query("SELECT prune_oauth($1, interval '90 days')").bind(then);
        prune.execute(&mut connection).await.unwrap();
        assert_eq!(connected(&app, &dana.access_token, "").await.len(), left, "{days}");
    }
    app.database.every_node_knows().await;
    app.by(access(&tokens), "GET", "/v1/agents").send().await.refused(401, "unauthorized");
}

/// Who gets an account back is told what has been let in; and what was let in by whoever merely claimed the address goes.
#[tokio::test]
async fn another_password_tells_of_apps_and_ends_those_of_a_stranger() {
    let smtp = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &smtp.url())]).await;
    let client = app.oauth_client(json!({})).await;
    let (dana, sam) = (app.register_verified("acme").await, app.register("widgets-inc").await);
    for (person, goes_on) in [(&dana, true), (&sam, false)] {
        let mut browser = Browser::of(&app, &person.email).await;
        let tokens = app.tokens_by(&mut browser, &client, &[]).await;
        let body = json!({ "email": person.email });
        app.post("/v1/auth/password/forgot").json(body).send().await.expect(202);
        let mail = smtp.mail(&person.email, "password").await;
        let body = json!({ "token": token_in(&mail), "new_password": "another walk in the park" });
        app.post("/v1/auth/password/reset").json(body).send().await.expect(204);
        let mail = smtp.mail(&person.email, "Your password was changed").await;
        let names = mail["text"].as_str().unwrap().contains("Example app");
        let works = app.by(access(&tokens), "GET", "/v1/agents").send().await.status == 200;
        assert_eq!((names, works), (goes_on, goes_on), "{}", person.email);
    }
}

#[tokio::test]
async fn tokens_of_who_deletes_the_account_are_dead() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let client = app.oauth_client(json!({})).await;
    let mut browser = Browser::of(&app, &dana.email).await;
    let tokens = app.tokens_by(&mut browser, &client, &[]).await;
    app.by(access(&tokens), "GET", "/v1/agents").send().await.expect(200);
    let body = json!({ "password": PASSWORD });
    let left = app.by(&dana.access_token, "DELETE", "/v1/users/me").json(body).send().await;
    left.expect(204);
    app.by(access(&tokens), "GET", "/v1/agents").send().await.refused(401, "unauthorized");
}

async fn grant_in(
    app: &TestApp,
    email: &str,
    client: &OAuthClient,
    workspace: &str,
    scope: &str,
) -> Value {
    let mut browser = Browser::of(app, email).await;
    let page = browser.get(&client.authorize(&[("scope", scope)])).await;
    let answer = browser.consent(&page, &[("workspace", workspace)]).await;
    let (_, told) = crate::fixture::oauth::told(&answer);
    app.redeem(client, &told["code"]).await.expect(200)
}
