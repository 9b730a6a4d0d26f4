//! /v1/members, and the official SDKs' numbered pages of the same.

use serde_json::json;

use crate::fixture::TestApp;

#[tokio::test]
async fn members_are_listed_with_their_roles() {
    let app = TestApp::start().await;
    let acme = app.register("acme").await;
    let viewer = app.join(&acme, "viewer").await;
    let list = app.get("/v1/members").bearer(&acme.access_token).send().await.expect(200);
    assert_eq!(list["total"], 2);
    assert_eq!(list["members"][0]["user_id"], viewer.user_id);
    assert_eq!(list["members"][0]["role"], "viewer");
    assert_eq!(list["members"][1]["email"], acme.email);
    app.get("/v1/members")
        .bearer(&viewer.access_token)
        .send()
        .await
        .refused(403, "insufficient_scope");
    let page = async |query: &str| {
        let path = format!("/v1/users/me/tenant/members{query}");
        app.get(&path).bearer(&acme.access_token).send().await
    };
    let second = page("?page=2&per_page=1").await.expect(200);
    assert_eq!(second["members"][0]["email"], acme.email);
    assert_eq!(
        (&second["page"], &second["per_page"], &second["total"]),
        (&json!(2), &json!(1), &json!(2))
    );
    assert_eq!(page("").await.expect(200)["per_page"], 20);
    page("?page=0").await.refused(422, "validation_failed").blames("page");
    page("?per_page=101").await.refused(422, "validation_failed").blames("per_page");
}
