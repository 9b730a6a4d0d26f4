//! Limits that nodes share over Valkey, and how they do without it.

use std::{
    collections::HashSet,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use call2me_auth::{
    config::{RateLimit, Redis},
    env::{Env, SystemEntropy},
    limit::Limits,
};
use redis::{AsyncCommands, aio::MultiplexedConnection};

use crate::fixture::{Answer, TestApp, TestClock, Valkey, eventually};

/// Two nodes on one database, with one limit.
async fn two_nodes(url: &str, limit: (&str, &str)) -> [TestApp; 2] {
    let settings = [limit, ("rate_limit.store", "redis"), ("redis.url", url)];
    let first = TestApp::start_with(&settings).await;
    let second = TestApp::start_on(first.database.clone(), &settings).await;
    [first, second]
}

async fn calls(nodes: [&TestApp; 2], credential: &str, count: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for at in 0..count {
        answers.push(nodes[at % 2].get("/v1/agents").bearer(credential).send().await);
    }
    answers
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status.as_u16()).collect()
}

/// Passes once both nodes are, or are not, sharing.
async fn eventually_shared(nodes: [&TestApp; 2], shared: bool) {
    eventually("both nodes notice", async || {
        nodes.iter().all(|node| node.app.limits.are_shared() == shared).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_nodes_hold_one_limit() {
    let valkey = Valkey::start().await;
    let nodes = two_nodes(&valkey.url(), ("rate_limit.per_key_per_minute", "6")).await;
    let dana = nodes[0].register("acme").await;
    let key = nodes[0].mint(&dana, "prod", "read-only").await;
    let answers = calls([&nodes[0], &nodes[1]], &key.secret, 16).await;
    let (passed, refused) = answers.split_at(6);
    for (answer, left) in passed.iter().zip((0..6).rev()) {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.number("x-ratelimit-remaining"), left);
        assert_eq!(answer.number("x-ratelimit-limit"), 6);
    }
    for answer in refused {
        answer.refused(429, "rate_limited");
        assert_eq!(answer.number("x-ratelimit-remaining"), 0);
        assert!((1..=10).contains(&answer.number("retry-after")), "{:?}", answer.headers);
    }
    for node in &nodes {
        // Neither has a bucket of its own for it: those are for outages, and full.
        assert_eq!(node.app.limits.buckets(), 0);
        assert!(node.app.limits.counts().shared_decisions.load(Relaxed) >= 8);
        assert_eq!(node.app.limits.counts().local_decisions.load(Relaxed), 0);
        assert_eq!(node.app.limits.counts().fallbacks.load(Relaxed), 0);
    }
}

#[tokio::test]
async fn two_nodes_share_addresses_and_deployments_do_not() {
    let valkey = Valkey::start().await;
    let limit = ("rate_limit.per_address_per_minute", "4");
    let [first, second] = two_nodes(&valkey.url(), limit).await;
    let answers = calls([&first, &second], "nonsense", 6).await;
    assert_eq!(statuses(&answers), [401, 401, 401, 401, 429, 429]);
    let url = valkey.url();
    let other =
        [limit, ("rate_limit.store", "redis"), ("redis.url", &*url), ("redis.prefix", "elsewhere")];
    let other = TestApp::start_with(&other).await;
    other.get("/v1/agents").bearer("nonsense").send().await.refused(401, "unauthorized");
    let mut connection = connect(&valkey).await;
    let keys: HashSet<String> = connection.keys("*:address:*").await.unwrap();
    let expected = ["call2me", "elsewhere"].map(|p| format!("{p}:limit:address:127.0.0.1/32"));
    assert_eq!(keys, HashSet::from(expected));
}

#[tokio::test]
async fn without_valkey_each_node_goes_on_and_comes_back_by_itself() {
    let mut valkey = Valkey::start().await;
    let [first, second] = two_nodes(&valkey.url(), ("rate_limit.per_key_per_minute", "3")).await;
    let dana = first.register("acme").await;
    let key = first.mint(&dana, "prod", "read-only").await;
    let all = [&first, &second];
    assert_eq!(statuses(&calls(all, &key.secret, 4).await), [200, 200, 200, 429]);

    valkey.kill();
    // Three on each node, whose own buckets are full.
    let answers = statuses(&calls(all, &key.secret, 8).await);
    assert_eq!(answers, [200, 200, 200, 200, 200, 200, 429, 429]);
    for node in all {
        assert!(!node.app.limits.are_shared());
        assert_eq!(node.app.limits.counts().fallbacks.load(Relaxed), 1);
        assert_eq!(node.app.limits.counts().local_decisions.load(Relaxed), 4);
    }

    valkey.start_again().await;
    eventually_shared(all, true).await;
    let answers = statuses(&calls(all, &key.secret, 4).await);
    assert_eq!(answers, [200, 200, 200, 429], "it forgot, and is asked again");
}

#[tokio::test]
async fn a_hanging_valkey_does_not_hold_requests_up() {
    let valkey = Valkey::start().await;
    let [first, second] = two_nodes(&valkey.url(), ("rate_limit.per_key_per_minute", "50")).await;
    let dana = first.register("acme").await;
    let key = first.mint(&dana, "prod", "read-only").await;
    valkey.hang();
    // The client's own time-out would end a call that waits; none does, nor is any refused.
    let answers = statuses(&calls([&first, &second], &key.secret, 60).await);
    assert_eq!(answers, [200; 60]);
    for node in [&first, &second] {
        let counts = node.app.limits.counts();
        assert_eq!((counts.failed_calls.load(Relaxed), counts.fallbacks.load(Relaxed)), (1, 1));
    }
    valkey.go_on();
    eventually_shared([&first, &second], true).await;
}

#[tokio::test]
async fn a_service_starts_without_valkey_and_finds_it_later() {
    let mut valkey = Valkey::start().await;
    valkey.kill();
    let [first, second] =
        two_nodes(&valkey.url(), ("rate_limit.per_address_per_minute", "2")).await;
    let answers = statuses(&calls([&first, &second], "nonsense", 4).await);
    assert_eq!(answers, [401; 4]);
    valkey.start_again().await;
    eventually_shared([&first, &second], true).await;
    let answers = statuses(&calls([&first, &second], "nonsense", 3).await);
    assert_eq!(answers, [401, 401, 429]);
}

#[tokio::test]
async fn tls_that_nobody_speaks_is_an_outage_like_another() {
    // Nobody there speaks TLS; a service without a provider would panic instead of going on.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("rediss://{}", listener.local_addr().unwrap());
    let refuse = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let app =
        TestApp::start_with(&[("rate_limit.store", "redis"), ("redis.url", url.as_str())]).await;
    app.get("/v1/agents").send().await.refused(401, "unauthorized");
    assert!(!app.app.limits.are_shared());
    refuse.abort();
}

async fn connect(valkey: &Valkey) -> MultiplexedConnection {
    let client = redis::Client::open(valkey.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Limits of so many requests a minute for each address, on a clock in the test's hand.
fn limits(per_minute: u32, redis: Option<&Redis>) -> (Limits, Arc<TestClock>) {
    let clock = Arc::new(TestClock::new());
    let env = Env { clock: clock.clone(), entropy: Arc::new(SystemEntropy) };
    let per_minute = NonZeroU32::new(per_minute).unwrap();
    let settings = RateLimit {
        per_key_per_minute: per_minute,
        per_address_per_minute: per_minute,
        sign_in_per_minute: per_minute,
    };
    (Limits::new(settings, redis, &env).unwrap(), clock)
}

/// Asks the script, learns from what it left which moment it was for the server, and asks a local
/// bucket at the same moment: both say the same, to the nanosecond.
#[tokio::test]
async fn the_script_decides_as_local_buckets_do() {
    let valkey = Valkey::start().await;
    let redis = Redis { url: valkey.url().into(), prefix: "call2me".to_owned() };
    let mut connection = connect(&valkey).await;
    let ip: IpAddr = "203.0.113.9".parse().unwrap();
    let bucket = "call2me:limit:address:203.0.113.9/32";
    for per_minute in [1, 6, 7, 61, 599, 2000, 60_000, 977_777, 7_000_000, 1_000_000_000] {
        let () = connection.del(bucket).await.unwrap();
        let (shared, _) = limits(per_minute, Some(&redis));
        shared.connect().await;
        let (local, clock) = limits(per_minute, None);
        let (mut before, mut compared) = (None, 0);
        // As many as empty the smaller buckets, and then some while a few flow back.
        let requests = (3 * per_minute.min(2000)).max(300);
        for at in 0..requests {
            let told = shared.charge_address(ip).await;
            let full_at: Option<String> = connection.get(bucket).await.unwrap();
            // One that is full again already is forgotten.
            let Some(full_at) = full_at else { continue };
            let full_at = Duration::from_nanos(full_at.parse().unwrap());
            let now = full_at.checked_sub(told.full_in).unwrap();
            assert_eq!(now.subsec_nanos() % 1000, 0, "the server's clock counts microseconds");
            clock.advance(now.checked_sub(before.replace(now).unwrap_or(now)).unwrap());
            let expected = local.charge_address(ip).await;
            assert_eq!(told, expected, "{per_minute} a minute, request {at}");
            compared += 1;
            if at % 50 == 0 {
                let seen = shared.look_at_address(ip).await;
                assert!(seen.full_in <= told.full_in && seen.remaining >= told.remaining);
            }
        }
        assert_eq!(shared.counts().local_decisions.load(Relaxed), 0);
        assert!(compared > requests / 2, "{compared} of {requests} at {per_minute} a minute");
    }
}

#[tokio::test]
async fn a_clock_that_was_set_back_costs_a_minute_at_most() {
    let valkey = Valkey::start().await;
    let redis = Redis { url: valkey.url().into(), prefix: "call2me".to_owned() };
    let mut connection = connect(&valkey).await;
    let bucket = "call2me:limit:address:203.0.113.9/32";
    let (limits, _) = limits(6, Some(&redis));
    limits.connect().await;
    let ip: IpAddr = "203.0.113.9".parse().unwrap();
    limits.charge_address(ip).await;
    let full_at: u64 = connection.get(bucket).await.unwrap();
    let () = connection.set(bucket, full_at + 3600 * 1_000_000_000).await.unwrap();
    let told = limits.charge_address(ip).await;
    assert!(!told.allowed);
    assert_eq!((told.full_in, told.retry_in), (Duration::from_mins(1), Duration::from_secs(10)));
    let kept: u64 = connection.get(bucket).await.unwrap();
    assert!(kept < full_at + 120 * 1_000_000_000, "{kept}");
    let expires: i64 = connection.pttl(bucket).await.unwrap();
    assert!((1..=60_001).contains(&expires), "{expires}");
}
