//! Mail over TLS: to a server whose certificate is good, and to no other.

use serde_json::json;

use super::fixture::{Cluster, Node, certificate, turn, until};
use crate::fixture::{PASSWORD, SmtpSink};

const LOGIN: &str = "auth:p/w";

async fn register(node: &Node, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD });
    node.call("POST", "/v1/auth/register").json(body).send().await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_go_over_tls_to_a_server_whose_certificate_is_good_and_to_no_other() {
    let _turn = turn().await;
    let folder = tempfile::tempdir().unwrap();
    let [authority, good, key] = certificate(folder.path(), "good");
    let [_, unknown, unknown_key] = certificate(folder.path(), "unknown");
    for (mode, url) in
        [("starttls", "smtp://auth:p%2Fw@HOST?tls=required"), ("tls", "smtps://auth:p%2Fw@HOST")]
    {
        let cluster = Cluster::start(false).await;
        let trusted = SmtpSink::start_with(&[mode, &good, &key, LOGIN]);
        let stranger = SmtpSink::start_with(&[mode, &unknown, &unknown_key, LOGIN]);
        let trust = [("SSL_CERT_FILE", &*authority)];
        let node = async |name, host: &str, port| {
            let url = url.replace("HOST", &format!("{host}:{port}"));
            Node::start_in(name, &cluster.node_url(), &[("mail.url", &url)], &trust).await
        };
        // A certificate of somebody unknown, and one that is for another name: the mail waits.
        for (host, port) in [("localhost", stranger.port), ("127.0.0.1", trusted.port)] {
            let mut node = node("distrustful", host, port).await;
            let email = format!("{port}@acme.example");
            register(&node, &email).await;
            node.told("certificate").await;
            assert!(stranger.mails_to(&email).is_empty() && trusted.mails_to(&email).is_empty());
            node.stop().await;
        }
        let node = node("trusting", "localhost", trusted.port).await;
        register(&node, "dana@acme.example").await;
        trusted.mail("dana@acme.example", "Verify").await;
        // What waited is sent too, once its time has come.
        let mut connection = cluster.connect().await;
        let sql = "UPDATE mail_outbox SET next_attempt_at = now()";
        sqlx::query(sql).execute(&mut connection).await.unwrap();
        for port in [stranger.port, trusted.port] {
            let email = format!("{port}@acme.example");
            until("the mail that waited is sent", || !trusted.mails_to(&email).is_empty()).await;
        }
        drop(node);
    }
}
