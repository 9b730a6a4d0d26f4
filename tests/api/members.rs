//! /v1/members, and the same list in numbered pages, as the official SDKs request it.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::fixture::{PASSWORD, TestApp, TestResponse, TestUser};

#[tokio::test]
async fn members_are_listed_with_their_roles() {
    let app = TestApp::start().await;
    let acme = app.register("acme").await;
    let viewer = app.add_member(&acme, "viewer").await;
    let list = app.get("/v1/members").bearer(&acme.access_token).send().await.expect_status(200);
    assert_eq!(list["total"], 2);
    assert_eq!(list["members"][0]["user_id"], viewer.user_id);
    assert_eq!(list["members"][0]["role"], "viewer");
    assert_eq!(list["members"][1]["email"], acme.email);
    app.get("/v1/members")
        .bearer(&viewer.access_token)
        .send()
        .await
        .assert_error(403, "insufficient_scope");
    let page = async |query: &str| {
        let path = format!("/v1/users/me/tenant/members{query}");
        app.get(&path).bearer(&acme.access_token).send().await
    };
    let second = page("?page=2&per_page=1").await.expect_status(200);
    assert_eq!(second["members"][0]["email"], acme.email);
    assert_eq!(
        (&second["page"], &second["per_page"], &second["total"]),
        (&json!(2), &json!(1), &json!(2))
    );
    assert_eq!(page("").await.expect_status(200)["per_page"], 20);
    page("?page=0").await.assert_error(422, "validation_failed").assert_field("page");
    page("?per_page=101").await.assert_error(422, "validation_failed").assert_field("per_page");
}

async fn set_role(app: &TestApp, by: &str, member: &TestUser, role: &str) -> TestResponse {
    let path = format!("/v1/members/{}", member.user_id);
    app.request_as(by, "PATCH", &path).json(json!({ "role": role })).send().await
}

async fn remove_member(app: &TestApp, by: &str, member: &TestUser) -> TestResponse {
    app.request_as(by, "DELETE", &format!("/v1/members/{}", member.user_id)).send().await
}

#[tokio::test]
async fn demoted_or_removed_member_loses_access_on_every_node() {
    let a = TestApp::start().await;
    let b = a.another_node().await;
    let dana = a.register("acme").await;
    let sam = a.add_member(&dana, "admin").await;
    let key = a.create_key(&sam, "of sam", "admin").await;
    let create_key = async |node: &TestApp| {
        let request = node.request_as(&sam.access_token, "POST", "/v1/api-keys");
        request.json(json!({ "name": "k", "scope": "read-only" })).send().await
    };
    for node in [&a, &b] {
        create_key(node).await.expect_status(201);
    }
    let demoted = set_role(&a, &dana.access_token, &sam, "viewer").await.expect_status(200);
    assert_eq!((&demoted["role"], &demoted["email"]), (&json!("viewer"), &json!(sam.email)));
    for node in [&a, &b] {
        create_key(node).await.assert_error(403, "insufficient_scope");
        assert_eq!(node.get("/v1/agents").bearer(&sam.access_token).send().await.status, 200);
    }
    assert_eq!(remove_member(&a, &dana.access_token, &sam).await.status, 204);
    for node in [&a, &b] {
        let response = node.get("/v1/agents").bearer(&sam.access_token).send().await;
        response.assert_error(401, "unauthorized");
        // A key outlives the membership of its creator.
        assert_eq!(node.get("/v1/agents").bearer(&key.secret).send().await.status, 200);
    }
    let refresh = json!({ "refresh_token": sam.refresh_token });
    let refresh = b.post("/v1/auth/refresh").json(refresh).send().await;
    refresh.assert_error(401, "invalid_refresh_token");
    remove_member(&b, &dana.access_token, &sam).await.assert_error(404, "not_found");
    let role_events =
        a.wait_for_event_count(&dana.access_token, "action=member.role_changed", 1).await;
    assert_eq!(role_events[0]["metadata"], json!({ "from": "admin", "to": "viewer" }));
    let removal_events =
        a.wait_for_event_count(&dana.access_token, "action=member.removed", 1).await;
    let keys = removal_events[0]["metadata"]["api_keys"].as_array().unwrap();
    assert!(keys.iter().any(|listed| listed["id"] == key.id), "{removal_events:#?}");
    // A failed sign-in of a former member is not logged in this workspace.
    let wrong = json!({ "email": sam.email, "password": "not this one at all" });
    a.post("/v1/auth/login").json(wrong).send().await.assert_error(401, "invalid_credentials");
    a.wait_for_event_count(&dana.access_token, "action=login.failed", 0).await;
}

#[tokio::test]
async fn member_cannot_change_or_grant_higher_role() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let [admin, member] =
        [app.add_member(&dana, "admin").await, app.add_member(&dana, "member").await];
    let key = app.create_key(&dana, "k", "admin").await;
    for by in [&admin.access_token, &key.secret] {
        set_role(&app, by, &member, "owner").await.assert_error(403, "forbidden");
        set_role(&app, by, &admin, "owner").await.assert_error(403, "forbidden");
        set_role(&app, by, &dana, "viewer").await.assert_error(403, "forbidden");
        remove_member(&app, by, &dana).await.assert_error(403, "forbidden");
        assert_eq!(set_role(&app, by, &member, "admin").await.status, 200);
        assert_eq!(set_role(&app, by, &member, "member").await.status, 200);
    }
    set_role(&app, &member.access_token, &member, "admin")
        .await
        .assert_error(403, "insufficient_scope");
    remove_member(&app, &member.access_token, &admin).await.assert_error(403, "insufficient_scope");
    let widgets = app.register("widgets-inc").await;
    set_role(&app, &widgets.access_token, &member, "viewer").await.assert_error(404, "not_found");
    remove_member(&app, &widgets.access_token, &member).await.assert_error(404, "not_found");
    let path = format!("/v1/members/{}", member.user_id);
    let unknown_role =
        app.request_as(&dana.access_token, "PATCH", &path).json(json!({ "role": "king" }));
    unknown_role.send().await.assert_error(422, "validation_failed").assert_field("role");
}

#[tokio::test]
async fn workspace_keeps_an_owner_under_concurrent_changes() {
    let a = TestApp::start().await;
    let b = a.another_node().await;
    let dana = a.register("acme").await;
    set_role(&a, &dana.access_token, &dana, "admin").await.assert_error(403, "forbidden");
    remove_member(&a, &dana.access_token, &dana).await.assert_error(403, "forbidden");
    let sam = a.add_member(&dana, "admin").await;
    set_role(&a, &dana.access_token, &sam, "owner").await.expect_status(200);
    // The promotion applies to Sam's next tokens. Then Dana steps down while Sam leaves.
    let refresh = json!({ "refresh_token": sam.refresh_token });
    let pair = b.post("/v1/auth/refresh").json(refresh).send().await.expect_status(200);
    let sam_token = pair["access_token"].as_str().unwrap();
    let (first, second) = tokio::join!(
        set_role(&a, &dana.access_token, &dana, "admin"),
        remove_member(&b, sam_token, &sam)
    );
    let statuses = [first.status.as_u16(), second.status.as_u16()];
    assert!(statuses == [200, 403] || statuses == [403, 204], "{statuses:?}");
    let mut connection = a.database.connect().await;
    let owners = "SELECT count(*) FROM memberships m JOIN workspaces w ON w.id = m.workspace_id
                  WHERE w.name = 'acme' AND role = 'owner'";
    let owners: i64 = sqlx::query_scalar(owners).fetch_one(&mut connection).await.unwrap();
    assert_eq!(owners, 1);
}

#[tokio::test]
async fn granting_ownership_needs_recent_sign_in_or_password() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let sam = app.add_member(&dana, "member").await;
    app.clock.advance(Duration::from_mins(16));
    let path = format!("/v1/members/{}", sam.user_id);
    let change_role = async |body: Value| {
        app.request_as(&dana.access_token, "PATCH", &path).json(body).send().await
    };
    change_role(json!({ "role": "owner" })).await.assert_error(403, "forbidden");
    let wrong = change_role(json!({ "role": "owner", "password": "not this one at all" })).await;
    wrong.assert_error(422, "validation_failed").assert_field("password");
    assert_eq!(change_role(json!({ "role": "admin" })).await.status, 200);
    assert_eq!(change_role(json!({ "role": "owner", "password": PASSWORD })).await.status, 200);
    remove_member(&app, &dana.access_token, &sam).await.assert_error(403, "forbidden");
    let body = json!({ "email": dana.email, "password": PASSWORD });
    let pair = app.post("/v1/auth/login").json(body).send().await.expect_status(200);
    let fresh_token = pair["access_token"].as_str().unwrap();
    assert_eq!(remove_member(&app, fresh_token, &sam).await.status, 204);
}

/// A request that was authenticated before a removal or a revocation changes nothing after it.
#[tokio::test]
async fn request_in_flight_fails_after_removal_or_revocation() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let sam = app.add_member(&dana, "admin").await;
    let [first, second] =
        [app.create_key(&dana, "1", "admin").await, app.create_key(&dana, "2", "admin").await];
    let new_key = json!({ "name": "mine", "scope": "admin" });
    let new_invitation = json!({ "email": "eve@new.example", "role": "admin" });
    let remove_admins = "DELETE FROM memberships WHERE role = 'admin'";
    let revoke_key =
        |name: &str| format!("UPDATE api_keys SET revoked_at = now() WHERE name = '{name}'");
    for (credential, path, body, revocation) in [
        (&sam.access_token, "/v1/api-keys", new_key.clone(), remove_admins.to_owned()),
        (&first.secret, "/v1/api-keys", new_key, revoke_key("1")),
        (&second.secret, "/v1/invitations", new_invitation, revoke_key("2")),
    ] {
        let mut connection = app.database.connect().await;
        let mut tx = connection.begin().await.unwrap();
        sqlx::query("SELECT FROM workspaces FOR NO KEY UPDATE").execute(&mut *tx).await.unwrap();
        let revocation = async {
            app.database.wait_for_blocked_statement().await;
            sqlx::query(sqlx::AssertSqlSafe(revocation)).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        };
        let (response, ()) =
            tokio::join!(app.request_as(credential, "POST", path).json(body).send(), revocation);
        response.assert_error(401, "unauthorized");
    }
}
