//! /v1/calls: documents that refer to an agent and can be ended.

use serde_json::json;

use crate::fixture::TestClient;

#[tokio::test]
async fn call_requires_agent_of_workspace_and_ends_once() {
    let app = TestClient::shared();
    let [acme, widgets] = [app.register("acme").await, app.register("widgets-inc").await];
    let [key, other_key] =
        [app.create_key(&acme, "k", "write").await, app.create_key(&widgets, "k", "write").await];
    let agent = app
        .post("/v1/agents")
        .bearer(&key.secret)
        .json(json!({ "agent_name": "a" }))
        .send()
        .await
        .expect_status(201);
    let agent = agent["agent_id"].as_str().unwrap();
    let place = |secret: &str, agent: &str, number: &str| {
        let body = json!({ "agent_id": agent, "to_number": number, "call_status": "paid" });
        app.post("/v1/calls").bearer(secret).json(body).send()
    };
    let call = place(&key.secret, agent, "+14155550100").await.expect_status(201);
    assert_eq!(call["call_status"], "registered");
    assert_eq!(call["agent_id"], agent);
    // An agent of another workspace gets the same error as one that never existed.
    let foreign = place(&other_key.secret, agent, "+14155550100").await;
    let unknown =
        place(&other_key.secret, "agent_01jd0zt8q7f7qvs4p2k6x3m9ab", "+14155550100").await;
    foreign.assert_error(422, "validation_failed").assert_field("agent_id");
    assert_eq!(foreign.body["detail"], unknown.body["detail"]);
    for number in ["4155550100", "+0155550100", "+1415", "+1415555010012345", "+1 415 555 0100", ""]
    {
        place(&key.secret, agent, number)
            .await
            .assert_error(422, "validation_failed")
            .assert_field("to_number");
    }
    let path = format!("/v1/calls/{}", call["call_id"].as_str().unwrap());
    let end = || app.post(&format!("{path}/end")).bearer(&key.secret).send();
    let ended = end().await.expect_status(200);
    assert_eq!((&ended["call_status"], &ended["call_id"]), (&json!("ended"), &call["call_id"]));
    assert_eq!(end().await.expect_status(200)["ended_at"], ended["ended_at"]);
    app.post(&format!("{path}/end"))
        .bearer(&other_key.secret)
        .send()
        .await
        .assert_error(404, "not_found");
    let second_agent = app
        .post("/v1/agents")
        .bearer(&key.secret)
        .json(json!({ "agent_name": "b" }))
        .send()
        .await
        .expect_status(201);
    let second_agent = second_agent["agent_id"].as_str().unwrap();
    place(&key.secret, second_agent, "+14155550101").await.expect_status(201);
    let list_of = async |agent: &str| {
        let path = format!("/v1/calls?agent_id={agent}");
        app.get(&path).bearer(&key.secret).send().await.expect_status(200)
    };
    assert_eq!(list_of(agent).await["total"], 1);
    assert_eq!(list_of(agent).await["calls"][0]["call_id"], call["call_id"]);
    let reassigned =
        app.patch(&path).bearer(&key.secret).json(json!({ "agent_id": second_agent })).send().await;
    assert_eq!(reassigned.expect_status(200)["agent_id"], second_agent);
    assert_eq!(list_of(second_agent).await["total"], 2);
    let invalid = app.get("/v1/calls?agent_id=x").bearer(&key.secret).send().await;
    invalid.assert_error(422, "validation_failed").assert_field("agent_id");
}
