//! The log proves itself: whatever a superuser does to it is found, and where.

use call2me_auth::{
    audit::{
        Retention,
        verifier::{Problem, Verified, verify},
    },
    env::Clock as _,
    model::{
        audit::{Action, Actor, ChainHash, Checkpoint, EventDigest, NewEvent, SignedCheckpoint},
        id::{EventId, WorkspaceId},
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
use uuid::Uuid;

use crate::fixture::{Person, TestApp, TestClock, eventually};

/// Events that a workspace's log has, sealed, in the tests here.
const EVENTS: i64 = 20;

/// A workspace with a sealed log.
struct Log {
    owner: Person,
    id: WorkspaceId,
    /// Its events, in the order of the chain.
    events: Vec<EventId>,
}

impl Log {
    async fn new(app: &TestApp, name: &str) -> Self {
        let owner = app.register(name).await;
        let key = app.mint(&owner, "prod", "write").await;
        let id: WorkspaceId = owner.workspace_id.parse().unwrap();
        let mut connection = app.database.connect().await;
        for number in 0.. {
            let body = json!({ "agent_name": format!("agent {number}") });
            app.post("/v1/agents").bearer(&key.secret).json(body).send().await.expect(201);
            let sql = "SELECT count(*) FROM audit_events WHERE workspace_id = $1";
            let written = sqlx::query_scalar::<_, i64>(sql).bind(raw(id));
            if written.fetch_one(&mut connection).await.unwrap() >= EVENTS {
                break;
            }
            // In several runs.
            if number % 4 == 3 {
                app.database.all_is_sealed().await;
            }
        }
        app.database.all_is_sealed().await;
        let mut log = Self { owner, id, events: Vec::new() };
        // What was answered last may have been written meanwhile.
        eventually("a whole log", async || {
            log.check(app, &[]).await.problem.is_none().then_some(())
        })
        .await;
        log.events = chain(&mut connection, id).await.into_iter().map(|(event, _)| event).collect();
        log
    }

    async fn check(&self, app: &TestApp, checkpoints: &[&SignedCheckpoint]) -> Verified {
        let known =
            checkpoints.iter().map(|signed| app.app.auth.verify_checkpoint(signed).unwrap());
        verify(&app.app.store, self.id, &known.collect::<Vec<_>>()).await.unwrap()
    }

    async fn checkpoint(&self, app: &TestApp) -> SignedCheckpoint {
        let call = app.get("/v1/audit-log/checkpoint").bearer(&self.owner.access_token);
        serde_json::from_value(call.send().await.expect(200)).unwrap()
    }

    /// Its id and the ids of a few of its events, for SQL: `$1`, and `$2` onwards.
    async fn tamper(&self, app: &TestApp, sql: &str, events: &[EventId]) {
        let mut connection = app.database.connect().await;
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).bind(raw(self.id));
        for event in events {
            query = query.bind(raw(*event));
        }
        let done = query.execute(&mut connection).await.unwrap();
        assert!(done.rows_affected() > 0, "{sql}");
    }
}

fn raw<T: call2me_auth::model::id::Id>(id: T) -> Uuid {
    id.uuid()
}

/// The events and hashes of a chain, as its seals have them.
async fn chain(connection: &mut PgConnection, id: WorkspaceId) -> Vec<(EventId, [u8; 32])> {
    let sql =
        "SELECT event_ids, hashes FROM audit_seals WHERE workspace_id = $1 ORDER BY last_sequence";
    let rows = sqlx::query(sql).bind(raw(id)).fetch_all(connection).await.unwrap();
    let run = |row: &sqlx::postgres::PgRow| {
        let (ids, hashes): (Vec<Uuid>, Vec<u8>) = (row.get(0), row.get(1));
        let (hashes, _) = hashes.as_chunks::<32>();
        ids.into_iter().map(EventId::from).zip(hashes.to_vec()).collect::<Vec<_>>()
    };
    rows.iter().flat_map(run).collect()
}

#[tokio::test]
async fn a_log_that_nobody_touched_verifies() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "acme").await;
    let checkpoint = log.checkpoint(&app).await;
    let found = log.check(&app, &[&checkpoint]).await;
    assert_eq!((found.problem, found.first_sequence), (None, 1));
    assert!(found.last_sequence >= EVENTS, "{found:?}");
    assert_eq!(found.events, found.last_sequence.unsigned_abs() + found.unsealed);
    // The checkpoint's own request came behind it.
    assert!(checkpoint.checkpoint.sequence <= found.last_sequence);
    let other = app.register("widgets").await;
    assert_ne!(other.workspace_id, log.owner.workspace_id);
}

/// Each column of an event, changed alone.
#[tokio::test]
async fn whatever_is_changed_of_an_event_is_found() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "acme").await;
    let mut connection = app.database.connect().await;
    let sql = "SELECT id FROM audit_events WHERE workspace_id = $1 AND path = '/v1/agents' LIMIT 1";
    let victim: Uuid =
        sqlx::query_scalar(sql).bind(raw(log.id)).fetch_one(&mut connection).await.unwrap();
    let event = EventId::from(victim);
    let place = log.events.iter().position(|id| *id == event).unwrap();
    let changed = Problem::Changed { event_id: event, sequence: i64::try_from(place).unwrap() + 1 };
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
        let tables = "CREATE TEMP TABLE kept AS SELECT * FROM audit_events WHERE workspace_id = $1 AND id = $2";
        for (sql, binds) in [
            (
                tables
                    .to_owned()
                    .replace("$1", &format!("'{}'", raw(log.id)))
                    .replace("$2", &format!("'{victim}'")),
                false,
            ),
            (format!("UPDATE audit_events SET {change} WHERE workspace_id = $1 AND id = $2"), true),
        ] {
            let mut query = sqlx::query(sqlx::AssertSqlSafe(sql));
            if binds {
                query = query.bind(raw(log.id)).bind(victim);
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
    assert_eq!(log.check(&app, &[]).await.problem, None, "as it was");
}

#[tokio::test]
async fn what_is_removed_or_inserted_is_named() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "deleted").await;
    // Two of them: the first is named.
    let (first, second) = (log.events[4], log.events[9]);
    let sql = "DELETE FROM audit_events WHERE workspace_id = $1 AND id IN ($2, $3)";
    log.tamper(&app, sql, &[second, first]).await;
    let removed = Problem::Removed { event_id: first, sequence: 5 };
    assert_eq!(log.check(&app, &[]).await.problem, Some(removed));
    // Something behind it is changed too: the first is still named.
    let sql = "UPDATE audit_events SET action = 'x' WHERE workspace_id = $1 AND id = $2";
    log.tamper(&app, sql, &[log.events[7]]).await;
    assert_eq!(log.check(&app, &[]).await.problem, Some(removed));

    let log = Log::new(&app, "inserted").await;
    let forged = EventId::from(Uuid::from_u128(raw(log.events[5]).as_u128() + 1));
    let sql = "INSERT INTO audit_events (id, workspace_id, action, actor_type, actor_name)
               SELECT $3, workspace_id, action, actor_type, 'forged' FROM audit_events
               WHERE workspace_id = $1 AND id = $2";
    log.tamper(&app, sql, &[log.events[5], forged]).await;
    let inserted = Problem::Inserted { event_id: forged };
    assert_eq!(log.check(&app, &[]).await.problem, Some(inserted));

    // From one workspace into the other.
    let (from, to) = (Log::new(&app, "from").await, Log::new(&app, "to").await);
    let sql = "UPDATE audit_events SET workspace_id = $3 WHERE workspace_id = $1 AND id = $2";
    let moved = from.events[6];
    from.tamper(&app, sql, &[moved, raw(to.id).into()]).await;
    let removed = Problem::Removed { event_id: moved, sequence: 7 };
    assert_eq!(from.check(&app, &[]).await.problem, Some(removed));
    let inserted = Problem::Inserted { event_id: moved };
    assert_eq!(to.check(&app, &[]).await.problem, Some(inserted));
}

#[tokio::test]
async fn what_is_cut_off_is_found_and_with_a_checkpoint_even_without_its_seals() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "events").await;
    let tail = log.events[log.events.len() - 3];
    let sql = "DELETE FROM audit_events WHERE workspace_id = $1 AND id >= $2";
    log.tamper(&app, sql, &[tail]).await;
    let Some(Problem::Removed { event_id, .. }) = log.check(&app, &[]).await.problem else {
        panic!("not found")
    };
    assert!(event_id >= tail);

    let log = Log::new(&app, "seals").await;
    let checkpoint = log.checkpoint(&app).await;
    let mut connection = app.database.connect().await;
    let sql = "SELECT previous_hash, first_sequence, event_ids[1] FROM audit_seals
               WHERE workspace_id = $1 AND last_sequence <= $2 ORDER BY last_sequence DESC LIMIT 1";
    let query = sqlx::query(sql).bind(raw(log.id)).bind(checkpoint.checkpoint.sequence);
    let row = query.fetch_one(&mut connection).await.unwrap();
    let (hash, first, event): (Vec<u8>, i64, Uuid) = (row.get(0), row.get(1), row.get(2));
    app.database.all_is_sealed().await;
    for sql in [
        "DELETE FROM audit_events e USING audit_seals s WHERE s.workspace_id = $1 AND e.workspace_id = $1
             AND s.last_sequence >= $2 AND e.id = ANY (s.event_ids)",
        "DELETE FROM audit_seals WHERE workspace_id = $1 AND last_sequence >= $2",
    ] {
        let query = sqlx::query(sql).bind(raw(log.id)).bind(first);
        assert!(query.execute(&mut connection).await.unwrap().rows_affected() > 0, "{event}");
    }
    let cut_off = Problem::CutOff { sequence: first };
    assert_eq!(log.check(&app, &[]).await.problem, Some(cut_off), "the end is known");
    let sql = "UPDATE chain_heads SET sequence = $2, hash = $3 WHERE workspace_id = $1";
    let query = sqlx::query(sql).bind(raw(log.id)).bind(first - 1).bind(hash);
    query.execute(&mut connection).await.unwrap();
    assert_eq!(log.check(&app, &[]).await.problem, None, "nobody can know, without a checkpoint");
    assert_eq!(log.check(&app, &[&checkpoint]).await.problem, Some(cut_off));
    // The service goes on from there, and the places are taken anew.
    app.get("/v1/audit-log").bearer(&log.owner.access_token).send().await.expect(200);
    let rewritten = Problem::Rewritten { sequence: checkpoint.checkpoint.sequence };
    eventually("the chain has grown", async || {
        app.get("/v1/audit-log").bearer(&log.owner.access_token).send().await.expect(200);
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

/// An attacker who knows how seals are made makes them anew.
#[tokio::test]
async fn a_chain_that_was_made_anew_is_found_by_a_checkpoint() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "acme").await;
    let checkpoint = log.checkpoint(&app).await;
    let before = log.checkpoint(&app).await;
    app.database.all_is_sealed().await;
    let sql =
        "UPDATE audit_events SET actor_name = 'somebody else' WHERE workspace_id = $1 AND id = $2";
    log.tamper(&app, sql, &[log.events[3]]).await;
    let mut connection = app.database.connect().await;
    reseal(&app, &mut connection, log.id).await;
    assert_eq!(log.check(&app, &[]).await.problem, None, "a good forgery");
    let rewritten = Problem::Rewritten { sequence: checkpoint.checkpoint.sequence };
    assert_eq!(log.check(&app, &[&before, &checkpoint]).await.problem, Some(rewritten));
}

/// Computes all hashes of a chain anew, from its events as they are now.
async fn reseal(app: &TestApp, connection: &mut PgConnection, id: WorkspaceId) {
    let mut tx = app.app.store.begin(id, None).await.unwrap();
    let events = call2me_auth::store::chains::events_behind(&mut tx, id, Uuid::nil(), 1000).await;
    let digests: std::collections::HashMap<EventId, EventDigest> =
        events.unwrap().iter().map(|event| (event.id, event.digest())).collect();
    let mut hash = ChainHash::genesis(id);
    let sql = "SELECT last_sequence, event_ids FROM audit_seals WHERE workspace_id = $1 ORDER BY 1";
    for row in sqlx::query(sql).bind(raw(id)).fetch_all(&mut *connection).await.unwrap() {
        let (last, ids): (i64, Vec<Uuid>) = (row.get(0), row.get(1));
        let previous = hash;
        let mut hashes: Vec<u8> = Vec::new();
        for event in ids {
            hash = hash.then(digests[&event.into()]);
            hashes.extend(hash.as_bytes());
        }
        let sql = "UPDATE audit_seals SET previous_hash = $3, hashes = $4
                   WHERE workspace_id = $1 AND last_sequence = $2";
        let query = sqlx::query(sql).bind(raw(id)).bind(last);
        let query = query.bind(&previous.as_bytes()[..]).bind(hashes);
        query.execute(&mut *connection).await.unwrap();
        let sql = "UPDATE chain_heads SET hash = $2 WHERE workspace_id = $1";
        let query = sqlx::query(sql).bind(raw(id)).bind(&hash.as_bytes()[..]);
        query.execute(&mut *connection).await.unwrap();
    }
}

#[tokio::test]
async fn seals_that_were_changed_or_removed_are_found() {
    let app = TestApp::start().await;
    let middle = "last_sequence = (SELECT last_sequence FROM audit_seals WHERE workspace_id = $1
                  ORDER BY last_sequence LIMIT 1 OFFSET 2)";
    for (name, sql) in [
        ("removed", format!("DELETE FROM audit_seals WHERE workspace_id = $1 AND {middle}")),
        (
            "previous",
            format!(
                "UPDATE audit_seals SET previous_hash = sha256('x') WHERE workspace_id = $1 AND {middle}"
            ),
        ),
        (
            "hashes",
            format!(
                "UPDATE audit_seals SET hashes = set_byte(hashes, 0, get_byte(hashes, 0) # 1) WHERE workspace_id = $1 AND {middle}"
            ),
        ),
        (
            "ids",
            format!(
                "UPDATE audit_seals SET event_ids[1] = gen_random_uuid() WHERE workspace_id = $1 AND {middle}"
            ),
        ),
        (
            "first",
            "DELETE FROM audit_seals WHERE workspace_id = $1 AND first_sequence = 1".to_owned(),
        ),
        ("all", "DELETE FROM audit_seals WHERE workspace_id = $1".to_owned()),
    ] {
        let log = Log::new(&app, name).await;
        let mut connection = app.database.connect().await;
        let query = "SELECT first_sequence FROM audit_seals WHERE workspace_id = $1 ORDER BY 1 OFFSET 2 LIMIT 1";
        let third: i64 =
            sqlx::query_scalar(query).bind(raw(log.id)).fetch_one(&mut connection).await.unwrap();
        log.tamper(&app, &sql, &[]).await;
        let problem = log.check(&app, &[]).await.problem;
        let fits = match (name, problem) {
            ("removed", Some(Problem::SealsRemoved { sequence }))
            | ("previous", Some(Problem::SealChanged { sequence }))
            | ("hashes", Some(Problem::Changed { sequence, .. }))
            | ("ids", Some(Problem::Removed { sequence, .. })) => sequence == third,
            ("first", Some(Problem::SealsRemoved { sequence }))
            | ("all", Some(Problem::CutOff { sequence })) => sequence == 1,
            _ => false,
        };
        assert!(fits, "{name}: {problem:?}");
    }
    // Nothing is left of it but its events.
    let log = Log::new(&app, "nothing").await;
    for table in ["audit_seals", "chain_heads"] {
        log.tamper(&app, &format!("DELETE FROM {table} WHERE workspace_id = $1"), &[]).await;
    }
    let all = app.app.store.audited_workspaces().await.unwrap();
    assert!(all.contains(&log.id));
    let inserted = Problem::Inserted { event_id: *log.events.iter().min().unwrap() };
    assert_eq!(log.check(&app, &[]).await.problem, Some(inserted));
}

#[tokio::test]
async fn a_checkpoint_is_believed_only_as_it_was_signed() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "acme").await;
    let signed = log.checkpoint(&app).await;
    let auth = &app.app.auth;
    assert_eq!(auth.verify_checkpoint(&signed).unwrap(), signed.checkpoint);
    let mut other = signed.clone();
    other.checkpoint.sequence += 1;
    assert!(auth.verify_checkpoint(&other).is_err());
    // An access token of ours is no checkpoint.
    let other = SignedCheckpoint { signature: log.owner.access_token.clone(), ..signed.clone() };
    assert!(auth.verify_checkpoint(&other).is_err());
    // Nor is a checkpoint an access token.
    app.get("/v1/agents").bearer(&signed.signature).send().await.refused(401, "unauthorized");
    // Another key signs from now on; the one before is still published, and believed.
    let made = auth.rotate_signing_key(call2me_auth::model::signing_key::KeyPurpose::Checkpoints);
    let made = made.await.unwrap();
    app.clock.advance(std::time::Duration::from_secs(10));
    let kid = |signed: &SignedCheckpoint| {
        jsonwebtoken::decode_header(&signed.signature).unwrap().kid.unwrap()
    };
    let fresh = eventually("the new key signs", async || {
        let fresh = log.checkpoint(&app).await;
        (kid(&fresh) == made.to_string()).then_some(fresh)
    })
    .await;
    for signed in [&signed, &fresh] {
        auth.verify_checkpoint(signed).unwrap();
        let jwks = app.get("/.well-known/jwks.json").send().await.expect(200);
        let keys = jwks["keys"].as_array().unwrap();
        assert!(keys.iter().any(|key| key["kid"] == kid(signed)), "{jwks:#}");
    }
    // A checkpoint's key cannot be retired.
    assert!(auth.retire_signing_key(kid(&signed).parse().unwrap()).await.is_err());
}

/// The first day of the next month, at noon.
fn next_month(now: OffsetDateTime) -> OffsetDateTime {
    let first = now.replace_day(1).unwrap().replace_time(time!(12:00));
    (first + time::Duration::days(31)).replace_day(1).unwrap()
}

/// Days at which adding 31 days skips a month, or a month ends within the test.
#[tokio::test]
async fn retention_is_explained_by_the_chain_from_any_day() {
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

/// A log over some months, of which the oldest are dropped.
async fn check_retention(app: &TestApp) {
    let log = Log::new(app, "acme").await;
    let first_checkpoint = log.checkpoint(app).await;
    // In the same month, behind it.
    app.get("/v1/agents").bearer(&log.owner.access_token).send().await.expect(200);
    eventually("it is sealed", async || {
        let end = log.checkpoint(app).await.checkpoint.sequence;
        (end > first_checkpoint.checkpoint.sequence + 1).then_some(())
    })
    .await;
    let mut owner = log.owner.clone();
    for _ in 0..4 {
        let now = app.clock.now();
        app.clock.advance((next_month(now) - now).unsigned_abs());
        let now = app.clock.now();
        app.app.store.create_audit_partitions(now).await.unwrap();
        owner = app.with_fresh_session(&owner).await;
        app.get("/v1/agents").bearer(&owner.access_token).send().await.expect(200);
        app.database.all_is_sealed().await;
    }
    let checkpoint = SignedCheckpoint::deserialize(
        &app.get("/v1/audit-log/checkpoint").bearer(&owner.access_token).send().await.expect(200),
    )
    .unwrap();
    let retention = |days: u64| {
        let (store, env) = (app.app.store.clone(), app.app.env.clone());
        let kept = std::time::Duration::from_hours(24 * days);
        Retention::new(store, env, app.database.url.clone().into(), kept)
    };
    let mut connection = app.database.connect().await;
    let count = "SELECT count(*) FROM audit_events WHERE workspace_id = $1";
    let mut count = async || {
        sqlx::query_scalar::<_, i64>(count)
            .bind(raw(log.id))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    };
    let before = count().await;
    // Nothing of this log is so old; months that were empty from the beginning may be.
    retention(365).prune().await.unwrap();
    assert_eq!(count().await, before);
    let dropped = retention(30).prune().await.unwrap();
    assert!(dropped.iter().any(|name| name.starts_with("audit_events_")), "{dropped:?}");
    assert!(dropped.iter().any(|name| name.starts_with("audit_seals_")), "{dropped:?}");
    assert!(count().await < before - EVENTS / 2);
    let found = log.check(app, &[&checkpoint]).await;
    assert_eq!(found.problem, None, "{found:#?}");
    assert!(found.first_sequence > 1, "{found:?}");
    // The log tells.
    let list = "/v1/audit-log?action=workspace.log_pruned";
    let told = app.get(list).bearer(&owner.access_token).send().await.expect(200);
    assert_eq!(told["events"][0]["metadata"]["sequence"], found.first_sequence - 1);
    assert_eq!(told["events"][0]["actor"]["type"], "system");
    // A second time there is nothing to do, and nothing to tell.
    assert_eq!(retention(30).prune().await.unwrap(), Vec::<String>::new());
    let again = app.get(list).bearer(&owner.access_token).send().await.expect(200);
    assert_eq!(again["events"].as_array().unwrap().len(), told["events"].as_array().unwrap().len());
    // What the first checkpoint was about is gone.
    let too_old = Problem::CheckpointTooOld { sequence: first_checkpoint.checkpoint.sequence };
    assert_eq!(log.check(app, &[&first_checkpoint]).await.problem, Some(too_old));
    // A month of events that something else drops is missed.
    let (store, mut connection) = (&app.app.store, app.database.connect().await);
    let sql = "SELECT tableoid::regclass::text FROM audit_events ORDER BY id LIMIT 1";
    let oldest: String = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("DROP TABLE {oldest}")))
        .execute(&mut connection)
        .await
        .unwrap();
    let found = verify(store, log.id, &[]).await.unwrap();
    assert!(matches!(found.problem, Some(Problem::Removed { .. })), "{oldest}: {found:#?}");
}

/// Whoever can have events sealed could have retention's word sealed, too; it explains whole months that were over, and
/// no more.
#[tokio::test]
async fn a_word_about_retention_hides_nothing_but_whole_months() {
    let app = TestApp::start().await;
    let words = ["2099-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000001Z", "this month"];
    for (number, before) in words.into_iter().enumerate() {
        let log = Log::new(&app, &format!("acme-{number}")).await;
        let now = app.app.env.clock.now();
        let this_month = now.replace_day(1).unwrap().replace_time(time::Time::MIDNIGHT);
        let before = match before {
            "this month" => this_month,
            text => {
                time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
                    .unwrap()
            }
        };
        let told = json!({
            "before": timestamp::format(before), "sequence": 0, "hash": ChainHash::genesis(log.id),
        });
        let event = NewEvent::new(app.app.env.new_id(), log.id, Action::LogPruned, Actor::system());
        let mut tx = app.app.store.begin(log.id, None).await.unwrap();
        call2me_auth::store::audit::insert(&mut tx, log.id, &event.with(told)).await.unwrap();
        tx.commit().await.unwrap();
        app.database.all_is_sealed().await;
        let victim = log.events[4];
        let sql = "DELETE FROM audit_events WHERE workspace_id = $1 AND id = $2";
        log.tamper(&app, sql, &[victim]).await;
        let removed = Problem::Removed { event_id: victim, sequence: 5 };
        assert_eq!(log.check(&app, &[]).await.problem, Some(removed), "{before}");
    }
}

#[tokio::test]
async fn checkpoints_of_one_place_are_all_held_against_the_chain() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "acme").await;
    let genuine = log.checkpoint(&app).await.checkpoint;
    app.database.all_is_sealed().await;
    let other = Checkpoint { hash: ChainHash::genesis(log.id), ..genuine };
    for pair in [[genuine, other], [other, genuine]] {
        let found = verify(&app.app.store, log.id, &pair).await.unwrap();
        assert_eq!(found.problem, Some(Problem::Rewritten { sequence: genuine.sequence }));
    }
}

/// As an upgrade leaves them: without digests, and behind everything that is newer.
#[tokio::test]
async fn events_from_before_there_was_a_ledger_are_sealed_too() {
    let app = TestApp::start().await;
    let log = Log::new(&app, "acme").await;
    let old = EventId::from(Uuid::from_u128(raw(log.events[5]).as_u128() + 1));
    let sql = "INSERT INTO audit_events (id, workspace_id, action, actor_type, actor_name, path, metadata)
               SELECT $3, workspace_id, 'request', 'user', 'somebody', '/v1/agents', '{\"b\": 1, \"a\": {}}'
               FROM audit_events WHERE workspace_id = $1 AND id = $2";
    log.tamper(&app, sql, &[log.events[5], old]).await;
    let sql = "INSERT INTO ledger (id, since, workspace_ids, event_ids) VALUES (-7, now(), ARRAY[$1], ARRAY[$2])";
    log.tamper(&app, sql, &[old]).await;
    // A node looks for such when it starts.
    let _upgraded = app.another_node().await;
    eventually("it is sealed", async || {
        let found = log.check(&app, &[]).await;
        (found.problem.is_none() && found.unsealed == 0).then_some(())
    })
    .await;
    let mut connection = app.database.connect().await;
    assert!(chain(&mut connection, log.id).await.iter().any(|(event, _)| *event == old));
}
