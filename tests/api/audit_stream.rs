//! /v1/audit-log/stream: new events as they are sealed, without gaps or duplicates.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{
    EventStream, Key, StreamBlock, TestApp, TestClient, TestUser, eventually, with_timeout,
};

const STREAM: &str = "/v1/audit-log/stream";

/// Creates an owner, a key that causes events, and a key that follows the stream.
async fn create_actors(app: &TestClient) -> (TestUser, Key, Key) {
    let dana = app.register("acme").await;
    let [busy, watcher] = [
        app.create_key(&dana, "busy", "write").await,
        app.create_key(&dana, "watcher", "read-only").await,
    ];
    (dana, busy, watcher)
}

async fn create_agent(app: &TestClient, key: &Key, number: usize) {
    let body = json!({ "agent_name": format!("agent {number}") });
    app.post("/v1/agents").bearer(&key.secret).json(body).send().await.expect_status(201);
}

fn stream_of(key: &Key) -> String {
    format!("{STREAM}?key_id={}", key.id)
}

#[tokio::test]
async fn stream_delivers_events_as_listed() {
    let app = TestApp::start().await;
    let (dana, busy, watcher) = create_actors(&app).await;
    create_agent(&app, &busy, 0).await;
    let first =
        app.wait_for_event(&dana.access_token, &format!("key_id={}", busy.id), |_| true).await;
    app.database.wait_until_sealed().await;
    let mut stream = app.get(&stream_of(&busy)).bearer(&watcher.secret).open_stream().await;
    // Earlier events are not delivered.
    for number in 1..=3 {
        create_agent(&app, &busy, number).await;
        let (_, event) = stream.next_event().await;
        assert_eq!(event["actor"]["id"], busy.id.as_str());
        let query = format!("request_id={}", event["request"]["id"].as_str().unwrap());
        let listed = app.wait_for_event_count(&dana.access_token, &query, 1).await;
        assert_eq!(listed[0], event);
        assert_ne!(first[0], event);
    }
    // The request for the stream is logged like any other request.
    let query = format!("key_id={}", watcher.id);
    let events = app.wait_for_event(&dana.access_token, &query, |_| true).await;
    assert_eq!(events[0]["request"]["path"], STREAM);
}

/// Reads a response until its text has this many blocks, each of which ends with an empty line.
async fn read_blocks(response: &mut reqwest::Response, count: usize) -> Vec<String> {
    let mut text = String::new();
    while text.matches("\n\n").count() < count {
        let chunk = with_timeout("the next block", response.chunk()).await.unwrap().unwrap();
        text.push_str(str::from_utf8(&chunk).unwrap());
    }
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

/// The bytes on the wire, for clients that parse less than the HTML Standard allows.
#[tokio::test]
async fn stream_has_plain_lines_and_unbuffered_headers() {
    let app = TestClient::shared();
    let (_, busy, watcher) = create_actors(&app).await;
    let request = app.http.get(format!("{}{}", app.url, stream_of(&busy)));
    let mut response = request.bearer_auth(&watcher.secret).send().await.unwrap();
    let headers = ["content-type", "cache-control", "x-accel-buffering"];
    assert_eq!(
        headers.map(|name| response.headers().get_all(name).iter().collect::<Vec<_>>()),
        [vec!["text/event-stream"], vec!["no-store"], vec!["no"]]
    );
    let start = read_blocks(&mut response, 1).await.remove(0);
    let id = start.rsplit_once("id: ").unwrap().1;
    assert_eq!(start, format!(": from {id}\nretry: 1000\nid: {id}"));
    for number in 0..3 {
        create_agent(&app, &busy, number).await;
    }
    for event in read_blocks(&mut response, 3).await {
        let (id, data) = event.split_once('\n').unwrap();
        assert!(id.strip_prefix("id: ").is_some_and(|id| id.parse::<i64>().is_ok()), "{event}");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["request"]["path"], "/v1/agents");
    }
}

/// Two nodes create events while a reader follows them. It reconnects after every 37 events,
/// alternating between the nodes.
#[tokio::test]
async fn resumed_stream_has_no_gaps_or_duplicates() {
    let app = TestApp::start().await;
    let (dana, busy, watcher) = create_actors(&app).await;
    app.raise_rate_limits().await;
    let other = app.another_node().await;
    app.database.wait_for_invalidation().await;
    let total = 400;
    let path = stream_of(&busy);
    let mut stream = app.get(&path).bearer(&watcher.secret).open_stream().await;
    let writer = async {
        for number in 0..total / 2 {
            tokio::join!(create_agent(&app, &busy, number), create_agent(&other, &busy, number));
        }
    };
    let reader = async {
        let mut seen: Vec<(i64, Value)> = Vec::new();
        while seen.len() < total {
            seen.push(stream.next_event().await);
            if seen.len().is_multiple_of(37) {
                let node = if seen.len().is_multiple_of(2) { &app } else { &other };
                let call = node.get(&path).bearer(&watcher.secret);
                stream = call.header("last-event-id", &stream.last_event_id).open_stream().await;
            }
        }
        (seen, stream.last_event_id.clone())
    };
    let ((), (seen, last_id)) = tokio::join!(writer, reader);
    let ids: Vec<_> = seen.iter().map(|(id, _)| *id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "in order, without duplicates: {ids:?}");
    let mut event_ids: Vec<_> = seen.iter().map(|(_, event)| event["id"].to_string()).collect();
    event_ids.sort_unstable();
    event_ids.dedup();
    assert_eq!(event_ids.len(), total);
    drop(other);
    drop(stream);
    // All nodes stop and one starts; the reader resumes after its last event.
    let database = app.stop().await;
    let app = TestApp::start_on(database, &[]).await;
    create_agent(&app, &busy, total).await;
    let call = app.get(&path).bearer(&watcher.secret).header("last-event-id", &last_id);
    let (id, event) = call.open_stream().await.next_event().await;
    assert!(id > ids[total - 1]);
    assert_eq!(event["request"]["path"], "/v1/agents");
    drop(dana);
}

async fn expect_end(mut stream: EventStream, why: &str) {
    let wait = async { while stream.next_block().await != StreamBlock::End {} };
    with_timeout(why, wait).await;
}

#[tokio::test]
async fn stream_ends_with_its_credential() {
    let app = TestApp::start().await;
    let (dana, busy, watcher) = create_actors(&app).await;
    let other = app.another_node().await;
    let follow = async |credential: &str| other.get(STREAM).bearer(credential).open_stream().await;
    let mut key_stream = follow(&watcher.secret).await;
    create_agent(&app, &busy, 0).await;
    key_stream.next_event().await;
    let revoke = format!("/v1/api-keys/{}", watcher.id);
    app.delete(&revoke).bearer(&dana.access_token).send().await.expect_status(204);
    // Events after the response do not reach the stream, not even on the other node.
    create_agent(&app, &busy, 1).await;
    let later_request = app.get("/v1/calls").bearer(&busy.secret).send().await;
    let later_request = later_request.header("x-request-id").to_owned();
    loop {
        match key_stream.next_block().await {
            StreamBlock::End => break,
            StreamBlock::Event(_, event) => {
                assert_ne!(event["request"]["id"], later_request.as_str());
            }
            StreamBlock::Comment => {}
        }
    }
    // A session that is signed out, and a member that is removed.
    let session = app.sign_in_again(&dana).await;
    let stream = follow(&session.access_token).await;
    app.post("/v1/auth/logout").bearer(&session.access_token).send().await.expect_status(204);
    expect_end(stream, "the session ended").await;
    let member = app.add_member(&dana, "viewer").await;
    let stream = follow(&member.access_token).await;
    let path = format!("/v1/members/{}", member.user_id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    expect_end(stream, "the member was removed").await;
    // An access token that expires.
    let stream = follow(&dana.access_token).await;
    other.clock.advance(Duration::from_secs(3601));
    expect_end(stream, "the token expired").await;
}

#[tokio::test]
async fn graceful_shutdown_ends_streams() {
    // Longer than the test waits: it fails if the shutdown waits for the stream to end.
    let app = TestApp::start_with(&[("server.shutdown_timeout_seconds", "600")]).await;
    let (_, _, watcher) = create_actors(&app).await;
    let stream = app.get(STREAM).bearer(&watcher.secret).open_stream().await;
    with_timeout("the service stops", app.stop()).await;
    expect_end(stream, "the service stopped").await;
}

#[tokio::test]
async fn idle_stream_sends_comments() {
    let app = TestApp::start().await;
    let (dana, _, watcher) = create_actors(&app).await;
    let path = format!("{STREAM}?action=oauth.denied");
    let mut stream = app.get(&path).bearer(&watcher.secret).open_stream().await;
    let wait = with_timeout("a comment comes", stream.next_block());
    app.clock.advance(Duration::from_mins(5));
    assert_eq!(wait.await, StreamBlock::Comment);
    // An open stream counts as use of the key, but not as another request.
    eventually("the use is recorded", async || {
        let path = format!("/v1/api-keys/{}/usage", watcher.id);
        let usage = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        let total = usage["total_requests"].as_i64().unwrap();
        assert!(total <= 1, "{usage:#}");
        (total == 1 && usage["first_used_at"].as_str() < usage["last_used_at"].as_str())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn invalid_parameters_and_excess_streams_are_rejected() {
    let app = TestClient::shared();
    let (dana, _, watcher) = create_actors(&app).await;
    for invalid in ["x", "-1", "1.5"] {
        let call = app.get(STREAM).bearer(&watcher.secret).header("last-event-id", invalid);
        call.send().await.assert_error(422, "validation_failed").assert_field("Last-Event-ID");
    }
    let call = app.get(&format!("{STREAM}?status=x")).bearer(&watcher.secret);
    call.send().await.assert_error(422, "validation_failed").assert_field("status");
    // An id beyond the newest event is of another log: the stream starts with the next event.
    let call = app.get(STREAM).bearer(&watcher.secret).header("last-event-id", "999999999");
    assert_ne!(call.open_stream().await.last_event_id, "999999999");
    // Ten streams of one credential, 50 of a workspace.
    let mut streams = Vec::new();
    for number in 0..5 {
        let key = app.create_key(&dana, &format!("watcher {number}"), "read-only").await;
        for _ in 0..10 {
            streams.push(app.get(STREAM).bearer(&key.secret).open_stream().await);
        }
        let rejected = app.get(STREAM).bearer(&key.secret).send().await;
        rejected.assert_error(429, "rate_limited");
        assert!(rejected.header_number("retry-after") >= 1);
    }
    let rejected = app.get(STREAM).bearer(&watcher.secret).send().await;
    rejected.assert_error(429, "rate_limited");
    // Other workspaces are not affected, and closing a stream frees a slot.
    let widgets = app.register("widgets").await;
    app.get(STREAM).bearer(&widgets.access_token).open_stream().await;
    streams.pop();
    eventually("a slot is free again", async || {
        let answer = app.get(STREAM).bearer(&dana.access_token).send().await;
        (answer.status == 200).then_some(())
    })
    .await;
}
