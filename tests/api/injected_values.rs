//! Values that injected SQL passes to tables and functions: sizes, times and names that would
//! disturb other workspaces. `injected_sql.rs` describes the attacker.

use call2me_auth::model::id;
use sqlx::{AssertSqlSafe, Executor, Row as _};
use uuid::Uuid;

use crate::{
    fixture::{TestApp, context_key},
    injected_sql::{
        Injection, assert_denied, execute, fetch, id_of, register_writer, workspace_of,
    },
    isolation::database_time,
};

/// Each query of a log locks its partitions, and PostgreSQL has a limited number of locks.
#[tokio::test]
async fn role_creates_partitions_of_present_months_only() {
    let app = TestApp::start().await;
    let mut injection = Injection::new(&app).await;
    for call in
        ["create_audit_partition(now())", "create_audit_partition(now() + interval '10 years')"]
    {
        assert_denied(&mut injection.0, &format!("SELECT {call}")).await;
    }
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_events'::regclass";
    let before: i64 = fetch(&app, partitions).await.get(0);
    for month in -239..=239 {
        let create =
            format!("SELECT create_present_audit_partition(now() + {month} * interval '1 month')");
        injection.0.execute(AssertSqlSafe(create)).await.ok();
    }
    for time in ["NULL", "'infinity'", "'-infinity'"] {
        let create = format!("SELECT create_present_audit_partition({time})");
        injection.0.execute(AssertSqlSafe(create)).await.ok();
    }
    let after: i64 = fetch(&app, partitions).await.get(0);
    // Those of three months before and after it that do not exist yet.
    assert!((2..=4).contains(&(after - before)), "{before} {after}");
}

/// The chains and the times of last uses are those of all workspaces.
#[tokio::test]
async fn seal_needs_its_mac() {
    let app = TestApp::start().await;
    let (mallory, _) = register_writer(&app).await;
    app.database.wait_until_sealed().await;
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&mallory).await;
    let (key, now) = (context_key(), database_time(&mut tx).await);
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let digest = |text: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text);
    let (entries, hashes) = (digest(b"{}"), digest(b""));
    let sign = |now: i64, epoch: i64| {
        let values =
            [&now.to_be_bytes()[..], &epoch.to_be_bytes(), entries.as_ref(), hashes.as_ref()];
        key.sign_decision("append_chain_segments", &values)
    };
    let seal = |now: i64, epoch: &str, mac: [u8; 32]| {
        let none = ["'{}'"; 7].join(", ");
        format!(
            "SELECT append_chain_segments({now}, {epoch}, {none}, '\\x{}', '\\x{}')",
            hex(&key.id()),
            hex(&mac)
        )
    };
    let hour = 3_600_000_000;
    for sql in [
        seal(now, "NULL", [0; 32]),
        seal(now + hour, "NULL", sign(now, -1)),
        seal(now - hour, "0", sign(now, 0)),
        seal(now, "0", sign(now, -1)),
        seal(now, "NULL", sign(now, -1)).replacen("'{}'", "'{1}'", 1),
        seal(now, "NULL", sign(now, -1))
            .replace("'{}', '\\x", "ARRAY[gen_random_uuid()], '\\x")
            .replacen("'{}', ARRAY[", "'{x}', ARRAY[", 1),
    ] {
        assert_denied(&mut tx, &sql).await;
    }
    tx.execute(AssertSqlSafe(seal(now, "NULL", sign(now, -1)))).await.unwrap();
}

/// The time of a seal does not go back in its own chain, whatever those of other chains are.
#[tokio::test]
async fn seal_time_of_a_workspace_affects_no_other() {
    let app = TestApp::start().await;
    let [acme, mallory] = [app.register("acme").await, app.register("mallory").await];
    app.database.wait_until_sealed().await;
    let later = "2026-08-14 00:00:00+00";
    let delay = format!(
        "UPDATE audit_chain_heads SET sealed_at = '{later}' WHERE workspace_id = '{}'",
        workspace_of(&mallory)
    );
    execute(&app, delay).await;
    // Held back, so that one transaction seals the events of both.
    let mut blocking = app.database.connect().await;
    blocking.execute("SELECT pg_advisory_lock(hashtext('seal'))").await.unwrap();
    for user in [&acme, &mallory] {
        app.create_key(user, "k", "write").await;
    }
    blocking.execute("SELECT pg_advisory_unlock(hashtext('seal'))").await.unwrap();
    app.database.wait_until_sealed().await;
    for (user, is_later) in [(&acme, false), (&mallory, true)] {
        let sealed_at = format!(
            "SELECT max(sealed_at) = '{later}' FROM audit_chain_segments WHERE workspace_id = '{}'",
            workspace_of(user)
        );
        assert_eq!(fetch(&app, sealed_at).await.get::<bool, _>(0), is_later);
    }
}

/// An epoch restarts the idle times and the pauses of all workspaces.
#[tokio::test]
async fn epoch_of_the_clock_begins_only_with_mac() {
    let app = TestApp::start().await;
    let mut injection = Injection::new(&app).await;
    let (key, now) = (context_key(), database_time(&mut injection.0).await);
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let sign = |has_changed: bool, gap: i64, issued_at: i64| {
        let values = [&[u8::from(has_changed)][..], &gap.to_be_bytes(), &issued_at.to_be_bytes()];
        key.sign_decision("observe_clock", &values)
    };
    let observe = |has_changed: &str, gap: &str, issued_at: i64, mac: [u8; 32]| {
        format!(
            "SELECT observe_clock({has_changed}, {gap}, {issued_at}, '\\x{}', '\\x{}')",
            hex(&key.id()),
            hex(&mac)
        )
    };
    let minute = 60_000_000;
    for sql in [
        "SELECT observe_clock(true, NULL, NULL, NULL, NULL)".to_owned(),
        "SELECT observe_clock(false, 0, NULL, NULL, NULL)".to_owned(),
        observe("true", "NULL", now, [0; 32]),
        observe("true", "NULL", now, sign(false, -1, now)),
        observe("true", "NULL", now, sign(true, -1, now - 1)),
        observe("false", "0", now, sign(false, minute, now)),
        observe("NULL", "0", now, sign(false, 0, now)),
    ] {
        assert_denied(&mut injection.0, &sql).await;
    }
    // A genuine MAC that leaked.
    let late = observe("true", "NULL", now - minute, sign(true, -1, now - minute));
    let error = injection.0.execute(AssertSqlSafe(late)).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "MC001", "{error}");
    let reading = "SELECT observe_clock(false, NULL, NULL, NULL, NULL)";
    injection.0.execute(reading).await.unwrap();
    let epoch = async || fetch(&app, "SELECT epoch FROM clock_epoch").await.get::<i64, _>(0);
    let before = epoch().await;
    injection
        .0
        .execute(AssertSqlSafe(observe("true", "NULL", now, sign(true, -1, now))))
        .await
        .unwrap();
    assert_eq!(epoch().await, before + 1);
}

/// A user may send a limited number of invitations a day, from all workspaces.
#[tokio::test]
async fn injected_invitations_use_up_no_limit_of_another_user() {
    let app = TestApp::start().await;
    let [acme, mallory] =
        [app.register_verified("acme").await, app.register_verified("mallory").await];
    let key = app.create_key(&acme, "k", "admin").await;
    let key_id: Uuid = id::parse("key", &key.id).unwrap();
    let mut injection = Injection::new(&app).await;
    let mut tx = injection.begin_as(&mallory).await;
    let workspace = workspace_of(&mallory);
    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO invitations (id, workspace_id, email, normalized_email, role, created_at,
                                      expires_at, {columns})
             SELECT gen_random_uuid(), '{workspace}', n || '@b.example', n || '@b.example',
                    'viewer',
                    '2026-06-15 12:00:00+00', '2026-06-20', {values} FROM generate_series(1, 200) n"
        )
    };
    let victim = &acme.user_id;
    let forged = insert("invited_by, inviter_user_id", &format!("'{victim}', '{}'", id_of(&acme)));
    assert_denied(&mut tx, &forged).await;
    for (inviter, key) in [(victim, "NULL".to_owned()), (&key.id, format!("'{key_id}'"))] {
        let rows = insert("invited_by, inviter_key_id", &format!("'{inviter}', {key}"));
        let rows = rows.replace("n || '@", &format!("n || '{}@", inviter.len()));
        tx.execute(AssertSqlSafe(rows)).await.unwrap();
    }
    tx.commit().await.unwrap();
    for (credential, email) in
        [(&acme.access_token, "a@new.example"), (&key.secret, "b@new.example")]
    {
        let body = serde_json::json!({ "email": email, "role": "viewer" });
        let invite = app.post("/v1/invitations").bearer(credential).json(body);
        invite.send().await.expect_status(201);
    }
    // Its own count.
    let body = serde_json::json!({ "email": "c@new.example", "role": "viewer" });
    let other = app
        .post("/v1/workspaces")
        .bearer(&mallory.access_token)
        .json(serde_json::json!({ "name": "b" }));
    let other = other.send().await.expect_status(201);
    let switch = app.request_as(&mallory.access_token, "POST", "/v1/auth/switch-workspace");
    let switch = switch
        .json(serde_json::json!({ "workspace_id": other["id"] }))
        .send()
        .await
        .expect_status(200);
    let token = switch["access_token"].as_str().unwrap();
    let invite = app.post("/v1/invitations").bearer(token).json(body).send().await;
    invite.assert_error(409, "conflict");
}
