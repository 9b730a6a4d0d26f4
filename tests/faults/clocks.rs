//! Real nodes on machines whose clocks differ. libfaketime changes the wall clock of a process and
//! not its monotonic clock, as setting the clock of a machine does.

use std::path::Path;

use serde_json::{Value, json};

use super::fixture::{Cluster, Node, acquire_test_lock, run_until_exit};
use crate::fixture::{PASSWORD, eventually};

/// The errors of a machine's clock that the tests try, in seconds.
const SKEWS: [i64; 2] = [3600, -3600];

/// The name of the file, in the folder of a test, that holds the error of a machine's clock.
const OFFSET_FILE: &str = "offset";

/// Returns the path of libfaketime.
fn libfaketime() -> String {
    let arch = std::env::consts::ARCH;
    let path = format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1");
    assert!(Path::new(&path).exists(), "libfaketime is missing: apt-get install libfaketime");
    path
}

/// Starts a node. The folder has the error of its machine's clock, which the test may change.
async fn start_with_offset(
    name: &'static str,
    url: &str,
    folder: &Path,
    settings: &[(&str, &str)],
) -> Node {
    let (library, file) = (libfaketime(), folder.join(OFFSET_FILE));
    let environment = [
        ("LD_PRELOAD", &*library),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    Node::start_with_env(name, url, settings, &environment).await
}

fn set_offset(folder: &Path, seconds: i64) {
    std::fs::write(folder.join(OFFSET_FILE), format!("{seconds:+}\n")).unwrap();
}

/// Starts a node on a machine whose clock is right, and one on a machine whose clock is ahead by
/// this number of seconds.
async fn two_nodes(url: &str, ahead: i64) -> [Node; 2] {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    set_offset(folder.path(), ahead);
    let allowed = [("database.max_clock_skew_seconds", "7200")];
    let skewed = start_with_offset("skewed", url, folder.path(), &allowed).await;
    skewed.wait_for_log("the clock of this machine differs from that of PostgreSQL").await;
    [Node::start("right", url, &[]).await, skewed]
}

async fn refresh(node: &Node, token: &str) -> Value {
    let body = json!({ "refresh_token": token });
    node.request("POST", "/v1/auth/refresh").json(body).send().await.expect_status(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_retried_on_machine_with_wrong_clock_keeps_the_session() {
    let _turn = acquire_test_lock().await;
    for ahead in SKEWS {
        let cluster = Cluster::start(false).await;
        let nodes = two_nodes(&cluster.node_url(), ahead).await;
        nodes[0].register("acme").await;
        let body = json!({ "email": "owner@acme.example", "password": PASSWORD });
        let login = nodes[1].request("POST", "/v1/auth/login").json(body).send().await;
        let mut token = login.expect_status(200)["refresh_token"].as_str().unwrap().to_owned();
        for [first, second] in [[0, 1], [1, 0], [0, 0], [1, 1]] {
            let refreshed = refresh(&nodes[first], &token).await;
            let retried = refresh(&nodes[second], &token).await;
            assert_eq!(retried["refresh_token"], refreshed["refresh_token"], "{ahead}");
            for node in &nodes {
                let access_token = retried["access_token"].as_str().unwrap();
                node.verify(access_token).send().await.expect_status(200);
            }
            token = refreshed["refresh_token"].as_str().unwrap().to_owned();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_just_used_is_not_quiet_on_machine_with_wrong_clock() {
    let _turn = acquire_test_lock().await;
    for ahead in SKEWS {
        let cluster = Cluster::start(false).await;
        let nodes = two_nodes(&cluster.node_url(), ahead).await;
        let owner = nodes[0].register("acme").await;
        let old = nodes[0].create_key(&owner, "prod").await;
        let path = format!("/v1/api-keys/{}/rotate", old.id);
        let rotate = nodes[0].request("POST", &path).bearer(&owner).json(json!({}));
        let new = rotate.send().await.expect_status(201);
        let path = format!("/v1/api-keys/{}/rotation", old.id);
        for (node, used) in [(&nodes[0], 1), (&nodes[1], 2)] {
            for key in [new["key"].as_str().unwrap(), &old.secret] {
                node.verify(key).send().await.expect_status(200);
            }
            for node in &nodes {
                let report = eventually("the requests are counted", async || {
                    let report = node.request("GET", &path).bearer(&owner).send().await;
                    let report = report.expect_status(200);
                    let counts = ["old", "new"].map(|key| &report[key]["requests_last_hour"]);
                    (counts == [&json!(used); 2]).then_some(report)
                })
                .await;
                assert_eq!(report["safe_to_revoke"], false, "{ahead}: {report:#}");
                // The quiet period is 900 seconds. A busy machine may take some.
                assert!(report["quiet_for_seconds"].as_i64() < Some(600), "{ahead}: {report:#}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_on_machine_with_wrong_clock_does_not_start() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let library = libfaketime();
    for (offset, side) in [("+3600", "3600 s ahead of"), ("-45", "45 s behind")] {
        let environment = [
            ("LD_PRELOAD", &*library),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let (status, log) = run_until_exit(&cluster.node_url(), &environment).await;
        assert_eq!(status.code(), Some(2), "{log}");
        let message = format!(
            "the clock of this machine is {side} that of PostgreSQL, more than \
             database.max_clock_skew_seconds (30)"
        );
        assert!(log.contains(&message), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_whose_clock_is_set_reports_it_and_goes_on() {
    let _turn = acquire_test_lock().await;
    let cluster = Cluster::start(false).await;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    set_offset(folder.path(), 0);
    let node = start_with_offset("node", &cluster.node_url(), folder.path(), &[]).await;
    let owner = node.register("acme").await;
    for (ahead, message) in [
        (3600, "the clock of this machine differs from that of PostgreSQL"),
        (0, "the clock of this machine agrees with that of PostgreSQL"),
    ] {
        set_offset(folder.path(), ahead);
        node.wait_for_log(message).await;
        node.verify(&owner).send().await.expect_status(200);
        node.request("GET", "/readyz").send().await.expect_status(200);
    }
    assert_eq!(node.count_log_lines("the clock of PostgreSQL has changed"), 0);
}
