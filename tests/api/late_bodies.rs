//! Requests whose body arrives after their credential was revoked: they change nothing.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::fixture::{PASSWORD, TestApp, TestClient, with_timeout};

/// A request that was authenticated and whose body was not sent yet.
struct HeldRequest {
    stream: TcpStream,
    body: String,
}

impl HeldRequest {
    /// Sends the head of a request, and waits until the service reads the body. It does so only
    /// after it has authenticated the request.
    async fn start(app: &TestClient, credential: &str, path: &str, body: &Value) -> Self {
        let address = app.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {credential}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\
             connection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = with_timeout("100 Continue", read_head(&mut stream)).await;
        assert!(head.starts_with("HTTP/1.1 100 "), "{head}");
        Self { stream, body }
    }

    /// Sends the body, and returns the status of the response.
    async fn finish(mut self) -> u16 {
        self.stream.write_all(self.body.as_bytes()).await.unwrap();
        let head = with_timeout("the response", read_head(&mut self.stream)).await;
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(char::from(stream.read_u8().await.unwrap()));
    }
    head
}

#[tokio::test]
async fn late_body_of_revoked_credential_is_rejected_on_every_node() {
    let app = TestApp::start().await;
    let node = app.another_node().await;
    let dana = app.register("acme").await;
    let new_agent = json!({ "agent_name": "late" });
    let keys = [
        app.create_key(&dana, "revoked", "write").await,
        app.create_key(&dana, "disabled", "write").await,
        app.create_key(&dana, "valid", "write").await,
    ];
    let [signed_out, changed] = [app.sign_in_again(&dana).await, app.sign_in_again(&dana).await];
    let mut held = Vec::new();
    for credential in [
        &keys[0].secret,
        &keys[1].secret,
        &signed_out.access_token,
        &changed.access_token,
        &keys[2].secret,
    ] {
        held.push(HeldRequest::start(&app, credential, "/v1/agents", &new_agent).await);
    }
    let path = format!("/v1/api-keys/{}", keys[0].id);
    node.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    let path = format!("/v1/api-keys/{}", keys[1].id);
    let disable = node.request_as(&dana.access_token, "PATCH", &path);
    disable.json(json!({ "disabled": true })).send().await.expect_status(200);
    let sign_out = node.request_as(&signed_out.access_token, "POST", "/v1/auth/logout");
    sign_out.send().await.expect_status(204);
    let body = json!({ "current_password": PASSWORD, "new_password": "a walk in the old park" });
    let change = node.request_as(&changed.access_token, "POST", "/v1/auth/password/change");
    change.json(body).send().await.expect_status(200);
    let mut statuses = Vec::new();
    for request in held {
        statuses.push(request.finish().await);
    }
    assert_eq!(statuses, [401, 401, 401, 401, 201]);
    let agents = app.request_as(&keys[2].secret, "GET", "/v1/agents").send().await;
    assert_eq!(agents.expect_status(200).to_string().matches("\"late\"").count(), 1);
}

#[tokio::test]
async fn late_body_of_moved_session_is_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let other = app.request_as(&dana.access_token, "POST", "/v1/workspaces");
    let other = other.json(json!({ "name": "other" })).send().await.expect_status(201);
    let body = json!({ "agent_name": "late" });
    let held = HeldRequest::start(&app, &dana.access_token, "/v1/agents", &body).await;
    let switch = app.request_as(&dana.access_token, "POST", "/v1/auth/switch-workspace");
    switch.json(json!({ "workspace_id": other["id"] })).send().await.expect_status(200);
    assert_eq!(held.finish().await, 401);
}

#[tokio::test]
async fn late_body_of_demoted_member_is_rejected() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let sam = app.add_member(&dana, "member").await;
    let body = json!({ "agent_name": "late" });
    let held = HeldRequest::start(&app, &sam.access_token, "/v1/agents", &body).await;
    let path = format!("/v1/members/{}", sam.user_id);
    let demote = app.request_as(&dana.access_token, "PATCH", &path);
    demote.json(json!({ "role": "viewer" })).send().await.expect_status(200);
    assert_eq!(held.finish().await, 403);
}
