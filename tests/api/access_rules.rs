//! Every route of the route table × {no credential, insufficient scope, other workspace,
//! sufficient scope}.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use call2me_auth::{
    auth::check_scope::AccessRequirement,
    http::{extract::AccessRule, routes},
    model::scope::Scope,
};
use serde_json::{Value, json};

use crate::fixture::{
    Browser, Key, LOCALHOST, PASSWORD, TestApp, TestClient, TestUser, oauth::OAuthExt,
};

/// Errors of routes that would end the user's access, or that need a second factor or a passkey,
/// which the user lacks. An authorized request gets the error for its missing field or row.
/// Successful requests are tested in workspaces.rs, mfa.rs and passkeys.rs.
const EXPECTED_ERRORS: [(&str, u16, &str); 7] = [
    ("DELETE /v1/workspace", 422, "validation_failed"),
    ("DELETE /v1/users/me", 422, "validation_failed"),
    ("POST /v1/auth/mfa/totp/confirm", 422, "validation_failed"),
    ("POST /v1/auth/mfa/recovery-codes", 422, "validation_failed"),
    ("POST /v1/auth/passkeys", 422, "validation_failed"),
    ("DELETE /v1/auth/mfa/totp", 422, "validation_failed"),
    ("DELETE /v1/auth/passkeys/{id}", 404, "not_found"),
];

/// Counter that makes email addresses and workspace names unique.
static SEQUENCE: AtomicUsize = AtomicUsize::new(0);

/// A workspace with a key of each scope.
struct Tenant {
    owner: TestUser,
    keys: Vec<(Scope, Key)>,
}

impl Tenant {
    async fn new(app: &TestApp, name: &str) -> Self {
        let owner = app.register(name).await;
        let mut keys = Vec::new();
        for scope in Scope::ALL {
            keys.push((scope, app.create_key(&owner, scope.as_str(), scope.as_str()).await));
        }
        Self { owner, keys }
    }

    fn key(&self, scope: Scope) -> &str {
        &self.keys.iter().find(|(of, _)| *of == scope).unwrap().1.secret
    }

    /// Creates the row that a route acts on. Returns the path to it and a valid body.
    async fn create_target(&self, app: &TestApp, path: &str) -> (String, Value) {
        // A key, because some routes end the sessions.
        let token = self.key(Scope::Admin);
        let create = async |collection: &str, body: Value| {
            app.post(collection).bearer(token).json(body).send().await.expect_status(201)
        };
        let list_in_new_session = async |collection: &str| {
            let login = json!({ "email": self.owner.email, "password": PASSWORD });
            let pair = app.post("/v1/auth/login").json(login).send().await.expect_status(200);
            let list = app.get(collection).bearer(pair["access_token"].as_str().unwrap());
            list.send().await.expect_status(200)
        };
        let agent =
            async || create("/v1/agents", json!({ "agent_name": "a" })).await["agent_id"].clone();
        let oauth_client = json!({ "name": "app", "redirect_uris": ["https://app.example/cb"] });
        let collection = path.split("/{id}").next().unwrap();
        let (id, body) = match collection {
            "/v1/api-keys" => {
                let id = create(collection, json!({ "name": "k" })).await["id"].clone();
                if path.ends_with("/rotation") {
                    let rotate = format!("{collection}/{}/rotate", id.as_str().unwrap());
                    create(&rotate, json!({})).await;
                }
                (id, json!({ "name": "renamed" }))
            }
            "/v1/agents" => (agent().await, json!({ "agent_name": "b" })),
            "/v1/calls" | "/v1/campaigns" => {
                let body =
                    json!({ "agent_id": agent().await, "to_number": "+14155550100", "name": "c" });
                let created = create(collection, body.clone()).await;
                let id = created.get("call_id").or(created.get("campaign_id")).unwrap().clone();
                (id, body)
            }
            "/v1/knowledge-base" => {
                let body = json!({ "name": "kb" });
                (create(collection, body.clone()).await["id"].clone(), body)
            }
            "/v1/auth/sessions" if path.ends_with("{id}") => {
                let sessions = list_in_new_session(collection).await["sessions"].clone();
                let own = sessions.as_array().unwrap().iter().find(|own| own["current"] == true);
                (own.unwrap()["id"].clone(), json!({}))
            }
            "/v1/auth/passkeys/options" | "/v1/auth/mfa/totp" | "/v1/auth/verify-email/send" => {
                let is_verified = collection != "/v1/auth/verify-email/send";
                app.set_verified(&self.owner, is_verified).await;
                (Value::Null, json!({}))
            }
            "/v1/auth/passkeys" if path.ends_with("{id}") => {
                (json!("passkey_01jd0zt8q7f7qvs4p2k6x3m9ab"), json!({}))
            }
            "/v1/invitations" => {
                app.set_verified(&self.owner, true).await;
                let body = json!({
                    "email": format!("{}@new.example", SEQUENCE.fetch_add(1, Relaxed)),
                    "role": "viewer"
                });
                if path.contains("{id}") {
                    (create(collection, body).await["id"].clone(), json!({}))
                } else {
                    (Value::Null, body)
                }
            }
            "/v1/members/{user_id}" => {
                let member = app.add_member(&self.owner, "member").await;
                (Value::from(member.user_id), json!({ "role": "viewer" }))
            }
            "/v1/workspaces" if path.contains("{id}") => {
                let host = app.register(&format!("host-{}", SEQUENCE.fetch_add(1, Relaxed))).await;
                app.insert_membership(&self.owner, &host, "viewer").await;
                (Value::from(host.workspace_id), json!({}))
            }
            "/v1/workspaces" => (Value::Null, json!({ "name": "another" })),
            "/v1/oauth/clients" if path.contains("{id}") => {
                let id = create(collection, oauth_client).await["id"].clone();
                (id, if path.ends_with("secret") { json!({}) } else { json!({ "name": "b" }) })
            }
            "/v1/oauth/clients" => (Value::Null, oauth_client),
            "/v1/oauth/grants" if path.contains("{id}") => {
                let client = app.register_client(json!({})).await;
                let mut browser = Browser::signed_in(app, &self.owner.email).await;
                app.obtain_tokens(&mut browser, &client, &[]).await;
                (list_in_new_session(collection).await["grants"][0]["id"].clone(), json!({}))
            }
            "/v1/auth/switch-workspace" => {
                (Value::Null, json!({ "workspace_id": self.owner.workspace_id }))
            }
            "/v1/auth/password/change" => {
                (Value::Null, json!({ "current_password": PASSWORD, "new_password": PASSWORD }))
            }
            _ => (Value::Null, json!({})),
        };
        let id = id.as_str().unwrap_or("");
        let path = path.replace("{id}", id).replace("{user_id}", id).replace("{*path}", "v1/x");
        let path = path.replace("{scope}", "read-only");
        (path, body)
    }
}

#[tokio::test]
async fn every_route_enforces_its_access_rule() {
    let app = TestApp::start_with(&[("server.public_url", LOCALHOST)]).await;
    let acme = Tenant::new(&app, "acme").await;
    let widgets = Tenant::new(&app, "widgets-inc").await;
    let mut checked = 0;
    for route in routes::route_table() {
        let AccessRule::Protected(requirement) = route.access_rule else { continue };
        let method = route.method.as_ref().map_or("GET", |method| method.as_str());
        let route_name = format!("{method} {}", route.path);
        let (path, body) = acme.create_target(&app, route.path).await;
        let call = |credential: Option<&str>| {
            let call = app.request(method, &path);
            let call = credential.map_or(app.request(method, &path), |key| call.bearer(key));
            if matches!(method, "GET" | "DELETE") { call } else { call.json(body.clone()) }
        };

        let anonymous = call(None).send().await;
        anonymous.assert_error(401, "unauthorized");
        let challenge = anonymous.header("www-authenticate");
        let expected_scope =
            requirement.scope().map(|scope| format!(", scope=\"{}\"", scope.oauth_name()));
        assert!(
            challenge.ends_with(&expected_scope.unwrap_or("resource\"".to_owned())),
            "{route_name}"
        );
        assert!(
            challenge.starts_with("Bearer realm=\"call2me\", resource_metadata="),
            "{route_name}"
        );

        match requirement {
            AccessRequirement::Scope(required) | AccessRequirement::FirstParty(required) => {
                for scope in Scope::ALL.into_iter().filter(|scope| *scope < required) {
                    let answer = call(Some(acme.key(scope))).send().await;
                    answer.assert_error(403, "insufficient_scope");
                    assert_eq!(
                        answer.body["error"]["required_scope"],
                        required.as_str(),
                        "{route_name}"
                    );
                    let scope = format!("scope=\"{}\"", required.oauth_name());
                    assert!(answer.header("www-authenticate").contains(&scope), "{route_name}");
                }
            }
            AccessRequirement::UserSession | AccessRequirement::AdminSession => {
                let answer = call(Some(acme.key(Scope::Admin))).send().await;
                answer.assert_error(403, "forbidden");
            }
        }

        if requirement.scope().is_some() {
            let other_workspace = call(Some(widgets.key(Scope::Admin))).send().await;
            if route.path.contains("id}") {
                // The same error as for a row that never existed.
                other_workspace.assert_error(404, "not_found");
                let (prefix, _) = path.split_once('_').unwrap();
                let missing_path =
                    path.replace(&path[prefix.len() + 1..][..26], "01jd0zt8q7f7qvs4p2k6x3m9ab");
                let missing = app.request(method, &missing_path).bearer(widgets.key(Scope::Admin));
                let missing = if matches!(method, "GET" | "DELETE") {
                    missing
                } else {
                    missing.json(body.clone())
                };
                assert_eq!(
                    missing.send().await.body["detail"],
                    other_workspace.body["detail"],
                    "{route_name}"
                );
            } else {
                for id in [&acme.owner.workspace_id, &acme.owner.user_id, &acme.keys[0].1.id] {
                    assert!(
                        !other_workspace.text.contains(id.as_str()),
                        "{route_name}: {}",
                        other_workspace.text
                    );
                }
            }
        }

        let authorized = match requirement {
            AccessRequirement::Scope(required) | AccessRequirement::FirstParty(required) => {
                call(Some(acme.key(required))).send().await
            }
            AccessRequirement::UserSession | AccessRequirement::AdminSession => {
                let login = json!({ "email": acme.owner.email, "password": PASSWORD });
                let pair = app.post("/v1/auth/login").json(login).send().await.expect_status(200);
                call(Some(pair["access_token"].as_str().unwrap())).send().await
            }
        };
        checked += 1;
        if let Some((_, status, code)) = EXPECTED_ERRORS.iter().find(|(of, ..)| *of == route_name) {
            authorized.assert_error(*status, code);
            continue;
        }
        assert!(authorized.status.is_success(), "{route_name}: {}", authorized.text);
        assert_eq!(
            authorized.status == 201,
            authorized.headers.contains_key("location"),
            "{route_name}"
        );
    }
    assert!(checked > 35, "{checked}");
}

#[tokio::test]
async fn public_route_needs_no_credential() {
    let app = TestClient::shared();
    for route in routes::route_table() {
        let is_get = route.method.as_ref().is_some_and(|method| method == "GET");
        if route.access_rule != AccessRule::Open || route.path.starts_with("/v1/") || !is_get {
            continue;
        }
        let answer = app.get(route.path).send().await;
        assert_eq!(answer.status, 200, "{}", route.path);
        assert!(answer.headers.contains_key("x-request-id"));
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_body() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let head = app.request("HEAD", "/v1/agents").bearer(&dana.access_token).send().await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    assert_eq!(app.request("HEAD", "/v1/agents").send().await.status, 401);
}
