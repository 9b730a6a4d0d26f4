//! Email delivery from the outbox: each email is sent once, and retried after a temporary failure.

use serde_json::{Value, json};
use sqlx::Executor;
use uuid::Uuid;

use crate::fixture::{PASSWORD, SmtpSink, TestApp, eventually, link_token};

async fn register(app: &TestApp, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD });
    app.post("/v1/auth/register").json(body).send().await.expect_status(201);
}

async fn outbox_size(app: &TestApp) -> i64 {
    let mut connection = app.database.connect().await;
    sqlx::query_scalar("SELECT count(*) FROM email_outbox")
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

/// Makes all deferred emails due now.
async fn make_retries_due(app: &TestApp) {
    let mut connection = app.database.connect().await;
    let sql = "UPDATE email_outbox SET next_attempt_at = now()";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
}

pub async fn wait_for_empty_outbox(app: &TestApp) {
    eventually("the outbox is empty", async || (outbox_size(app).await == 0).then_some(())).await;
}

#[tokio::test]
async fn email_is_multipart_ascii_and_sent_once() {
    let sink = SmtpSink::start();
    let settings = [("mail.url", sink.url()), ("mail.from", "Acme <auth@acme.example>".into())];
    let app = TestApp::start_with(&settings.each_ref().map(|(k, v)| (*k, v.as_str()))).await;
    register(&app, "dana@acme.example").await;
    let mail = sink.wait_for_email("dana@acme.example", "Verify").await;
    assert_eq!(mail["from"], "auth@acme.example");
    assert_eq!(mail["type"], "multipart/alternative");
    assert!(mail["id"].as_str().unwrap().ends_with("@acme.example>"), "{mail:#}");
    let text = mail["text"].as_str().unwrap();
    assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 200), "{text}");
    wait_for_empty_outbox(&app).await;
    assert_eq!(sink.emails_to("dana@acme.example").len(), 1);
}

#[tokio::test]
async fn deferred_email_is_retried_and_rejected_email_is_not() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    register(&app, "deferred@acme.example").await;
    register(&app, "refused@acme.example").await;
    register(&app, "dana@acme.example").await;
    sink.wait_for_email("dana@acme.example", "Verify").await;
    eventually("the rejected email is deleted", async || {
        (outbox_size(&app).await == 1).then_some(())
    })
    .await;
    make_retries_due(&app).await;
    eventually("the email arrives after two deferrals", async || {
        make_retries_due(&app).await;
        (!sink.emails_to("deferred@acme.example").is_empty()).then_some(())
    })
    .await;
    wait_for_empty_outbox(&app).await;
    assert!(sink.emails_to("refused@acme.example").is_empty());
    assert_eq!(sink.emails_to("deferred@acme.example").len(), 1);
}

/// Returns the number of delivery attempts of the email in the outbox, or `None` if the outbox is
/// empty.
async fn delivery_attempts(app: &TestApp) -> Option<i32> {
    let mut connection = app.database.connect().await;
    let sql = "SELECT attempts FROM email_outbox";
    sqlx::query_scalar(sql).fetch_optional(&mut connection).await.unwrap()
}

/// Delivery attempts do not count against the limit of mailed links.
#[tokio::test]
async fn link_deferred_eight_times_arrives_and_works() {
    let app = TestApp::start().await;
    register(&app, "stubborn@acme.example").await;
    let mut connection = app.database.connect().await;
    sqlx::query("DELETE FROM email_outbox").execute(&mut connection).await.unwrap();
    drop(connection);
    let sink = SmtpSink::start();
    let app = TestApp::start_on(app.stop().await, &[("mail.url", &sink.url())]).await;
    let body = json!({ "email": "stubborn@acme.example" });
    assert_eq!(app.post("/v1/auth/password/forgot").json(body).send().await.status, 202);
    // Each attempt has a timeout of its own, because eight of them take longer than one
    // timeout.
    for count in 1..=8 {
        eventually(&format!("attempt {count}"), async || {
            make_retries_due(&app).await;
            delivery_attempts(&app).await.is_none_or(|attempts| attempts >= count).then_some(())
        })
        .await;
    }
    let mail = sink.wait_for_email("stubborn@acme.example", "Reset").await;
    let body = json!({ "token": link_token(&mail), "new_password": "a walk in the old park" });
    assert_eq!(app.post("/v1/auth/password/reset").json(body).send().await.status, 204);
    let mut connection = app.database.connect().await;
    let sql = "SELECT count(*) FROM one_time_tokens WHERE purpose = 'reset_password'";
    let links: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(links, 1, "retries create no other link");
}

#[tokio::test]
async fn unacknowledged_email_is_resent_with_same_id() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    register(&app, "dropped@acme.example").await;
    let mails = eventually("the email arrived twice", async || {
        make_retries_due(&app).await;
        let mails = sink.emails_to("dropped@acme.example");
        (mails.len() == 2).then_some(mails)
    })
    .await;
    assert_eq!(mails[0]["id"], mails[1]["id"]);
    assert_eq!(mails[0]["text"], mails[1]["text"]);
}

/// Without the right to delete an email from the outbox, a node cannot store that it was sent.
#[tokio::test]
async fn email_is_sent_once_while_it_cannot_be_deleted() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let mut connection = app.database.connect().await;
    // A sequence counts failed calls, because it is not rolled back.
    let sql = "CREATE SEQUENCE calls;
               ALTER FUNCTION delete_email RENAME TO original;
               CREATE FUNCTION delete_email(p_id uuid) RETURNS void LANGUAGE plpgsql
                   SECURITY DEFINER AS $$ BEGIN
                       PERFORM nextval('calls'); RAISE insufficient_privilege;
                   END $$";
    connection.execute(sqlx::raw_sql(sql)).await.unwrap();
    register(&app, "dana@acme.example").await;
    eventually("the email cannot be deleted", async || {
        make_retries_due(&app).await;
        let mut connection = app.database.connect().await;
        let calls = sqlx::query_scalar::<_, i64>("SELECT last_value FROM calls");
        (calls.fetch_one(&mut connection).await.unwrap() >= 4).then_some(())
    })
    .await;
    let sql = "DROP FUNCTION delete_email; ALTER FUNCTION original RENAME TO delete_email";
    connection.execute(sqlx::raw_sql(sql)).await.unwrap();
    wait_for_empty_outbox(&app).await;
    assert_eq!(sink.emails_to("dana@acme.example").len(), 1);
}

#[tokio::test]
async fn email_waits_for_unreachable_server() {
    let sink = SmtpSink::start();
    let url = sink.url();
    drop(sink);
    let app = TestApp::start_with(&[("mail.url", &url)]).await;
    register(&app, "dana@acme.example").await;
    eventually("a delivery was attempted", async || {
        (delivery_attempts(&app).await == Some(1)).then_some(())
    })
    .await;
    let database = app.stop().await;
    let sink = SmtpSink::start();
    let app = TestApp::start_on(database, &[("mail.url", &sink.url())]).await;
    make_retries_due(&app).await;
    sink.wait_for_email("dana@acme.example", "Verify").await;
    wait_for_empty_outbox(&app).await;
}

#[tokio::test]
async fn several_nodes_send_each_email_once() {
    let sink = SmtpSink::start();
    let one = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let changes = [("server.public_url", one.url.as_str()), ("mail.url", &sink.url())];
    let two = TestApp::start_on(one.database.clone(), &changes).await;
    let addresses: Vec<_> = (0..12).map(|n| format!("dana{n}@acme.example")).collect();
    for (n, email) in addresses.iter().enumerate() {
        register(if n % 2 == 0 { &one } else { &two }, email).await;
    }
    for email in &addresses {
        sink.wait_for_email(email, "Verify").await;
    }
    wait_for_empty_outbox(&one).await;
    for email in &addresses {
        assert_eq!(sink.emails_to(email).len(), 1, "{email}");
    }
}

#[tokio::test]
async fn stored_email_contains_no_usable_token() {
    let app = TestApp::start().await;
    register(&app, "dana@acme.example").await;
    let body = json!({ "email": "dana@acme.example" });
    app.post("/v1/auth/password/forgot").json(body).send().await;
    let mut connection = app.database.connect().await;
    let sql = "SELECT string_agg(message::text, ' ') FROM email_outbox";
    let mails: String = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert!(mails.contains("verify_email") && mails.contains("forgot_password"), "{mails}");
    // The outbox has the id of the token. Deriving the token from it requires the encryption key.
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM one_time_tokens")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert!(!ids.is_empty());
    for id in ids {
        for guess in [id.to_string(), data_encoding::BASE64URL_NOPAD.encode(id.as_bytes())] {
            let body = json!({ "token": guess });
            app.post("/v1/auth/verify-email")
                .json(body)
                .send()
                .await
                .assert_error(422, "validation_failed");
        }
    }
}

#[tokio::test]
async fn sign_in_from_new_network_or_browser_is_mailed() {
    let sink = SmtpSink::start();
    let settings = [("mail.url", &*sink.url()), ("server.trusted_proxies", "[\"127.0.0.1\"]")];
    let app = TestApp::start_with(&settings).await;
    let sign_in = async |ip: &str, user_agent: &str| {
        let body = json!({ "email": "dana@acme.example", "password": PASSWORD });
        let request = app.post("/v1/auth/login").header("x-forwarded-for", ip);
        request.header("user-agent", user_agent).json(body).send().await.expect_status(200);
    };
    let body = json!({ "email": "dana@acme.example", "password": PASSWORD });
    let register = app.post("/v1/auth/register").header("x-forwarded-for", "203.0.113.9");
    register.header("user-agent", "Browser/1.0").json(body).send().await.expect_status(201);
    let mut connection = app.database.connect().await;
    let verify = "UPDATE users SET email_verified_at = now()";
    sqlx::query(verify).execute(&mut connection).await.unwrap();
    // Another address in the same network and a newer version of the browser: no email.
    sign_in("203.0.113.77", "Browser/2.5.1").await;
    sign_in("198.51.100.7", "Browser/2.5.1").await;
    sign_in("198.51.100.8", "Other/1.0").await;
    sign_in("203.0.113.9", "Other/1.0").await;
    sign_in("2001:db8::1", "Other/1.0").await;
    let notifications = eventually("three notifications", async || {
        let mails = sink.emails_to("dana@acme.example");
        let notifications =
            mails.iter().filter(|mail| mail["subject"] == "New sign-in to your account");
        let notifications: Vec<_> =
            notifications.map(|mail| mail["text"].as_str().unwrap().to_owned()).collect();
        (notifications.len() == 3).then_some(notifications)
    })
    .await;
    for ip in ["198.51.100.7", "198.51.100.8", "2001:db8::1"] {
        assert!(notifications.iter().any(|mail| mail.contains(ip)), "{notifications:#?}");
    }
}

#[tokio::test]
async fn owners_are_notified_of_admin_keys_only() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let [owner, admin] =
        [app.add_member(&dana, "owner").await, app.add_member(&dana, "admin").await];
    for user in [&dana, &owner, &admin] {
        app.set_verified(user, true).await;
    }
    app.create_key(&admin, "harmless", "write").await;
    app.create_key(&admin, "terraform https://evil.example", "admin").await;
    for user in [&dana, &owner] {
        let mail = sink.wait_for_email(&user.email, "An admin API key was created").await;
        let text = mail["text"].as_str().unwrap();
        assert!(text.contains("the API key terraform https//evilexample"), "{text}");
    }
    let admin_mails = sink.emails_to(&admin.email);
    assert!(admin_mails.iter().all(|mail| mail["subject"] != "An admin API key was created"));
}

/// The subjects of the emails to an address, once all emails were sent or dropped.
async fn subjects_to(app: &TestApp, sink: &SmtpSink, address: &str) -> Vec<String> {
    wait_for_empty_outbox(app).await;
    let emails = sink.emails_to(address).into_iter();
    let mut subjects: Vec<_> =
        emails.map(|email| email["subject"].as_str().unwrap().to_owned()).collect();
    subjects.sort();
    subjects
}

/// An unverified address may be a stranger's: it receives only links, and no text of others.
#[tokio::test]
async fn unverified_address_receives_only_links() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let mut dana = app.register("acme").await;
    for name in ["call 0800 123", "pay here"] {
        app.create_key(&dana, name, "admin").await;
    }
    let client = json!({
        "name": "c", "redirect_uris": ["https://a.example/cb"], "scope": "admin",
    });
    let create = app.request_as(&dana.access_token, "POST", "/v1/oauth/clients").json(client);
    create.send().await.expect_status(201);
    let change = json!({ "current_password": PASSWORD, "new_password": "a walk in the old park" });
    let change =
        app.request_as(&dana.access_token, "POST", "/v1/auth/password/change").json(change);
    dana.set_tokens(&change.send().await.expect_status(200));
    let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": dana.email }));
    assert_eq!(forgot.send().await.status, 202);
    let links = ["Reset your password", "Verify your email address"];
    assert_eq!(subjects_to(&app, &sink, &dana.email).await, links);
    app.set_verified(&dana, true).await;
    app.create_key(&dana, "deploy", "admin").await;
    let all = ["An admin API key was created", links[0], links[1]];
    assert_eq!(subjects_to(&app, &sink, &dana.email).await, all);
}

/// The limit of verification links holds although each account is a new one, and its deletion is
/// not mailed.
#[tokio::test]
async fn verification_links_to_one_address_are_limited() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    for n in 1..8 {
        let dana = app.register("acme").await;
        // No link is sent after the deletion.
        let subjects = subjects_to(&app, &sink, &dana.email).await;
        assert_eq!(subjects, vec!["Verify your email address"; n.min(5)]);
        let delete = app.request_as(&dana.access_token, "DELETE", "/v1/users/me");
        let answer = delete.json(json!({ "password": PASSWORD })).send().await;
        assert_eq!(answer.status, 204, "{}", answer.text);
    }
}

/// Emails about a workspace, which its members cause at will, have a limit. They do not use up that
/// of emails about the account.
#[tokio::test]
async fn emails_about_workspace_are_limited_and_do_not_hide_others() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register_verified("acme").await;
    for n in 0..25 {
        app.create_key(&dana, &n.to_string(), "admin").await;
    }
    let change = json!({ "current_password": PASSWORD, "new_password": "a walk in the old park" });
    let change =
        app.request_as(&dana.access_token, "POST", "/v1/auth/password/change").json(change);
    change.send().await.expect_status(200);
    let subjects = subjects_to(&app, &sink, &dana.email).await;
    let count = |text: &str| subjects.iter().filter(|subject| subject.contains(text)).count();
    let counts = ["admin API key", "password was changed", "Verify"].map(count);
    assert_eq!(counts, [20, 1, 1], "{subjects:#?}");
}

/// Emails about workspaces do not delay the links and warnings of other users.
#[tokio::test]
async fn links_and_warnings_are_sent_first() {
    // Without a mail server, emails stay in the outbox.
    let app = TestApp::start().await;
    let [dana, sam] = [app.register_verified("acme").await, app.register_verified("sam").await];
    for n in 0..3 {
        app.create_key(&dana, &n.to_string(), "admin").await;
    }
    let invite = json!({ "email": "kim@new.example", "role": "member" });
    let invite = app.request_as(&dana.access_token, "POST", "/v1/invitations").json(invite);
    invite.send().await.expect_status(201);
    let forgot = app.post("/v1/auth/password/forgot").json(json!({ "email": sam.email }));
    assert_eq!(forgot.send().await.status, 202);
    let mut connection = app.database.connect().await;
    let claim = "SELECT message ->> 'kind' FROM claim_emails(3, '1 hour', '1 hour')";
    let mut first: Vec<String> =
        sqlx::query_scalar(claim).fetch_all(&mut connection).await.unwrap();
    first.sort();
    assert_eq!(first, ["forgot_password", "verify_email", "verify_email"]);
    let rest: Vec<String> = sqlx::query_scalar(claim).fetch_all(&mut connection).await.unwrap();
    assert_eq!(rest, ["admin_key"; 3]);
}

/// Puts an email into the outbox, as SQL that is injected into a request can do.
async fn inject_email(app: &TestApp, id: Option<Uuid>, message: Value) {
    let mut connection = app.database.connect().await;
    connection.execute("SET ROLE call2me_auth_app").await.unwrap();
    let sql = "INSERT INTO email_outbox (id, message, recipient, class)
               VALUES (coalesce($1, gen_random_uuid()), $2, lower($2 ->> 'to'), 'reset')";
    sqlx::query(sql).bind(id).bind(message).execute(&mut connection).await.unwrap();
}

async fn find_id(app: &TestApp, sql: &'static str) -> Uuid {
    sqlx::query_scalar(sql).fetch_one(&mut app.database.connect().await).await.unwrap()
}

/// The role of the service may add emails. A link is sent only to the address that it is for.
#[tokio::test]
async fn injected_email_gets_no_link_of_another_address() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let victim = app.register_verified("acme").await;
    let body = json!({ "email": "sam@new.example", "role": "admin" });
    let invite = app.post("/v1/invitations").bearer(&victim.access_token).json(body);
    invite.send().await.expect_status(201);
    let attacker = app.register("mallory").await.email;
    for address in [&victim.email, &attacker] {
        sink.wait_for_email(address, "Verify").await;
    }
    sink.wait_for_email("sam@new.example", "Invitation").await;
    let verification = find_id(
        &app,
        "SELECT id FROM one_time_tokens WHERE normalized_email = 'owner@acme.example'",
    )
    .await;
    let invitation = find_id(&app, "SELECT id FROM invitations").await;
    let reset = Uuid::from_u128(1);
    let sql = "SELECT start_password_reset($1, 'owner@acme.example', now(),
                                           now() + interval '1 hour', now(), 100)";
    let mut connection = app.database.connect().await;
    connection.execute("SET ROLE call2me_auth_app").await.unwrap();
    sqlx::query(sql).bind(reset).execute(&mut connection).await.unwrap();
    for id in [reset, verification] {
        inject_email(&app, Some(id), json!({ "to": attacker, "kind": "forgot_password" })).await;
    }
    for token in [reset, verification, invitation, Uuid::from_u128(2)] {
        let verify = json!({ "to": attacker, "kind": "verify_email", "token": token });
        inject_email(&app, None, verify).await;
        let invite = json!({
            "to": attacker, "kind": "invitation", "token": token, "workspace": "acme",
        });
        inject_email(&app, None, invite).await;
    }
    wait_for_empty_outbox(&app).await;
    assert_eq!(sink.emails_to(&attacker).len(), 1, "only the attacker's own verification");
    // The same emails to the right addresses are sent.
    let to = "Owner@acme.example";
    for (message, subject) in [
        (json!({ "to": to, "kind": "forgot_password" }), "Reset"),
        (json!({ "to": to, "kind": "verify_email", "token": verification }), "Verify"),
    ] {
        inject_email(&app, None, message).await;
        sink.wait_for_email(to, subject).await;
    }
}
