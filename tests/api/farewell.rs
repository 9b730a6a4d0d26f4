//! /v1/workspaces/{id}/leave and DELETE /v1/users/me: people go.

use serde_json::json;

use crate::fixture::{Answer, PASSWORD, Person, TestApp};

async fn leave(app: &TestApp, who: &str, workspace: &str) -> Answer {
    app.by(who, "POST", &format!("/v1/workspaces/{workspace}/leave")).send().await
}

async fn delete(app: &TestApp, who: &Person, password: &str) -> Answer {
    let body = json!({ "password": password });
    app.by(&who.access_token, "DELETE", "/v1/users/me").json(body).send().await
}

#[tokio::test]
async fn a_member_of_any_role_leaves_and_the_last_owner_does_not() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let [viewer, owner] = [app.join(&dana, "viewer").await, app.join(&dana, "owner").await];
    let foreign = app.register("widgets-inc").await;
    leave(&app, &foreign.access_token, &dana.workspace_id).await.refused(404, "not_found");
    for who in [&viewer, &dana] {
        assert_eq!(leave(&app, &who.access_token, &dana.workspace_id).await.status, 204);
        let answer = app.get("/v1/agents").bearer(&who.access_token).send().await;
        answer.refused(401, "unauthorized");
    }
    leave(&app, &owner.access_token, &dana.workspace_id).await.refused(403, "forbidden");
    app.events_of(&owner.access_token, "action=member.removed", 2).await;
}

#[tokio::test]
async fn an_account_is_deleted_with_what_is_its_own_alone() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let [dana, sam] = [app.register("acme").await, app.register("widgets-inc").await];
    app.admit(&dana, &sam, "admin").await;
    let switch = json!({ "workspace_id": sam.workspace_id });
    let body = json!({ "email": dana.email, "password": PASSWORD });
    let pair = app.post("/v1/auth/login").json(body.clone()).send().await.expect(200);
    let switch = app
        .by(pair["access_token"].as_str().unwrap(), "POST", "/v1/auth/switch-workspace")
        .json(switch);
    let there = switch.send().await.expect(200);
    let mut dana_there = dana.clone();
    dana_there.take(&there);
    let theirs = app.mint(&dana_there, "of dana, for sam", "write").await;
    let own = app.mint(&dana, "own", "write").await;
    for node in [&app, &node] {
        for credential in
            [&dana.access_token, &dana_there.access_token, &theirs.secret, &own.secret]
        {
            node.get("/v1/agents").bearer(credential).send().await.expect(200);
        }
    }
    delete(&app, &dana, "not this one at all")
        .await
        .refused(422, "validation_failed")
        .blames("password");
    // Somebody else is in acme, and nobody else is its owner.
    let member = app.join(&dana, "member").await;
    delete(&app, &dana, PASSWORD).await.refused(403, "forbidden");
    assert_eq!(leave(&app, &member.access_token, &dana.workspace_id).await.status, 204);

    assert_eq!(delete(&app, &dana, PASSWORD).await.status, 204);
    for node in [&app, &node] {
        for dead in [&dana.access_token, &dana_there.access_token, &own.secret] {
            node.get("/v1/agents").bearer(dead).send().await.refused(401, "unauthorized");
        }
        // What works for others goes on.
        node.get("/v1/agents").bearer(&theirs.secret).send().await.expect(200);
    }
    app.post("/v1/auth/login").json(body).send().await.refused(401, "invalid_credentials");
    let removed = app.events_of(&sam.access_token, "action=member.removed", 1).await;
    assert_eq!(removed[0]["metadata"]["api_keys"][0]["id"], theirs.id);
    // The address is free.
    app.register("acme").await;
}
