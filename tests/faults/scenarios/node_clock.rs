//! The clock of one node is wrong by an hour.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Scale,
    database_clock::find_libfaketime,
    deployment::{Deployment, SETTINGS, WORKSPACE},
    figures::{Figures, Recovery},
};
use crate::{
    faults::{
        fixture::{Node, Server},
        histories::{Client, Credential, Reply},
    },
    fixture::TestRequest,
};

/// Attempts of a request that must succeed.
const MAX_ATTEMPTS: usize = 20;
/// The time until a use is counted.
const EVENT_DELAY: Duration = Duration::from_millis(1500);

/// Runs the scenario with this difference of one node's clock, in seconds.
pub async fn run(seconds: i32, scale: Scale) -> Figures {
    let library = find_libfaketime().unwrap();
    let server = Server::start_primary().await;
    let mut deployment = Deployment::start(&server, &[]).await;
    let url = deployment.proxies[1].url(&server.node_url(), server.port());
    let wrapper = [
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME={seconds:+}s"),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    let wrapper = wrapper.each_ref().map(String::as_str);
    // A node that is killed may have lost uses, so no key would be safe to revoke for a while.
    assert!(deployment.nodes[1].stop().await.success());
    let settings = [SETTINGS, &[("database.max_clock_skew_seconds", "7200")]].concat();
    deployment.nodes[1] = Node::start_through(&wrapper, "skewed", &url, &settings).await;
    deployment.clients[1] = Client::new(&deployment.recorder, 1, &deployment.nodes[1]);
    let mut lost_sessions = 0;
    for _ in 0..scale.pick(2, 10) {
        let session = deployment.clients[0].sign_in(WORKSPACE).await.unwrap();
        lost_sessions += usize::from(!refresh_with_retries(&deployment, session).await);
    }
    let mut verdict = None;
    for user in [0, 1] {
        // No other node has used it: the clock of that node would count, too.
        let key = deployment.clients[user].create_key(&deployment.owner, "rotated").await.unwrap();
        verdict = verdict.or(report_right_after_use(&deployment, &key, user).await);
    }
    let keys = deployment.create_keys(scale.pick(2, 10)).await;
    for (number, key) in keys.iter().enumerate() {
        deployment.revoke(number % 2, key).await;
        deployment.use_on_both(key).await;
    }
    let (history, events) = deployment.finish(&[&server]).await;
    let failure =
        verdict.map(|report| format!("an old key that was just used is safe to revoke: {report}"));
    let title = format!("a node's clock {:+} h", seconds / 3600);
    Figures::of(title, &history, Some(&events), Recovery::NotMeasured)
        .with_remark(format!("{lost_sessions} sessions ended by a retried refresh"))
        .failed(failure)
}

/// Refreshes a session on each node, and retries each refresh on the other node, as after a lost
/// response. True if the session has survived.
async fn refresh_with_retries(deployment: &Deployment, session: Credential) -> bool {
    let mut session = session;
    for turn in 0..4 {
        let mut retry = session.as_retry();
        let [first, second] = [turn % 2, (turn + 1) % 2];
        deployment.clients[first].refresh(&mut session).await;
        if deployment.clients[second].refresh(&mut retry).await != Reply::Accepted {
            return false;
        }
    }
    deployment.use_on_both(&session).await == [Reply::Accepted; 2]
}

/// Rotates a key, uses the successor and then the old key on one node, and asks both nodes right
/// afterwards whether the old key may be revoked. Returns a report that says so.
async fn report_right_after_use(
    deployment: &Deployment,
    key: &Credential,
    user: usize,
) -> Option<String> {
    let owner = &deployment.owner.secret;
    let path = format!("{}/rotate", key.path());
    let rotate = || deployment.nodes[0].request("POST", &path).bearer(owner).json(json!({}));
    let successor = send_until(201, rotate).await;
    let secret = successor["key"].as_str().unwrap();
    send_until(200, || deployment.nodes[user].verify(secret)).await;
    deployment.clients[user].use_credential(key).await;
    sleep(EVENT_DELAY).await;
    let path = format!("{}/rotation", key.path());
    for node in &deployment.nodes {
        let report = send_until(200, || node.request("GET", &path).bearer(owner)).await;
        if report["safe_to_revoke"] == true {
            return Some(report.to_string());
        }
    }
    None
}

/// Sends a request again until it has this status, and returns the body. A busy machine may answer
/// 503 in between.
async fn send_until(status: u16, request: impl Fn() -> TestRequest) -> Value {
    for _ in 0..MAX_ATTEMPTS {
        let response = request().send().await;
        if response.status != 503 {
            return response.expect_status(status);
        }
        sleep(EVENT_DELAY).await;
    }
    panic!("the service stays unavailable");
}
