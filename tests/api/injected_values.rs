//! Values that injected SQL passes to tables and functions: sizes, times and names that would
//! disturb other workspaces. `injected_sql.rs` describes the attacker.

use call2me_auth::model::id;
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor, Row as _};
use uuid::Uuid;

use crate::{
    fixture::{TestApp, context_key},
    injected_sql::{
        AN_ID, Injection, append_usage, assert_all_refused, assert_denied, execute, fetch, id_of,
        register_writer, workspace_of,
    },
    isolation::database_time,
};

/// One row would fill the memory of all nodes, and the audit log of its workspace.
#[tokio::test]
async fn large_texts_are_refused() {
    let app = TestApp::start().await;
    let (mallory, key) = register_writer(&app).await;
    let (user, workspace) = (id_of(&mallory), workspace_of(&mallory));
    let text = "repeat('x', 10000000)";
    let mut statements: Vec<_> = [
        "api_keys SET name",
        "api_keys SET description",
        "users SET full_name",
        "oauth_clients SET name",
        "oauth_clients SET client_uri",
        "memberships SET full_name",
        "workspaces SET name",
        "oauth_grants SET end_reason",
    ]
    .map(|column| format!("UPDATE {column} = {text}"))
    .into();
    for (table, column, value) in [
        ("users", "profile", format!("to_json({text})")),
        ("memberships", "profile", format!("to_json({text})")),
        ("workspaces", "branding", format!("to_json({text})")),
        ("oauth_clients", "redirect_uris", format!("ARRAY[{text}]")),
        ("oauth_grants", "revoked_tokens", "array_fill(gen_random_uuid(), ARRAY[100000])".into()),
        ("api_keys", "allowed_ips", "array_fill('192.0.2.0/24'::cidr, ARRAY[100000])".into()),
    ] {
        statements.push(format!("UPDATE {table} SET {column} = {value}"));
    }
    statements.extend([
        format!(
            "INSERT INTO sessions SELECT (jsonb_populate_record(s, jsonb_build_object(
                 'id', gen_random_uuid(), 'user_agent', {text}))).* FROM sessions s
             WHERE user_id = '{user}' LIMIT 1"
        ),
        format!(
            "SELECT insert_api_key(gen_random_uuid(), '{workspace}', {text}, NULL, 'write',
                 sha256('k'), 'a', 'b', '{{}}', now(), NULL, NULL, NULL, NULL, NULL)"
        ),
        format!(
            "INSERT INTO documents VALUES (gen_random_uuid(), '{workspace}', 'agent', NULL,
                 to_json({text}), 0, now(), now())"
        ),
        format!(
            "INSERT INTO audit_events (id, workspace_id, action, actor_type, metadata)
             VALUES (uuidv7_lower_bound(now()), '{workspace}', 'x', 'user',
                     jsonb_build_object('x', {text}))"
        ),
        append_usage("2026-06-15", &format!("'{key}'"), text, [AN_ID; 2], "1"),
    ]);
    assert_all_refused(&app, &mallory, &statements).await;
}

/// As the audit writer passes them.
#[tokio::test]
async fn large_values_of_audit_events_are_refused() {
    let app = TestApp::start().await;
    let (mallory, _) = register_writer(&app).await;
    let workspace = workspace_of(&mallory);
    let append = |name: &str, path: &str, metadata: &str, events: usize| {
        let array = |value: &str| format!("array_fill({value}, ARRAY[{events}])");
        let [none, no_text] = [array("NULL::uuid"), array("NULL::text")];
        let ids = format!(
            "ARRAY(SELECT uuidv7_lower_bound('2026-06-15'::timestamptz + n * interval '1 second')
                   FROM generate_series(1, {events}) n)"
        );
        let usage = ["'{}'"; 12].join(", ");
        format!(
            "SELECT append_audit_events({ids}, {}, {}, {}, {none}, {}, {no_text}, {none},
                 {no_text}, {none}, {no_text}, {}, {}, {}, {no_text}, {}, {},
                 decode(repeat('00', 32 * {events}), 'hex'), '2026-06-15', {usage}, false)",
            array(&format!("'{workspace}'::uuid")),
            array("'x'::text"),
            array("'user'::text"),
            array(name),
            array(path),
            array("NULL::smallint"),
            array("NULL::inet"),
            array("NULL::bigint"),
            array(metadata),
        )
    };
    let (text, small, none) = ("repeat('x', 10000000)", "'x'::text", "'{}'::jsonb");
    let large = format!("jsonb_build_object('x', {text})");
    assert_all_refused(
        &app,
        &mallory,
        &[
            append(text, small, none, 1),
            append(small, text, none, 1),
            append(small, small, &large, 1),
            append(small, small, none, 1001),
        ],
    )
    .await;
    let mut injection = Injection::new(&app).await;
    let usual = append("repeat('x', 512)", "repeat('x', 512)", none, 1000);
    injection.0.execute(AssertSqlSafe(usual)).await.unwrap();
}

/// Also the columns of tables that are added later. Each check is evaluated with a large value.
#[tokio::test]
async fn every_text_array_and_json_has_a_limit() {
    let app = TestApp::start().await;
    let mut connection = app.database.connect().await;
    let columns: Vec<(String, String, String, Vec<String>)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL),
                ARRAY(SELECT pg_get_expr(k.conbin, k.conrelid) FROM pg_constraint k
                      WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum])
         FROM pg_class c
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         JOIN pg_type t ON t.oid = a.atttypid
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
           AND c.relname <> '_sqlx_migrations'
           AND (t.typcategory IN ('A', 'S') OR t.typname IN ('bytea', 'json', 'jsonb'))",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert!(columns.len() > 100, "{}", columns.len());
    for (table, column, kind, checks) in columns {
        // More than the limit of each, without a copy of 70 MB for all.
        let is_large = ["body", "sealed_response"].contains(&column.as_str());
        let bytes = if is_large { 70_000_000 } else { 2_000_000 };
        let large = match kind.as_str() {
            "bytea" => format!("decode(repeat('00', {bytes}), 'hex')"),
            "json" | "jsonb" => format!("to_{kind}(repeat('x', {bytes}))"),
            "text" => format!("repeat('x', {bytes})"),
            "text[]" => "array_fill('x'::text, ARRAY[20000])".to_owned(),
            array if array.ends_with("[]") => format!("array_fill(NULL::{array}, ARRAY[20000])"),
            other => panic!("{table}.{column} is a {other}: does it have a limit?"),
        }
        .replace("[], ARRAY", ", ARRAY");
        let checks = checks.join(") AND (");
        assert!(!checks.is_empty(), "{table}.{column} has no check");
        let check = format!("SELECT ({checks}) FROM (SELECT {large} AS {column}) value");
        let is_accepted: Option<bool> =
            connection.fetch_one(AssertSqlSafe(check)).await.unwrap().get(0);
        assert_eq!(is_accepted, Some(false), "{table}.{column}: {checks}");
    }
}

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

/// The time of a seal does not go back in its own chain. Other chains do not move it.
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
        let body = json!({ "email": email, "role": "viewer" });
        let invite = app.post("/v1/invitations").bearer(credential).json(body);
        invite.send().await.expect_status(201);
    }
    // Its own count.
    let body = json!({ "email": "c@new.example", "role": "viewer" });
    let other =
        app.post("/v1/workspaces").bearer(&mallory.access_token).json(json!({ "name": "b" }));
    let other = other.send().await.expect_status(201);
    let switch = app.request_as(&mallory.access_token, "POST", "/v1/auth/switch-workspace");
    let switch =
        switch.json(json!({ "workspace_id": other["id"] })).send().await.expect_status(200);
    let token = switch["access_token"].as_str().unwrap();
    let invite = app.post("/v1/invitations").bearer(token).json(body).send().await;
    invite.assert_error(409, "conflict");
}
