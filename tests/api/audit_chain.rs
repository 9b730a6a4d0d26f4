//! The hash chain of the audit log: the verifier detects and locates every change, even one by a
//! database superuser.

use call2me_auth::{
    audit::{
        Retention,
        verifier::{Problem, VerificationReport, verify},
    },
    auth::signing_keys::Activation,
    env::Clock as _,
    model::{
        audit::{Action, Actor, ChainHash, Checkpoint, EventDigest, NewEvent, SignedCheckpoint},
        id::{EventId, WorkspaceId},
        signing_key::KeyPurpose,
        timestamp,
    },
};
use serde::Deserialize as _;
use serde_json::json;
use sqlx::{PgConnection, Row};
use time::{
    OffsetDateTime,
    macros::{datetime, time},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fixture::{TestApp, TestClock, TestUser, eventually};

/// Minimum number of sealed events in the log of a test workspace.
const MIN_EVENTS: i64 = 20;

/// A workspace with a sealed log.
struct SealedLog {
    owner: TestUser,
    id: WorkspaceId,
    /// The events in the order of the chain.
    events: Vec<EventId>,
}

impl SealedLog {
    async fn new(app: &TestApp, name: &str) -> Self {
        let owner = app.register(name).await;
        let key = app.create_key(&owner, "prod", "write").await;
        let id: WorkspaceId = owner.workspace_id.parse().unwrap();
        let mut connection = app.database.connect().await;
        for index in 0.. {
            let body = json!({ "agent_name": format!("agent {index}") });
            app.post("/v1/agents").bearer(&key.secret).json(body).send().await.expect_status(201);
            let sql = "SELECT count(*) FROM audit_events WHERE workspace_id = $1";
            let count = sqlx::query_scalar::<_, i64>(sql).bind(to_uuid(id));
            if count.fetch_one(&mut connection).await.unwrap() >= MIN_EVENTS {
                break;
            }
            // Seal in several batches.
            if index % 4 == 3 {
                app.database.wait_until_sealed().await;
            }
        }
        app.database.wait_until_sealed().await;
        let mut log = Self { owner, id, events: Vec::new() };
        // The events of the last requests may have been written after the seal.
        eventually("the chain is complete", async || {
            log.check(app, &[]).await.problem.is_none().then_some(())
        })
        .await;
        log.events =
            read_chain(&mut connection, id).await.into_iter().map(|(event, _)| event).collect();
        log
    }

    /// Verifies the chain and these checkpoints.
    async fn check(&self, app: &TestApp, checkpoints: &[&SignedCheckpoint]) -> VerificationReport {
        let known =
            checkpoints.iter().map(|signed| app.app.auth.checkpoints.verify(signed).unwrap());
        verify(&app.app.store, self.id, &known.collect::<Vec<_>>()).await.unwrap()
    }

    async fn checkpoint(&self, app: &TestApp) -> SignedCheckpoint {
        let call = app.get("/v1/audit-log/checkpoint").bearer(&self.owner.access_token);
        serde_json::from_value(call.send().await.expect_status(200)).unwrap()
    }

    /// Executes SQL that must change a row. `$1` is the workspace id. Event ids start at `$2`.
    async fn tamper(&self, app: &TestApp, sql: &str, events: &[EventId]) {
        let mut connection = app.database.connect().await;
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).bind(to_uuid(self.id));
        for event in events {
            query = query.bind(to_uuid(*event));
        }
        let result = query.execute(&mut connection).await.unwrap();
        assert!(result.rows_affected() > 0, "{sql}");
    }
}

fn to_uuid<T: call2me_auth::model::id::Id>(id: T) -> Uuid {
    id.uuid()
}

/// Reads the events and hashes of a chain from its seals.
async fn read_chain(connection: &mut PgConnection, id: WorkspaceId) -> Vec<(EventId, [u8; 32])> {
    let sql = "SELECT event_ids, hashes FROM audit_chain_segments WHERE workspace_id = $1 ORDER BY last_sequence";
    let rows = sqlx::query(sql).bind(to_uuid(id)).fetch_all(connection).await.unwrap();
    let entries = |row: &sqlx::postgres::PgRow| {
        let (ids, hashes): (Vec<Uuid>, Vec<u8>) = (row.get(0), row.get(1));
        let (hashes, _) = hashes.as_chunks::<32>();
        ids.into_iter().map(EventId::from).zip(hashes.to_vec()).collect::<Vec<_>>()
    };
    rows.iter().flat_map(entries).collect()
}

#[tokio::test]
async fn unchanged_log_is_verified() {
    let app = TestApp::start().await;
    let log = SealedLog::new(&app, "acme").await;
    let checkpoint = log.checkpoint(&app).await;
    let result = log.check(&app, &[&checkpoint]).await;
    assert_eq!((result.problem, result.first_sequence), (None, 1));
    assert!(result.last_sequence >= MIN_EVENTS, "{result:?}");
    assert_eq!(result.events, result.last_sequence.unsigned_abs() + result.unsealed);
    // The request for the checkpoint was logged after the checkpoint.
    assert!(checkpoint.checkpoint.sequence <= result.last_sequence);
}

/// Changes each column of an event separately.
#[tokio::test]
async fn changed_event_column_is_detected() {
    let app = TestApp::start().await;
    let log = SealedLog::new(&app, "acme").await;
    let mut connection = app.database.connect().await;
    let sql = "SELECT id FROM audit_events WHERE workspace_id = $1 AND path = '/v1/agents' LIMIT 1";
    let event_uuid: Uuid =
        sqlx::query_scalar(sql).bind(to_uuid(log.id)).fetch_one(&mut connection).await.unwrap();
    let event = EventId::from(event_uuid);
    let index = log.events.iter().position(|id| *id == event).unwrap();
    let changed = Problem::Changed { event_id: event, sequence: i64::try_from(index).unwrap() + 1 };
    for change in [
        "action = 'api_key.created'",
        "actor_type = 'user'",
        "actor_type = 'system'",
        "actor_id = gen_random_uuid()",
        "actor_id = NULL",
        "actor_name = 'somebody else'",
        "actor_name = NULL",
        "target_type = 'key'",
        "target_id = gen_random_uuid()",
        "target_name = 'x'",
        "request_id = gen_random_uuid()",
        "request_id = NULL",
        "method = 'GET'",
        "path = '/v1/agents/'",
        "status = 200",
        "status = -201",
        "status = NULL",
        "ip = '203.0.113.1'",
        "ip = '127.0.0.1/8'",
        "ip = NULL",
        "user_agent = 'curl/8'",
        "latency_us = latency_us + 1",
        "metadata = '{\"a\": 1}'",
        "metadata = '[]'",
    ] {
        let copy_event = "CREATE TEMP TABLE kept AS SELECT * FROM audit_events WHERE workspace_id = $1 AND id = $2";
        for (sql, binds) in [
            (
                copy_event
                    .to_owned()
                    .replace("$1", &format!("'{}'", to_uuid(log.id)))
                    .replace("$2", &format!("'{event_uuid}'")),
                false,
            ),
            (format!("UPDATE audit_events SET {change} WHERE workspace_id = $1 AND id = $2"), true),
        ] {
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
            if binds {
                query = query.bind(to_uuid(log.id)).bind(event_uuid);
            }
            query.execute(&mut connection).await.unwrap();
        }
        assert_eq!(log.check(&app, &[]).await.problem, Some(changed), "{change}");
        for sql in [
            "DELETE FROM audit_events e USING kept k WHERE e.workspace_id = k.workspace_id AND e.id = k.id",
            "INSERT INTO audit_events SELECT * FROM kept",
            "DROP TABLE kept",
        ] {
            sqlx::query(sql).execute(&mut connection).await.unwrap();
        }
    }
    assert_eq!(log.check(&app, &[]).await.problem, None, "the original event is restored");
}

#[tokio::test]
async fn removed_or_inserted_event_is_identified() {
    let app = TestApp::start().await;
    let log = SealedLog::new(&app, "deleted").await;
    // Of two removed events, the first is reported.
    let (first, second) = (log.events[4], log.events[9]);
    let sql = "DELETE FROM audit_events WHERE workspace_id = $1 AND id IN ($2, $3)";
    log.tamper(&app, sql, &[second, first]).await;
    let removed = Problem::Removed { event_id: first, sequence: 5 };
    assert_eq!(log.check(&app, &[]).await.problem, Some(removed));
    // The first problem is reported even if a later event is changed too.
    let sql = "UPDATE audit_events SET action = 'x' WHERE workspace_id = $1 AND id = $2";
    log.tamper(&app, sql, &[log.events[7]]).await;
    assert_eq!(log.check(&app, &[]).await.problem, Some(removed));

    let log = SealedLog::new(&app, "inserted").await;
    let forged = EventId::from(Uuid::from_u128(to_uuid(log.events[5]).as_u128() + 1));
    let sql = "INSERT INTO audit_events (id, workspace_id, action, actor_type, actor_name)
               SELECT $3, workspace_id, action, actor_type, 'forged' FROM audit_events
               WHERE workspace_id = $1 AND id = $2";
    log.tamper(&app, sql, &[log.events[5], forged]).await;
    let inserted = Problem::Inserted { event_id: forged };
    assert_eq!(log.check(&app, &[]).await.problem, Some(inserted));

    // An event that is moved to another workspace.
    let (from, to) = (SealedLog::new(&app, "from").await, SealedLog::new(&app, "to").await);
    let sql = "UPDATE audit_events SET workspace_id = $3 WHERE workspace_id = $1 AND id = $2";
    let moved = from.events[6];
    from.tamper(&app, sql, &[moved, to_uuid(to.id).into()]).await;
    let removed = Problem::Removed { event_id: moved, sequence: 7 };
    assert_eq!(from.check(&app, &[]).await.problem, Some(removed));
    let inserted = Problem::Inserted { event_id: moved };
    assert_eq!(to.check(&app, &[]).await.problem, Some(inserted));
}

#[tokio::test]
async fn truncated_log_is_detected_by_head_or_checkpoint() {
    let app = TestApp::start().await;
    let log = SealedLog::new(&app, "events").await;
    let tail = log.events[log.events.len() - 3];
    let sql = "DELETE FROM audit_events WHERE workspace_id = $1 AND id >= $2";
    log.tamper(&app, sql, &[tail]).await;
    let Some(Problem::Removed { event_id, .. }) = log.check(&app, &[]).await.problem else {
        panic!("the missing events were not detected")
    };
    assert!(event_id >= tail);

    let log = SealedLog::new(&app, "seals").await;
    let checkpoint = log.checkpoint(&app).await;
    let mut connection = app.database.connect().await;
    let sql = "SELECT previous_hash, first_sequence, event_ids[1] FROM audit_chain_segments
               WHERE workspace_id = $1 AND last_sequence <= $2 ORDER BY last_sequence DESC LIMIT 1";
    let query = sqlx::query(sql).bind(to_uuid(log.id)).bind(checkpoint.checkpoint.sequence);
    let row = query.fetch_one(&mut connection).await.unwrap();
    let (hash, first, event): (Vec<u8>, i64, Uuid) = (row.get(0), row.get(1), row.get(2));
    app.database.wait_until_sealed().await;
    for sql in [
        "DELETE FROM audit_events e USING audit_chain_segments s WHERE s.workspace_id = $1 AND e.workspace_id = $1
             AND s.last_sequence >= $2 AND e.id = ANY (s.event_ids)",
        "DELETE FROM audit_chain_segments WHERE workspace_id = $1 AND last_sequence >= $2",
    ] {
        let query = sqlx::query(sql).bind(to_uuid(log.id)).bind(first);
        assert!(query.execute(&mut connection).await.unwrap().rows_affected() > 0, "{event}");
    }
    let cut_off = Problem::CutOff { sequence: first };
    assert_eq!(log.check(&app, &[]).await.problem, Some(cut_off), "the chain head has the end");
    let sql = "UPDATE audit_chain_heads SET sequence = $2, hash = $3 WHERE workspace_id = $1";
    let query = sqlx::query(sql).bind(to_uuid(log.id)).bind(first - 1).bind(hash);
    query.execute(&mut connection).await.unwrap();
    assert_eq!(log.check(&app, &[]).await.problem, None, "not detectable without a checkpoint");
    assert_eq!(log.check(&app, &[&checkpoint]).await.problem, Some(cut_off));
    // The service continues from there and reuses the sequence numbers.
    app.get("/v1/audit-log").bearer(&log.owner.access_token).send().await.expect_status(200);
    let rewritten = Problem::Rewritten { sequence: checkpoint.checkpoint.sequence };
    eventually("the chain has grown past the checkpoint", async || {
        app.get("/v1/audit-log").bearer(&log.owner.access_token).send().await.expect_status(200);
        let problem = log.check(&app, &[&checkpoint]).await.problem;
        assert!(
            [cut_off, rewritten].map(Some).contains(&problem)
                || matches!(problem, Some(Problem::CutOff { .. })),
            "{problem:?}"
        );
        (problem == Some(rewritten)).then_some(())
    })
    .await;
}

/// An attacker that knows the hash format can recompute the whole chain.
#[tokio::test]
async fn recomputed_chain_is_detected_by_checkpoint() {
    let app = TestApp::start().await;
    let log = SealedLog::new(&app, "acme").await;
    let checkpoint = log.checkpoint(&app).await;
    let earlier = log.checkpoint(&app).await;
    app.database.wait_until_sealed().await;
    let sql =
        "UPDATE audit_events SET actor_name = 'somebody else' WHERE workspace_id = $1 AND id = $2";
    log.tamper(&app, sql, &[log.events[3]]).await;
    let mut connection = app.database.connect().await;
    reseal(&app, &mut connection, log.id).await;
    assert_eq!(log.check(&app, &[]).await.problem, None, "the forged chain is consistent");
    let rewritten = Problem::Rewritten { sequence: checkpoint.checkpoint.sequence };
    assert_eq!(log.check(&app, &[&earlier, &checkpoint]).await.problem, Some(rewritten));
}

/// Recomputes all hashes of a chain from its current events.
async fn reseal(app: &TestApp, connection: &mut PgConnection, id: WorkspaceId) {
    let mut tx = app.app.store.begin(id, None).await.unwrap();
    let events =
        call2me_auth::store::audit_chains::list_events_after(&mut tx, id, Uuid::nil(), 1000).await;
    let digests: std::collections::HashMap<EventId, EventDigest> =
        events.unwrap().iter().map(|event| (event.id, event.digest())).collect();
    let mut hash = ChainHash::genesis(id);
    let sql = "SELECT last_sequence, event_ids FROM audit_chain_segments WHERE workspace_id = $1 ORDER BY 1";
    for row in sqlx::query(sql).bind(to_uuid(id)).fetch_all(&mut *connection).await.unwrap() {
        let (last, ids): (i64, Vec<Uuid>) = (row.get(0), row.get(1));
        let previous = hash;
        let mut hashes: Vec<u8> = Vec::new();
        for event in ids {
            hash = hash.append(digests[&event.into()]);
            hashes.extend(hash.as_bytes());
        }
        let sql = "UPDATE audit_chain_segments SET previous_hash = $3, hashes = $4
                   WHERE workspace_id = $1 AND last_sequence = $2";
        let query = sqlx::query(sql).bind(to_uuid(id)).bind(last);
        let query = query.bind(&previous.as_bytes()[..]).bind(hashes);
        query.execute(&mut *connection).await.unwrap();
        let sql = "UPDATE audit_chain_heads SET hash = $2 WHERE workspace_id = $1";
        let query = sqlx::query(sql).bind(to_uuid(id)).bind(&hash.as_bytes()[..]);
        query.execute(&mut *connection).await.unwrap();
    }
}

#[tokio::test]
async fn changed_or_removed_seal_is_detected() {
    let app = TestApp::start().await;
    let middle =
        "last_sequence = (SELECT last_sequence FROM audit_chain_segments WHERE workspace_id = $1
                  ORDER BY last_sequence LIMIT 1 OFFSET 2)";
    for (name, sql) in [
        (
            "removed",
            format!("DELETE FROM audit_chain_segments WHERE workspace_id = $1 AND {middle}"),
        ),
        (
            "previous",
            format!(
                "UPDATE audit_chain_segments SET previous_hash = sha256('x') WHERE workspace_id = $1 AND {middle}"
            ),
        ),
        (
            "hashes",
            format!(
                "UPDATE audit_chain_segments SET hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1) WHERE workspace_id = $1 AND {middle}"
            ),
        ),
        (
            "ids",
            format!(
                "UPDATE audit_chain_segments SET event_ids[1] = gen_random_uuid() WHERE workspace_id = $1 AND {middle}"
            ),
        ),
        (
            "first",
            "DELETE FROM audit_chain_segments WHERE workspace_id = $1 AND first_sequence = 1"
                .to_owned(),
        ),
        ("all", "DELETE FROM audit_chain_segments WHERE workspace_id = $1".to_owned()),
    ] {
        let log = SealedLog::new(&app, name).await;
        let mut connection = app.database.connect().await;
        let query = "SELECT first_sequence FROM audit_chain_segments WHERE workspace_id = $1 ORDER BY 1 OFFSET 2 LIMIT 1";
        let third: i64 = sqlx::query_scalar(query)
            .bind(to_uuid(log.id))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        log.tamper(&app, &sql, &[]).await;
        let problem = log.check(&app, &[]).await.problem;
        let is_expected = match (name, problem) {
            ("removed", Some(Problem::SealsRemoved { sequence }))
            | ("previous", Some(Problem::SealChanged { sequence }))
            | ("hashes", Some(Problem::Changed { sequence, .. }))
            | ("ids", Some(Problem::Removed { sequence, .. })) => sequence == third,
            ("first", Some(Problem::SealsRemoved { sequence }))
            | ("all", Some(Problem::CutOff { sequence })) => sequence == 1,
            _ => false,
        };
        assert!(is_expected, "{name}: {problem:?}");
    }
    // Only the events are left.
    let log = SealedLog::new(&app, "nothing").await;
    for table in ["audit_chain_segments", "audit_chain_heads"] {
        log.tamper(&app, &format!("DELETE FROM {table} WHERE workspace_id = $1"), &[]).await;
    }
    let all = app.app.store.audited_workspaces().await.unwrap();
    assert!(all.contains(&log.id));
    let inserted = Problem::Inserted { event_id: *log.events.iter().min().unwrap() };
    assert_eq!(log.check(&app, &[]).await.problem, Some(inserted));
}

#[tokio::test]
async fn checkpoint_is_accepted_only_as_signed() {
    let app = TestApp::start().await;
    let log = SealedLog::new(&app, "acme").await;
    let signed = log.checkpoint(&app).await;
    let auth = &app.app.auth;
    assert_eq!(auth.checkpoints.verify(&signed).unwrap(), signed.checkpoint);
    let mut forged = signed.clone();
    forged.checkpoint.sequence += 1;
    assert!(auth.checkpoints.verify(&forged).is_err());
    // An access token is not accepted as a checkpoint.
    let forged = SignedCheckpoint { signature: log.owner.access_token.clone(), ..signed.clone() };
    assert!(auth.checkpoints.verify(&forged).is_err());
    // A checkpoint is not accepted as an access token.
    app.get("/v1/agents").bearer(&signed.signature).send().await.assert_error(401, "unauthorized");
    // A new key signs from now on. The previous key is still published and accepted.
    let new_key = auth.signing_keys.rotate(KeyPurpose::Checkpoints, Activation::Now);
    let new_key = new_key.await.unwrap().id;
    app.clock.advance(std::time::Duration::from_secs(10));
    let kid = |signed: &SignedCheckpoint| {
        jsonwebtoken::decode_header(&signed.signature).unwrap().kid.unwrap()
    };
    let new_checkpoint = eventually("the new key signs", async || {
        let new_checkpoint = log.checkpoint(&app).await;
        (kid(&new_checkpoint) == new_key.to_string()).then_some(new_checkpoint)
    })
    .await;
    for signed in [&signed, &new_checkpoint] {
        auth.checkpoints.verify(signed).unwrap();
        let lists_key = async |path: &str| {
            let jwks = app.get(path).send().await.expect_status(200);
            jwks["keys"].as_array().unwrap().iter().any(|key| key["kid"] == kid(signed))
        };
        assert!(lists_key("/.well-known/audit-checkpoint-keys.json").await);
        assert!(!lists_key("/.well-known/jwks.json").await);
    }
    // A key that signs checkpoints cannot be retired.
    assert!(auth.signing_keys.retire(kid(&signed).parse().unwrap()).await.is_err());
}

/// Returns noon on the first day of the next month.
fn next_month(now: OffsetDateTime) -> OffsetDateTime {
    let first = now.replace_day(1).unwrap().replace_time(time!(12:00));
    (first + time::Duration::days(31)).replace_day(1).unwrap()
}

/// On these days, adding 31 days skips a month, or a month ends during the test.
#[tokio::test]
async fn chain_explains_retention_on_any_start_day() {
    for start in [
        datetime!(2026-11-29 12:00 UTC),
        datetime!(2027-01-30 23:59:59 UTC),
        datetime!(2028-02-29 00:00 UTC),
        datetime!(2026-12-31 23:59:59.999 UTC),
    ] {
        let app = TestApp::start_at(TestClock::at(start)).await;
        check_retention(&app).await;
    }
}

/// Checks a log of several months of which retention drops the oldest.
async fn check_retention(app: &TestApp) {
    let log = SealedLog::new(app, "acme").await;
    let first_checkpoint = log.checkpoint(app).await;
    // An event in the same month, after the checkpoint.
    app.get("/v1/agents").bearer(&log.owner.access_token).send().await.expect_status(200);
    eventually("the event is sealed", async || {
        let end = log.checkpoint(app).await.checkpoint.sequence;
        (end > first_checkpoint.checkpoint.sequence + 1).then_some(())
    })
    .await;
    let mut owner = log.owner.clone();
    for _ in 0..4 {
        let now = app.clock.now();
        app.clock.advance((next_month(now) - now).unsigned_abs());
        let now = app.clock.now();
        app.database.create_audit_partitions(now).await;
        owner = app.sign_in_again(&owner).await;
        app.get("/v1/agents").bearer(&owner.access_token).send().await.expect_status(200);
        app.database.wait_until_sealed().await;
    }
    let checkpoint = SignedCheckpoint::deserialize(
        &app.get("/v1/audit-log/checkpoint")
            .bearer(&owner.access_token)
            .send()
            .await
            .expect_status(200),
    )
    .unwrap();
    let retention = |days: u64| {
        let (store, env) = (app.app.store.clone(), app.app.env.clone());
        let period = std::time::Duration::from_hours(24 * days);
        Retention::new(store, env, app.database.url.clone().into(), period)
    };
    let running = CancellationToken::new();
    let mut connection = app.database.connect().await;
    let count = "SELECT count(*) FROM audit_events WHERE workspace_id = $1";
    let mut count = async || {
        sqlx::query_scalar::<_, i64>(count)
            .bind(to_uuid(log.id))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    };
    let total = count().await;
    // No event of this log is that old. Only empty partitions of earlier months may be dropped.
    retention(365).prune(&running).await.unwrap();
    // The event of the checkpoint request may be written only now.
    assert!(count().await >= total);
    let dropped = retention(30).prune(&running).await.unwrap();
    assert!(dropped.iter().any(|name| name.starts_with("audit_events_")), "{dropped:?}");
    assert!(dropped.iter().any(|name| name.starts_with("audit_chain_segments_")), "{dropped:?}");
    assert!(count().await < total - MIN_EVENTS / 2);
    let result = log.check(app, &[&checkpoint]).await;
    assert_eq!(result.problem, None, "{result:#?}");
    assert!(result.first_sequence > 1, "{result:?}");
    // The log has an event about it.
    let list = "/v1/audit-log?action=workspace.log_pruned";
    let pruned = app.get(list).bearer(&owner.access_token).send().await.expect_status(200);
    assert_eq!(pruned["events"][0]["metadata"]["sequence"], result.first_sequence - 1);
    assert_eq!(pruned["events"][0]["actor"]["type"], "system");
    // A second run drops nothing and logs nothing.
    assert_eq!(retention(30).prune(&running).await.unwrap(), Vec::<String>::new());
    let again = app.get(list).bearer(&owner.access_token).send().await.expect_status(200);
    assert_eq!(
        again["events"].as_array().unwrap().len(),
        pruned["events"].as_array().unwrap().len()
    );
    // The events of the first checkpoint are dropped.
    let too_old = Problem::CheckpointTooOld { sequence: first_checkpoint.checkpoint.sequence };
    assert_eq!(log.check(app, &[&first_checkpoint]).await.problem, Some(too_old));
    // A partition that is dropped without retention is detected.
    let (store, mut connection) = (&app.app.store, app.database.connect().await);
    let sql = "SELECT tableoid::regclass::text FROM audit_events ORDER BY id LIMIT 1";
    let oldest: String = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP TABLE {oldest}")))
        .execute(&mut connection)
        .await
        .unwrap();
    let result = verify(store, log.id, &[]).await.unwrap();
    assert!(matches!(result.problem, Some(Problem::Removed { .. })), "{oldest}: {result:#?}");
}

/// An attacker that can get events sealed can also forge a retention event. Such an event explains
/// only whole months that had ended.
#[tokio::test]
async fn forged_retention_event_explains_only_ended_months() {
    let app = TestApp::start().await;
    let cutoffs = ["2099-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000001Z", "this month"];
    for (index, cutoff) in cutoffs.into_iter().enumerate() {
        let log = SealedLog::new(&app, &format!("acme-{index}")).await;
        let now = app.app.env.clock.now();
        let this_month = now.replace_day(1).unwrap().replace_time(time::Time::MIDNIGHT);
        let cutoff = match cutoff {
            "this month" => this_month,
            text => {
                time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
                    .unwrap()
            }
        };
        let metadata = json!({
            "before": timestamp::format(cutoff), "sequence": 0, "hash": ChainHash::genesis(log.id),
        });
        let event = NewEvent::new(app.app.env.new_id(), log.id, Action::LogPruned, Actor::system());
        let mut tx = app.app.store.begin(log.id, None).await.unwrap();
        let event = event.with_metadata(metadata);
        let audited = call2me_auth::store::audit::insert(&mut tx, log.id, &event).await.unwrap();
        tx.commit(audited).await.unwrap().unfenced("an audit event changes no access");
        app.database.wait_until_sealed().await;
        let removed_event = log.events[4];
        let sql = "DELETE FROM audit_events WHERE workspace_id = $1 AND id = $2";
        log.tamper(&app, sql, &[removed_event]).await;
        let removed = Problem::Removed { event_id: removed_event, sequence: 5 };
        assert_eq!(log.check(&app, &[]).await.problem, Some(removed), "{cutoff}");
    }
}

#[tokio::test]
async fn all_checkpoints_of_one_sequence_are_verified() {
    let app = TestApp::start().await;
    let log = SealedLog::new(&app, "acme").await;
    let genuine = log.checkpoint(&app).await.checkpoint;
    app.database.wait_until_sealed().await;
    let forged = Checkpoint { hash: ChainHash::genesis(log.id), ..genuine };
    for pair in [[genuine, forged], [forged, genuine]] {
        let result = verify(&app.app.store, log.id, &pair).await.unwrap();
        assert_eq!(result.problem, Some(Problem::Rewritten { sequence: genuine.sequence }));
    }
}
