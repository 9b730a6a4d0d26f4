//! /v1/agents, as an example of all document resources.

use serde_json::{Value, json};

use crate::fixture::{Key, TestApp};

async fn app_with_key() -> (TestApp, Key) {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    (app, key)
}

#[tokio::test]
async fn agent_lifecycle_preserves_unknown_fields() {
    let (app, key) = app_with_key().await;
    let body = json!({
        "agent_name": "Front desk", "voice_id": "v-1", "response_engine": { "type": "llm" },
        "agent_id": "mine", "created_at": "never",
    });
    let answer = app.post("/v1/agents").bearer(&key.secret).json(body).send().await;
    let location = answer.header("location").to_owned();
    let created = answer.expect_status(201);
    let id = created["agent_id"].as_str().unwrap();
    assert!(id.starts_with("agent_"), "the service must assign the id");
    assert_eq!(location, format!("/v1/agents/{id}"));
    assert_eq!(created["response_engine"], json!({ "type": "llm" }));
    assert_eq!(created["status"], "active");
    assert_eq!(app.get(&location).bearer(&key.secret).send().await.expect_status(200), created);
    let change = json!({ "language": "tr-TR", "voice_id": null });
    let changed =
        app.patch(&location).bearer(&key.secret).json(change).send().await.expect_status(200);
    assert_eq!((&changed["language"], &changed["voice_id"]), (&json!("tr-TR"), &Value::Null));
    assert_eq!(changed["agent_name"], "Front desk");
    assert!(changed["updated_at"].as_str() > created["updated_at"].as_str());
    assert_eq!(app.delete(&location).bearer(&key.secret).send().await.status, 204);
    app.get(&location).bearer(&key.secret).send().await.assert_error(404, "not_found");
    app.delete(&location).bearer(&key.secret).send().await.assert_error(404, "not_found");
}

#[tokio::test]
async fn invalid_agent_name_is_rejected() {
    let (app, key) = app_with_key().await;
    for body in [
        json!({}),
        json!({ "agent_name": null }),
        json!({ "agent_name": 7 }),
        json!({ "agent_name": "" }),
        json!({ "agent_name": "x".repeat(101) }),
    ] {
        let answer = app.post("/v1/agents").bearer(&key.secret).json(body).send().await;
        answer.assert_error(422, "validation_failed").assert_field("agent_name");
    }
    let without_body = app.post("/v1/agents").bearer(&key.secret).send().await;
    without_body.assert_error(422, "validation_failed").assert_field("agent_name");
}

#[tokio::test]
async fn list_is_paged_by_cursor_and_by_offset() {
    let (app, key) = app_with_key().await;
    for number in 0..7 {
        let body = json!({ "agent_name": format!("agent {number}") });
        app.post("/v1/agents").bearer(&key.secret).json(body).send().await.expect_status(201);
    }
    let list = async |query: &str| {
        app.get(&format!("/v1/agents{query}")).bearer(&key.secret).send().await.expect_status(200)
    };
    let names = |page: &Value| -> Vec<String> {
        let agents = page["agents"].as_array().unwrap();
        agents.iter().map(|agent| agent["agent_name"].as_str().unwrap()[6..].to_owned()).collect()
    };
    let first = list("?limit=3").await;
    assert_eq!(
        (names(&first), &first["total"]),
        (vec!["6".into(), "5".into(), "4".into()], &json!(7))
    );
    // An insert and a delete between two requests do not affect the following pages.
    app.post("/v1/agents")
        .bearer(&key.secret)
        .json(json!({ "agent_name": "agent 7" }))
        .send()
        .await
        .expect_status(201);
    let deleted_id = first["agents"][2]["agent_id"].as_str().unwrap();
    app.delete(&format!("/v1/agents/{deleted_id}"))
        .bearer(&key.secret)
        .send()
        .await
        .expect_status(204);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = list(&format!("?limit=3&cursor={cursor}")).await;
    assert_eq!(names(&second), ["3", "2", "1"]);
    let cursor = second["next_cursor"].as_str().unwrap();
    let third = list(&format!("?limit=3&cursor={cursor}")).await;
    assert_eq!((names(&third), &third["next_cursor"]), (vec!["0".to_owned()], &Value::Null));
    assert_eq!(names(&list("?limit=2&offset=1").await), ["6", "5"]);
    assert_eq!(names(&list("?offset=100").await), Vec::<String>::new());
    let with_both =
        app.get(&format!("/v1/agents?offset=1&cursor={cursor}")).bearer(&key.secret).send().await;
    with_both.assert_error(422, "validation_failed").assert_field("offset");
}

#[tokio::test]
async fn patch_that_exceeds_document_size_is_rejected() {
    let app = TestApp::start_with(&[("server.max_body_bytes", "100000")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let created = app
        .post("/v1/agents")
        .bearer(&key.secret)
        .json(json!({ "agent_name": "a" }))
        .send()
        .await
        .expect_status(201);
    let path = format!("/v1/agents/{}", created["agent_id"].as_str().unwrap());
    let grow = |field: &str| {
        let body = json!({ field: "x".repeat(90_000) });
        app.patch(&path).bearer(&key.secret).json(body).send()
    };
    grow("one").await.expect_status(200);
    grow("two").await.expect_status(200);
    grow("three").await.assert_error(422, "validation_failed");
    let stored = app.get(&path).bearer(&key.secret).send().await.expect_status(200);
    assert!(stored.get("two").is_some() && stored.get("three").is_none());
}

#[tokio::test]
async fn numbers_and_nesting_are_preserved_verbatim() {
    let (app, key) = app_with_key().await;
    let body =
        r#"{"agent_name":"a","big":12345678901234567890123,"zero":-0.0,"e":1E2,"o":{"k":[]}}"#;
    let call = app.post("/v1/agents").bearer(&key.secret).body("application/json", body);
    let created = call.send().await;
    let fields = &body[1..body.len() - 1];
    assert!(created.text.contains(fields), "{}", created.text);
    let id = created.expect_status(201)["agent_id"].as_str().unwrap().to_owned();
    let fetched = app.get(&format!("/v1/agents/{id}")).bearer(&key.secret).send().await;
    assert!(fetched.text.contains(fields), "{}", fetched.text);
    let list = app.get("/v1/agents").bearer(&key.secret).send().await;
    assert!(list.text.contains(fields), "{}", list.text);
}

#[tokio::test]
async fn page_of_large_documents_is_split() {
    let (app, key) = app_with_key().await;
    for number in 0..6 {
        let body =
            json!({ "agent_name": format!("agent {number}"), "text": "x".repeat(1_000_000) });
        app.post("/v1/agents").bearer(&key.secret).json(body).send().await.expect_status(201);
    }
    let (mut names, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("/v1/agents?limit=100{cursor}");
        let page = app.get(&path).bearer(&key.secret).send().await;
        assert!(page.text.len() < 4_300_000);
        let page = page.expect_status(200);
        assert_eq!(page["total"], 6);
        let agents = page["agents"].as_array().unwrap();
        names.extend(
            agents.iter().map(|agent| agent["agent_name"].as_str().unwrap()[6..].to_owned()),
        );
        pages += 1;
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!((names.concat().as_str(), pages), ("543210", 2));
}
