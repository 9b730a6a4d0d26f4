//! Connected apps: users list and end them, on every node at once, and their rights follow those of
//! the user.

use std::time::Duration;

use call2me_auth::env::Clock as _;
use serde_json::{Value, json};

use crate::fixture::{
    Browser, PASSWORD, SmtpSink, TestApp, TestClient, link_token,
    oauth::{OAuthClient, OAuthExt},
};

async fn list_grants(app: &TestClient, token: &str, query: &str) -> Vec<Value> {
    let body = app
        .request_as(token, "GET", &format!("/v1/oauth/grants{query}"))
        .send()
        .await
        .expect_status(200);
    let grants = body["grants"].as_array().unwrap().clone();
    assert_eq!(body["total"], grants.len());
    grants
}

fn access_token(tokens: &Value) -> &str {
    tokens["access_token"].as_str().unwrap()
}

#[tokio::test]
async fn ended_grant_is_rejected_on_every_node() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    // A code that is not redeemed yet is no connected app.
    app.obtain_code(&mut browser, &client, &[]).await;
    assert!(list_grants(&app, &dana.access_token, "").await.is_empty());
    let tokens = app.obtain_tokens(&mut browser, &client, &[("scope", "call2me:write")]).await;
    let grants = list_grants(&app, &dana.access_token, "").await;
    assert_eq!(grants[0]["client"], json!({ "id": client.id, "name": "Example app" }));
    assert_eq!(grants[0]["scope"], "write");
    assert!(grants[0]["created_at"].is_string() && grants[0]["last_used_at"].is_string());

    for node in [&app, &node] {
        node.request_as(access_token(&tokens), "GET", "/v1/agents").send().await.expect_status(200);
    }
    let path = format!("/v1/oauth/grants/{}", grants[0]["id"].as_str().unwrap());
    for _ in 0..2 {
        app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
        for node in [&app, &node] {
            let rejected = node.request_as(access_token(&tokens), "GET", "/v1/agents").send().await;
            rejected.assert_error(401, "unauthorized");
        }
    }
    app.refresh_token(&client, tokens["refresh_token"].as_str().unwrap())
        .await
        .assert_oauth_error(400, "invalid_grant");
    assert!(list_grants(&app, &dana.access_token, "").await.is_empty());
    let event =
        app.wait_for_event_count(&dana.access_token, "action=oauth.grant_ended", 1).await.remove(0);
    assert_eq!(event["target"]["type"], "oauth_grant");
}

#[tokio::test]
async fn user_disconnects_app_on_page() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get("/connected-apps").await;
    assert!(page.text.contains("No connected apps"), "{}", page.text);
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let page = browser.get("/connected-apps").await;
    assert!(
        page.text
            .contains("<strong>Example app</strong> in acme <span class=\"tag\">read-only</span>"),
        "{}",
        page.text
    );
    let grants = list_grants(&app, &dana.access_token, "").await;
    let action = format!("/connected-apps/{}/end", grants[0]["id"].as_str().unwrap());
    let result = browser.submit(&page, &action, &[]).await;
    assert_eq!(result.redirect_target(), Some("/connected-apps?done=disconnected"));
    app.request_as(access_token(&tokens), "GET", "/v1/agents")
        .send()
        .await
        .assert_error(401, "unauthorized");
    assert!(browser.get("/connected-apps").await.text.contains("No connected apps"));
}

#[tokio::test]
async fn admin_manages_all_grants_and_members_only_their_own() {
    let app = TestClient::shared();
    let (dana, stranger) = (app.register("acme").await, app.register("widgets-inc").await);
    let member = app.add_member(&dana, "member").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &member.email).await;
    let page = browser.get(&client.authorization_url(&[])).await;
    let answer = browser.submit_consent(&page, &[("workspace", &dana.workspace_id)]).await;
    let (_, params) = crate::fixture::oauth::redirect_parameters(&answer);
    let tokens = app.redeem_code(&client, &params["code"]).await.expect_status(200);

    assert!(list_grants(&app, &dana.access_token, "").await.is_empty());
    let all = list_grants(&app, &dana.access_token, "?of=workspace").await;
    assert_eq!(all[0]["user_id"], member.user_id);
    let response =
        app.request_as(&member.access_token, "GET", "/v1/oauth/grants?of=workspace").send().await;
    response.assert_error(403, "insufficient_scope");
    app.request_as(&dana.access_token, "GET", "/v1/oauth/grants?of=all")
        .send()
        .await
        .assert_error(422, "validation_failed");
    let path = format!("/v1/oauth/grants/{}", all[0]["id"].as_str().unwrap());
    let other = app.add_member(&dana, "member").await;
    for caller in [&stranger, &other] {
        app.request_as(&caller.access_token, "DELETE", &path)
            .send()
            .await
            .assert_error(404, "not_found");
    }
    app.request_as(access_token(&tokens), "GET", "/v1/agents").send().await.expect_status(200);
    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    app.request_as(access_token(&tokens), "GET", "/v1/agents")
        .send()
        .await
        .assert_error(401, "unauthorized");
}

#[tokio::test]
async fn grant_follows_role_and_membership_of_user() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let member = app.add_member(&dana, "admin").await;
    let client = app.register_confidential_client().await;
    let tokens =
        obtain_tokens_in(&app, &member.email, &client, &dana.workspace_id, "call2me:admin").await;
    assert_eq!(tokens["scope"], "call2me:read call2me:write call2me:admin");
    for node in [&app, &node] {
        node.request_as(access_token(&tokens), "GET", "/v1/members")
            .send()
            .await
            .expect_status(200);
    }
    let path = format!("/v1/members/{}", member.user_id);
    let demote =
        app.request_as(&dana.access_token, "PATCH", &path).json(json!({ "role": "viewer" }));
    demote.send().await.expect_status(200);
    for node in [&app, &node] {
        let response = node.request_as(access_token(&tokens), "GET", "/v1/members").send().await;
        response.assert_error(403, "insufficient_scope");
        node.request_as(access_token(&tokens), "GET", "/v1/agents").send().await.expect_status(200);
    }
    let refresh = tokens["refresh_token"].as_str().unwrap();
    let narrowed = app.refresh_token(&client, refresh).await.expect_status(200);
    assert_eq!(narrowed["scope"], "call2me:read");
    // A promotion takes effect at the next refresh.
    let promote =
        app.request_as(&dana.access_token, "PATCH", &path).json(json!({ "role": "member" }));
    promote.send().await.expect_status(200);
    let widened = app.refresh_token(&client, refresh).await.expect_status(200);
    assert_eq!(widened["scope"], "call2me:read call2me:write");

    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    for node in [&app, &node] {
        node.request_as(access_token(&widened), "GET", "/v1/agents")
            .send()
            .await
            .assert_error(401, "unauthorized");
    }
    app.refresh_token(&client, refresh).await.assert_oauth_error(400, "invalid_grant");
    // The grant stays ended if the user becomes a member again.
    app.insert_membership(&member, &dana, "member").await;
    app.database.wait_for_invalidation().await;
    app.request_as(access_token(&widened), "GET", "/v1/agents")
        .send()
        .await
        .assert_error(401, "unauthorized");
    app.refresh_token(&client, refresh).await.assert_oauth_error(400, "invalid_grant");
}

#[tokio::test]
async fn grants_per_user_and_client_are_limited_to_fifty() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let first = app.obtain_tokens(&mut browser, &client, &[]).await;
    for _ in 0..50 {
        app.obtain_tokens(&mut browser, &client, &[]).await;
    }
    app.request_as(access_token(&first), "GET", "/v1/agents")
        .send()
        .await
        .assert_error(401, "unauthorized");
    assert_eq!(list_grants(&app, &dana.access_token, "?limit=100").await.len(), 50);
}

#[tokio::test]
async fn unused_grant_ends_after_ninety_days() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    let mut connection = app.database.connect().await;
    for (days, active) in [(90, 1), (92, 0)] {
        let make_older = "UPDATE oauth_grants SET last_used_at = now() - make_interval(days => $1)";
        sqlx::query(make_older).bind(days).execute(&mut connection).await.unwrap();
        let (now, idle) = (app.clock.now(), Duration::from_hours(90 * 24));
        app.app.store.prune_oauth(now, idle).await.unwrap();
        let count = "SELECT count(*) FROM oauth_grants WHERE ended_at IS NULL";
        let left: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(left, active, "{days}");
    }
    app.database.wait_for_invalidation().await;
    app.request_as(access_token(&tokens), "GET", "/v1/agents")
        .send()
        .await
        .assert_error(401, "unauthorized");
}

/// A password reset lists the connected apps. It ends them if the email address was unverified,
/// because another person may have created the account.
#[tokio::test]
async fn password_reset_ends_and_names_connected_apps() {
    let smtp = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &smtp.url())]).await;
    let client = app.register_client(json!({})).await;
    let (dana, sam) = (app.register_verified("acme").await, app.register("widgets-inc").await);
    for (user, subject) in [(&dana, "Your password was changed"), (&sam, "Your account was reset")]
    {
        let mut browser = Browser::signed_in(&app, &user.email).await;
        let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
        let body = json!({ "email": user.email });
        app.post("/v1/auth/password/forgot").json(body).send().await.expect_status(202);
        let email = smtp.wait_for_email(&user.email, "password").await;
        let body =
            json!({ "token": link_token(&email), "new_password": "another walk in the park" });
        app.post("/v1/auth/password/reset").json(body).send().await.expect_status(204);
        let email = smtp.wait_for_email(&user.email, subject).await;
        assert!(email["text"].as_str().unwrap().contains("Example app"), "{email:#}");
        let request = app.request_as(access_token(&tokens), "GET", "/v1/agents");
        request.send().await.assert_error(401, "unauthorized");
    }
}

#[tokio::test]
async fn oauth_token_is_rejected_after_account_deletion() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    app.request_as(access_token(&tokens), "GET", "/v1/agents").send().await.expect_status(200);
    let body = json!({ "password": PASSWORD });
    let deleted =
        app.request_as(&dana.access_token, "DELETE", "/v1/users/me").json(body).send().await;
    deleted.expect_status(204);
    app.request_as(access_token(&tokens), "GET", "/v1/agents")
        .send()
        .await
        .assert_error(401, "unauthorized");
}

async fn obtain_tokens_in(
    app: &TestApp,
    email: &str,
    client: &OAuthClient,
    workspace: &str,
    scope: &str,
) -> Value {
    let mut browser = Browser::signed_in(app, email).await;
    let page = browser.get(&client.authorization_url(&[("scope", scope)])).await;
    let answer = browser.submit_consent(&page, &[("workspace", workspace)]).await;
    let (_, params) = crate::fixture::oauth::redirect_parameters(&answer);
    app.redeem_code(client, &params["code"]).await.expect_status(200)
}
