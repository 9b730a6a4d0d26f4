//! The OpenAPI document against the route table, and the page that shows it.

use std::collections::BTreeSet;

use call2me_auth::http::{extract::Rule, routes};
use serde_json::Value;

use crate::fixture::TestApp;

async fn document() -> Value {
    TestApp::start().await.get("/openapi.json").send().await.expect(200)
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
async fn the_document_has_the_routes_of_the_table_and_no_others() {
    let document = document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let documented: BTreeSet<_> =
        operations(&document).map(|(method, path, _)| (method, path.clone())).collect();
    let mut tabled = BTreeSet::new();
    for route in routes::table() {
        let path = route.path.replace("{*path}", "{path}");
        match route.method {
            Some(method) => {
                tabled.insert((method.to_string(), path));
            }
            // A route of any method is documented with the usual ones.
            None => tabled.extend(
                ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
                    .map(|m| (m.to_owned(), path.clone())),
            ),
        }
    }
    assert_eq!(documented, tabled);
}

#[tokio::test]
async fn each_operation_tells_its_security_and_its_refusals() {
    let document = document().await;
    let tables = routes::table();
    for (method, path, operation) in operations(&document) {
        let what = format!("{method} {path}");
        let route = tables
            .iter()
            .find(|route| {
                route.path.replace("{*path}", "{path}") == *path
                    && route.method.as_ref().is_none_or(|m| m.as_str() == method)
            })
            .unwrap();
        let protected = matches!(route.rule, Rule::Protected(_));
        assert_eq!(operation["security"].is_array(), protected, "{what}");
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{what}");
        assert!(operation["operationId"].is_string(), "{what}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{what}");
        if path.starts_with("/v1/") {
            for status in ["400", "422", "429", "500", "503"] {
                assert!(responses.contains_key(status), "{what} {status}");
            }
        }
        if protected {
            assert!(responses.contains_key("401") && responses.contains_key("403"), "{what}");
        }
        for (status, response) in responses {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{what} {status}");
            if path.starts_with("/v1/") {
                assert!(response["headers"]["X-RateLimit-Limit"].is_object(), "{what} {status}");
                if status.starts_with(['4', '5']) {
                    let schema = &response["content"]["application/json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/ErrorBody", "{what} {status}");
                }
            }
        }
    }
}

/// Two bodies of one name would be one schema, of whichever comes last.
#[test]
fn no_two_schemas_have_one_name() {
    let mut known = std::collections::BTreeMap::new();
    for (name, schema) in routes::table().into_iter().flat_map(|route| route.schemas) {
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
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_page_comes_from_the_binary_alone() {
    let app = TestApp::start().await;
    let redirect = app.get("/docs").send().await;
    assert_eq!(redirect.header("location"), "/docs/");
    let page = app.get("/docs/").send().await;
    assert!(page.header("content-security-policy").contains("frame-ancestors 'none'"));
    assert_eq!(page.status, 200);
    for asset in page.text.split(['"', '\'']).filter(|part| {
        let file = std::path::Path::new(part);
        file.extension().is_some_and(|ending| ending == "js" || ending == "css")
    }) {
        assert!(!asset.starts_with("http") && !asset.starts_with("//"), "{asset}");
        let path = format!("/docs/{}", asset.trim_start_matches("./"));
        assert_eq!(app.get(&path).send().await.status, 200, "{path}");
    }
}

/// Headers that gateways copy have the names that the document tells.
#[tokio::test]
async fn the_headers_for_gateways_are_those_of_the_document() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let key = app.mint(&dana, "k", "write").await;
    let answer = app.get("/v1/auth/verify").bearer(&key.secret).send().await;
    let names = |names: Vec<String>| -> BTreeSet<String> {
        names.into_iter().filter(|name| name.starts_with("x-auth-")).collect()
    };
    let sent = names(answer.headers.keys().map(ToString::to_string).collect());
    assert_eq!(sent.len(), 4, "{sent:?}");
    let document = app.get("/openapi.json").send().await.expect(200);
    for path in ["/v1/auth/verify", "/v1/auth/verify/", "/v1/auth/verify/{path}"] {
        let told = &document["paths"][path]["get"]["responses"]["200"]["headers"];
        let told = told.as_object().unwrap().keys().map(|name| name.to_lowercase());
        assert_eq!(names(told.collect()), sent, "{path}");
    }
}
