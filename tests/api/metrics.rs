//! The metrics endpoint, on its own listener.

use std::{fmt::Debug, net::TcpListener, str::FromStr, time::Duration};

use sqlx::Executor as _;

use crate::fixture::{TestApp, eventually};

/// Returns the value of a metric. The name includes the labels.
fn metric_value<T: FromStr<Err: Debug>>(text: &str, name: &str) -> T {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("call2me_auth_{name} ")));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

#[tokio::test]
async fn metrics_count_requests_lookups_and_revocations() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let app = TestApp::start_with(&[("server.metrics_address", &address)]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "reader", "read-only").await;
    for _ in 0..3 {
        app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    }
    app.post("/v1/agents").bearer(&key.secret).send().await.assert_error(403, "insufficient_scope");
    app.delete(&format!("/v1/api-keys/{}", key.id))
        .bearer(&dana.access_token)
        .send()
        .await
        .expect_status(204);
    let scrape = async || {
        let response = app.http.get(format!("http://{address}/metrics")).send().await.unwrap();
        response.text().await.unwrap()
    };
    let text = eventually("all audit events are written", async || {
        let text = scrape().await;
        (metric_value::<f64>(&text, "audit_events_waiting") < 0.5).then_some(text)
    })
    .await;
    let request_count = |method: &str, route: &str, outcome: &str| -> u64 {
        let labels = format!("{{method=\"{method}\",route=\"{route}\",outcome=\"{outcome}\"}}");
        metric_value(&text, &format!("request_duration_seconds_count{labels}"))
    };
    assert_eq!(request_count("GET", "/v1/agents", "ok"), 3);
    assert_eq!(request_count("POST", "/v1/agents", "forbidden"), 1);
    assert_eq!(
        request_count("DELETE", "/v1/api-keys/{id}", "ok"),
        1,
        "the label is the route pattern"
    );
    assert_eq!(
        metric_value::<u64>(&text, "cache_lookups_total{cache=\"keys\",outcome=\"miss\"}"),
        1
    );
    assert_eq!(
        metric_value::<u64>(&text, "cache_lookups_total{cache=\"keys\",outcome=\"hit\"}"),
        3
    );
    assert_eq!(metric_value::<u64>(&text, "audit_events_lost_total"), 0);
    assert_eq!(metric_value::<u64>(&text, "fence_wait_duration_seconds_count"), 1);
    assert!(metric_value::<u64>(&text, "revocation_lag_seconds_count") >= 1);
    assert!(metric_value::<f64>(&text, "lease_seconds") > 0.0);
    assert!(text.ends_with("# EOF\n"));
    // The public listener does not serve metrics.
    app.get("/metrics").send().await.assert_error(404, "not_found");
}

#[tokio::test]
async fn failed_audit_writes_are_counted_by_sqlstate() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let app = TestApp::start_with(&[("server.metrics_address", &address)]).await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    let revoke = "REVOKE EXECUTE ON FUNCTION append_audit_events FROM call2me_auth_app";
    connection.execute(revoke).await.unwrap();
    app.get("/v1/agents").bearer(&dana.access_token).send().await.expect_status(200);
    let scrape = async || {
        let response = app.http.get(format!("http://{address}/metrics")).send().await.unwrap();
        response.text().await.unwrap()
    };
    let failures = "audit_write_failures_total{sqlstate=\"42501\"}";
    eventually("a write has failed", async || scrape().await.contains(failures).then_some(()))
        .await;
    app.clock.advance(Duration::from_secs(1));
    let text = scrape().await;
    assert!(metric_value::<u64>(&text, failures) >= 1);
    assert!(metric_value::<f64>(&text, "audit_write_stall_seconds") >= 1.0);
    assert!(metric_value::<f64>(&text, "audit_events_waiting") > 0.5);
    let grant = "GRANT EXECUTE ON FUNCTION append_audit_events TO call2me_auth_app";
    connection.execute(grant).await.unwrap();
}
