//! Rate limits that nodes share through Valkey, and local limits while it is unavailable.

use std::{
    collections::HashSet,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use call2me_auth::{
    config::{RateLimit, Redis},
    env::Env,
    limit::{AttemptKind, Limits},
};
use redis::{AsyncCommands, aio::MultiplexedConnection};

use crate::fixture::{TestApp, TestClock, TestResponse, Valkey, eventually};

/// Starts two nodes with one database and one rate limit.
async fn start_two_nodes(url: &str, limit: (&str, &str)) -> [TestApp; 2] {
    let settings = [limit, ("rate_limit.store", "redis"), ("redis.url", url)];
    let first = TestApp::start_with(&settings).await;
    let second = TestApp::start_on(first.database.clone(), &settings).await;
    [first, second]
}

/// Sends requests to both nodes in turn.
async fn send_requests(nodes: [&TestApp; 2], credential: &str, count: usize) -> Vec<TestResponse> {
    let mut responses = Vec::new();
    for index in 0..count {
        responses.push(nodes[index % 2].get("/v1/agents").bearer(credential).send().await);
    }
    responses
}

fn statuses(responses: &[TestResponse]) -> Vec<u16> {
    responses.iter().map(|response| response.status.as_u16()).collect()
}

/// Waits until both nodes share limits, or until neither does.
async fn wait_until_shared(nodes: [&TestApp; 2], is_shared: bool) {
    eventually("both nodes change their state", async || {
        nodes.iter().all(|node| node.app.limits.is_shared() == is_shared).then_some(())
    })
    .await;
}

/// A key's own limit is shared like that of its workspace.
#[tokio::test]
async fn two_nodes_share_the_limit_of_a_key() {
    let valkey = Valkey::start().await;
    let nodes = start_two_nodes(&valkey.url(), ("rate_limit.per_key_per_minute", "60")).await;
    let dana = nodes[0].register("acme").await;
    let body = serde_json::json!({ "name": "slow", "rate_limit_per_minute": 4 });
    let created = nodes[0].post("/v1/api-keys").bearer(&dana.access_token).json(body).send().await;
    let key = created.expect_status(201)["key"].as_str().unwrap().to_owned();
    let responses = send_requests([&nodes[0], &nodes[1]], &key, 6).await;
    assert_eq!(statuses(&responses), [200, 200, 200, 200, 429, 429]);
    for response in responses {
        assert_eq!(response.header_number("x-ratelimit-limit"), 4);
    }
}

#[tokio::test]
async fn two_nodes_share_one_rate_limit() {
    let valkey = Valkey::start().await;
    let nodes = start_two_nodes(&valkey.url(), ("rate_limit.per_key_per_minute", "6")).await;
    let dana = nodes[0].register("acme").await;
    let key = nodes[0].create_key(&dana, "prod", "read-only").await;
    let responses = send_requests([&nodes[0], &nodes[1]], &key.secret, 16).await;
    let (passed, refused) = responses.split_at(6);
    for (response, remaining) in passed.iter().zip((0..6).rev()) {
        assert_eq!(response.status, 200);
        assert_eq!(response.header_number("x-ratelimit-remaining"), remaining);
        assert_eq!(response.header_number("x-ratelimit-limit"), 6);
    }
    for response in refused {
        response.assert_error(429, "rate_limited");
        assert_eq!(response.header_number("x-ratelimit-remaining"), 0);
        assert!(
            (1..=10).contains(&response.header_number("retry-after")),
            "{:?}",
            response.headers
        );
    }
    for node in &nodes {
        // Neither node stores a local bucket: it is only used in an outage, so it is still full.
        assert_eq!(node.app.limits.bucket_count(), 0);
        assert!(node.app.limits.counts().shared_decisions.load(Relaxed) >= 8);
        assert_eq!(node.app.limits.counts().local_decisions.load(Relaxed), 0);
        assert_eq!(node.app.limits.counts().fallbacks.load(Relaxed), 0);
    }
}

#[tokio::test]
async fn address_limits_are_shared_within_one_deployment_only() {
    let valkey = Valkey::start().await;
    let limit = ("rate_limit.per_address_per_minute", "4");
    let [first, second] = start_two_nodes(&valkey.url(), limit).await;
    let responses = send_requests([&first, &second], "nonsense", 6).await;
    assert_eq!(statuses(&responses), [401, 401, 401, 401, 429, 429]);
    let url = valkey.url();
    let other_deployment =
        [limit, ("rate_limit.store", "redis"), ("redis.url", &*url), ("redis.prefix", "elsewhere")];
    let other_deployment = TestApp::start_with(&other_deployment).await;
    other_deployment
        .get("/v1/agents")
        .bearer("nonsense")
        .send()
        .await
        .assert_error(401, "unauthorized");
    let mut connection = connect(&valkey).await;
    let keys: HashSet<String> = connection.keys("*:address:*").await.unwrap();
    let expected = ["call2me", "elsewhere"].map(|p| format!("{p}:limit:address:127.0.0.1/32"));
    assert_eq!(keys, HashSet::from(expected));
}

#[tokio::test]
async fn nodes_use_local_limits_until_valkey_is_back() {
    let mut valkey = Valkey::start().await;
    let [first, second] =
        start_two_nodes(&valkey.url(), ("rate_limit.per_key_per_minute", "3")).await;
    let dana = first.register("acme").await;
    let key = first.create_key(&dana, "prod", "read-only").await;
    let nodes = [&first, &second];
    assert_eq!(statuses(&send_requests(nodes, &key.secret, 4).await), [200, 200, 200, 429]);

    valkey.kill();
    // Each node allows three requests, because its local bucket is full.
    let observed = statuses(&send_requests(nodes, &key.secret, 8).await);
    assert_eq!(observed, [200, 200, 200, 200, 200, 200, 429, 429]);
    for node in nodes {
        assert!(!node.app.limits.is_shared());
        assert_eq!(node.app.limits.counts().fallbacks.load(Relaxed), 1);
        assert_eq!(node.app.limits.counts().local_decisions.load(Relaxed), 4);
    }

    valkey.restart().await;
    wait_until_shared(nodes, true).await;
    let observed = statuses(&send_requests(nodes, &key.secret, 4).await);
    assert_eq!(observed, [200, 200, 200, 429], "Valkey is used again, and has lost its data");
}

#[tokio::test]
async fn unresponsive_valkey_does_not_delay_requests() {
    let valkey = Valkey::start().await;
    let [first, second] =
        start_two_nodes(&valkey.url(), ("rate_limit.per_key_per_minute", "50")).await;
    let dana = first.register("acme").await;
    let key = first.create_key(&dana, "prod", "read-only").await;
    valkey.pause();
    // A request that waits would hit the timeout of the client. None waits, and none is rejected.
    let observed = statuses(&send_requests([&first, &second], &key.secret, 60).await);
    assert_eq!(observed, [200; 60]);
    for node in [&first, &second] {
        let counts = node.app.limits.counts();
        assert_eq!((counts.failed_calls.load(Relaxed), counts.fallbacks.load(Relaxed)), (1, 1));
    }
    valkey.resume();
    wait_until_shared([&first, &second], true).await;
}

#[tokio::test]
async fn service_starts_without_valkey_and_connects_later() {
    let mut valkey = Valkey::start().await;
    valkey.kill();
    let [first, second] =
        start_two_nodes(&valkey.url(), ("rate_limit.per_address_per_minute", "2")).await;
    let observed = statuses(&send_requests([&first, &second], "nonsense", 4).await);
    assert_eq!(observed, [401; 4]);
    valkey.restart().await;
    wait_until_shared([&first, &second], true).await;
    let observed = statuses(&send_requests([&first, &second], "nonsense", 3).await);
    assert_eq!(observed, [401, 401, 429]);
}

#[tokio::test]
async fn failed_tls_handshake_with_valkey_is_an_outage() {
    // The listener does not speak TLS. Without a TLS provider, the service would panic instead of
    // using local limits.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("rediss://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let app =
        TestApp::start_with(&[("rate_limit.store", "redis"), ("redis.url", url.as_str())]).await;
    app.get("/v1/agents").send().await.assert_error(401, "unauthorized");
    assert!(!app.app.limits.is_shared());
    server.abort();
}

async fn connect(valkey: &Valkey) -> MultiplexedConnection {
    let client = redis::Client::open(valkey.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Creates limits with this number of requests per minute, and their test clock.
fn new_limits(per_minute: u32, redis: Option<&Redis>) -> (Limits, Arc<TestClock>) {
    let clock = Arc::new(TestClock::new());
    let env = Env { clock: clock.clone(), ..Env::system() };
    let per_minute = NonZeroU32::new(per_minute).unwrap();
    let settings = RateLimit {
        per_key_per_minute: per_minute,
        per_address_per_minute: per_minute,
        sign_in_per_minute: per_minute,
    };
    (Limits::new(settings, redis, &env).unwrap(), clock)
}

/// Charges the shared bucket, derives the time of the Valkey server from the stored value, and
/// charges a local bucket at the same time: both decisions are equal to the nanosecond.
#[tokio::test]
async fn valkey_script_decides_like_local_buckets() {
    let valkey = Valkey::start().await;
    let redis = Redis { url: valkey.url().into(), prefix: "call2me".to_owned() };
    let mut connection = connect(&valkey).await;
    let ip: IpAddr = "203.0.113.9".parse().unwrap();
    let bucket = "call2me:limit:address:203.0.113.9/32";
    for per_minute in [1, 6, 7, 61, 599, 2000, 60_000, 977_777, 7_000_000, 1_000_000_000] {
        let () = connection.del(bucket).await.unwrap();
        let (shared, _) = new_limits(per_minute, Some(&redis));
        shared.connect().await;
        let (local, clock) = new_limits(per_minute, None);
        let (mut previous, mut compared) = (None, 0);
        // Enough requests to empty the smaller buckets, and more of them while the buckets refill.
        let requests = (3 * per_minute.min(2000)).max(300);
        for index in 0..requests {
            let decision = shared.charge_address(ip).await;
            let full_at: Option<String> = connection.get(bucket).await.unwrap();
            // A bucket that is full again already is deleted.
            let Some(full_at) = full_at else { continue };
            let full_at = Duration::from_nanos(full_at.parse().unwrap());
            let now = full_at.checked_sub(decision.full_in).unwrap();
            assert_eq!(now.subsec_nanos() % 1000, 0, "the clock of the server has microseconds");
            clock.advance(now.checked_sub(previous.replace(now).unwrap_or(now)).unwrap());
            let expected = local.charge_address(ip).await;
            assert_eq!(decision, expected, "{per_minute} a minute, request {index}");
            compared += 1;
            if index % 50 == 0 {
                let peeked = shared.peek_address(ip).await;
                assert!(
                    peeked.full_in <= decision.full_in && peeked.remaining >= decision.remaining
                );
            }
        }
        assert_eq!(shared.counts().local_decisions.load(Relaxed), 0);
        assert!(compared > requests / 2, "{compared} of {requests} at {per_minute} a minute");
    }
}

#[tokio::test]
async fn shared_refund_undoes_one_charge() {
    let valkey = Valkey::start().await;
    let redis = Redis { url: valkey.url().into(), prefix: "call2me".to_owned() };
    let ip: IpAddr = "203.0.113.9".parse().unwrap();
    let (limits, _) = new_limits(3, Some(&redis));
    limits.connect().await;
    let kind = AttemptKind::SignIn;
    let first = limits.charge_attempt(kind, ip).await;
    for _ in 0..5 {
        assert_eq!(limits.charge_attempt(kind, ip).await.remaining, 1);
        let refunded = limits.refund_attempt(kind, ip).await;
        assert_eq!(refunded.remaining, 2);
        assert!(refunded.full_in <= first.full_in);
    }
    // A refund never fills a bucket over its limit.
    for _ in 0..2 {
        let refunded = limits.refund_attempt(kind, ip).await;
        assert_eq!((refunded.remaining, refunded.full_in), (3, Duration::ZERO));
    }
    let mut decisions = Vec::new();
    for _ in 0..4 {
        decisions.push(limits.charge_attempt(kind, ip).await.allowed);
    }
    assert_eq!(decisions, [true, true, true, false]);
}

#[tokio::test]
async fn clock_set_back_costs_at_most_one_minute() {
    let valkey = Valkey::start().await;
    let redis = Redis { url: valkey.url().into(), prefix: "call2me".to_owned() };
    let mut connection = connect(&valkey).await;
    let bucket = "call2me:limit:address:203.0.113.9/32";
    let (limits, _) = new_limits(6, Some(&redis));
    limits.connect().await;
    let ip: IpAddr = "203.0.113.9".parse().unwrap();
    limits.charge_address(ip).await;
    let full_at: u64 = connection.get(bucket).await.unwrap();
    let () = connection.set(bucket, full_at + 3600 * 1_000_000_000).await.unwrap();
    let decision = limits.charge_address(ip).await;
    assert!(!decision.allowed);
    assert_eq!(
        (decision.full_in, decision.retry_in),
        (Duration::from_mins(1), Duration::from_secs(10))
    );
    let stored: u64 = connection.get(bucket).await.unwrap();
    assert!(stored < full_at + 120 * 1_000_000_000, "{stored}");
    let expires: i64 = connection.pttl(bucket).await.unwrap();
    assert!((1..=60_001).contains(&expires), "{expires}");
}

#[tokio::test]
async fn sign_in_limits_are_shared() {
    let valkey = Valkey::start().await;
    let nodes = start_two_nodes(&valkey.url(), ("rate_limit.sign_in_per_minute", "4")).await;
    let mut observed = Vec::new();
    for index in 0..8 {
        let body = serde_json::json!({ "email": "dana@acme.example", "password": "not this one" });
        let sign_in = nodes[index % 2].post("/v1/auth/login").json(body).send().await;
        observed.push(sign_in.status.as_u16());
    }
    assert_eq!(observed, [401, 401, 401, 401, 429, 429, 429, 429]);
    let mut connection = connect(&valkey).await;
    let accounts: Vec<String> = connection.keys("call2me:limit:account:*").await.unwrap();
    assert_eq!(accounts.len(), 1);
    assert!(!accounts[0].contains("dana"), "{accounts:?}");
    let networks: Vec<String> = connection.keys("call2me:limit:sign-in:*").await.unwrap();
    assert_eq!(networks.len(), 2, "{networks:?}");
}
