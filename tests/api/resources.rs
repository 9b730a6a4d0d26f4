//! Knowledge bases, campaigns, wallet, users and branding.

use serde_json::{Value, json};

use crate::fixture::{PASSWORD, TestApp, TestClient};

#[tokio::test]
async fn knowledge_base_accepts_either_name_field() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let create =
        |body: Value| app.post("/v1/knowledge-base").bearer(&dana.access_token).json(body).send();
    let sources = json!({
        "knowledge_base_name": "Hours", "knowledge_base_texts": [{ "title": "t", "text": "x" }],
        "knowledge_base_urls": ["https://acme.example"],
    });
    let created = create(sources).await.expect_status(201);
    assert!(created["id"].as_str().unwrap().starts_with("kb_"));
    assert_eq!((&created["name"], &created["sources_count"]), (&json!("Hours"), &json!(2)));
    assert_eq!(
        create(json!({ "name": "Prices" })).await.expect_status(201)["knowledge_base_name"],
        "Prices"
    );
    create(json!({}))
        .await
        .assert_error(422, "validation_failed")
        .assert_field("knowledge_base_name");
    let list =
        app.get("/v1/knowledge-base").bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(list["knowledge_bases"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn campaign_requires_name_and_agent() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let agent = app
        .post("/v1/agents")
        .bearer(&dana.access_token)
        .json(json!({ "agent_name": "a" }))
        .send()
        .await
        .expect_status(201);
    let create =
        |body: Value| app.post("/v1/campaigns").bearer(&dana.access_token).json(body).send();
    let creation = create(
        json!({ "name": "Spring", "agent_id": agent["agent_id"], "from_number": "+14155550199" }),
    );
    assert!(
        creation.await.expect_status(201)["campaign_id"].as_str().unwrap().starts_with("campaign_")
    );
    create(json!({ "agent_id": agent["agent_id"] }))
        .await
        .assert_error(422, "validation_failed")
        .assert_field("name");
    create(json!({ "name": "Spring" }))
        .await
        .assert_error(422, "validation_failed")
        .assert_field("agent_id");
}

#[tokio::test]
async fn wallet_balance_is_sum_of_transactions() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let balance = async || {
        app.get("/v1/wallet/balance").bearer(&dana.access_token).send().await.expect_status(200)
    };
    assert_eq!(balance().await, json!({ "balance_usd": 0.0 }));
    let workspace = call2me_auth::model::id::parse("ws", &dana.workspace_id).unwrap();
    let mut connection = app.database.connect().await;
    for (number, cents) in [(1_u128, 5000_i64), (2, -1234)] {
        sqlx::query(
            "INSERT INTO wallet_transactions VALUES ($1, $2, 'charge', $3, 'calls', now())",
        )
        .bind(uuid::Uuid::from_u128(number))
        .bind(workspace)
        .bind(cents)
        .execute(&mut connection)
        .await
        .unwrap();
    }
    assert_eq!(balance().await, json!({ "balance_usd": 37.66 }));
    let list = app
        .get("/v1/wallet/transactions?limit=1")
        .bearer(&dana.access_token)
        .send()
        .await
        .expect_status(200);
    assert_eq!(list["transactions"][0]["amount_usd"], -12.34);
    assert_eq!((&list["total"], list["next_cursor"].is_string()), (&json!(2), true));
}

#[tokio::test]
async fn user_changes_profile_but_not_email() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "k", "write").await;
    let patch = |body: Value| app.patch("/v1/users/me").bearer(&key.secret).json(body).send();
    let changed =
        patch(json!({ "full_name": "Dana M.", "timezone": "Europe/Berlin", "id": "user_x" }))
            .await
            .expect_status(200);
    assert_eq!(
        (&changed["full_name"], &changed["timezone"]),
        (&json!("Dana M."), &json!("Europe/Berlin"))
    );
    assert_eq!(changed["id"], dana.user_id);
    let me = app.get("/v1/users/me").bearer(&key.secret).send().await.expect_status(200);
    assert_eq!(me, changed);
    let session = || app.request_as(&dana.access_token, "PATCH", "/v1/users/me");
    let own = session().json(json!({ "full_name": "Dana N.", "locale": "de" })).send().await;
    let own = own.expect_status(200);
    let me = app.get("/v1/users/me").bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(me, own);
    patch(json!({ "email": "x@y.example" }))
        .await
        .assert_error(422, "validation_failed")
        .assert_field("email");
    patch(json!({ "password": PASSWORD }))
        .await
        .assert_error(422, "validation_failed")
        .assert_field("password");
    patch(json!({ "full_name": 7 }))
        .await
        .assert_error(422, "validation_failed")
        .assert_field("full_name");
    patch(json!({ "notes": "x".repeat(70_000) })).await.assert_error(422, "validation_failed");
}

#[tokio::test]
async fn branding_is_replaced_as_a_whole() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let path = "/v1/users/me/branding";
    let put = |body: Value| app.request("PUT", path).bearer(&dana.access_token).json(body).send();
    put(json!({ "brand_name": "Acme Voice", "primary_color": "#0b7285" })).await.expect_status(200);
    put(json!({ "brand_name": "Acme" })).await.expect_status(200);
    let branding = app.get(path).bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(branding, json!({ "brand_name": "Acme" }));
    put(json!(["a"])).await.assert_error(422, "validation_failed");
}

/// A key neither reads nor changes what another workspace, or the user, has stored.
#[tokio::test]
async fn key_reads_and_changes_profile_of_its_workspace_only() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let body = json!({ "name": "widgets-inc" });
    let call = app.request_as(&dana.access_token, "POST", "/v1/workspaces").json(body);
    let other = call.send().await.expect_status(201)["id"].as_str().unwrap().to_owned();
    let body = json!({ "email": dana.email, "password": PASSWORD, "workspace_id": other });
    let pair = app.post("/v1/auth/login").json(body).send().await.expect_status(200);
    let in_other = dana.with_tokens(&pair);
    let [acme, widgets] =
        [app.create_key(&dana, "a", "write").await, app.create_key(&in_other, "b", "write").await];
    let patch = async |credential: &str, body: Value| {
        app.request_as(credential, "PATCH", "/v1/users/me")
            .json(body)
            .send()
            .await
            .expect_status(200)
    };
    let get = async |credential: &str| {
        app.get("/v1/users/me").bearer(credential).send().await.expect_status(200)
    };
    patch(&acme.secret, json!({ "full_name": "Eve", "phone": "+1 555 0100" })).await;
    patch(&dana.access_token, json!({ "birthday": "2000-01-01" })).await;
    let seen = get(&acme.secret).await;
    assert_eq!((&seen["full_name"], &seen["phone"]), (&json!("Eve"), &json!("+1 555 0100")));
    assert!(seen.get("birthday").is_none(), "{seen:#}");
    for credential in [&widgets.secret, &in_other.access_token, &dana.access_token] {
        let seen = get(credential).await;
        assert_eq!(seen["full_name"], "Dana Meyer");
        assert!(seen.get("phone").is_none(), "{seen:#}");
    }
    assert_eq!(get(&in_other.access_token).await["birthday"], "2000-01-01");
    let me = app.request_as(&in_other.access_token, "GET", "/v1/auth/me").send().await;
    assert_eq!(me.expect_status(200)["user"]["full_name"], "Dana Meyer");
}
