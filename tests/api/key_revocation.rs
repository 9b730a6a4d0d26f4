//! /v1/api-keys/{id}/descendants, /v1/api-keys/{id}/revoke and /v1/api-keys/revoke: keys are
//! revoked alone, with what they made, or by their holder.

use std::time::Duration;

use call2me_auth::env::Clock as _;
use serde_json::{Value, json};
use sqlx::Executor as _;

use crate::fixture::{
    Browser, Key, PASSWORD, SmtpSink, TestApp, TestClient, TestResponse, TestUser, eventually,
    link_token,
    oauth::{OAuthClient, OAuthExt},
};

/// A leaked admin key with everything that it made.
struct Leak {
    root: Key,
    child: Key,
    grandchild: Key,
    /// The successor of a key of another creator.
    successor: Key,
    client: OAuthClient,
    client_token: String,
    invitation: Value,
    child_invitation: Value,
}

async fn app_with_mail() -> (TestApp, SmtpSink, TestUser) {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    (app, sink, dana)
}

async fn create(app: &TestClient, credential: &str, path: &str, body: Value) -> Value {
    app.post(path).bearer(credential).json(body).send().await.expect_status(201)
}

async fn create_key(app: &TestApp, credential: &str, name: &str) -> Key {
    let body = create(app, credential, "/v1/api-keys", json!({ "name": name, "scope": "admin" }));
    key_of(&body.await)
}

fn key_of(body: &Value) -> Key {
    let text = |field: &str| body[field].as_str().unwrap().to_owned();
    Key { id: text("id"), secret: text("key") }
}

async fn create_client(app: &TestApp, credential: &str) -> OAuthClient {
    let body = json!({ "name": "Robot", "scope": "admin", "grant_types": ["client_credentials"] });
    OAuthClient::from_registration(&create(app, credential, "/v1/oauth/clients", body).await)
}

async fn request_token(app: &TestApp, client: &OAuthClient) -> TestResponse {
    let fields = [("grant_type", "client_credentials")];
    app.request_token(&client.with_client_credentials(&fields)).await
}

async fn invite(app: &TestApp, credential: &str, email: &str) -> Value {
    create(app, credential, "/v1/invitations", json!({ "email": email, "role": "admin" })).await
}

async fn accept(app: &TestApp, sink: &SmtpSink, email: &str) -> TestResponse {
    let token = link_token(&sink.wait_for_email(email, "Invitation").await);
    let body = json!({ "token": token, "password": PASSWORD });
    app.post("/v1/invitations/accept").json(body).send().await
}

async fn revoke(app: &TestClient, dana: &TestUser, key: &Key, query: &str) -> TestResponse {
    app.delete(&format!("/v1/api-keys/{}{query}", key.id)).bearer(&dana.access_token).send().await
}

async fn descendants(app: &TestApp, credential: &str, key: &Key) -> Value {
    let path = format!("/v1/api-keys/{}/descendants", key.id);
    app.get(&path).bearer(credential).send().await.expect_status(200)
}

fn ids(list: &Value) -> Vec<&str> {
    values(list, "id")
}

fn values<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().map(|item| item[field].as_str().unwrap()).collect()
}

fn no_descendants() -> Value {
    json!({
        "api_keys": [], "oauth_clients": [], "invitations": [], "client_secrets": [],
        "redirect_uris": [], "members": [], "widened_api_keys": [],
    })
}

async fn status(app: &TestApp, credential: &str) -> u16 {
    app.get("/v1/agents").bearer(credential).send().await.status.as_u16()
}

impl Leak {
    async fn new(app: &TestApp, dana: &TestUser) -> Self {
        let root = create_key(app, &dana.access_token, "root").await;
        let child = create_key(app, &root.secret, "child").await;
        let grandchild = create_key(app, &child.secret, "grandchild").await;
        let owned = create_key(app, &dana.access_token, "owned").await;
        let rotate = format!("/v1/api-keys/{}/rotate", owned.id);
        let successor = key_of(&create(app, &root.secret, &rotate, json!({ "name": "s" })).await);
        let client = create_client(app, &root.secret).await;
        let token = request_token(app, &client).await.expect_status(200);
        Self {
            client_token: token["access_token"].as_str().unwrap().to_owned(),
            invitation: invite(app, &root.secret, "eve@new.example").await,
            child_invitation: invite(app, &child.secret, "mallory@new.example").await,
            root,
            child,
            grandchild,
            successor,
            client,
        }
    }

    fn api_keys(&self) -> [&str; 3] {
        [&self.successor.id, &self.grandchild.id, &self.child.id]
    }
}

#[tokio::test]
async fn descendants_are_listed_to_readers_of_the_workspace() {
    let (app, _sink, dana) = app_with_mail().await;
    let leak = Leak::new(&app, &dana).await;
    let reader = app.create_key(&dana, "reader", "read-only").await;
    let made = descendants(&app, &reader.secret, &leak.root).await;
    assert_eq!(ids(&made["api_keys"]), leak.api_keys(), "{made:#}");
    assert_eq!(ids(&made["oauth_clients"]), [&*leak.client.id]);
    let invitations = [&leak.child_invitation, &leak.invitation].map(|i| i["id"].as_str().unwrap());
    assert_eq!(ids(&made["invitations"]), invitations);
    assert_eq!(made.as_object().unwrap().len(), 7, "{made:#}");
    assert_eq!(made["api_keys"][2]["created_by"], leak.root.id);
    let made = descendants(&app, &reader.secret, &leak.child).await;
    assert_eq!(ids(&made["api_keys"]), [&*leak.grandchild.id]);
    let none = descendants(&app, &reader.secret, &leak.grandchild).await;
    assert_eq!(none, no_descendants());
}

#[tokio::test]
async fn plain_revocation_closes_invitations_and_names_what_remains() {
    let (app, sink, dana) = app_with_mail().await;
    let leak = Leak::new(&app, &dana).await;
    revoke(&app, &dana, &leak.root, "").await.expect_status(204);
    assert_eq!(status(&app, &leak.root.secret).await, 401);
    for secret in [&leak.child.secret, &leak.grandchild.secret, &leak.client_token] {
        assert_eq!(status(&app, secret).await, 200);
    }
    let refused = accept(&app, &sink, "eve@new.example").await;
    refused.assert_error(422, "validation_failed").assert_field("token");
    let event = app.wait_for_event_count(&dana.access_token, "action=api_key.revoked", 1).await;
    let details = &event[0]["metadata"];
    assert_eq!(ids(&details["api_keys"]), leak.api_keys(), "{details:#}");
    assert_eq!(ids(&details["oauth_clients"]), [&*leak.client.id]);
    assert_eq!(ids(&details["closed_invitations"]), [leak.invitation["id"].as_str().unwrap()]);
    let email = sink.wait_for_email(&dana.email, "API key was revoked").await;
    let text = email["text"].as_str().unwrap();
    assert!(["child", "grandchild", "Robot"].iter().all(|name| text.contains(name)), "{text}");
    // The invitation of the child remains, and the descendants stay listed.
    let made = descendants(&app, &dana.access_token, &leak.root).await;
    assert_eq!(ids(&made["api_keys"]), leak.api_keys());
    assert_eq!(ids(&made["invitations"]), [leak.child_invitation["id"].as_str().unwrap()]);
    accept(&app, &sink, "mallory@new.example").await.expect_status(201);
}

#[tokio::test]
async fn cascade_revokes_everything_that_the_key_made_on_every_node() {
    let (app, sink, dana) = app_with_mail().await;
    let other = app.another_node().await;
    let leak = Leak::new(&app, &dana).await;
    let unrelated = create_key(&app, &dana.access_token, "unrelated").await;
    for secret in [&leak.child.secret, &leak.client_token, &unrelated.secret] {
        assert_eq!(status(&other, secret).await, 200);
    }
    revoke(&app, &dana, &leak.root, "?cascade=true").await.expect_status(204);
    for node in [&other, &app] {
        for secret in [
            &leak.root.secret,
            &leak.child.secret,
            &leak.grandchild.secret,
            &leak.successor.secret,
            &leak.client_token,
        ] {
            assert_eq!(status(node, secret).await, 401);
        }
        assert_eq!(status(node, &unrelated.secret).await, 200);
        assert_eq!(request_token(node, &leak.client).await.status, 401);
    }
    for email in ["eve@new.example", "mallory@new.example"] {
        accept(&app, &sink, email).await.assert_error(422, "validation_failed");
    }
    let events = app.wait_for_event_count(&dana.access_token, "action=api_key.revoked", 4).await;
    let causes: Vec<_> = events.iter().map(|event| &event["metadata"]["api_key_id"]).collect();
    assert_eq!(causes.iter().filter(|cause| **cause == leak.root.id.as_str()).count(), 3);
    app.wait_for_event_count(&dana.access_token, "action=oauth.client_deleted", 1).await;
    app.wait_for_event_count(&dana.access_token, "action=member.invitation_revoked", 2).await;
    let none = descendants(&app, &dana.access_token, &leak.root).await;
    assert_eq!(none, no_descendants());
}

/// The access that credentials of a leaked key gave to what others made.
struct AddedAccess {
    root: Key,
    /// A client of the owner, which acts for itself.
    robot: OAuthClient,
    /// The same client with the secret that the key added.
    stolen: OAuthClient,
    robot_token: String,
    stolen_token: String,
    /// A client of the owner, which users authorize.
    web: OAuthClient,
    /// A member whose role a key raised, and one that a key invited.
    members: [String; 2],
    /// A key of the owner that was disabled, and one that was restricted.
    widened: [Key; 2],
}

const EVIL_URI: &str = "https://evil.example/cb";

async fn token_of(app: &TestApp, client: &OAuthClient) -> String {
    let body = request_token(app, client).await.expect_status(200);
    body["access_token"].as_str().unwrap().to_owned()
}

async fn patch(app: &TestApp, by: &str, path: &str, body: Value) -> Value {
    app.request_as(by, "PATCH", path).json(body).send().await.expect_status(200)
}

impl AddedAccess {
    /// `by_child` says that the key has another key do it, which it made.
    async fn new(app: &TestApp, sink: &SmtpSink, dana: &TestUser, by_child: bool) -> Self {
        let owner = &dana.access_token;
        let robot = create_client(app, owner).await;
        let robot_token = token_of(app, &robot).await;
        let web = json!({ "name": "Web", "redirect_uris": ["https://app.example/cb"] });
        let web = create(app, owner, "/v1/oauth/clients", web).await;
        let web = OAuthClient::from_registration(&web);
        let widened = [create_key(app, owner, "off").await, create_key(app, owner, "narrow").await];
        let [off, narrow] =
            [0, 1].map(|index: usize| format!("/v1/api-keys/{}", widened[index].id));
        patch(app, owner, &off, json!({ "disabled": true })).await;
        patch(app, owner, &narrow, json!({ "allowed_ips": ["203.0.113.0/24"] })).await;
        let viewer = app.add_member(dana, "viewer").await;
        let root = create_key(app, owner, "root").await;
        let child = create_key(app, &root.secret, "child").await;
        let by = if by_child { &child.secret } else { &root.secret };
        let secret = format!("/v1/oauth/clients/{}/secret", robot.id);
        let rotated = create(app, by, &secret, json!({ "overlap_seconds": 2_592_000 })).await;
        let stolen = OAuthClient {
            secret: Some(rotated["client_secret"].as_str().unwrap().to_owned()),
            ..robot.clone()
        };
        let stolen_token = token_of(app, &stolen).await;
        let path = format!("/v1/oauth/clients/{}", web.id);
        let uris = json!({ "redirect_uris": ["https://app.example/cb", EVIL_URI] });
        patch(app, by, &path, uris).await;
        let member = format!("/v1/members/{}", viewer.user_id);
        patch(app, by, &member, json!({ "role": "admin" })).await;
        patch(app, by, &off, json!({ "disabled": false })).await;
        patch(app, by, &narrow, json!({ "allowed_ips": [] })).await;
        let email = if by_child { "mallory@new.example" } else { "eve@new.example" };
        invite(app, by, email).await;
        let eve = accept(app, sink, email).await.expect_status(201);
        let token = eve["access_token"].as_str().unwrap();
        let me = app.get("/v1/auth/me").bearer(token).send().await.expect_status(200);
        let eve = me["user"]["id"].as_str().unwrap().to_owned();
        let members = [eve, viewer.user_id];
        Self { root, robot, stolen, robot_token, stolen_token, web, members, widened }
    }

    /// Checks what descendants, an event and an email name.
    fn assert_named(&self, lists: &Value, has_client_lists: bool) {
        let mut members = self.members.each_ref().map(String::as_str);
        let mut named = values(&lists["members"], if has_client_lists { "user_id" } else { "id" });
        named.sort_unstable();
        members.sort_unstable();
        assert_eq!(named, members, "{lists:#}");
        let widened = [&*self.widened[1].id, &*self.widened[0].id];
        assert_eq!(ids(&lists["widened_api_keys"]), widened, "{lists:#}");
    }
}

#[tokio::test]
async fn access_added_to_others_is_named_and_ended_by_cascade() {
    let (app, sink, mut dana) = app_with_mail().await;
    let other = app.another_node().await;
    for by_child in [false, true] {
        let added = AddedAccess::new(&app, &sink, &dana, by_child).await;
        let made = descendants(&app, &dana.access_token, &added.root).await;
        added.assert_named(&made, true);
        assert_eq!(values(&made["client_secrets"], "client_id"), [&*added.robot.id]);
        assert_eq!(values(&made["redirect_uris"], "redirect_uri"), [EVIL_URI], "{made:#}");
        assert_eq!(values(&made["redirect_uris"], "client_id"), [&*added.web.id]);
        for token in [&added.robot_token, &added.stolen_token] {
            assert_eq!(status(&other, token).await, 200);
        }
        revoke(&app, &dana, &added.root, "?cascade=true").await.expect_status(204);
        for node in [&other, &app] {
            // Both secrets got tokens of one grant, which has ended.
            for token in [&added.robot_token, &added.stolen_token] {
                assert_eq!(status(node, token).await, 401);
            }
            assert_eq!(request_token(node, &added.stolen).await.status, 401);
        }
        // The secret of the owner is the current one again, also after the overlap.
        app.clock.advance(Duration::from_hours(31 * 24));
        dana = app.sign_in_again(&dana).await;
        request_token(&app, &added.robot).await.expect_status(200);
        let path = format!("/v1/oauth/clients/{}", added.web.id);
        let web = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        assert_eq!(web["redirect_uris"], json!(["https://app.example/cb"]));
        let made = descendants(&app, &dana.access_token, &added.root).await;
        added.assert_named(&made, true);
        for list in ["client_secrets", "redirect_uris"] {
            assert_eq!(made[list], json!([]), "{list}");
        }
        let events = app
            .wait_for_event(&dana.access_token, "action=api_key.revoked", |event| {
                event["target"]["id"] == added.root.id.as_str()
            })
            .await;
        let event = events.iter().find(|event| event["target"]["id"] == added.root.id.as_str());
        added.assert_named(&event.unwrap()["metadata"], false);
        for (action, target) in [
            ("oauth.client_secret_revoked", &added.robot.id),
            ("oauth.client_updated", &added.web.id),
        ] {
            let query = format!("action={action}");
            app.wait_for_event(&dana.access_token, &query, |event| {
                event["target"]["id"] == target.as_str()
                    && event["metadata"]["api_key_id"] == added.root.id.as_str()
            })
            .await;
        }
    }
    let email = sink.wait_for_email(&dana.email, "API key was revoked").await;
    let text = email["text"].as_str().unwrap();
    assert!(["eve@new.example", "off", "narrow"].iter().all(|name| text.contains(name)), "{text}");
}

#[tokio::test]
async fn plain_revocation_names_access_added_to_others() {
    let (app, sink, dana) = app_with_mail().await;
    let added = AddedAccess::new(&app, &sink, &dana, false).await;
    revoke(&app, &dana, &added.root, "").await.expect_status(204);
    request_token(&app, &added.stolen).await.expect_status(200);
    let event = app.wait_for_event_count(&dana.access_token, "action=api_key.revoked", 1).await;
    let details = &event[0]["metadata"];
    added.assert_named(details, false);
    assert_eq!(ids(&details["client_secrets"]), [&*added.robot.id]);
    assert_eq!(ids(&details["redirect_uris"]), [&*added.web.id]);
    let email = sink.wait_for_email(&dana.email, "API key was revoked").await;
    let text = email["text"].as_str().unwrap();
    for part in [
        "added secrets to these OAuth clients, which still work: Robot",
        "added redirect URIs to these OAuth clients: Web",
        "enabled or widened these API keys, or given access to their creators. They still work: narrow, off",
        "eve@new.example",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A later cascade ends it.
    revoke(&app, &dana, &added.root, "?cascade=true").await.expect_status(204);
    assert_eq!(request_token(&app, &added.stolen).await.status, 401);
}

/// What users authorized since a key added its redirect URI ends with it, in all workspaces; what
/// they authorized before stays.
#[tokio::test]
async fn cascade_ends_grants_since_the_redirect_uri_was_added() {
    let (app, _sink, dana) = app_with_mail().await;
    let lee = app.register("lee").await;
    let body = json!({
        "name": "Web", "redirect_uris": ["https://app.example/cb"],
        "grant_types": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_method": "client_secret_post",
    });
    let web = create(&app, &dana.access_token, "/v1/oauth/clients", body).await;
    let web = OAuthClient::from_registration(&web);
    let mut browser = Browser::signed_in(&app, &lee.email).await;
    let before = app.obtain_tokens(&mut browser, &web, &[]).await;
    // The clocks of nodes may differ by a minute.
    app.clock.advance(Duration::from_mins(2));
    let root = create_key(&app, &dana.access_token, "root").await;
    let path = format!("/v1/oauth/clients/{}", web.id);
    let uris = json!({ "redirect_uris": ["https://app.example/cb", EVIL_URI] });
    patch(&app, &root.secret, &path, uris).await;
    let evil = OAuthClient { redirect_uri: EVIL_URI.to_owned(), ..web.clone() };
    let since = app.obtain_tokens(&mut browser, &evil, &[]).await;
    let slow_clock = "UPDATE oauth_grants SET created_at = created_at - interval '30 seconds'
                      WHERE redirect_uri LIKE '%evil%'";
    app.database.connect().await.execute(slow_clock).await.unwrap();
    revoke(&app, &dana, &root, "?cascade=true").await.expect_status(204);
    for (tokens, expected) in [(&before, 200), (&since, 401)] {
        assert_eq!(status(&app, tokens["access_token"].as_str().unwrap()).await, expected);
    }
    let page = browser.get(&evil.authorization_url(&[])).await;
    assert_eq!(page.status, 400, "{page:#?}");
    let events = app.wait_for_event_count(&lee.access_token, "action=oauth.grant_ended", 1).await;
    assert_eq!(events[0]["metadata"]["reason"], "api_key_revoked");
}

/// A client of the owner, to which a key adds access and removes it again.
struct FormerAccess {
    web: OAuthClient,
    root: Key,
    /// A grant from before, one from meanwhile, and one from after.
    tokens: [Value; 3],
}

/// How the key got the grant.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Former {
    UriRemovedByKey,
    UriRemovedByOwner,
    UriAddedAgain,
    ExpiredSecret,
}

impl FormerAccess {
    async fn new(app: &TestApp, dana: &TestUser, user: &TestUser, former: Former) -> Self {
        let owner = &dana.access_token;
        let body = json!({
            "name": "Web", "redirect_uris": ["https://app.example/cb"],
            "grant_types": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_method": "client_secret_post",
        });
        let web =
            OAuthClient::from_registration(&create(app, owner, "/v1/oauth/clients", body).await);
        let mut browser = Browser::signed_in(app, &user.email).await;
        let before = app.obtain_tokens(&mut browser, &web, &[]).await;
        app.clock.advance(Duration::from_secs(90));
        let root = create_key(app, owner, "root").await;
        let path = format!("/v1/oauth/clients/{}", web.id);
        let secret = format!("{path}/secret");
        let own = json!({ "redirect_uris": ["https://app.example/cb"] });
        let both = json!({ "redirect_uris": ["https://app.example/cb", EVIL_URI] });
        let mut evil = web.clone();
        if former == Former::ExpiredSecret {
            let rotated = create(app, &root.secret, &secret, json!({})).await;
            evil.secret = Some(rotated["client_secret"].as_str().unwrap().to_owned());
        } else {
            patch(app, &root.secret, &path, both.clone()).await;
            EVIL_URI.clone_into(&mut evil.redirect_uri);
        }
        let meanwhile = app.obtain_tokens(&mut browser, &evil, &[]).await;
        let mut web = web;
        match former {
            Former::UriRemovedByKey => drop(patch(app, &root.secret, &path, own).await),
            Former::UriRemovedByOwner => drop(patch(app, owner, &path, own).await),
            Former::UriAddedAgain => {
                for uris in [&own, &both, &own] {
                    patch(app, &root.secret, &path, uris.clone()).await;
                }
            }
            Former::ExpiredSecret => {
                let body = json!({ "overlap_seconds": 0 });
                let rotated = create(app, owner, &secret, body).await;
                web.secret = Some(rotated["client_secret"].as_str().unwrap().to_owned());
            }
        }
        app.clock.advance(Duration::from_secs(90));
        let after = app.obtain_tokens(&mut browser, &web, &[]).await;
        Self { web, root, tokens: [before, meanwhile, after] }
    }

    async fn statuses(&self, app: &TestApp) -> Vec<u16> {
        let mut statuses = Vec::new();
        for tokens in &self.tokens {
            statuses.push(status(app, tokens["access_token"].as_str().unwrap()).await);
        }
        statuses
    }
}

/// A key cannot hide a redirect URI or a secret by removing it after its use.
#[tokio::test]
async fn cascade_ends_grants_of_access_that_was_removed_before() {
    let (app, _sink, dana) = app_with_mail().await;
    for former in [
        Former::UriRemovedByKey,
        Former::UriRemovedByOwner,
        Former::UriAddedAgain,
        Former::ExpiredSecret,
    ] {
        let user = app.register(&format!("user-{former:?}").to_lowercase()).await;
        let access = FormerAccess::new(&app, &dana, &user, former).await;
        let list = match former {
            Former::ExpiredSecret => "client_secrets",
            _ => "redirect_uris",
        };
        let made = descendants(&app, &dana.access_token, &access.root).await;
        assert_eq!(values(&made[list], "client_id"), [&*access.web.id], "{former:?} {made:#}");
        if list == "redirect_uris" {
            assert!(made[list][0]["removed_at"].is_string(), "{made:#}");
        }
        assert_eq!(access.statuses(&app).await, [200, 200, 200], "{former:?}");
        revoke(&app, &dana, &access.root, "?cascade=true").await.expect_status(204);
        assert_eq!(access.statuses(&app).await, [200, 401, 200], "{former:?}");
        let made = descendants(&app, &dana.access_token, &access.root).await;
        assert_eq!(made[list], json!([]), "{former:?}");
        let path = format!("/v1/oauth/clients/{}", access.web.id);
        let web = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
        assert_eq!(web["redirect_uris"], json!(["https://app.example/cb"]), "{former:?}");
    }
}

/// A redirect URI that a key added and removed, and that the owner adds later, is the owner's.
#[tokio::test]
async fn cascade_keeps_redirect_uri_that_owner_added_later() {
    let (app, _sink, dana) = app_with_mail().await;
    let user = app.register("lee").await;
    let access = FormerAccess::new(&app, &dana, &user, Former::UriRemovedByKey).await;
    let path = format!("/v1/oauth/clients/{}", access.web.id);
    let uris = json!({ "redirect_uris": ["https://app.example/cb", EVIL_URI] });
    patch(&app, &dana.access_token, &path, uris.clone()).await;
    revoke(&app, &dana, &access.root, "?cascade=true").await.expect_status(204);
    let web = app.get(&path).bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!(web["redirect_uris"], uris["redirect_uris"]);
    assert_eq!(access.statuses(&app).await, [200, 401, 200]);
}

/// History is deleted when no grant is left of it.
#[tokio::test]
async fn removed_redirect_uri_is_pruned_with_its_last_grant() {
    let (app, _sink, dana) = app_with_mail().await;
    let user = app.register("lee").await;
    FormerAccess::new(&app, &dana, &user, Former::UriRemovedByKey).await;
    app.clock.advance(Duration::from_hours(2 * 24));
    let mut connection = app.database.connect().await;
    let count = "SELECT count(*) FROM oauth_added_redirect_uris";
    for (left, end) in [(1, "SELECT 1"), (0, "UPDATE oauth_grants SET ended_at = now()")] {
        connection.execute(end).await.unwrap();
        let idle = Duration::from_hours(90 * 24);
        app.app.store.prune_oauth(app.clock.now(), idle).await.unwrap();
        let rows: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
        assert_eq!(rows, left, "{end}");
    }
}

async fn set_role(app: &TestApp, by: &str, member: &TestUser, role: &str) {
    patch(app, by, &format!("/v1/members/{}", member.user_id), json!({ "role": role })).await;
}

/// The members and keys that the descendants of a key name, sorted.
async fn named(app: &TestApp, dana: &TestUser, key: &Key) -> (Vec<String>, Vec<String>) {
    let made = descendants(app, &dana.access_token, key).await;
    let sorted = |names: Vec<&str>| {
        let mut names: Vec<_> = names.into_iter().map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    (sorted(values(&made["members"], "user_id")), sorted(ids(&made["widened_api_keys"])))
}

/// Members that a key promoted promote others, and one of these sets the role of the first.
#[tokio::test]
async fn access_of_promoted_members_is_named_transitively() {
    let (app, _sink, dana) = app_with_mail().await;
    let mut members = Vec::new();
    for _ in 0..4 {
        members.push(app.add_member(&dana, "viewer").await);
    }
    let [first, second, third, other] = &members[..] else { unreachable!() };
    let root = create_key(&app, &dana.access_token, "root").await;
    let narrow = create_key(&app, &dana.access_token, "narrow").await;
    set_role(&app, &dana.access_token, other, "member").await;
    set_role(&app, &root.secret, first, "admin").await;
    let first_again = app.sign_in_again(first).await;
    set_role(&app, &first_again.access_token, second, "admin").await;
    let second_again = app.sign_in_again(second).await;
    set_role(&app, &second_again.access_token, third, "member").await;
    // These hide the first edge in the column that has the last one.
    set_role(&app, &second_again.access_token, first, "viewer").await;
    set_role(&app, &second_again.access_token, first, "admin").await;
    let path = format!("/v1/api-keys/{}", narrow.id);
    patch(&app, &second_again.access_token, &path, json!({ "disabled": true })).await;
    patch(&app, &second_again.access_token, &path, json!({ "disabled": false })).await;
    let mut expected = [first, second, third].map(|member| member.user_id.clone());
    expected.sort_unstable();
    assert_eq!(named(&app, &dana, &root).await, (expected.to_vec(), vec![narrow.id.clone()]));
    // The owner's later decision does not hide who gave access first.
    set_role(&app, &dana.access_token, first, "member").await;
    assert_eq!(named(&app, &dana, &root).await.0, expected);
}

/// A key that a key widened gives access, and so does a key that this one created.
#[tokio::test]
async fn access_through_widened_keys_is_named_transitively() {
    let (app, _sink, dana) = app_with_mail().await;
    let [viewer, invited] =
        [app.add_member(&dana, "viewer").await, app.add_member(&dana, "viewer").await];
    let owner = &dana.access_token;
    let root = create_key(&app, owner, "root").await;
    let off = create_key(&app, owner, "off").await;
    let path = format!("/v1/api-keys/{}", off.id);
    // What the key did before is not named.
    set_role(&app, &off.secret, &invited, "member").await;
    patch(&app, owner, &path, json!({ "disabled": true })).await;
    patch(&app, &root.secret, &path, json!({ "disabled": false })).await;
    let child = create_key(&app, &off.secret, "child").await;
    set_role(&app, &child.secret, &viewer, "admin").await;
    // The owner widens it again, which hides the first change in the column of the last one.
    patch(&app, owner, &path, json!({ "disabled": true })).await;
    patch(&app, owner, &path, json!({ "disabled": false })).await;
    let mut keys = vec![off.id.clone(), child.id.clone()];
    keys.sort_unstable();
    let expected = (vec![viewer.user_id.clone()], keys);
    assert_eq!(named(&app, &dana, &root).await, expected);
    let event = {
        revoke(&app, &dana, &root, "?cascade=true").await.expect_status(204);
        app.wait_for_event_count(owner, "action=api_key.revoked", 1).await
    };
    let details = &event[0]["metadata"];
    assert_eq!(ids(&details["members"]), [&*viewer.user_id]);
    assert_eq!(ids(&details["widened_api_keys"]), [&*child.id, &*off.id]);
}

/// Also if the member has left since.
#[tokio::test]
async fn key_created_by_promoted_member_is_named() {
    let (app, _sink, dana) = app_with_mail().await;
    let member = app.add_member(&dana, "admin").await;
    create_key(&app, &member.access_token, "earlier").await;
    let root = create_key(&app, &dana.access_token, "root").await;
    set_role(&app, &root.secret, &member, "viewer").await;
    set_role(&app, &root.secret, &member, "admin").await;
    let member = app.sign_in_again(&member).await;
    let later = create_key(&app, &member.access_token, "later").await;
    let path = format!("/v1/workspaces/{}/leave", dana.workspace_id);
    let leave = app.request_as(&member.access_token, "POST", &path).send().await;
    assert_eq!(leave.status, 204, "{}", leave.text);
    assert_eq!(named(&app, &dana, &root).await, (Vec::new(), vec![later.id]));
}

/// Inserts keys that widen each other, many times and in all orders.
async fn insert_keys_that_widen_each_other(app: &TestApp, dana: &TestUser, root: &Key) {
    let sql = "WITH root AS (SELECT id, workspace_id FROM api_keys WHERE name = 'root'), made AS (
             INSERT INTO api_keys (id, workspace_id, name, scope, digest, display_start,
                                   display_end, created_at, creator_key_id)
             SELECT gen_random_uuid(), root.workspace_id, 'k' || n, 'admin',
                    sha256(('k' || n)::bytea), 'a', 'b', now(), root.id
             FROM root, generate_series(1, 120) n RETURNING id, workspace_id
         ), pairs AS (
             SELECT a.workspace_id, a.id, b.id AS by_id, (random() * 20000)::bigint AS change
             FROM made a JOIN made b ON a.id <> b.id)
         INSERT INTO given_access (workspace_id, key_id, by_key_id, is_creation, first_change,
                                   last_change)
         SELECT workspace_id, id, by_id, false, change, change + 20000 FROM pairs";
    app.database.connect().await.execute(sql).await.unwrap();
    let made = descendants(app, &dana.access_token, root).await;
    assert_eq!(made["api_keys"].as_array().unwrap().len(), 120);
}

#[tokio::test]
async fn key_of_dense_graph_is_revoked() {
    let (app, _sink, dana) = app_with_mail().await;
    let root = create_key(&app, &dana.access_token, "root").await;
    insert_keys_that_widen_each_other(&app, &dana, &root).await;
    revoke(&app, &dana, &root, "").await.expect_status(204);
    assert_eq!(status(&app, &root.secret).await, 401);
    revoke(&app, &dana, &root, "?cascade=true").await.expect_status(204);
    assert_eq!(descendants(&app, &dana.access_token, &root).await, no_descendants());
}

/// Makes the query of given access take longer than any timeout.
async fn delay_given_access(app: &TestApp, seconds: f32) {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION list_given_access(p_is_creation boolean, p_limit bigint)
             RETURNS TABLE (given_to uuid, by_user_id uuid, by_key_id uuid, is_creation boolean,
                            first_change bigint, last_change bigint)
             LANGUAGE plpgsql AS $$
             BEGIN
                 -- A cascade, which is no report, reads the creations alone.
                 IF p_is_creation IS DISTINCT FROM true THEN PERFORM pg_sleep({seconds}); END IF;
             END $$"
    );
    app.database.connect().await.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
}

#[tokio::test]
async fn revocation_succeeds_if_listing_takes_too_long() {
    let (app, sink, dana) = app_with_mail().await;
    let owner = &dana.access_token;
    let member = app.add_member(&dana, "admin").await;
    let [plain, cascaded] =
        [create_key(&app, owner, "plain").await, create_key(&app, owner, "cascaded").await];
    delay_given_access(&app, 60.0).await;
    revoke(&app, &dana, &plain, "").await.expect_status(204);
    revoke(&app, &dana, &cascaded, "?cascade=true").await.expect_status(204);
    for key in [&plain, &cascaded] {
        assert_eq!(status(&app, &key.secret).await, 401);
    }
    let path = format!("/v1/members/{}", member.user_id);
    let remove = app.request_as(owner, "DELETE", &path).send().await;
    assert_eq!(remove.status, 204, "{}", remove.text);
    let events = app.wait_for_event_count(owner, "action=api_key.revoked", 2).await;
    for event in &events {
        assert_eq!(event["metadata"]["has_more"], true, "{event:#}");
    }
    let email = sink.wait_for_email(&dana.email, "API key was revoked").await;
    let text = email["text"].as_str().unwrap();
    assert!(text.contains("could not be listed"), "{text}");
}

/// Slow reports of a workspace take only its own transactions.
#[tokio::test]
async fn slow_reports_do_not_delay_other_workspaces() {
    let app = TestApp::start().await;
    let [dana, other] = [app.register("acme").await, app.register("other").await];
    let root = create_key(&app, &dana.access_token, "root").await;
    delay_given_access(&app, 60.0).await;
    let path = format!("/v1/api-keys/{}/descendants", root.id);
    let mut reports = tokio::task::JoinSet::new();
    // More than all connections can run before those that wait give up.
    for _ in 0..40 {
        reports.spawn(app.get(&path).bearer(&dana.access_token).send());
    }
    let running = "SELECT count(*) FROM pg_stat_activity
                   WHERE wait_event = 'PgSleep' AND datname = current_database()";
    eventually("the reports run", async || {
        let mut connection = app.database.connect().await;
        let count: i64 = sqlx::query_scalar(running).fetch_one(&mut connection).await.unwrap();
        (count >= 4).then_some(())
    })
    .await;
    for _ in 0..5 {
        let agents = app.get("/v1/agents").bearer(&other.access_token).send().await;
        assert_eq!(agents.status, 200, "{}", agents.text);
    }
}

/// An expired secret is of no use, but the access tokens from it are.
#[tokio::test]
async fn cascade_ends_own_grant_of_expired_secret() {
    let (app, _sink, dana) = app_with_mail().await;
    let owner = &dana.access_token;
    let robot = create_client(&app, owner).await;
    let root = create_key(&app, owner, "root").await;
    let secret = format!("/v1/oauth/clients/{}/secret", robot.id);
    let rotated = create(&app, &root.secret, &secret, json!({})).await;
    let leaked = OAuthClient {
        secret: Some(rotated["client_secret"].as_str().unwrap().to_owned()),
        ..robot.clone()
    };
    let token = token_of(&app, &leaked).await;
    let rotated = create(&app, owner, &secret, json!({ "overlap_seconds": 0 })).await;
    let restored = OAuthClient {
        secret: Some(rotated["client_secret"].as_str().unwrap().to_owned()),
        ..robot
    };
    app.clock.advance(Duration::from_secs(90));
    let made = descendants(&app, owner, &root).await;
    assert_eq!(values(&made["client_secrets"], "client_id"), [&*restored.id], "{made:#}");
    assert_eq!(status(&app, &token).await, 200);
    revoke(&app, &dana, &root, "?cascade=true").await.expect_status(204);
    assert_eq!(status(&app, &token).await, 401);
    let token = token_of(&app, &restored).await;
    assert_eq!(status(&app, &token).await, 200);
}

/// With `if_quiet`, a client of another creator that a cascade would cut off counts too.
#[tokio::test]
async fn cascade_if_quiet_spares_clients_with_an_added_secret() {
    let (app, _sink, dana) = app_with_mail().await;
    let robot = create_client(&app, &dana.access_token).await;
    let root = create_key(&app, &dana.access_token, "root").await;
    let path = format!("/v1/oauth/clients/{}/secret", robot.id);
    create(&app, &root.secret, &path, json!({})).await;
    let token = token_of(&app, &robot).await;
    app.clock.advance(Duration::from_mins(16));
    let dana = app.sign_in_again(&dana).await;
    eventually("the client is the only obstacle", async || {
        let refused = revoke(&app, &dana, &root, "?cascade=true&if_quiet=true").await;
        refused.assert_error(409, "key_in_use");
        let reason = refused.body["rotation"]["reason"].as_str().unwrap().to_owned();
        reason.contains("OAuth client").then_some(())
    })
    .await;
    assert_eq!(status(&app, &token).await, 200);
}

/// A cascade that was cut off, or that comes later, continues.
#[tokio::test]
async fn cascade_of_revoked_key_revokes_what_remains() {
    let (app, _sink, dana) = app_with_mail().await;
    let leak = Leak::new(&app, &dana).await;
    revoke(&app, &dana, &leak.root, "").await.expect_status(204);
    revoke(&app, &dana, &leak.child, "").await.expect_status(204);
    let path = format!("/v1/api-keys/{}/revoke?cascade=true", leak.root.id);
    let key = app.patch(&path).bearer(&dana.access_token).send().await.expect_status(200);
    assert_eq!((&key["id"], &key["status"]), (&json!(leak.root.id), &json!("revoked")));
    for secret in [&leak.grandchild.secret, &leak.successor.secret, &leak.client_token] {
        assert_eq!(status(&app, secret).await, 401);
    }
}

/// A key that creates keys while it is being revoked with a cascade leaves none behind.
#[tokio::test]
async fn key_created_during_cascade_does_not_survive_it() {
    let (app, _sink, dana) = app_with_mail().await;
    let other = app.another_node().await;
    for round in 0..4 {
        let root = create_key(&app, &dana.access_token, "root").await;
        let child = create_key(&app, &root.secret, "child").await;
        let creations = (0..12).map(|index| {
            let node = if index % 2 == 0 { &app } else { &other };
            let creator = if index % 3 == 0 { &root } else { &child };
            let body = json!({ "name": format!("{round}-{index}"), "scope": "write" });
            node.post("/v1/api-keys").bearer(&creator.secret).json(body).send()
        });
        let revocation = revoke(&app, &dana, &root, "?cascade=true");
        let (created, revoked) =
            tokio::join!(futures_util::future::join_all(creations), revocation);
        revoked.expect_status(204);
        for response in created {
            if response.status == 201 {
                let key = key_of(&response.body);
                assert_eq!(status(&app, &key.secret).await, 401, "{}", key.id);
            } else {
                response.assert_error(401, "unauthorized");
            }
        }
    }
}

#[tokio::test]
async fn cascade_if_quiet_requires_that_nothing_is_in_use() {
    let (app, _sink, dana) = app_with_mail().await;
    let root = create_key(&app, &dana.access_token, "root").await;
    let child = create_key(&app, &root.secret, "child").await;
    let client = create_client(&app, &root.secret).await;
    app.clock.advance(Duration::from_mins(16));
    let dana = TestUser { access_token: app.sign_in_again(&dana).await.access_token, ..dana };
    assert_eq!(status(&app, &child.secret).await, 200);
    app.database.wait_until_sealed().await;
    let query = "?cascade=true&if_quiet=true";
    let refused = revoke(&app, &dana, &root, query).await;
    refused.assert_error(409, "key_in_use");
    assert_eq!(status(&app, &root.secret).await, 200, "nothing was revoked");
    let token = request_token(&app, &client).await.expect_status(200);
    app.clock.advance(Duration::from_mins(16));
    let dana = TestUser { access_token: app.sign_in_again(&dana).await.access_token, ..dana };
    let refused = eventually("the client is the only obstacle", async || {
        let refused = revoke(&app, &dana, &root, query).await;
        refused.assert_error(409, "key_in_use");
        let reason = refused.body["rotation"]["reason"].as_str().unwrap().to_owned();
        reason.contains("OAuth client").then_some(refused)
    })
    .await;
    assert_eq!(refused.body["rotation"]["safe_to_revoke"], false);
    let path = format!("/v1/oauth/clients/{}", client.id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    assert_eq!(status(&app, token["access_token"].as_str().unwrap()).await, 401);
    eventually("nothing is in use", async || {
        (revoke(&app, &dana, &root, query).await.status == 204).then_some(())
    })
    .await;
    assert_eq!(status(&app, &child.secret).await, 401);
    let bad = revoke(&app, &dana, &child, "?cascade=perhaps").await;
    bad.assert_error(422, "validation_failed").assert_field("cascade");
}

#[tokio::test]
async fn owners_get_an_email_about_new_admin_access() {
    let (app, sink, dana) = app_with_mail().await;
    create_client(&app, &dana.access_token).await;
    let email = sink.wait_for_email(&dana.email, "OAuth client with admin access").await;
    assert!(email["text"].as_str().unwrap().contains("Robot"), "{email:#}");
    let key = create_key(&app, &dana.access_token, "deploy").await;
    invite(&app, &key.secret, "eve@new.example").await;
    let email = sink.wait_for_email(&dana.email, "invited an administrator").await;
    let text = email["text"].as_str().unwrap();
    assert!(text.contains("eve@new.example") && text.contains("deploy"), "{text}");
    // Not about a lower role, and not about the invitation of a user.
    let body = json!({ "email": "sam@new.example", "role": "member" });
    create(&app, &key.secret, "/v1/invitations", body).await;
    invite(&app, &dana.access_token, "kim@new.example").await;
    sink.wait_for_email("kim@new.example", "Invitation").await;
    let subjects = sink.emails_to(&dana.email);
    let count = |about: &str| {
        let texts = subjects.iter().filter(|mail| mail["text"].as_str().unwrap().contains(about));
        texts.count()
    };
    assert_eq!([count("sam@new.example"), count("kim@new.example")], [0, 0]);
}

#[tokio::test]
async fn removed_member_leaves_named_keys_and_clients() {
    let (app, sink, dana) = app_with_mail().await;
    let sam = app.add_member(&dana, "admin").await;
    let key = create_key(&app, &sam.access_token, "sams-key").await;
    let client = create_client(&app, &sam.access_token).await;
    let by_key = create_client(&app, &key.secret).await;
    let robot = create_client(&app, &dana.access_token).await;
    let off = create_key(&app, &dana.access_token, "off").await;
    patch(
        &app,
        &dana.access_token,
        &format!("/v1/api-keys/{}", off.id),
        json!({ "disabled": true }),
    )
    .await;
    let [viewer, other] =
        [app.add_member(&dana, "viewer").await, app.add_member(&dana, "viewer").await];
    // By the member, and by the member's key.
    let secret = format!("/v1/oauth/clients/{}/secret", robot.id);
    create(&app, &sam.access_token, &secret, json!({})).await;
    let uris = json!({ "redirect_uris": [EVIL_URI] });
    patch(&app, &key.secret, &format!("/v1/oauth/clients/{}", robot.id), uris).await;
    let enabled = json!({ "disabled": false });
    patch(&app, &key.secret, &format!("/v1/api-keys/{}", off.id), enabled).await;
    for (user, role) in [(&viewer, "admin"), (&other, "member")] {
        let path = format!("/v1/members/{}", user.user_id);
        patch(&app, &sam.access_token, &path, json!({ "role": role })).await;
    }
    let path = format!("/v1/members/{}", sam.user_id);
    app.delete(&path).bearer(&dana.access_token).send().await.expect_status(204);
    let events = app.wait_for_event_count(&dana.access_token, "action=member.removed", 1).await;
    let details = &events[0]["metadata"];
    assert_eq!(ids(&details["api_keys"]), [&*key.id], "{details:#}");
    assert_eq!(ids(&details["oauth_clients"]), [&*by_key.id, &*client.id]);
    for list in ["client_secrets", "redirect_uris"] {
        assert_eq!(ids(&details[list]), [&*robot.id], "{details:#}");
    }
    assert_eq!(ids(&details["widened_api_keys"]), [&*off.id]);
    assert_eq!(ids(&details["members"]), [&*viewer.user_id]);
    let email = sink.wait_for_email(&dana.email, "member was removed").await;
    let text = email["text"].as_str().unwrap();
    for part in ["sams-key", "Robot", "added secrets", "added redirect URIs", ": off"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains(&viewer.email) && !text.contains(&other.email), "{text}");
}

#[tokio::test]
async fn holder_revokes_key_without_another_credential() {
    let (app, sink, dana) = app_with_mail().await;
    let other = app.another_node().await;
    let key = create_key(&app, &dana.access_token, "leaked").await;
    let invitation = invite(&app, &key.secret, "eve@new.example").await;
    assert_eq!(status(&other, &key.secret).await, 200);
    let report = async |key: &str| {
        let answer = app.post("/v1/api-keys/revoke").json(json!({ "key": key })).send().await;
        (answer.status.as_u16(), answer.text)
    };
    assert_eq!(report(&key.secret).await, (204, String::new()));
    for node in [&app, &other] {
        let rejected = node.get("/v1/agents").bearer(&key.secret).send().await;
        rejected.assert_error(401, "unauthorized");
    }
    // The same response for a revoked, an unknown and a malformed key, and for other text.
    let unknown = "sk_call2me_live_0000000000000000000000000000002C8GjS";
    let foreign = key.secret.replace("_live_", "_test_");
    for text in [&*key.secret, unknown, &foreign, &key.secret[..40], "", "x\u{e9}"] {
        assert_eq!(report(text).await, (204, String::new()), "{text}");
    }
    let events = app.wait_for_event_count(&dana.access_token, "action=api_key.revoked", 1).await;
    let actor = json!({ "type": "anonymous", "id": null, "name": "holder of the key" });
    assert_eq!(events[0]["actor"], actor, "{events:#?}");
    assert_eq!(events[0]["request"]["path"], "/v1/api-keys/revoke");
    let closed = &events[0]["metadata"]["closed_invitations"];
    assert_eq!(ids(closed), [invitation["id"].as_str().unwrap()]);
    let email = sink.wait_for_email(&dana.email, "API key was revoked").await;
    assert!(email["text"].as_str().unwrap().contains("holder of the key"), "{email:#}");
    for (body, field) in [
        (json!({}), "key"),
        (json!({ "key": 7 }), "key"),
        (json!({ "key": unknown, "cascade": true }), "cascade"),
    ] {
        let refused = app.post("/v1/api-keys/revoke").json(body).send().await;
        refused.assert_error(422, "validation_failed").assert_field(field);
    }
}

/// A revoked key may be public.
#[tokio::test]
async fn revoked_key_takes_no_lock_of_its_workspace() {
    let (app, _sink, dana) = app_with_mail().await;
    let key = create_key(&app, &dana.access_token, "leaked").await;
    revoke(&app, &dana, &key, "").await.expect_status(204);
    let mut connection = app.database.connect().await;
    let mut lock = sqlx::Connection::begin(&mut connection).await.unwrap();
    lock.execute("SELECT FROM workspaces FOR UPDATE").await.unwrap();
    let report = app.post("/v1/api-keys/revoke").json(json!({ "key": key.secret }));
    assert_eq!(report.send().await.status, 204);
}

#[tokio::test]
async fn revocation_by_holder_has_the_limit_of_the_address() {
    let app = TestApp::start_with(&[("rate_limit.per_address_per_minute", "4")]).await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "prod", "write").await;
    let report =
        async |key: &str| app.post("/v1/api-keys/revoke").json(json!({ "key": key })).send().await;
    let unknown = "sk_call2me_live_0000000000000000000000000000002C8GjS";
    // Registering was the first request.
    for _ in 0..3 {
        assert_eq!(report(unknown).await.status, 204);
    }
    // Also for a valid key: otherwise the status would reveal that it is one.
    for text in [unknown, &key.secret] {
        report(text).await.assert_error(429, "rate_limited");
    }
    assert_eq!(status(&app, &key.secret).await, 200);
}
