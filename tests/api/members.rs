//! /v1/members, and the same list in numbered pages, as the official SDKs request it.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::fixture::{
    Browser, Key, PASSWORD, TestApp, TestClient, TestRequest, TestResponse, TestUser, eventually,
    oauth::{OAuthClient, OAuthExt},
};

#[tokio::test]
async fn members_are_listed_with_their_roles() {
    let app = TestClient::shared();
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

async fn set_role(app: &TestClient, by: &str, member: &TestUser, role: &str) -> TestResponse {
    let path = format!("/v1/members/{}", member.user_id);
    app.request_as(by, "PATCH", &path).json(json!({ "role": role })).send().await
}

async fn remove_member(app: &TestClient, by: &str, member: &TestUser) -> TestResponse {
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
    let details = &role_events[0]["metadata"];
    assert_eq!((&details["from"], &details["to"]), (&json!("admin"), &json!("viewer")));
    assert_eq!(details["api_keys"][0]["id"], key.id);
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
    let app = TestClient::shared();
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
    let dana = a.register_verified("acme").await;
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
    let dana = app.register_verified("acme").await;
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

/// Sends a request, and changes the database with this SQL once the request waits for the lock of
/// the workspace.
async fn send_during_change(app: &TestApp, request: TestRequest, change: &str) -> TestResponse {
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    sqlx::query("SELECT FROM workspaces FOR NO KEY UPDATE").execute(&mut *tx).await.unwrap();
    let change = async {
        app.database.wait_for_blocked_statement().await;
        sqlx::query(sqlx::AssertSqlSafe(change.to_owned())).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    };
    tokio::join!(request.send(), change).0
}

/// A stranger neither waits for a workspace nor takes one of the transactions that it may open.
#[tokio::test]
async fn stranger_does_not_wait_for_foreign_workspace() {
    let app = TestApp::start().await;
    let [dana, mallory] = [app.register("acme").await, app.register("mallory").await];
    let sam = app.add_member(&dana, "viewer").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &mallory.email).await;
    let page = browser.get(&client.authorization_url(&[])).await;
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    let lock = "SELECT FROM workspaces WHERE name = 'acme' FOR NO KEY UPDATE";
    sqlx::query(lock).execute(&mut *tx).await.unwrap();
    // Requests of the workspace take all its transactions.
    let own = (0..8).map(|_| set_role(&app, &dana.access_token, &sam, "member"));
    let strangers = async {
        app.database.wait_for_blocked_statement().await;
        let leave = format!("/v1/workspaces/{}/leave", dana.workspace_id);
        let leave = app.request_as(&mallory.access_token, "POST", &leave).send().await;
        let body = json!({ "workspace_id": dana.workspace_id });
        let switch = app.request_as(&mallory.access_token, "POST", "/v1/auth/switch-workspace");
        let switch = switch.json(body).send().await;
        let choice = [("workspace", &*dana.workspace_id)];
        let consent = browser.submit_consent(&page, &choice).await.status;
        tx.commit().await.unwrap();
        [leave.status.as_u16(), switch.status.as_u16(), consent]
    };
    let (own, strangers) = tokio::join!(futures_util::future::join_all(own), strangers);
    assert_eq!(strangers, [404, 403, 403]);
    assert!(own.iter().all(|response| response.status == 200), "{own:#?}");
}

/// The number of changes that are open to OAuth clients with the admin scope.
const OPEN_TO_CLIENTS: usize = 5;

/// The parts of a workspace that administrators manage.
struct Managed {
    dana: TestUser,
    member: TestUser,
    key: Key,
    client: String,
    invitation: String,
}

impl Managed {
    async fn new(app: &TestApp) -> Self {
        let dana = app.register_verified("acme").await;
        let create = async |path: &str, body: Value| {
            let created = app.post(path).bearer(&dana.access_token).json(body).send().await;
            created.expect_status(201)["id"].as_str().unwrap().to_owned()
        };
        let client = json!({ "name": "Robot", "grant_types": ["client_credentials"] });
        let invitation = json!({ "email": "guest@new.example", "role": "viewer" });
        Self {
            member: app.add_member(&dana, "viewer").await,
            key: app.create_key(&dana, "server", "write").await,
            client: create("/v1/oauth/clients", client).await,
            invitation: create("/v1/invitations", invitation).await,
            dana,
        }
    }

    /// A request for each change that requires the admin scope. The first ones are open to OAuth
    /// clients too.
    fn changes(&self) -> Vec<(&'static str, String, Value)> {
        let key = format!("/v1/api-keys/{}", self.key.id);
        let client = format!("/v1/oauth/clients/{}", self.client);
        let member = format!("/v1/members/{}", self.member.user_id);
        let eve = json!({ "email": "eve@new.example", "role": "admin" });
        let own_client = json!({ "name": "mine", "grant_types": ["client_credentials"] });
        vec![
            ("PATCH", key.clone(), json!({ "name": "changed" })),
            ("DELETE", format!("{key}?cascade=true"), Value::Null),
            ("PATCH", format!("{key}/revoke"), Value::Null),
            ("PATCH", "/v1/workspace".to_owned(), json!({ "name": "changed" })),
            ("PUT", "/v1/users/me/branding".to_owned(), json!({ "name": "changed" })),
            ("PATCH", key.clone(), json!({ "disabled": false, "allowed_ips": [] })),
            ("POST", format!("{key}/rotate"), json!({})),
            ("POST", "/v1/api-keys".to_owned(), json!({ "name": "mine", "scope": "admin" })),
            ("POST", "/v1/invitations".to_owned(), eve),
            ("DELETE", format!("/v1/invitations/{}", self.invitation), Value::Null),
            ("PATCH", member.clone(), json!({ "role": "admin" })),
            ("DELETE", member, Value::Null),
            ("POST", "/v1/oauth/clients".to_owned(), own_client),
            ("PATCH", client.clone(), json!({ "name": "changed" })),
            ("POST", format!("{client}/secret"), json!({})),
            ("DELETE", client, Value::Null),
        ]
    }

    /// The state that the changes would change.
    async fn state(&self, app: &TestApp) -> Vec<String> {
        let parse = |prefix, id| call2me_auth::model::id::parse(prefix, id).unwrap();
        let users = [&self.dana, &self.member].map(|user| parse("user", &user.user_id));
        let sql = "SELECT concat_ws(' ', id, name, revoked_at, disabled_at) FROM api_keys
                   WHERE workspace_id = $1 AND name <> 'admin'
                   UNION ALL SELECT concat_ws(' ', c.id, c.name, s.id) FROM oauth_clients c
                             LEFT JOIN oauth_client_secrets s ON s.client_id = c.id
                             WHERE c.workspace_id = $1
                   UNION ALL SELECT concat_ws(' ', id, closed_at) FROM invitations
                             WHERE workspace_id = $1
                   UNION ALL SELECT concat_ws(' ', name, branding) FROM workspaces WHERE id = $1
                   UNION ALL SELECT concat_ws(' ', user_id, role) FROM memberships
                             WHERE workspace_id = $1 AND user_id = ANY ($2)
                   ORDER BY 1";
        let rows = sqlx::query_scalar(sql).bind(parse("ws", &self.dana.workspace_id));
        rows.bind(&users[..]).fetch_all(&mut app.database.connect().await).await.unwrap()
    }

    /// Checks that a change of this credential fails if the database changes meanwhile.
    async fn assert_refused(
        &self,
        app: &TestApp,
        credential: &str,
        change: &(&'static str, String, Value),
        sql: &str,
        (status, code): (u16, &str),
    ) {
        let before = self.state(app).await;
        let (method, path, body) = change;
        let mut request = app.request_as(credential, method, path);
        if !body.is_null() {
            request = request.json(body.clone());
        }
        send_during_change(app, request, sql).await.assert_error(status, code);
        assert_eq!(self.state(app).await, before, "{change:?}");
    }
}

/// A request that was authenticated before a removal changes nothing after it.
#[tokio::test]
async fn request_in_flight_fails_after_removal() {
    let app = TestApp::start().await;
    let managed = Managed::new(&app).await;
    let sam = app.add_member(&managed.dana, "admin").await;
    let removal = "DELETE FROM memberships WHERE role = 'admin'";
    for change in managed.changes() {
        eventually("the member is an administrator", async || {
            let members = app.get("/v1/members").bearer(&sam.access_token).send().await;
            (members.status == 200).then_some(())
        })
        .await;
        let expected = (401, "unauthorized");
        managed.assert_refused(&app, &sam.access_token, &change, removal, expected).await;
        app.insert_membership(&sam, &managed.dana, "admin").await;
    }
}

/// So does one whose user was demoted, or whose session has ended.
#[tokio::test]
async fn request_in_flight_fails_after_demotion_or_sign_out() {
    let app = TestApp::start().await;
    let managed = Managed::new(&app).await;
    let demotion = "UPDATE memberships SET role = 'viewer' WHERE role = 'admin'";
    let sign_out = "UPDATE sessions SET ended_at = now() WHERE ended_at IS NULL";
    for (sql, expected) in
        [(demotion, (403, "insufficient_scope")), (sign_out, (401, "unauthorized"))]
    {
        for change in managed.changes().into_iter().step_by(5) {
            let sam = app.add_member(&managed.dana, "admin").await;
            managed.assert_refused(&app, &sam.access_token, &change, sql, expected).await;
        }
    }
}

/// So does one with a key that was revoked, disabled, or restricted to other networks.
#[tokio::test]
async fn request_in_flight_fails_after_key_loses_access() {
    let app = TestApp::start().await;
    let managed = Managed::new(&app).await;
    for (column, expected) in [
        ("revoked_at = now()", (401, "unauthorized")),
        ("disabled_at = now()", (401, "unauthorized")),
        ("allowed_ips = '{203.0.113.0/24}'", (403, "forbidden")),
    ] {
        for change in managed.changes().into_iter().step_by(3) {
            let key = app.create_key(&managed.dana, "admin", "admin").await;
            let sql =
                format!("UPDATE api_keys SET {column} WHERE name = 'admin' AND revoked_at IS NULL");
            managed.assert_refused(&app, &key.secret, &change, &sql, expected).await;
        }
    }
}

/// So does one of an OAuth client whose grant has ended, or whose token was revoked.
#[tokio::test]
async fn request_in_flight_fails_after_grant_ends() {
    let app = TestApp::start().await;
    let managed = Managed::new(&app).await;
    let body = json!({ "name": "Admin", "scope": "admin", "grant_types": ["client_credentials"] });
    let client = app.post("/v1/oauth/clients").bearer(&managed.dana.access_token).json(body);
    let client = OAuthClient::from_registration(&client.send().await.expect_status(201));
    let fields = [("grant_type", "client_credentials")];
    for change in managed.changes().into_iter().take(OPEN_TO_CLIENTS) {
        for ends_grant in [true, false] {
            let token = app.request_token(&client.with_client_credentials(&fields)).await;
            let token = token.expect_status(200)["access_token"].as_str().unwrap().to_owned();
            let claims = BASE64URL_NOPAD.decode(token.split('.').nth(1).unwrap().as_bytes());
            let claims: Value = serde_json::from_slice(&claims.unwrap()).unwrap();
            let sql = if ends_grant {
                "UPDATE oauth_grants SET ended_at = now() WHERE ended_at IS NULL".to_owned()
            } else {
                format!("UPDATE oauth_grants SET revoked_tokens = '{{{}}}'", claims["jti"])
            };
            let expected = (401, "unauthorized");
            managed.assert_refused(&app, &token, &change, &sql, expected).await;
        }
    }
}
