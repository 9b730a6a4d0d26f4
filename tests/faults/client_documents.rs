//! Clients whose metadata documents tell of them: fetched over https, with care, by a service as it is deployed.

use super::fixture::{Cluster, Node, certificate, turn};
use crate::fixture::{
    Browser, Script,
    oauth::{OAuth, OAuthClient, claims, told},
};

const CALLBACK: &str = "https://assistant.example/cb";

/// A server of documents, trusted by nodes that are told of its authority.
struct Documents {
    script: Script,
    url: String,
    authority: String,
    _folder: tempfile::TempDir,
}

impl Documents {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [authority, own, key] = certificate(folder.path(), "documents");
        let mut script = Script::python("document_server.py", &[&own, &key], &[]);
        let url = format!("https://localhost:{}", script.says("").await);
        Self { script, url, authority, _folder: folder }
    }

    async fn node(&self, cluster: &Cluster, documents: &str) -> Node {
        let settings = [("oauth.metadata_documents", documents)];
        let trust = [("SSL_CERT_FILE", &*self.authority)];
        Node::start_in("node", &cluster.node_url(), &settings, &trust).await
    }

    fn client(&self, path: &str) -> OAuthClient {
        let (id, redirect_uri) = (format!("{}/{path}", self.url), CALLBACK.to_owned());
        OAuthClient { id, secret: None, redirect_uri }
    }

    /// How often it was asked for a path.
    async fn asked(&mut self, path: &str) -> usize {
        let end = format!("/end-{}", uuid::Uuid::nil());
        mark_the_end(&format!("{}{end}", self.url)).await;
        let mut times = 0;
        loop {
            match self.script.says("/").await {
                line if format!("/{line}") == end => return times,
                line if line == path => times += 1,
                _ => {}
            }
        }
    }
}

/// A request that marks the end of what was asked before.
async fn mark_the_end(url: &str) {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-s", "-k", "-o", "/dev/null", url]);
    assert!(curl.status().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_let_in_by_its_document() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let mut documents = Documents::start().await;
    let node = documents.node(&cluster, "any").await;
    let dana = node.register("acme").await;
    let client = documents.client("good.json");
    let mut browser = Browser::of(&node, "owner@acme.example").await;
    let page = browser.get(&client.authorize(&[])).await;
    for words in ["Example assistant", "assistant.example", "It is known by localhost."] {
        assert!(page.text.contains(words), "{words}: {}", page.text);
    }
    let (to, answer) = told(&browser.consent(&page, &[]).await);
    assert_eq!(to, CALLBACK);
    let tokens = node.redeem(&client, &answer["code"]).await.expect(200);
    let token = tokens["access_token"].as_str().unwrap();
    assert_eq!(claims(token)["client_id"], client.id);
    node.call("GET", "/v1/agents").bearer(token).send().await.expect(200);
    // It is believed for as long as it says; tokens take no look at it at all.
    node.tokens_by(&mut browser, &client, &[("prompt", "consent")]).await;
    node.refresh(&client, tokens["refresh_token"].as_str().unwrap()).await.expect(200);
    assert_eq!(documents.asked("good.json").await, 1);
    // To the log and to people it has an id like others, one and the same.
    let grants = node.call("GET", "/v1/oauth/grants").bearer(&dana).send().await.expect(200);
    let ids: Vec<_> =
        grants["grants"].as_array().unwrap().iter().map(|g| &g["client"]["id"]).collect();
    assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0].as_str().unwrap().starts_with("client_"));

    // A name is not needed.
    let page = browser.get(&documents.client("bare.json").authorize(&[])).await;
    assert!(page.text.contains("Let assistant.example in?"), "{}", page.text);
    // What went wrong is not remembered.
    let fragile = documents.client("fragile.json");
    assert_eq!(browser.get(&fragile.authorize(&[])).await.status, 400);
    assert_eq!(browser.get(&fragile.authorize(&[])).await.status, 200);
    // What is not to be kept is looked at each time, also when somebody consents.
    let changing = documents.client("changing.json");
    let page = browser.get(&changing.authorize(&[])).await;
    assert_eq!(page.status, 200);
    assert!(told(&browser.consent(&page, &[]).await).1.contains_key("code"));
    let late = browser.get(&changing.authorize(&[])).await;
    assert_eq!(late.status, 400, "the redirect URI is not there any more");
    let late = browser.consent(&page, &[]).await;
    assert_eq!(late.status, 400, "{late:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_document_of_a_client_is_not_believed() {
    let _turn = turn().await;
    let cluster = Cluster::start(false).await;
    let mut documents = Documents::start().await;
    let node = documents.node(&cluster, "any").await;
    let mut browser = Browser::new(&node);
    for kind in [
        "other", "nobody", "secret", "shared", "private", "signed", "wild", "large", "endless",
        "slow", "moved", "gone", "created", "page", "broken",
    ] {
        let page = browser.get(&documents.client(kind).authorize(&[])).await;
        assert_eq!(page.status, 400, "{kind}: {page:#?}");
        assert!(!page.headers.contains_key("location"), "{kind}");
    }
    assert_eq!(documents.asked("good.json").await, 0, "no redirect is followed");
    // Whom nobody has let in has no tokens to ask for, and no document is fetched for it.
    let client = documents.client("good.json");
    node.refresh(&client, "rt_call2me_x").await.told(401, "invalid_client");
    assert_eq!(documents.asked("good.json").await, 0);

    // Where documents come from public addresses alone, this machine is asked for nothing.
    let node = documents.node(&cluster, "public").await;
    let mut browser = Browser::new(&node);
    assert_eq!(browser.get(&client.authorize(&[])).await.status, 400);
    let mut by_address = client.clone();
    by_address.id = client.id.replace("localhost", "127.0.0.1");
    assert_eq!(browser.get(&by_address.authorize(&[])).await.status, 400);
    assert_eq!(documents.asked("good.json").await, 0);
    // Nor is an authority believed that nobody was told of.
    let settings = [("oauth.metadata_documents", "any")];
    let node = Node::start("distrustful", &cluster.node_url(), &settings).await;
    assert_eq!(Browser::new(&node).get(&client.authorize(&[])).await.status, 400);
    assert_eq!(documents.asked("good.json").await, 0);
}
