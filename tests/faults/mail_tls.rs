//! Emails are sent over TLS only to a server with a trusted certificate.

use serde_json::json;

use super::fixture::{Cluster, Node, acquire_test_lock, issue_certificate, wait_until};
use crate::fixture::{PASSWORD, SmtpSink};

const LOGIN: &str = "auth:p/w";

async fn register(node: &Node, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD });
    node.request("POST", "/v1/auth/register").json(body).send().await.expect_status(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn email_is_sent_over_tls_only_to_trusted_server() {
    let _turn = acquire_test_lock().await;
    let folder = tempfile::tempdir().unwrap();
    let [authority, trusted_certificate, key] =
        issue_certificate(folder.path(), "good", &["localhost"]);
    let [_, untrusted_certificate, untrusted_key] =
        issue_certificate(folder.path(), "unknown", &["localhost"]);
    for (mode, url) in
        [("starttls", "smtp://auth:p%2Fw@HOST?tls=required"), ("tls", "smtps://auth:p%2Fw@HOST")]
    {
        let cluster = Cluster::start(false).await;
        let trusted = SmtpSink::start_with(&[mode, &trusted_certificate, &key, LOGIN]);
        let untrusted =
            SmtpSink::start_with(&[mode, &untrusted_certificate, &untrusted_key, LOGIN]);
        let trust = [("SSL_CERT_FILE", &*authority)];
        let node = async |name, host: &str, port| {
            let url = url.replace("HOST", &format!("{host}:{port}"));
            Node::start_with_env(name, &cluster.node_url(), &[("mail.url", &url)], &trust).await
        };
        // With an untrusted certificate, or a certificate for another name, the email waits.
        for (host, port) in [("localhost", untrusted.port), ("127.0.0.1", trusted.port)] {
            let mut node = node("distrustful", host, port).await;
            let email = format!("{port}@acme.example");
            register(&node, &email).await;
            node.wait_for_log("certificate").await;
            assert!(untrusted.emails_to(&email).is_empty() && trusted.emails_to(&email).is_empty());
            node.stop().await;
        }
        let node = node("trusting", "localhost", trusted.port).await;
        register(&node, "dana@acme.example").await;
        trusted.wait_for_email("dana@acme.example", "Verify").await;
        // The waiting emails are sent once they are due.
        let mut connection = cluster.connect().await;
        let sql = "UPDATE email_outbox SET next_attempt_at = now()";
        sqlx::query(sql).execute(&mut connection).await.unwrap();
        for port in [untrusted.port, trusted.port] {
            let email = format!("{port}@acme.example");
            wait_until("the waiting email is sent", || !trusted.emails_to(&email).is_empty()).await;
        }
        drop(node);
    }
}
