//! The first proof of an email address: a stranger that registered it keeps nothing, and its owner
//! keeps everything that a session of the account vouches for.

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    fixture::{
        Browser, Key, LOCALHOST, PASSWORD, SmtpSink, TestApp, TestResponse, TestUser, eventually,
        link_token,
        oauth::{OAuthClient, OAuthExt},
    },
    mfa::{
        compute_totp_code, confirm_totp, enable_totp, enroll_totp, sign_in_with_password, unix_now,
    },
    pages::sign_in,
    passkeys::register_authenticator,
};

const NEW_PASSWORD: &str = "a walk in the old park";

async fn start_with_mail() -> (TestApp, SmtpSink) {
    let sink = SmtpSink::start();
    let settings = [("server.public_url", LOCALHOST), ("mail.url", &*sink.url())];
    (TestApp::start_with(&settings).await, sink)
}

async fn verification_token(sink: &SmtpSink, email: &str) -> String {
    link_token(&sink.wait_for_email(email, "Verify your email address").await)
}

async fn verify(app: &TestApp, token: &str, bearer: Option<&str>) -> u16 {
    let mut call = app.post("/v1/auth/verify-email").json(json!({ "token": token }));
    if let Some(bearer) = bearer {
        call = call.bearer(bearer);
    }
    call.send().await.status.as_u16()
}

/// Requests a reset link and sets a new password with it.
async fn reset(app: &TestApp, sink: &SmtpSink, email: &str) {
    let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": email }));
    assert_eq!(forgot.send().await.status, 202);
    let token = link_token(&sink.wait_for_email(email, "Reset your password").await);
    let body = json!({ "token": token, "new_password": NEW_PASSWORD });
    assert_eq!(app.post("/v1/auth/password/reset").json(body).send().await.status, 204);
}

/// Everything that a stranger set up in an account with an unverified address.
struct Setup {
    stranger: TestUser,
    key: Key,
    /// An app that the stranger authorized, with its tokens.
    app_tokens: Value,
    app_client: OAuthClient,
    /// A client of the workspace, which acts for itself.
    own_client: OAuthClient,
    member: TestUser,
    invitation: String,
}

impl Setup {
    async fn new(app: &TestApp, sink: &SmtpSink, name: &str) -> Self {
        let mut stranger = app.register(name).await;
        let key = app.create_key(&stranger, "backdoor", "admin").await;
        let app_client = app.register_client(json!({ "client_name": "Spy" })).await;
        let mut browser = Browser::signed_in(app, &stranger.email).await;
        let app_tokens = app.obtain_tokens(&mut browser, &app_client, &[]).await;
        let body = json!({
            "name": "robot", "grant_types": ["client_credentials"],
            "token_endpoint_auth_method": "client_secret_post",
        });
        let call = app.request_as(&stranger.access_token, "POST", "/v1/oauth/clients").json(body);
        let own_client = OAuthClient::from_registration(&call.send().await.expect_status(201));
        let member = app.add_member(&stranger, "admin").await;
        // An unverified account has neither invitations nor factors. These are from a time at which
        // the address was verified.
        app.set_verified(&stranger, true).await;
        let guest = format!("guest@{name}.example");
        let body = json!({ "email": guest, "role": "admin" });
        let call = app.request_as(&stranger.access_token, "POST", "/v1/invitations").json(body);
        call.send().await.expect_status(201);
        let invitation = link_token(&sink.wait_for_email(&guest, "Invitation").await);
        register_authenticator(app, &mut stranger).await;
        enable_totp(app, &mut stranger).await;
        app.set_verified(&stranger, false).await;
        Self { stranger, key, app_tokens, app_client, own_client, member, invitation }
    }

    async fn has_access(&self, app: &TestApp) -> Vec<bool> {
        let app_token = self.app_tokens["access_token"].as_str().unwrap();
        let mut results = Vec::new();
        for credential in
            [&self.stranger.access_token, &self.key.secret, app_token, &self.member.access_token]
        {
            let call = app.request_as(credential, "GET", "/v1/auth/me");
            results.push(call.send().await.status == 200);
        }
        results
    }

    /// Checks that nothing of the setup gives access on a node.
    async fn assert_ended(&self, app: &TestApp) {
        assert_eq!(self.has_access(app).await, [false; 4]);
        let body = json!({ "refresh_token": self.stranger.refresh_token });
        let refresh = app.post("/v1/auth/refresh").json(body).send().await;
        refresh.assert_error(401, "invalid_refresh_token");
        let token = self.app_tokens["refresh_token"].as_str().unwrap();
        let refreshed = app.refresh_token(&self.app_client, token).await;
        refreshed.assert_oauth_error(400, "invalid_grant");
        let fields = [("grant_type", "client_credentials")];
        let fields = self.own_client.with_client_credentials(&fields);
        app.request_token(&fields).await.assert_oauth_error(401, "invalid_client");
        let body = json!({ "token": self.invitation, "password": PASSWORD });
        let accepted = app.post("/v1/invitations/accept").json(body).send().await;
        accepted.assert_error(422, "validation_failed");
    }
}

/// The names of what has ended, in the mail about it.
async fn assert_mail_names_setup(sink: &SmtpSink, email: &str) {
    let mail = sink.wait_for_email(email, "Your account was reset").await;
    let text = mail["text"].as_str().unwrap();
    for line in [
        "API keys: backdoor",
        "Connected apps: Spy",
        "OAuth clients: robot",
        "Invitations: guest",
        "Members: ",
        "Passkeys: phone",
        "authenticator app",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test]
async fn verification_without_session_ends_prior_setup_on_every_node() {
    let (app, sink) = start_with_mail().await;
    let public_url = app.app.settings.public_url.clone();
    let node =
        TestApp::start_on(app.database.clone(), &[("server.public_url", &*public_url)]).await;
    let setup = Setup::new(&app, &sink, "acme").await;
    let email = &setup.stranger.email;
    assert_eq!(setup.has_access(&node).await, [true; 4]);
    let token = verification_token(&sink, email).await;
    assert_eq!(verify(&app, &token, None).await, 204);
    setup.assert_ended(&node).await;
    setup.assert_ended(&app).await;
    assert_mail_names_setup(&sink, email).await;
    assert_eq!(verify(&app, &token, None).await, 422);
    // The stranger signs in with the old password, and sets up access again. A reset ends that too.
    let pair = sign_in_with_password(&app, &setup.stranger, PASSWORD).await.expect_status(200);
    let mut stranger = setup.stranger.with_tokens(&pair);
    let key = app.create_key(&stranger, "second backdoor", "admin").await;
    enable_totp(&app, &mut stranger).await;
    reset(&app, &sink, email).await;
    for credential in [&stranger.access_token, &key.secret] {
        let call = app.request_as(credential, "GET", "/v1/auth/me");
        call.send().await.assert_error(401, "unauthorized");
    }
    let pair = sign_in_with_password(&app, &setup.stranger, NEW_PASSWORD).await;
    let owner = setup.stranger.with_tokens(&pair.expect_status(200));
    let members = app.request_as(&owner.access_token, "GET", "/v1/members").send().await;
    assert_eq!(members.expect_status(200)["total"], 1);
    for (action, count) in
        [("api_key.revoked", 2), ("oauth.client_deleted", 1), ("member.invitation_revoked", 1)]
    {
        let query = format!("action={action}");
        let events = app.wait_for_event_count(&owner.access_token, &query, count).await;
        assert_eq!(events[0]["metadata"]["reason"], "email_reclaimed", "{action}");
        assert_eq!(events[0]["actor"]["id"], json!(owner.user_id));
    }
    for (action, count) in
        [("member.email_verified", 1), ("member.removed", 1), ("member.mfa_disabled", 2)]
    {
        let query = format!("action={action}");
        app.wait_for_event_count(&owner.access_token, &query, count).await;
    }
}

/// A user that verified the address on another device keeps the password, and after a week also
/// what was set up since.
#[tokio::test]
async fn reset_long_after_verification_keeps_setup() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    let token = verification_token(&sink, &dana.email).await;
    assert_eq!(verify(&app, &token, None).await, 204);
    let pair = sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    let key = app.create_key(&dana.with_tokens(&pair), "prod", "admin").await;
    app.clock.advance(std::time::Duration::from_hours(7 * 24));
    reset(&app, &sink, &dana.email).await;
    app.request_as(&key.secret, "GET", "/v1/auth/me").send().await.expect_status(200);
}

/// What a stranger sets up that knew the password before the owner of the address verified it by a
/// link alone.
struct SecondSetup {
    /// The credentials of the stranger, in the order of their creation.
    credentials: Vec<String>,
    stranger: TestUser,
    /// The stranger's own account, which joins the workspace.
    evil: TestUser,
    invitation: String,
    clients: Vec<OAuthClient>,
}

impl SecondSetup {
    async fn new(app: &TestApp, sink: &SmtpSink, victim: &TestUser) -> Self {
        let pair = sign_in_with_password(app, victim, PASSWORD).await.expect_status(200);
        let mut stranger = victim.with_tokens(&pair);
        let spy = app.register_client(json!({ "client_name": "Spy" })).await;
        let mut browser = Browser::signed_in(app, &stranger.email).await;
        let tokens = app.obtain_tokens(&mut browser, &spy, &[]).await;
        let mut credentials = vec![tokens["access_token"].as_str().unwrap().to_owned()];
        register_authenticator(app, &mut stranger).await;
        let enrolled = enroll_totp(app, &stranger, json!({})).await.expect_status(200);
        let code = compute_totp_code(enrolled["secret"].as_str().unwrap(), unix_now(app));
        stranger.set_tokens(&confirm_totp(app, &stranger, &code).await.expect_status(200));
        let evil = app.register_verified("evil").await;
        let evil = join(app, sink, &stranger, &evil, "admin").await;
        credentials.push(evil.access_token.clone());
        let mut clients = Vec::new();
        for by in [&stranger, &evil] {
            let key = app.create_key(by, "backdoor", "admin").await;
            let child = json!({ "name": "child", "scope": "admin" });
            let child = app.request_as(&key.secret, "POST", "/v1/api-keys").json(child).send();
            let child = child.await.expect_status(201)["key"].as_str().unwrap().to_owned();
            let client = json!({ "name": "robot", "grant_types": ["client_credentials"] });
            let client = app.request_as(&child, "POST", "/v1/oauth/clients").json(client).send();
            let client = OAuthClient::from_registration(&client.await.expect_status(201));
            let fields = [("grant_type", "client_credentials")];
            let token = app.request_token(&client.with_client_credentials(&fields)).await;
            let token = token.expect_status(200)["access_token"].as_str().unwrap().to_owned();
            credentials.extend([key.secret, child, token]);
            clients.push(client);
        }
        let workspace = app.post("/v1/workspaces").bearer(&stranger.access_token);
        let workspace = workspace.json(json!({ "name": "second" })).send().await;
        let id = workspace.expect_status(201)["id"].clone();
        // The session moves to the other workspace and back.
        let key = async |stranger: &mut TestUser, workspace: &Value| {
            let switch = app.post("/v1/auth/switch-workspace").bearer(&stranger.access_token);
            let switch = switch.json(json!({ "workspace_id": workspace })).send().await;
            stranger.set_tokens(&switch.expect_status(200));
            app.create_key(stranger, "elsewhere", "admin").await.secret
        };
        credentials.push(key(&mut stranger, &id).await);
        credentials.push(key(&mut stranger, &json!(victim.workspace_id)).await);
        credentials.push(stranger.access_token.clone());
        let invitation = invite(app, sink, &evil, "guest@new.example", "admin").await;
        Self { credentials, stranger, evil, invitation, clients }
    }

    async fn statuses(&self, app: &TestApp) -> Vec<u16> {
        let mut statuses = Vec::new();
        for credential in &self.credentials {
            let me = app.request_as(credential, "GET", "/v1/auth/me").send().await;
            statuses.push(me.status.as_u16());
        }
        statuses
    }
}

/// Invites an address, and returns the token of the link.
async fn invite(app: &TestApp, sink: &SmtpSink, by: &TestUser, email: &str, role: &str) -> String {
    let body = json!({ "email": email, "role": role });
    let sent = app.request_as(&by.access_token, "POST", "/v1/invitations").json(body).send().await;
    sent.expect_status(201);
    link_token(&sink.wait_for_email(email, "Invitation").await)
}

/// Invites a user, who accepts. Returns the user with a session in the workspace.
async fn join(
    app: &TestApp,
    sink: &SmtpSink,
    by: &TestUser,
    user: &TestUser,
    role: &str,
) -> TestUser {
    let token = invite(app, sink, by, &user.email, role).await;
    let accept = app.request_as(&user.access_token, "POST", "/v1/invitations/accept");
    let accepted = accept.json(json!({ "token": token })).send().await;
    user.with_tokens(&accepted.expect_status(201))
}

async fn set_role(app: &TestApp, by: &TestUser, user: &TestUser, role: &str) -> TestResponse {
    let path = format!("/v1/members/{}", user.user_id);
    app.request_as(&by.access_token, "PATCH", &path).json(json!({ "role": role })).send().await
}

/// The reset ends all access that the stranger sets up in the days after the verification.
#[tokio::test]
async fn reset_within_a_week_ends_everything_of_a_stranger() {
    let (app, sink) = start_with_mail().await;
    // Tokens of one node are valid on the other only with the same URL.
    let public_url = app.app.settings.public_url.clone();
    let node =
        TestApp::start_on(app.database.clone(), &[("server.public_url", &*public_url)]).await;
    let victim = app.register("acme").await;
    let token = verification_token(&sink, &victim.email).await;
    assert_eq!(verify(&app, &token, None).await, 204);
    let setup = SecondSetup::new(&app, &sink, &victim).await;
    for node in [&app, &node] {
        assert_eq!(setup.statuses(node).await, vec![200; setup.credentials.len()]);
    }
    // Another owner would keep the workspace.
    let body = json!({ "email": "other@new.example", "role": "owner" });
    let owner = app.request_as(&setup.stranger.access_token, "POST", "/v1/invitations");
    let refused = owner.json(body).send().await;
    refused.assert_error(403, "forbidden");
    assert!(refused.text.contains("reset your password"), "{}", refused.text);
    set_role(&app, &setup.stranger, &setup.evil, "owner").await.assert_error(403, "forbidden");
    reset(&app, &sink, &victim.email).await;
    for node in [&app, &node] {
        assert_eq!(setup.statuses(node).await, vec![401; setup.credentials.len()]);
        let refresh = json!({ "refresh_token": setup.evil.refresh_token });
        assert_eq!(node.post("/v1/auth/refresh").json(refresh).send().await.status, 401);
        for client in &setup.clients {
            let fields = [("grant_type", "client_credentials")];
            let fields = client.with_client_credentials(&fields);
            assert_eq!(node.request_token(&fields).await.status, 401);
        }
    }
    let body = json!({ "token": setup.invitation, "password": PASSWORD });
    let accepted = app.post("/v1/invitations/accept").json(body).send().await;
    accepted.assert_error(422, "validation_failed");
    let pair = sign_in_with_password(&app, &victim, NEW_PASSWORD).await.expect_status(200);
    let owner = victim.with_tokens(&pair);
    let members = app.request_as(&owner.access_token, "GET", "/v1/members").send().await;
    assert_eq!(members.expect_status(200)["total"], 1);
    // The first one is about the verification.
    eventually("an email names the member", async || {
        let mut mails = sink.emails_to(&victim.email).into_iter();
        mails.find(|mail| mail["text"].as_str().unwrap().contains("Members: ownerevil"))
    })
    .await;
    // The account is settled now.
    let friend = app.register_verified("friend").await;
    let friend = join(&app, &sink, &owner, &friend, "member").await;
    set_role(&app, &owner, &friend, "owner").await.expect_status(200);
}

/// Only an owner that the account cannot have invited keeps a workspace.
#[tokio::test]
async fn workspace_is_kept_for_owner_from_before_the_account() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    let token = verification_token(&sink, &dana.email).await;
    assert_eq!(verify(&app, &token, None).await, 204);
    let (evil, olivia) =
        (app.register_verified("evil").await, app.register_verified("olivia").await);
    let key = app.create_key(&olivia, "server", "admin").await;
    // Both are owners of a workspace with Dana, who came first to one and last to the other.
    app.insert_membership(&evil, &dana, "owner").await;
    app.insert_membership(&dana, &olivia, "owner").await;
    let pair = sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    let backdoor = app.create_key(&dana.with_tokens(&pair), "backdoor", "admin").await;
    reset(&app, &sink, &dana.email).await;
    for (credential, status) in
        [(&backdoor.secret, 401), (&key.secret, 200), (&olivia.access_token, 200)]
    {
        let me = app.request_as(credential, "GET", "/v1/auth/me").send().await;
        assert_eq!(me.status, status, "{}", me.text);
    }
    let pair = sign_in_with_password(&app, &dana, NEW_PASSWORD).await.expect_status(200);
    for (workspace, count) in [(&dana, 1), (&olivia, 2)] {
        let switch =
            app.post("/v1/auth/switch-workspace").bearer(pair["access_token"].as_str().unwrap());
        let body = json!({ "workspace_id": workspace.workspace_id });
        let there = switch.json(body).send().await.expect_status(200);
        let list = app.request_as(there["access_token"].as_str().unwrap(), "GET", "/v1/members");
        assert_eq!(list.send().await.expect_status(200)["total"], count);
    }
}

#[tokio::test]
async fn reset_of_unverified_account_ends_prior_setup() {
    let (app, sink) = start_with_mail().await;
    let setup = Setup::new(&app, &sink, "acme").await;
    reset(&app, &sink, &setup.stranger.email).await;
    setup.assert_ended(&app).await;
    assert_mail_names_setup(&sink, &setup.stranger.email).await;
    // No factor of the stranger keeps the owner out.
    let pair = sign_in_with_password(&app, &setup.stranger, NEW_PASSWORD).await;
    let owner = setup.stranger.with_tokens(&pair.expect_status(200));
    let passkeys = app.request_as(&owner.access_token, "GET", "/v1/auth/passkeys").send().await;
    assert_eq!(passkeys.expect_status(200)["passkeys"], json!([]));
}

#[tokio::test]
async fn reset_of_verified_account_ends_grants_and_keeps_the_rest() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register_verified("acme").await;
    let key = app.create_key(&dana, "server", "write").await;
    let client = app.register_client(json!({ "client_name": "Spy" })).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let tokens = app.obtain_tokens(&mut browser, &client, &[]).await;
    reset(&app, &sink, &dana.email).await;
    let token = tokens["access_token"].as_str().unwrap();
    app.get("/v1/agents").bearer(token).send().await.assert_error(401, "unauthorized");
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    let mail = sink.wait_for_email(&dana.email, "Your password was changed").await;
    assert!(mail["text"].as_str().unwrap().contains("no longer have access: Spy."), "{mail}");
    let events = app.wait_for_event_count(&key.secret, "action=oauth.grant_ended", 1).await;
    assert_eq!(events[0]["metadata"]["reason"], "password_reset");
}

#[tokio::test]
async fn verification_with_session_keeps_setup() {
    let (app, sink) = start_with_mail().await;
    for (name, by_page) in [("acme", false), ("widgets-inc", true)] {
        let dana = app.register(name).await;
        let key = app.create_key(&dana, "server", "admin").await;
        let path = format!("/verify-email?token={}", verification_token(&sink, &dana.email).await);
        if by_page {
            // The page without a session offers to sign in first, which leads back to it.
            let mut browser = Browser::new(&app);
            let page = browser.get(&path).await;
            assert!(page.text.contains("removes everything"), "{page:#?}");
            let sign_in_path = page.link_target("Sign in");
            let done = sign_in(&mut browser, &sign_in_path, &dana.email, PASSWORD).await;
            assert_eq!(done.redirect_target(), Some(&*path));
            let page = browser.get(&path).await;
            assert!(!page.text.contains("removes everything"), "{page:#?}");
            let done = browser.submit(&page, "/verify-email", &[]).await;
            assert!(done.status == 200 && done.text.contains("all set"), "{done:#?}");
        } else {
            let token = path.split('=').next_back().unwrap();
            assert_eq!(verify(&app, token, Some(&dana.access_token)).await, 204);
        }
        let me = app.request_as(&dana.access_token, "GET", "/v1/auth/me").send().await;
        assert_eq!(me.expect_status(200)["user"]["email_verified"], true);
        app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
        sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200);
    }
}

#[tokio::test]
async fn verification_page_without_session_removes_setup() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "server", "admin").await;
    let mallory = app.register("mallory").await;
    let path = format!("/verify-email?token={}", verification_token(&sink, &dana.email).await);
    // A session of another account is none of this one. Its own setup stays.
    let mut browser = Browser::signed_in(&app, &mallory.email).await;
    let page = browser.get(&path).await;
    assert!(page.text.contains("removes everything"), "{page:#?}");
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    let done = browser.submit(&page, "/verify-email", &[]).await;
    assert!(done.status == 200 && done.text.contains("has been removed"), "{done:#?}");
    app.get("/v1/agents").bearer(&key.secret).send().await.assert_error(401, "unauthorized");
    app.request_as(&mallory.access_token, "GET", "/v1/agents").send().await.expect_status(200);
    let again = browser.submit(&page, "/verify-email", &[]).await;
    assert_eq!(again.status, 422, "{again:#?}");
    let broken = browser.get("/verify-email?token=x").await;
    assert!(broken.status == 422 && broken.text.contains("link does not work"), "{broken:#?}");
}

#[tokio::test]
async fn verification_with_foreign_credential_changes_nothing() {
    let (app, sink) = start_with_mail().await;
    let (dana, mallory) = (app.register("acme").await, app.register("mallory").await);
    let key = app.create_key(&dana, "server", "admin").await;
    let token = verification_token(&sink, &dana.email).await;
    assert_eq!(verify(&app, &token, Some(&mallory.access_token)).await, 403);
    assert_eq!(verify(&app, &token, Some(&key.secret)).await, 403);
    assert_eq!(verify(&app, &token, Some("x.y.z")).await, 401);
    app.get("/v1/agents").bearer(&key.secret).send().await.expect_status(200);
    assert_eq!(verify(&app, &token, Some(&dana.access_token)).await, 204);
}

#[tokio::test]
async fn workspace_with_other_verified_owner_keeps_access() {
    let (app, sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    let key = app.create_key(&dana, "server", "admin").await;
    let owner = app.add_member(&dana, "owner").await;
    let viewer = app.add_member(&dana, "viewer").await;
    app.set_verified(&owner, true).await;
    // In a workspace that the account does not own, nothing of others ends either.
    let host = app.register_verified("host").await;
    app.insert_membership(&dana, &host, "admin").await;
    let host_key = app.create_key(&host, "server", "admin").await;
    let token = verification_token(&sink, &dana.email).await;
    assert_eq!(verify(&app, &token, None).await, 204);
    for credential in [&key.secret, &host_key.secret, &owner.access_token, &viewer.access_token] {
        app.get("/v1/agents").bearer(credential).send().await.expect_status(200);
    }
    let me = app.request_as(&dana.access_token, "GET", "/v1/auth/me").send().await;
    me.assert_error(401, "unauthorized");
}

/// Verification and reset lock the same rows, as do two accounts that are members of each other's
/// workspaces.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_proofs_do_not_deadlock() {
    let (app, sink) = start_with_mail().await;
    let [dana, lee] = [app.register("acme").await, app.register("lee").await];
    app.insert_membership(&dana, &lee, "member").await;
    app.insert_membership(&lee, &dana, "member").await;
    let mut calls = Vec::new();
    for user in [&dana, &lee] {
        let token = verification_token(&sink, &user.email).await;
        calls.push(("/v1/auth/verify-email", json!({ "token": token })));
        let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": user.email }));
        assert_eq!(forgot.send().await.status, 202);
        let token = link_token(&sink.wait_for_email(&user.email, "Reset your password").await);
        let body = json!({ "token": token, "new_password": NEW_PASSWORD });
        calls.push(("/v1/auth/password/reset", body));
    }
    let calls = calls.into_iter().map(|(path, body)| app.post(path).json(body).send());
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.status, 204, "{}", answer.text);
    }
    for user in [&dana, &lee] {
        let me = app.request_as(&user.access_token, "GET", "/v1/auth/me").send().await;
        me.assert_error(401, "unauthorized");
    }
}

/// A request of the stranger that was authenticated before the proof takes no effect after it.
#[tokio::test]
async fn request_in_flight_creates_nothing_after_proof() {
    let (app, _sink) = start_with_mail().await;
    let dana = app.register("acme").await;
    let client = app.register_client(json!({})).await;
    let mut browser = Browser::signed_in(&app, &dana.email).await;
    let page = browser.get(&client.authorization_url(&[])).await;
    let end_sessions = "UPDATE sessions SET ended_at = now() WHERE ended_at IS NULL";
    let keys = "SELECT count(*) FROM api_keys";
    let grants = "SELECT count(*) FROM oauth_grants";
    for (lock, rows) in [
        ("SELECT FROM users FOR UPDATE", grants),
        ("SELECT FROM workspaces FOR NO KEY UPDATE", keys),
    ] {
        let fresh = dana
            .with_tokens(&sign_in_with_password(&app, &dana, PASSWORD).await.expect_status(200));
        let mut connection = app.database.connect().await;
        let mut tx = connection.begin().await.unwrap();
        sqlx::query(lock).execute(&mut *tx).await.unwrap();
        let end = async {
            app.database.wait_for_blocked_statement().await;
            sqlx::query(end_sessions).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        };
        if rows == grants {
            let (answer, ()) = tokio::join!(browser.submit_consent(&page, &[]), end);
            let target = answer.redirect_target().unwrap_or_default();
            assert!(!target.contains("code="), "{answer:#?}");
        } else {
            let body = json!({ "name": "backdoor" });
            let call = app.request_as(&fresh.access_token, "POST", "/v1/api-keys").json(body);
            let (answer, ()) = tokio::join!(call.send(), end);
            answer.assert_error(401, "unauthorized");
        }
        let mut connection = app.database.connect().await;
        let count: i64 = sqlx::query_scalar(rows).fetch_one(&mut connection).await.unwrap();
        assert_eq!(count, 0, "{lock}");
    }
}

/// A workspace that the stranger creates while the proof waits for locks ends up without keys too.
#[tokio::test]
async fn workspace_joined_during_proof_is_reclaimed() {
    let (app, sink) = start_with_mail().await;
    for (name, proof) in
        [("acme", "/v1/auth/verify-email"), ("umbrella", "/v1/auth/password/reset")]
    {
        let dana = app.register(name).await;
        let stranger = app.register(&format!("{name}-second")).await;
        let key = app.create_key(&stranger, "survivor", "admin").await;
        let mut body = json!({ "token": verification_token(&sink, &dana.email).await });
        if proof.ends_with("reset") {
            let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": dana.email }));
            assert_eq!(forgot.send().await.status, 202);
            let token = link_token(&sink.wait_for_email(&dana.email, "Reset your password").await);
            body = json!({ "token": token, "new_password": NEW_PASSWORD });
        }
        let mut connection = app.database.connect().await;
        let mut tx = connection.begin().await.unwrap();
        let lock = "SELECT FROM users WHERE email = $1 FOR UPDATE";
        sqlx::query(lock).bind(&dana.email).execute(&mut *tx).await.unwrap();
        let join = async {
            app.database.wait_for_blocked_statement().await;
            let join = "UPDATE memberships SET user_id = (SELECT id FROM users WHERE email = $1)
                        WHERE user_id = (SELECT id FROM users WHERE email = $2)";
            let join = sqlx::query(join).bind(&dana.email).bind(&stranger.email);
            assert_eq!(join.execute(&mut *tx).await.unwrap().rows_affected(), 1);
            tx.commit().await.unwrap();
        };
        let (answer, ()) = tokio::join!(app.post(proof).json(body).send(), join);
        assert_eq!(answer.status, 204, "{}", answer.text);
        let me = app.request_as(&key.secret, "GET", "/v1/auth/me").send().await;
        me.assert_error(401, "unauthorized");
    }
}

#[tokio::test]
async fn workspace_creation_in_flight_fails_after_proof() {
    let app = TestApp::start().await;
    let dana = app.register("acme").await;
    let mut connection = app.database.connect().await;
    let mut tx = connection.begin().await.unwrap();
    sqlx::query("SELECT FROM users FOR UPDATE").execute(&mut *tx).await.unwrap();
    let end = async {
        app.database.wait_for_blocked_statement().await;
        sqlx::query("UPDATE sessions SET ended_at = now()").execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    };
    let create = app.request_as(&dana.access_token, "POST", "/v1/workspaces");
    let (answer, ()) = tokio::join!(create.json(json!({ "name": "late" })).send(), end);
    answer.assert_error(401, "unauthorized");
}
