//! The OpenAPI document, compared with the route table, and the page that displays it.

use std::collections::BTreeSet;

use call2me_auth::http::{extract::AccessRule, routes};
use serde_json::Value;

use crate::fixture::{TestApp, TestClient};

async fn document() -> Value {
    TestApp::start().await.get("/openapi.json").send().await.expect_status(200)
}

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "patch", "head", "options", "trace"];

fn operations(document: &Value) -> impl Iterator<Item = (String, &String, &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let methods =
            item.as_object().unwrap().iter().filter(|(key, _)| METHODS.contains(&key.as_str()));
        methods.map(move |(method, operation)| (method.to_uppercase(), path, operation))
    })
}

#[tokio::test]
async fn openapi_document_lists_exactly_the_routes() {
    let document = document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let documented: BTreeSet<_> =
        operations(&document).map(|(method, path, _)| (method, path.clone())).collect();
    let mut expected = BTreeSet::new();
    for route in routes::route_table() {
        let path = route.path.replace("{*path}", "{path}");
        match route.method {
            Some(method) => {
                expected.insert((method.to_string(), path));
            }
            // A route for any method is documented with the common methods.
            None => expected.extend(
                ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
                    .map(|m| (m.to_owned(), path.clone())),
            ),
        }
    }
    assert_eq!(documented, expected);
}

#[tokio::test]
async fn each_operation_documents_security_and_errors() {
    let document = document().await;
    let table = routes::route_table();
    for (method, path, operation) in operations(&document) {
        let name = format!("{method} {path}");
        let route = table
            .iter()
            .find(|route| {
                route.path.replace("{*path}", "{path}") == *path
                    && route.method.as_ref().is_none_or(|m| m.as_str() == method)
            })
            .unwrap();
        let protected = matches!(route.access_rule, AccessRule::Protected(_));
        assert_eq!(operation["security"].is_array(), protected, "{name}");
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
        assert!(operation["operationId"].is_string(), "{name}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{name}");
        if path.starts_with("/v1/") {
            for status in ["400", "422", "429", "500", "503"] {
                assert!(responses.contains_key(status), "{name} {status}");
            }
        }
        if protected {
            assert!(responses.contains_key("401") && responses.contains_key("403"), "{name}");
        }
        for (status, response) in responses {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{name} {status}");
            if path.starts_with("/v1/") {
                assert!(response["headers"]["X-RateLimit-Limit"].is_object(), "{name} {status}");
                if status.starts_with(['4', '5']) {
                    let schema = &response["content"]["application/json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/ErrorBody", "{name} {status}");
                }
            }
        }
    }
}

/// Of two schemas with the same name, the document would contain only the last.
#[test]
fn schema_names_are_unique() {
    let mut known = std::collections::BTreeMap::new();
    for (name, schema) in routes::route_table().into_iter().flat_map(|route| route.schemas) {
        let schema = serde_json::to_string(&schema).unwrap();
        let first = known.entry(name.clone()).or_insert_with(|| schema.clone());
        assert_eq!(*first, schema, "{name}");
    }
    assert!(known.len() > 50);
}

#[tokio::test]
async fn operation_ids_are_unique_and_references_resolve() {
    let document = document().await;
    let mut ids: Vec<_> = operations(&document)
        .map(|(method, _, op)| (op["operationId"].to_string(), method))
        .collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all);
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 50);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect_references<'a>(value: &'a Value, references: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            references.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| collect_references(value, references));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, references)),
        _ => {}
    }
}

#[tokio::test]
async fn docs_page_uses_only_embedded_assets() {
    let app = TestClient::shared();
    let redirect = app.get("/docs").send().await;
    assert_eq!(redirect.header("location"), "/docs/");
    let page = app.get("/docs/").send().await;
    assert!(page.header("content-security-policy").contains("frame-ancestors 'none'"));
    assert_eq!(page.status, 200);
    for asset in page.text.split(['"', '\'']).filter(|part| {
        let file = std::path::Path::new(part);
        file.extension().is_some_and(|extension| extension == "js" || extension == "css")
    }) {
        assert!(!asset.starts_with("http") && !asset.starts_with("//"), "{asset}");
        let path = format!("/docs/{}", asset.trim_start_matches("./"));
        assert_eq!(app.get(&path).send().await.status, 200, "{path}");
    }
}

/// The headers that gateways copy have their documented names.
#[tokio::test]
async fn gateway_headers_match_openapi_document() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "k", "write").await;
    let response = app.get("/v1/auth/verify").bearer(&key.secret).send().await;
    let names = |names: Vec<String>| -> BTreeSet<String> {
        names.into_iter().filter(|name| name.starts_with("x-auth-")).collect()
    };
    let sent = names(response.headers.keys().map(ToString::to_string).collect());
    assert_eq!(sent.len(), 5, "{sent:?}");
    let document = app.get("/openapi.json").send().await.expect_status(200);
    for path in [
        "/v1/auth/verify",
        "/v1/auth/verify/",
        "/v1/auth/verify/{path}",
        "/v1/auth/require/{scope}",
        "/v1/auth/require/{scope}/",
        "/v1/auth/require/{scope}/{path}",
    ] {
        let documented = &document["paths"][path]["get"]["responses"]["200"]["headers"];
        let documented = documented.as_object().unwrap().keys().map(|name| name.to_lowercase());
        assert_eq!(names(documented.collect()), sent, "{path}");
    }
}
