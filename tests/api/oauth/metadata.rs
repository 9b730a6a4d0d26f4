//! OAuth metadata (RFC 8414, RFC 9728), and cross-origin access for clients in browsers.

use serde_json::json;

use crate::fixture::TestApp;

#[tokio::test]
async fn challenge_leads_to_resource_and_server_metadata() {
    let app = TestApp::start_with(&[("oauth.resources", "https://mcp.example/mcp")]).await;
    let url = &app.url;
    let challenge = app.get("/v1/agents").send().await.header("www-authenticate").to_owned();
    let metadata = format!("{url}/.well-known/oauth-protected-resource");
    assert_eq!(
        challenge,
        format!(
            "Bearer realm=\"call2me\", resource_metadata=\"{metadata}\", scope=\"call2me:read\""
        )
    );
    let resource = app.get("/.well-known/oauth-protected-resource").send().await.expect_status(200);
    assert_eq!(resource["resource"], *url);
    assert_eq!(resource["authorization_servers"], json!([url]));
    let server = app.get("/.well-known/oauth-authorization-server").send().await.expect_status(200);
    assert_eq!(server["issuer"], *url);
    for (field, path) in [
        ("authorization_endpoint", "/oauth/authorize"),
        ("token_endpoint", "/oauth/token"),
        ("registration_endpoint", "/oauth/register"),
        ("revocation_endpoint", "/oauth/revoke"),
        ("introspection_endpoint", "/oauth/introspect"),
        ("device_authorization_endpoint", "/oauth/device_authorization"),
        ("jwks_uri", "/.well-known/jwks.json"),
    ] {
        assert_eq!(server[field], format!("{url}{path}"), "{field}");
    }
    assert_eq!(server["code_challenge_methods_supported"], json!(["S256"]));
    assert_eq!(server["response_types_supported"], json!(["code"]));
    assert_eq!(server["authorization_response_iss_parameter_supported"], true);
    assert_eq!(server["client_id_metadata_document_supported"], true);
    assert_eq!(server["protected_resources"], json!([url, "https://mcp.example/mcp"]));
    for fields in [&server, &resource] {
        assert!(fields.as_object().unwrap().values().all(|value| !value.is_null()), "{fields}");
    }
    app.get("/.well-known/openid-configuration").send().await.assert_error(404, "not_found");
}

#[tokio::test]
async fn disabled_features_are_absent_from_metadata() {
    let off = [("oauth.registration", "closed"), ("oauth.metadata_documents", "off")];
    let app = TestApp::start_with(&off).await;
    let server = app.get("/.well-known/oauth-authorization-server").send().await.expect_status(200);
    assert!(server.get("registration_endpoint").is_none());
    assert_eq!(server["client_id_metadata_document_supported"], false);
    let request =
        app.post("/oauth/register").json(json!({ "redirect_uris": ["https://a.example"] }));
    request.send().await.assert_oauth_error(400, "access_denied");
    let page = app.get("/oauth/authorize?client_id=https%3A%2F%2Fa.example%2Fm").send().await;
    assert_eq!(page.status, 400);
}
