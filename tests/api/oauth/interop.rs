//! Interoperability with unmodified third-party clients: `oauth4webapi`, the SDKs and the
//! conformance tests of the Model Context Protocol (MCP), Authlib, and libraries of integration
//! platforms. Where a client sends the user to a page, a real browser opens it.

use serde_json::{Value, json};
use url::Url;

use crate::faults::run_admin_command;
use crate::fixture::{
    Browser, Chromium, PASSWORD, Script, TestApp, TestClient, TestUser, free_port,
    oauth::{CALLBACK, OAuthClient, OAuthExt},
};

/// Opens the page to which a client sends the user, and signs in.
async fn sign_in(chromium: &Chromium, url: &str, person: &TestUser) {
    chromium.open(url).await;
    chromium.wait_for_text("/sign-in", "Sign in").await;
    chromium.fill("form[action='/sign-in'] input[name=email]", &person.email).await;
    chromium.fill("form[action='/sign-in'] input[name=password]", PASSWORD).await;
    chromium.click("form[action='/sign-in'] button").await;
}

/// Authorizes the client on the consent page.
async fn authorize_client(chromium: &Chromium, client: &str) {
    chromium.wait_for_text("/oauth/authorize", &format!("Authorize {client}?")).await;
    chromium.click("button[value=allow]").await;
    chromium.wait_for_text("/callback", "You can close this window.").await;
}

async fn create_robot_client(app: &TestApp, owner: &TestUser) -> OAuthClient {
    let body = json!({ "name": "Robot", "grant_types": ["client_credentials"] });
    let created =
        app.request_as(&owner.access_token, "POST", "/v1/oauth/clients").json(body).send().await;
    OAuthClient::from_registration(&created.expect_status(201))
}

#[tokio::test(flavor = "multi_thread")]
async fn oauth4webapi_completes_all_flows() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let robot = create_robot_client(&app, &dana).await;
    let secret = robot.secret.clone().unwrap();
    let variables = [("ROBOT_ID", &*robot.id), ("ROBOT_SECRET", &*secret)];
    let mut script = Script::node("oauth4webapi.mjs", &[&app.url], &variables);
    let chromium = Chromium::start().await;
    sign_in(&chromium, &script.read_line_after("AUTHORIZE").await, &dana).await;
    authorize_client(&chromium, "oauth4webapi").await;
    chromium.open(&script.read_line_after("DEVICE").await).await;
    chromium.wait_for_text("/device", "Connect a device").await;
    chromium.click("form[action='/device'] button").await;
    chromium.wait_for_text("/device", "on another device").await;
    chromium.click("button[value=allow]").await;
    chromium.wait_for_text("/device/consent", "Connected").await;
    script.expect_success().await;
}

/// A small MCP server and its clients. Two versions of the SDK: discovery, registration, consent,
/// refresh and a step up to a wider scope.
#[tokio::test(flavor = "multi_thread")]
async fn mcp_sdk_clients_connect_to_mcp_server() {
    let port = free_port().to_string();
    let resource = format!("http://127.0.0.1:{port}/mcp");
    let app = TestApp::start_at_system_time(&[("oauth.resources", &resource)]).await;
    let dana = app.register("acme").await;
    let mut server = Script::node("mcp_server.mjs", &[&app.url, &port], &[]);
    server.read_line_after("READY").await;
    let chromium = Chromium::start().await;
    for version in ["1", "2"] {
        let name = format!("An assistant, version {version}");
        let mut client = Script::node("mcp_client.mjs", &[version, &resource], &[]);
        let url = client.read_line_after("AUTHORIZE").await;
        assert!(url.contains("scope=call2me%3Aread"), "{url}");
        if version == "1" {
            sign_in(&chromium, &url, &dana).await;
        } else {
            chromium.open(&url).await;
        }
        authorize_client(&chromium, &name).await;
        let identity: Value =
            serde_json::from_str(&client.read_line_after("WHOAMI").await).unwrap();
        let expected = json!({
            "scopes": ["call2me:read"], "sub": dana.user_id, "workspace_id": dana.workspace_id,
        });
        assert_eq!(identity, expected);
        client.read_line_after("REFRESHED").await;
        chromium.open(&client.read_line_after("AUTHORIZE").await).await;
        authorize_client(&chromium, &name).await;
        assert_eq!(client.read_line_after("STEPPED").await, "written");
        client.expect_success().await;
    }
    let grants = app
        .request_as(&dana.access_token, "GET", "/v1/oauth/grants")
        .send()
        .await
        .expect_status(200);
    assert_eq!(grants["total"], 4);

    // mcp-remote, with which desktop assistants connect, keeps its tokens in a folder.
    let folder = tempfile::tempdir().unwrap();
    let arguments = [&*resource, folder.path().to_str().unwrap()];
    let mut client = Script::node("mcp_remote.mjs", &arguments, &[]);
    chromium.open(&client.read_line_after("AUTHORIZE").await).await;
    chromium.wait_for_text("/oauth/authorize", "Authorize MCP CLI Proxy?").await;
    chromium.click("button[value=allow]").await;
    for word in ["WHOAMI", "AGAIN"] {
        let identity = client.read_line_after(word).await;
        assert!(identity.contains(&dana.user_id), "{identity}");
    }
    client.expect_success().await;

    // The Python SDK.
    let mut client = Script::python("drive_mcp.py", &[&resource, CALLBACK], &[]);
    let url: Url = client.read_line_after("AUTHORIZE").await.parse().unwrap();
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get(&url[url::Position::BeforePath..]).await;
    let answer = browser.submit_consent(&page, &[]).await;
    client.send_line(answer.redirect_target().unwrap()).await;
    for word in ["WHOAMI", "REFRESHED"] {
        let identity = client.read_line_after(word).await;
        assert!(identity.contains(&dana.user_id), "{identity}");
    }
    client.expect_success().await;
}

/// The server introspects each token with a client that the operator created for it, so it rejects
/// an ended grant at once.
#[tokio::test(flavor = "multi_thread")]
async fn introspecting_resource_rejects_ended_grant_at_once() {
    let port = free_port().to_string();
    let resource = format!("http://127.0.0.1:{port}/mcp");
    let app = TestApp::start_at_system_time(&[("oauth.resources", &resource)]).await;
    let (operator, dana) = (app.register("operator").await, app.register("acme").await);
    let create =
        ["oauth-clients", "create", "--workspace", &operator.workspace_id, "--name", "MCP"];
    let settings = [("oauth.resources", &*resource)];
    let unknown = [&create[..], &["--resource", "https://elsewhere.example"]].concat();
    let error = run_admin_command(&app.database.url, &unknown, &settings).await.unwrap_err();
    assert!(error.contains("resource must be one of oauth.resources"), "{error}");
    let create = [&create[..], &["--resource", &resource]].concat();
    let created = run_admin_command(&app.database.url, &create, &settings).await.unwrap();
    let [id, secret] = ["client_id", "client_secret"].map(|name| created[name].as_str().unwrap());
    let variables = [("CLIENT_ID", id), ("CLIENT_SECRET", secret)];
    let mut server = Script::node("mcp_server.mjs", &[&app.url, &port], &variables);
    server.read_line_after("READY").await;

    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[("resource", &resource)]).await;
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    let list_tools = async || {
        let request =
            app.http.post(&resource).bearer_auth(tokens["access_token"].as_str().unwrap());
        let request = request.header("accept", "application/json, text/event-stream").json(&list);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(list_tools().await, 200);
    let grants = app
        .request_as(&dana.access_token, "GET", "/v1/oauth/grants")
        .send()
        .await
        .expect_status(200);
    let path = format!("/v1/oauth/grants/{}", grants["grants"][0]["id"].as_str().unwrap());
    app.request_as(&dana.access_token, "DELETE", &path).send().await.expect_status(204);
    assert_eq!(list_tools().await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_conformance_tests_pass() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let uris = json!({ "redirect_uris": ["http://127.0.0.1/callback"] });
    let client = app.register_client(uris).await;
    let port = free_port().to_string();
    let variables = [("CLIENT_ID", &*client.id)];
    let mut script = Script::node("conformance.mjs", &[&app.url, &port], &variables);
    let chromium = Chromium::start().await;
    sign_in(&chromium, &script.read_line_after("AUTHORIZE").await, &dana).await;
    chromium.wait_for_text("/oauth/authorize", "Authorize Example app?").await;
    chromium.click("button[value=allow]").await;
    script.expect_success().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authlib_completes_all_flows() {
    let app = TestApp::start_at_system_time(&[]).await;
    let dana = app.register("acme").await;
    let (public, secret) =
        (app.register_client(json!({})).await, app.register_confidential_client().await);
    let robot = create_robot_client(&app, &dana).await;
    let variables = [
        ("PUBLIC_ID", &*public.id),
        ("SECRET_ID", &secret.id),
        ("SECRET", secret.secret.as_deref().unwrap()),
        ("ROBOT_ID", &robot.id),
        ("ROBOT_SECRET", robot.secret.as_deref().unwrap()),
    ];
    let mut script = Script::python("drive_authlib.py", &[&app.url, CALLBACK], &variables);
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    for _ in 0..6 {
        let url: Url = script.read_line_after("AUTHORIZE").await.parse().unwrap();
        let page = browser.get(&url[url::Position::BeforePath..]).await;
        let answer =
            if page.status == 303 { page } else { browser.submit_consent(&page, &[]).await };
        script.send_line(answer.redirect_target().unwrap()).await;
    }
    script.expect_success().await;
}

/// zapier-platform-core, n8n's oauth2-client and simple-oauth2 with a workspace client.
#[tokio::test(flavor = "multi_thread")]
async fn libraries_of_integration_platforms_complete_code_flow() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let client = app.register_confidential_client().await;
    let variables =
        [("CLIENT_ID", &*client.id), ("CLIENT_SECRET", client.secret.as_deref().unwrap())];
    let mut script = Script::node("code_clients.mjs", &[&app.url, CALLBACK], &variables);
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    for _ in 0..5 {
        let url: Url = script.read_line_after("AUTHORIZE").await.parse().unwrap();
        let page = browser.get(&url[url::Position::BeforePath..]).await;
        let answer =
            if page.status == 303 { page } else { browser.submit_consent(&page, &[]).await };
        script.send_line(answer.redirect_target().unwrap()).await;
    }
    script.expect_success().await;
}

/// Runs the walk-through of the documentation, which uses curl.
#[tokio::test(flavor = "multi_thread")]
async fn oauth_walkthrough_with_curl_succeeds() {
    let app = TestApp::start_at_system_time(&[]).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/walkthrough-oauth");
    let output = tokio::process::Command::new(script).arg(&app.url).output().await.unwrap();
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{out}\n{err}");
}
