//! POST /v1/workspaces/{id}/leave and DELETE /v1/users/me: users leave a workspace, or delete their
//! account.

use serde_json::json;

use crate::fixture::{PASSWORD, TestApp, TestClient, TestResponse, TestUser};

async fn leave(app: &TestClient, access_token: &str, workspace: &str) -> TestResponse {
    app.request_as(access_token, "POST", &format!("/v1/workspaces/{workspace}/leave")).send().await
}

async fn delete_account(app: &TestApp, user: &TestUser, password: &str) -> TestResponse {
    let body = json!({ "password": password });
    app.request_as(&user.access_token, "DELETE", "/v1/users/me").json(body).send().await
}

#[tokio::test]
async fn member_leaves_but_last_owner_cannot() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let [viewer, owner] =
        [app.add_member(&dana, "viewer").await, app.add_member(&dana, "owner").await];
    let foreign = app.register("widgets-inc").await;
    leave(&app, &foreign.access_token, &dana.workspace_id).await.assert_error(404, "not_found");
    for member in [&viewer, &dana] {
        assert_eq!(leave(&app, &member.access_token, &dana.workspace_id).await.status, 204);
        let answer = app.get("/v1/agents").bearer(&member.access_token).send().await;
        answer.assert_error(401, "unauthorized");
    }
    leave(&app, &owner.access_token, &dana.workspace_id).await.assert_error(403, "forbidden");
    app.wait_for_event_count(&owner.access_token, "action=member.removed", 2).await;
}

#[tokio::test]
async fn account_deletion_keeps_shared_workspaces_working() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let [dana, sam] = [app.register("acme").await, app.register("widgets-inc").await];
    app.insert_membership(&dana, &sam, "admin").await;
    let switch = json!({ "workspace_id": sam.workspace_id });
    let body = json!({ "email": dana.email, "password": PASSWORD });
    let pair = app.post("/v1/auth/login").json(body.clone()).send().await.expect_status(200);
    let switch = app
        .request_as(pair["access_token"].as_str().unwrap(), "POST", "/v1/auth/switch-workspace")
        .json(switch);
    let switched = switch.send().await.expect_status(200);
    let mut dana_switched = dana.clone();
    dana_switched.set_tokens(&switched);
    let shared_key = app.create_key(&dana_switched, "of dana, for sam", "write").await;
    let own_key = app.create_key(&dana, "own", "write").await;
    for node in [&app, &node] {
        for credential in
            [&dana.access_token, &dana_switched.access_token, &shared_key.secret, &own_key.secret]
        {
            node.get("/v1/agents").bearer(credential).send().await.expect_status(200);
        }
    }
    delete_account(&app, &dana, "not this one at all")
        .await
        .assert_error(422, "validation_failed")
        .assert_field("password");
    // Acme has another member, and Dana is its only owner.
    let member = app.add_member(&dana, "member").await;
    delete_account(&app, &dana, PASSWORD).await.assert_error(403, "forbidden");
    assert_eq!(leave(&app, &member.access_token, &dana.workspace_id).await.status, 204);

    assert_eq!(delete_account(&app, &dana, PASSWORD).await.status, 204);
    for node in [&app, &node] {
        for ended in [&dana.access_token, &dana_switched.access_token, &own_key.secret] {
            node.get("/v1/agents").bearer(ended).send().await.assert_error(401, "unauthorized");
        }
        // A key for another workspace is not affected.
        node.get("/v1/agents").bearer(&shared_key.secret).send().await.expect_status(200);
    }
    app.post("/v1/auth/login").json(body).send().await.assert_error(401, "invalid_credentials");
    let removed = app.wait_for_event_count(&sam.access_token, "action=member.removed", 1).await;
    assert_eq!(removed[0]["metadata"]["api_keys"][0]["id"], shared_key.id);
    // The email address can be registered again.
    app.register("acme").await;
}
