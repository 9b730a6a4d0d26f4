//! Access that keys and members gave: it is named, however much of it there is.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::fixture::{Browser, Key, SmtpSink, TestApp, TestResponse, TestUser, oauth::OAuthClient};

async fn create_key(app: &TestApp, credential: &str, name: &str) -> TestResponse {
    let body = json!({ "name": name, "scope": "admin" });
    app.post("/v1/api-keys").bearer(credential).json(body).send().await
}

async fn admin_key(app: &TestApp, credential: &str, name: &str) -> Key {
    let body = create_key(app, credential, name).await.expect_status(201);
    let text = |field: &str| body[field].as_str().unwrap().to_owned();
    Key { id: text("id"), secret: text("key") }
}

async fn set_disabled(app: &TestApp, credential: &str, key: &Key, disabled: bool) -> TestResponse {
    let path = format!("/v1/api-keys/{}", key.id);
    app.patch(&path).bearer(credential).json(json!({ "disabled": disabled })).send().await
}

async fn descendants(app: &TestApp, dana: &TestUser, key: &Key) -> Value {
    let path = format!("/v1/api-keys/{}/descendants", key.id);
    app.get(&path).bearer(&dana.access_token).send().await.expect_status(200)
}

async fn run(app: &TestApp, sql: &str) {
    app.database.connect().await.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

async fn count(app: &TestApp, sql: &str) -> i64 {
    let mut connection = app.database.connect().await;
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap()
}

/// Inserts keys that the key `root` created.
async fn insert_children(app: &TestApp, count: usize) {
    let sql = format!(
        "INSERT INTO api_keys (id, workspace_id, name, scope, digest, display_start, display_end,
                               created_at, creator_key_id)
         SELECT gen_random_uuid(), workspace_id, 'child', 'admin',
                sha256((random()::text || n)::bytea), 'a', 'b', now(), id
         FROM api_keys, generate_series(1, {count}) n WHERE name = 'root'"
    );
    run(app, &sql).await;
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

/// Creates a key that has enabled a key of another creator.
async fn key_that_widened_another(app: &TestApp, dana: &TestUser) -> Key {
    let owned = admin_key(app, &dana.access_token, "owned").await;
    let root = admin_key(app, &dana.access_token, "root").await;
    set_disabled(app, &dana.access_token, &owned, true).await.expect_status(200);
    set_disabled(app, &root.secret, &owned, false).await.expect_status(200);
    root
}

#[tokio::test]
async fn widened_key_is_named_beside_a_thousand_children() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let root = key_that_widened_another(&app, &dana).await;
    insert_children(&app, 985).await;
    let made = descendants(&app, &dana, &root).await;
    assert_eq!(names(&made["widened_api_keys"]), ["owned"]);
    assert_eq!(made["api_keys"].as_array().unwrap().len(), 985);
    assert_eq!(made["has_more"], Value::Null);
    let path = format!("/v1/api-keys/{}", root.id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    let events = app.wait_for_event_count(&dana.access_token, "action=api_key.revoked", 1).await;
    let details = &events[0]["metadata"];
    assert_eq!(names(&details["widened_api_keys"]), ["owned"]);
    assert_eq!((names(&details["api_keys"]).len(), &details["has_more"]), (100, &json!(true)));
}

/// A workspace has any number of keys that were revoked.
#[tokio::test]
async fn revoked_key_that_gave_nothing_is_forgotten() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let root = key_that_widened_another(&app, &dana).await;
    insert_children(&app, 1300).await;
    let before = count(&app, "SELECT count(*) FROM given_access").await;
    run(&app, "UPDATE api_keys SET revoked_at = now() WHERE name = 'child'").await;
    assert_eq!(count(&app, "SELECT count(*) FROM given_access").await, before - 1300);
    let made = descendants(&app, &dana, &root).await;
    assert_eq!(
        (names(&made["widened_api_keys"]), names(&made["api_keys"])),
        (vec!["owned"], vec![])
    );
}

/// Each kind of access that a revoked key gave still leads to it.
#[tokio::test]
async fn revoked_key_that_gave_something_is_not_forgotten() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    let root = admin_key(&app, &dana.access_token, "root").await;
    let create_client = async |credential: &str| {
        let body = json!({ "name": "Web", "redirect_uris": ["https://app.example/cb"] });
        let client = app.post("/v1/oauth/clients").bearer(credential).json(body).send().await;
        let client = OAuthClient::from_registration(&client.expect_status(201));
        format!("/v1/oauth/clients/{}", client.id)
    };
    let client = create_client(&dana.access_token).await;
    let owned = admin_key(&app, &dana.access_token, "owned").await;
    set_disabled(&app, &dana.access_token, &owned, true).await.expect_status(200);
    for (kind, list) in [
        ("key", "api_keys"),
        ("client", "oauth_clients"),
        ("widened", "widened_api_keys"),
        ("secret", "client_secrets"),
        ("uri", "redirect_uris"),
    ] {
        let child = admin_key(&app, &root.secret, kind).await;
        match kind {
            "key" => drop(admin_key(&app, &child.secret, "leaf").await),
            "client" => drop(create_client(&child.secret).await),
            "widened" => {
                set_disabled(&app, &child.secret, &owned, false).await.expect_status(200);
            }
            "secret" => {
                let path = format!("{client}/secret");
                app.post(&path)
                    .bearer(&child.secret)
                    .json(json!({}))
                    .send()
                    .await
                    .expect_status(201);
            }
            _ => {
                let uris = ["https://app.example/cb", "https://evil.example/cb"];
                let uris = json!({ "redirect_uris": uris });
                let update = app.patch(&client).bearer(&child.secret).json(uris).send().await;
                update.expect_status(200);
            }
        }
        let path = format!("/v1/api-keys/{}", child.id);
        app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
        let made = descendants(&app, &dana, &root).await;
        assert_eq!(made[list].as_array().unwrap().len(), 1, "{kind}: {made:#}");
    }
}

/// A list that takes too long hides no other one.
#[tokio::test]
async fn slow_list_hides_no_other() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let root = key_that_widened_another(&app, &dana).await;
    insert_children(&app, 2).await;
    let mut holder = app.database.connect().await;
    let mut lock = holder.begin().await.unwrap();
    lock.execute("LOCK TABLE oauth_added_redirect_uris IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let made = descendants(&app, &dana, &root).await;
    assert_eq!(names(&made["widened_api_keys"]), ["owned"]);
    assert_eq!((names(&made["api_keys"]).len(), &made["has_more"]), (2, &json!(true)));
}

#[tokio::test]
async fn page_of_revocation_works_if_list_takes_too_long() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let root = key_that_widened_another(&app, &dana).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let mut holder = app.database.connect().await;
    let mut lock = holder.begin().await.unwrap();
    lock.execute("LOCK TABLE oauth_added_redirect_uris IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let page = browser.get(&format!("/api-keys/{}/revoke", root.id)).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("could not be listed in time"), "{}", page.text);
}

/// Keys keep their scope. Those within the new role are no more than the member has.
#[tokio::test]
async fn demotion_names_what_is_above_new_role() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    let sam = app.add_member(&dana, "admin").await;
    let owned = admin_key(&app, &dana.access_token, "owned").await;
    set_disabled(&app, &dana.access_token, &owned, true).await.expect_status(200);
    set_disabled(&app, &sam.access_token, &owned, false).await.expect_status(200);
    for scope in ["admin", "write", "read-only"] {
        let body = json!({ "name": scope, "scope": scope });
        let create = app.post("/v1/api-keys").bearer(&sam.access_token).json(body);
        create.send().await.expect_status(201);
    }
    let path = format!("/v1/members/{}", sam.user_id);
    for (number, role, keys) in
        [(1, "member", vec!["admin"]), (2, "viewer", vec!["write", "admin"])]
    {
        let set = app.patch(&path).bearer(&dana.access_token).json(json!({ "role": role }));
        set.send().await.expect_status(200);
        let query = "action=member.role_changed";
        let events = app.wait_for_event_count(&dana.access_token, query, number).await;
        let details = &events[0]["metadata"];
        assert_eq!((&details["to"], names(&details["api_keys"])), (&json!(role), keys));
        assert_eq!(names(&details["widened_api_keys"]), ["owned"]);
    }
    let email = sink.wait_for_email(&dana.email, "lower role").await;
    let text = email["text"].as_str().unwrap();
    assert!(text.contains("to member") && text.contains("still work: admin."), "{text}");
}

/// Users are not limited: after a leak they replace keys.
#[tokio::test]
async fn keys_give_limited_access_within_a_day() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let owned = admin_key(&app, &dana.access_token, "owned").await;
    let root = admin_key(&app, &dana.access_token, "root").await;
    let sam = app.add_member(&dana, "member").await;
    set_disabled(&app, &dana.access_token, &owned, true).await.expect_status(200);
    let fill = "INSERT INTO given_access (workspace_id, member_id, by_key_id, is_creation)
                SELECT workspace_id, gen_random_uuid(), id, false
                FROM api_keys, generate_series(1, 2000) WHERE name = 'root'";
    run(&app, fill).await;
    create_key(&app, &root.secret, "more").await.assert_error(409, "conflict");
    set_disabled(&app, &root.secret, &owned, false).await.assert_error(409, "conflict");
    let path = format!("/v1/members/{}", sam.user_id);
    let promote = |credential: &str| {
        app.patch(&path).bearer(credential).json(json!({ "role": "admin" })).send()
    };
    promote(&root.secret).await.assert_error(409, "conflict");
    promote(&dana.access_token).await.expect_status(200);
    create_key(&app, &dana.access_token, "more").await.expect_status(201);
    set_disabled(&app, &dana.access_token, &owned, false).await.expect_status(200);
    run(&app, "UPDATE given_access SET created_at = '2026-01-01'").await;
    create_key(&app, &root.secret, "more").await.expect_status(201);
}
