//! Values that injected SQL passes to tables and functions: sizes, times and names that would
//! disturb other workspaces. `injected_sql.rs` describes the attacker.

use call2me_auth::model::id;
use sqlx::{AssertSqlSafe, Executor};
use uuid::Uuid;

use crate::{
    fixture::TestApp,
    injected_sql::{Injection, assert_denied, id_of, workspace_of},
};

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
