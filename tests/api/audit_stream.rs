//! /v1/audit-log/stream: the log as it grows, without gap or repeat.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Block, Key, Person, Stream, TestApp, eventually, within};

const STREAM: &str = "/v1/audit-log/stream";

/// Somebody, a key that makes events, and one that watches.
async fn people(app: &TestApp) -> (Person, Key, Key) {
    let dana = app.register("acme").await;
    let [busy, watcher] =
        [app.mint(&dana, "busy", "write").await, app.mint(&dana, "watcher", "read-only").await];
    (dana, busy, watcher)
}

async fn make(app: &TestApp, key: &Key, number: usize) {
    let body = json!({ "agent_name": format!("agent {number}") });
    app.post("/v1/agents").bearer(&key.secret).json(body).send().await.expect(201);
}

fn of_busy(key: &Key) -> String {
    format!("{STREAM}?key_id={}", key.id)
}

#[tokio::test]
async fn events_come_as_they_happen_and_as_the_list_has_them() {
    let app = TestApp::start().await;
    let (dana, busy, watcher) = people(&app).await;
    make(&app, &busy, 0).await;
    let first = app.events(&dana.access_token, &format!("key_id={}", busy.id), |_| true).await;
    app.database.all_is_sealed().await;
    let mut stream = app.get(&of_busy(&busy)).bearer(&watcher.secret).follow().await;
    // What was before does not come.
    for number in 1..=3 {
        make(&app, &busy, number).await;
        let (_, event) = stream.event().await;
        assert_eq!(event["actor"]["id"], busy.id.as_str());
        let list = format!("request_id={}", event["request"]["id"].as_str().unwrap());
        let listed = app.events_of(&dana.access_token, &list, 1).await;
        assert_eq!(listed[0], event);
        assert_ne!(first[0], event);
    }
    // The request for the stream is in the log as any other.
    let list = format!("key_id={}", watcher.id);
    let events = app.events(&dana.access_token, &list, |_| true).await;
    assert_eq!(events[0]["request"]["path"], STREAM);
}

/// Reads this many events, breaking off every few, on one node and then another, while they are made.
#[tokio::test]
async fn nothing_is_missed_or_repeated_over_broken_connections_nodes_and_a_restart() {
    let app = TestApp::start().await;
    let (dana, busy, watcher) = people(&app).await;
    app.lift_limits().await;
    let other = app.another_node().await;
    app.database.every_node_knows().await;
    let total = 400;
    let path = of_busy(&busy);
    let mut stream = app.get(&path).bearer(&watcher.secret).follow().await;
    let makers = async {
        for number in 0..total / 2 {
            tokio::join!(make(&app, &busy, number), make(&other, &busy, number));
        }
    };
    let reader = async {
        let mut seen: Vec<(i64, Value)> = Vec::new();
        while seen.len() < total {
            seen.push(stream.event().await);
            if seen.len().is_multiple_of(37) {
                let node = if seen.len().is_multiple_of(2) { &app } else { &other };
                let call = node.get(&path).bearer(&watcher.secret);
                stream = call.header("last-event-id", &stream.last_id).follow().await;
            }
        }
        (seen, stream.last_id.clone())
    };
    let ((), (seen, last)) = tokio::join!(makers, reader);
    let ids: Vec<_> = seen.iter().map(|(id, _)| *id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "in order, and none twice: {ids:?}");
    let mut requests: Vec<_> = seen.iter().map(|(_, event)| event["id"].to_string()).collect();
    requests.sort_unstable();
    requests.dedup();
    assert_eq!(requests.len(), total);
    drop(other);
    drop(stream);
    // All nodes end, something happens in between, and it goes on.
    let database = app.stop().await;
    let app = TestApp::start_on(database, &[]).await;
    make(&app, &busy, total).await;
    let call = app.get(&path).bearer(&watcher.secret).header("last-event-id", &last);
    let (id, event) = call.follow().await.event().await;
    assert!(id > ids[total - 1]);
    assert_eq!(event["request"]["path"], "/v1/agents");
    drop(dana);
}

async fn ends(mut stream: Stream, why: &str) {
    let wait = async { while stream.block().await != Block::End {} };
    within(why, wait).await;
}

#[tokio::test]
async fn a_stream_ends_with_its_credential() {
    let app = TestApp::start().await;
    let (dana, busy, watcher) = people(&app).await;
    let other = app.another_node().await;
    let follow = async |credential: &str| other.get(STREAM).bearer(credential).follow().await;
    let mut of_key = follow(&watcher.secret).await;
    make(&app, &busy, 0).await;
    of_key.event().await;
    let revoke = format!("/v1/api-keys/{}", watcher.id);
    app.delete(&revoke).bearer(&dana.access_token).send().await.expect(204);
    // What happens after the answer does not reach it, on the other node either.
    make(&app, &busy, 1).await;
    let marked = app.get("/v1/calls").bearer(&busy.secret).send().await;
    let marked = marked.header("x-request-id").to_owned();
    loop {
        match of_key.block().await {
            Block::End => break,
            Block::Event(_, event) => assert_ne!(event["request"]["id"], marked.as_str()),
            Block::Comment => {}
        }
    }
    // A session that ends, one that goes elsewhere, and a member who is none any more.
    let session = app.with_fresh_session(&dana).await;
    let stream = follow(&session.access_token).await;
    app.post("/v1/auth/logout").bearer(&session.access_token).send().await.expect(204);
    ends(stream, "the session ended").await;
    let member = app.join(&dana, "viewer").await;
    let stream = follow(&member.access_token).await;
    let path = format!("/v1/members/{}", member.user_id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect(204);
    ends(stream, "the member was removed").await;
    // A token that runs out.
    let stream = follow(&dana.access_token).await;
    other.clock.advance(Duration::from_secs(3601));
    ends(stream, "the token ran out").await;
}

#[tokio::test]
async fn a_service_that_stops_ends_its_streams() {
    // Longer than the test waits: a service that waited for the stream would not stop.
    let app = TestApp::start_with(&[("server.shutdown_timeout_seconds", "600")]).await;
    let (_, _, watcher) = people(&app).await;
    let stream = app.get(STREAM).bearer(&watcher.secret).follow().await;
    within("the service stops", app.stop()).await;
    ends(stream, "the service stopped").await;
}

#[tokio::test]
async fn a_comment_shows_that_the_connection_lives() {
    let app = TestApp::start().await;
    let (dana, _, watcher) = people(&app).await;
    let path = format!("{STREAM}?action=never.happens");
    let mut stream = app.get(&path).bearer(&watcher.secret).follow().await;
    let wait = within("a comment comes", stream.block());
    app.clock.advance(Duration::from_mins(5));
    assert_eq!(wait.await, Block::Comment);
    // Whoever follows uses the key, though it is no further request.
    eventually("the use is noted", async || {
        let path = format!("/v1/api-keys/{}/usage", watcher.id);
        let usage = app.get(&path).bearer(&dana.access_token).send().await.expect(200);
        assert_eq!(usage["total_requests"].as_i64().unwrap_or(0).max(1), 1, "{usage:#}");
        (usage["first_used_at"].as_str() < usage["last_used_at"].as_str()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bad_values_are_refused_and_those_who_follow_are_bounded() {
    let app = TestApp::start().await;
    let (dana, _, watcher) = people(&app).await;
    for bad in ["x", "-1", "1.5"] {
        let call = app.get(STREAM).bearer(&watcher.secret).header("last-event-id", bad);
        call.send().await.refused(422, "validation_failed").blames("Last-Event-ID");
    }
    let call = app.get(&format!("{STREAM}?status=x")).bearer(&watcher.secret);
    call.send().await.refused(422, "validation_failed").blames("status");
    // An id of the future is that of another log: it begins now.
    let call = app.get(STREAM).bearer(&watcher.secret).header("last-event-id", "999999999");
    assert_ne!(call.follow().await.last_id, "999999999");
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(app.get(STREAM).bearer(&watcher.secret).follow().await);
    }
    let refused = app.get(STREAM).bearer(&watcher.secret).send().await;
    refused.refused(429, "rate_limited");
    assert!(refused.number("retry-after") >= 1);
    // Others are not concerned, and room is made by whoever leaves.
    let widgets = app.register("widgets").await;
    app.get(STREAM).bearer(&widgets.access_token).follow().await;
    streams.pop();
    eventually("there is room again", async || {
        let answer = app.get(STREAM).bearer(&dana.access_token).send().await;
        (answer.status == 200).then_some(())
    })
    .await;
}
