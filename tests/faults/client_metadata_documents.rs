//! Client metadata documents, fetched over HTTPS by a service as it is deployed.

use super::fixture::{Cluster, Node, acquire_test_lock, issue_certificate};
use crate::fixture::{
    Browser, Script,
    oauth::{OAuthClient, OAuthExt, decode_claims, redirect_parameters},
};

const CALLBACK: &str = "https://assistant.example/cb";

/// A server of client metadata documents. The nodes that it starts trust its certificate authority.
struct DocumentServer {
    script: Script,
    url: String,
    authority: String,
    _folder: tempfile::TempDir,
}

impl DocumentServer {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [authority, server_certificate, key] =
            issue_certificate(folder.path(), "documents", &["localhost"]);
        let mut script = Script::python("document_server.py", &[&server_certificate, &key], &[]);
        let url = format!("https://localhost:{}", script.read_line_after("").await);
        Self { script, url, authority, _folder: folder }
    }

    async fn node(&self, cluster: &Cluster, documents: &str) -> Node {
        let settings = [("oauth.metadata_documents", documents)];
        let trust = [("SSL_CERT_FILE", &*self.authority)];
        Node::start_with_env("node", &cluster.node_url(), &settings, &trust).await
    }

    fn client(&self, path: &str) -> OAuthClient {
        let (id, redirect_uri) = (format!("{}/{path}", self.url), CALLBACK.to_owned());
        OAuthClient { id, secret: None, redirect_uri }
    }

    /// Returns how often this path was requested since the last call.
    async fn count_requests(&mut self, path: &str) -> usize {
        let end = format!("/end-{}", uuid::Uuid::nil());
        send_marker(&format!("{}{end}", self.url)).await;
        let mut count = 0;
        loop {
            match self.script.read_line_after("/").await {
                line if format!("/{line}") == end => return count,
                line if line == path => count += 1,
                _ => {}
            }
        }
    }
}

/// Sends a request that marks the end of the earlier requests.
async fn send_marker(url: &str) {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-s", "-k", "-o", "/dev/null", url]);
    assert!(curl.status().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn client_is_authorized_by_its_metadata_document() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let mut documents = DocumentServer::start().await;
    let node = documents.node(&cluster, "any").await;
    let dana = node.register("acme").await;
    let client = documents.client("good.json");
    let mut browser = Browser::signed_in(&node, "owner@acme.example").await;
    let page = browser.get(&client.authorization_url(&[])).await;
    for text in
        ["Example assistant", "assistant.example", "It is identified by the website localhost."]
    {
        assert!(page.text.contains(text), "{text}: {}", page.text);
    }
    let (redirect_uri, params) = redirect_parameters(&browser.submit_consent(&page, &[]).await);
    assert_eq!(redirect_uri, CALLBACK);
    let tokens = node.redeem_code(&client, &params["code"]).await.expect_status(200);
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(decode_claims(token)["client_id"], client.id);
    node.request("GET", "/v1/agents").bearer(token).send().await.expect_status(200);
    // The document is cached as its headers allow, and token requests do not need it.
    node.obtain_tokens(&mut browser, &client, &[("prompt", "consent")]).await;
    node.refresh_token(&client, tokens["refresh_token"].as_str().unwrap()).await.expect_status(200);
    assert_eq!(documents.count_requests("good.json").await, 1);
    // The log and the API show an id like those of other clients, always the same.
    let grants =
        node.request("GET", "/v1/oauth/grants").bearer(&dana).send().await.expect_status(200);
    let ids: Vec<_> =
        grants["grants"].as_array().unwrap().iter().map(|g| &g["client"]["id"]).collect();
    assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0].as_str().unwrap().starts_with("client_"));

    // A client name is optional.
    let page = browser.get(&documents.client("bare.json").authorization_url(&[])).await;
    assert!(page.text.contains("Authorize assistant.example?"), "{}", page.text);
    // Errors are not cached.
    let fragile = documents.client("fragile.json");
    assert_eq!(browser.get(&fragile.authorization_url(&[])).await.status, 400);
    assert_eq!(browser.get(&fragile.authorization_url(&[])).await.status, 200);
    // A document with `no-store` is fetched each time, also when the user consents.
    let changing = documents.client("changing.json");
    let page = browser.get(&changing.authorization_url(&[])).await;
    assert_eq!(page.status, 200);
    assert!(redirect_parameters(&browser.submit_consent(&page, &[]).await).1.contains_key("code"));
    let response = browser.get(&changing.authorization_url(&[])).await;
    assert_eq!(response.status, 400, "the document no longer contains the redirect URI");
    let response = browser.submit_consent(&page, &[]).await;
    assert_eq!(response.status, 400, "{response:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_client_metadata_document_is_rejected() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let mut documents = DocumentServer::start().await;
    let node = documents.node(&cluster, "any").await;
    let mut browser = Browser::new(&node);
    for kind in [
        "other", "nobody", "secret", "shared", "private", "signed", "wild", "large", "endless",
        "slow", "moved", "gone", "created", "page", "broken",
    ] {
        let page = browser.get(&documents.client(kind).authorization_url(&[])).await;
        assert_eq!(page.status, 400, "{kind}: {page:#?}");
        assert!(!page.headers.contains_key("location"), "{kind}");
    }
    assert_eq!(documents.count_requests("good.json").await, 0, "redirects are not followed");
    // A client that no user has authorized has no tokens, so its document is not fetched.
    let client = documents.client("good.json");
    node.refresh_token(&client, "rt_call2me_x").await.assert_oauth_error(401, "invalid_client");
    assert_eq!(documents.count_requests("good.json").await, 0);

    // With `public`, documents are fetched only from public addresses, so never from this machine.
    let node = documents.node(&cluster, "public").await;
    let mut browser = Browser::new(&node);
    assert_eq!(browser.get(&client.authorization_url(&[])).await.status, 400);
    let mut by_address = client.clone();
    by_address.id = client.id.replace("localhost", "127.0.0.1");
    assert_eq!(browser.get(&by_address.authorization_url(&[])).await.status, 400);
    assert_eq!(documents.count_requests("good.json").await, 0);
    // A certificate of an authority that the node does not trust is rejected.
    let settings = [("oauth.metadata_documents", "any")];
    let node = Node::start("distrustful", &cluster.node_url(), &settings).await;
    assert_eq!(Browser::new(&node).get(&client.authorization_url(&[])).await.status, 400);
    assert_eq!(documents.count_requests("good.json").await, 0);
}
