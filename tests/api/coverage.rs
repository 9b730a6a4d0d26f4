//! Every route × {no credential, wrong scope, other workspace, right scope}, from the route table.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use call2me_auth::{
    auth::check_scope::Requirement,
    http::{extract::Rule, routes},
    model::scope::Scope,
};
use serde_json::{Value, json};

use crate::fixture::{Browser, Key, LOCALHOST, PASSWORD, Person, TestApp, oauth::OAuth};

/// What would end the person's access, or is about a second factor or a passkey, which they do not have: whom the guard lets through
/// is told here what is missing. How they succeed is tested in workspaces.rs, mfa.rs and passkeys.rs.
const LOCKING_OUT: [(&str, u16, &str); 7] = [
    ("DELETE /v1/workspace", 422, "validation_failed"),
    ("DELETE /v1/users/me", 422, "validation_failed"),
    ("POST /v1/auth/mfa/totp/confirm", 422, "validation_failed"),
    ("POST /v1/auth/mfa/recovery-codes", 422, "validation_failed"),
    ("POST /v1/auth/passkeys", 422, "validation_failed"),
    ("DELETE /v1/auth/mfa/totp", 422, "validation_failed"),
    ("DELETE /v1/auth/passkeys/{id}", 404, "not_found"),
];

/// For addresses that nobody was invited at.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A workspace with a key of each scope.
struct Side {
    owner: Person,
    keys: Vec<(Scope, Key)>,
}

impl Side {
    async fn new(app: &TestApp, name: &str) -> Self {
        let owner = app.register(name).await;
        let mut keys = Vec::new();
        for scope in Scope::ALL {
            keys.push((scope, app.mint(&owner, scope.as_str(), scope.as_str()).await));
        }
        Self { owner, keys }
    }

    fn key(&self, scope: Scope) -> &str {
        &self.keys.iter().find(|(of, _)| *of == scope).unwrap().1.secret
    }

    /// Something fresh for a route to act upon: the path to it, and a body that is good there.
    async fn target(&self, app: &TestApp, path: &str) -> (String, Value) {
        // A key: sessions end on the way.
        let token = self.key(Scope::Admin);
        let create = async |collection: &str, body: Value| {
            app.post(collection).bearer(token).json(body).send().await.expect(201)
        };
        let agent =
            async || create("/v1/agents", json!({ "agent_name": "a" })).await["agent_id"].clone();
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
                let made = create(collection, body.clone()).await;
                let id = made.get("call_id").or(made.get("campaign_id")).unwrap().clone();
                (id, body)
            }
            "/v1/knowledge-base" => {
                let body = json!({ "name": "kb" });
                (create(collection, body.clone()).await["id"].clone(), body)
            }
            "/v1/auth/sessions" if path.ends_with("{id}") => {
                let login = json!({ "email": self.owner.email, "password": PASSWORD });
                let pair = app.post("/v1/auth/login").json(login).send().await.expect(200);
                let call = app.get(collection).bearer(pair["access_token"].as_str().unwrap());
                let sessions = call.send().await.expect(200)["sessions"].clone();
                let own = sessions.as_array().unwrap().iter().find(|own| own["current"] == true);
                (own.unwrap()["id"].clone(), json!({}))
            }
            "/v1/auth/passkeys/options" => {
                app.set_verified(&self.owner, true).await;
                (Value::Null, json!({}))
            }
            "/v1/auth/verify-email/send" => {
                app.set_verified(&self.owner, false).await;
                (Value::Null, json!({}))
            }
            "/v1/auth/passkeys" if path.ends_with("{id}") => {
                (json!("passkey_01jd0zt8q7f7qvs4p2k6x3m9ab"), json!({}))
            }
            "/v1/invitations" => {
                let body = json!({ "email": format!("{}@new.example", NEXT.fetch_add(1, Relaxed)),
                                   "role": "viewer" });
                if path.contains("{id}") {
                    (create(collection, body).await["id"].clone(), json!({}))
                } else {
                    (Value::Null, body)
                }
            }
            "/v1/members/{user_id}" => {
                let member = app.join(&self.owner, "member").await;
                (Value::from(member.user_id), json!({ "role": "viewer" }))
            }
            "/v1/workspaces" if path.contains("{id}") => {
                let host = app.register(&format!("host-{}", NEXT.fetch_add(1, Relaxed))).await;
                app.admit(&self.owner, &host, "viewer").await;
                (Value::from(host.workspace_id), json!({}))
            }
            "/v1/workspaces" => (Value::Null, json!({ "name": "another" })),
            "/v1/oauth/clients" => {
                let body = json!({ "name": "app", "redirect_uris": ["https://app.example/cb"] });
                if path.contains("{id}") {
                    let id = create(collection, body).await["id"].clone();
                    let change =
                        if path.ends_with("secret") { json!({}) } else { json!({ "name": "b" }) };
                    (id, change)
                } else {
                    (Value::Null, body)
                }
            }
            "/v1/oauth/grants" if path.contains("{id}") => {
                let client = app.oauth_client(json!({})).await;
                let mut browser = Browser::of(app, &self.owner.email).await;
                app.tokens_by(&mut browser, &client, &[]).await;
                let pair = app.post("/v1/auth/login");
                let login = json!({ "email": self.owner.email, "password": PASSWORD });
                let pair = pair.json(login).send().await.expect(200);
                let call = app.get(collection).bearer(pair["access_token"].as_str().unwrap());
                (call.send().await.expect(200)["grants"][0]["id"].clone(), json!({}))
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
        (path, body)
    }
}

#[tokio::test]
async fn every_route_keeps_its_rule() {
    let app = TestApp::start_with(&[("server.public_url", LOCALHOST)]).await;
    let acme = Side::new(&app, "acme").await;
    let widgets = Side::new(&app, "widgets-inc").await;
    let mut checked = 0;
    for route in routes::table() {
        let Rule::Protected(requirement) = route.rule else { continue };
        let method = route.method.as_ref().map_or("GET", |method| method.as_str());
        let what = format!("{method} {}", route.path);
        let (path, body) = acme.target(&app, route.path).await;
        let call = |credential: Option<&str>| {
            let call = app.call(method, &path);
            let call = credential.map_or(app.call(method, &path), |key| call.bearer(key));
            if matches!(method, "GET" | "DELETE") { call } else { call.json(body.clone()) }
        };

        let nobody = call(None).send().await;
        nobody.refused(401, "unauthorized");
        let challenge = nobody.header("www-authenticate");
        let wanted = requirement.scope().map(|scope| format!(", scope=\"{}\"", scope.oauth_name()));
        assert!(challenge.ends_with(&wanted.unwrap_or("resource\"".to_owned())), "{what}");
        assert!(challenge.starts_with("Bearer realm=\"call2me\", resource_metadata="), "{what}");

        match requirement {
            Requirement::Scope(required) | Requirement::FirstParty(required) => {
                for scope in Scope::ALL.into_iter().filter(|scope| *scope < required) {
                    let answer = call(Some(acme.key(scope))).send().await;
                    answer.refused(403, "insufficient_scope");
                    assert_eq!(answer.body["error"]["required_scope"], required.as_str(), "{what}");
                    let scope = format!("scope=\"{}\"", required.oauth_name());
                    assert!(answer.header("www-authenticate").contains(&scope), "{what}");
                }
            }
            Requirement::OwnSession => {
                let answer = call(Some(acme.key(Scope::Admin))).send().await;
                answer.refused(403, "forbidden");
            }
        }

        if requirement.scope().is_some() {
            let foreign = call(Some(widgets.key(Scope::Admin))).send().await;
            if route.path.contains("id}") {
                // In the words of a row that never was.
                foreign.refused(404, "not_found");
                let (prefix, _) = path.split_once('_').unwrap();
                let ghost =
                    path.replace(&path[prefix.len() + 1..][..26], "01jd0zt8q7f7qvs4p2k6x3m9ab");
                let never = app.call(method, &ghost).bearer(widgets.key(Scope::Admin));
                let never = if matches!(method, "GET" | "DELETE") {
                    never
                } else {
                    never.json(body.clone())
                };
                assert_eq!(never.send().await.body["detail"], foreign.body["detail"], "{what}");
            } else {
                for id in [&acme.owner.workspace_id, &acme.owner.user_id, &acme.keys[0].1.id] {
                    assert!(!foreign.text.contains(id.as_str()), "{what}: {}", foreign.text);
                }
            }
        }

        let right = match requirement {
            Requirement::Scope(required) | Requirement::FirstParty(required) => {
                call(Some(acme.key(required))).send().await
            }
            Requirement::OwnSession => {
                let spare = json!({ "email": acme.owner.email, "password": PASSWORD });
                let pair = app.post("/v1/auth/login").json(spare).send().await.expect(200);
                call(Some(pair["access_token"].as_str().unwrap())).send().await
            }
        };
        checked += 1;
        if let Some((_, status, code)) = LOCKING_OUT.iter().find(|(of, ..)| *of == what) {
            right.refused(*status, code);
            continue;
        }
        assert!(right.status.is_success(), "{what}: {}", right.text);
        assert_eq!(right.status == 201, right.headers.contains_key("location"), "{what}");
    }
    assert!(checked > 35, "{checked}");
}

#[tokio::test]
async fn what_everybody_may_see_needs_no_credential() {
    let app = TestApp::start().await;
    for route in routes::table() {
        let is_get = route.method.as_ref().is_some_and(|method| method == "GET");
        if route.rule != Rule::Open || route.path.starts_with("/v1/") || !is_get {
            continue;
        }
        let answer = app.get(route.path).send().await;
        assert_eq!(answer.status, 200, "{}", route.path);
        assert!(answer.headers.contains_key("x-request-id"));
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let head = app.call("HEAD", "/v1/agents").bearer(&dana.access_token).send().await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    assert_eq!(app.call("HEAD", "/v1/agents").send().await.status, 401);
}
