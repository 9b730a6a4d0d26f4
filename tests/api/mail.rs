//! Mail: written from an outbox, sent once, over servers as they are.

use serde_json::json;

use crate::fixture::{PASSWORD, SmtpSink, TestApp, eventually, token_in};

async fn register(app: &TestApp, email: &str) {
    let body = json!({ "email": email, "password": PASSWORD });
    app.post("/v1/auth/register").json(body).send().await.expect(201);
}

async fn waiting(app: &TestApp) -> i64 {
    let mut connection = app.database.connect().await;
    sqlx::query_scalar("SELECT count(*) FROM mail_outbox").fetch_one(&mut connection).await.unwrap()
}

/// Lets what was put off be due.
async fn hurry(app: &TestApp) {
    let mut connection = app.database.connect().await;
    let sql = "UPDATE mail_outbox SET next_attempt_at = now()";
    sqlx::query(sql).execute(&mut connection).await.unwrap();
}

async fn until_empty(app: &TestApp) {
    eventually("the outbox is empty", async || (waiting(app).await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_mail_has_what_mail_programs_want() {
    let sink = SmtpSink::start();
    let settings = [("mail.url", sink.url()), ("mail.from", "Acme <auth@acme.example>".into())];
    let app = TestApp::start_with(&settings.each_ref().map(|(k, v)| (*k, v.as_str()))).await;
    register(&app, "dana@acme.example").await;
    let mail = sink.mail("dana@acme.example", "Verify").await;
    assert_eq!(mail["from"], "auth@acme.example");
    assert_eq!(mail["type"], "multipart/alternative");
    assert!(mail["id"].as_str().unwrap().ends_with("@acme.example>"), "{mail:#}");
    let text = mail["text"].as_str().unwrap();
    assert!(text.is_ascii() && text.lines().all(|line| line.len() <= 200), "{text}");
    until_empty(&app).await;
    assert_eq!(sink.mails_to("dana@acme.example").len(), 1);
}

#[tokio::test]
async fn what_is_put_off_is_tried_again_and_what_is_refused_is_not() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    register(&app, "deferred@acme.example").await;
    register(&app, "refused@acme.example").await;
    register(&app, "dana@acme.example").await;
    sink.mail("dana@acme.example", "Verify").await;
    eventually("the refused one is gone", async || (waiting(&app).await == 1).then_some(())).await;
    hurry(&app).await;
    eventually("it is there after two refusals", async || {
        hurry(&app).await;
        (!sink.mails_to("deferred@acme.example").is_empty()).then_some(())
    })
    .await;
    until_empty(&app).await;
    assert!(sink.mails_to("refused@acme.example").is_empty());
    assert_eq!(sink.mails_to("deferred@acme.example").len(), 1);
}

/// How often the mail that waits was tried; none: nothing waits.
async fn tries(app: &TestApp) -> Option<i32> {
    let mut connection = app.database.connect().await;
    let sql = "SELECT attempts FROM mail_outbox";
    sqlx::query_scalar(sql).fetch_optional(&mut connection).await.unwrap()
}

#[tokio::test]
async fn a_link_that_is_put_off_more_often_than_links_are_mailed_arrives_and_works() {
    let app = TestApp::start().await;
    register(&app, "stubborn@acme.example").await;
    let mut connection = app.database.connect().await;
    sqlx::query("DELETE FROM mail_outbox").execute(&mut connection).await.unwrap();
    drop(connection);
    let sink = SmtpSink::start();
    let app = TestApp::start_on(app.stop().await, &[("mail.url", &sink.url())]).await;
    let body = json!({ "email": "stubborn@acme.example" });
    assert_eq!(app.post("/v1/auth/password/forgot").json(body).send().await.status, 202);
    // Each try is looked for by itself: eight of them take longer than one wait.
    for count in 1..=8 {
        eventually(&format!("try {count}"), async || {
            hurry(&app).await;
            tries(&app).await.is_none_or(|tries| tries >= count).then_some(())
        })
        .await;
    }
    let mail = sink.mail("stubborn@acme.example", "Reset").await;
    let body = json!({ "token": token_in(&mail), "new_password": "a walk in the old park" });
    assert_eq!(app.post("/v1/auth/password/reset").json(body).send().await.status, 204);
    let mut connection = app.database.connect().await;
    let sql = "SELECT count(*) FROM one_time_tokens WHERE purpose = 'reset_password'";
    let links: i64 = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert_eq!(links, 1, "one link, however often it is tried");
}

#[tokio::test]
async fn a_mail_whose_taking_was_not_told_comes_again_under_its_id() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    register(&app, "dropped@acme.example").await;
    let mails = eventually("it came twice", async || {
        hurry(&app).await;
        let mails = sink.mails_to("dropped@acme.example");
        (mails.len() == 2).then_some(mails)
    })
    .await;
    assert_eq!(mails[0]["id"], mails[1]["id"]);
    assert_eq!(mails[0]["text"], mails[1]["text"]);
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let sink = SmtpSink::start();
    let url = sink.url();
    drop(sink);
    let app = TestApp::start_with(&[("mail.url", &url)]).await;
    register(&app, "dana@acme.example").await;
    eventually("it was tried", async || (tries(&app).await == Some(1)).then_some(())).await;
    let database = app.stop().await;
    let sink = SmtpSink::start();
    let app = TestApp::start_on(database, &[("mail.url", &sink.url())]).await;
    hurry(&app).await;
    sink.mail("dana@acme.example", "Verify").await;
    until_empty(&app).await;
}

#[tokio::test]
async fn several_nodes_send_a_mail_once() {
    let sink = SmtpSink::start();
    let one = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let changes = [("server.public_url", one.url.as_str()), ("mail.url", &sink.url())];
    let two = TestApp::start_on(one.database.clone(), &changes).await;
    let people: Vec<_> = (0..12).map(|n| format!("dana{n}@acme.example")).collect();
    for (n, email) in people.iter().enumerate() {
        register(if n % 2 == 0 { &one } else { &two }, email).await;
    }
    for email in &people {
        sink.mail(email, "Verify").await;
    }
    until_empty(&one).await;
    for email in &people {
        assert_eq!(sink.mails_to(email).len(), 1, "{email}");
    }
}

#[tokio::test]
async fn what_waits_opens_nothing() {
    let app = TestApp::start().await;
    register(&app, "dana@acme.example").await;
    let body = json!({ "email": "dana@acme.example" });
    app.post("/v1/auth/password/forgot").json(body).send().await;
    let mut connection = app.database.connect().await;
    let sql = "SELECT string_agg(mail::text, ' ') FROM mail_outbox";
    let mails: String = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
    assert!(mails.contains("verify_email") && mails.contains("forgot_password"), "{mails}");
    // The id of a token, not the token: it takes the key of the deployment to make one of it.
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
                .refused(422, "validation_failed");
        }
    }
}

#[tokio::test]
async fn a_sign_in_from_a_new_place_or_program_is_told() {
    let sink = SmtpSink::start();
    let settings = [("mail.url", &*sink.url()), ("server.trusted_proxies", "[\"127.0.0.1\"]")];
    let app = TestApp::start_with(&settings).await;
    let login = async |ip: &str, client: &str| {
        let body = json!({ "email": "dana@acme.example", "password": PASSWORD });
        let call = app.post("/v1/auth/login").header("x-forwarded-for", ip);
        call.header("user-agent", client).json(body).send().await.expect(200);
    };
    let body = json!({ "email": "dana@acme.example", "password": PASSWORD });
    let register = app.post("/v1/auth/register").header("x-forwarded-for", "203.0.113.9");
    register.header("user-agent", "Browser/1.0").json(body).send().await.expect(201);
    // A neighbour's address, a newer version.
    login("203.0.113.77", "Browser/2.5.1").await;
    login("198.51.100.7", "Browser/2.5.1").await;
    login("198.51.100.8", "Other/1.0").await;
    login("203.0.113.9", "Other/1.0").await;
    login("2001:db8::1", "Other/1.0").await;
    let told = eventually("three mails", async || {
        let mails = sink.mails_to("dana@acme.example");
        let told = mails.iter().filter(|mail| mail["subject"] == "New sign-in to your account");
        let told: Vec<_> = told.map(|mail| mail["text"].as_str().unwrap().to_owned()).collect();
        (told.len() == 3).then_some(told)
    })
    .await;
    for ip in ["198.51.100.7", "198.51.100.8", "2001:db8::1"] {
        assert!(told.iter().any(|mail| mail.contains(ip)), "{told:#?}");
    }
}

#[tokio::test]
async fn owners_are_told_of_an_admin_key_and_of_no_other() {
    let sink = SmtpSink::start();
    let app = TestApp::start_with(&[("mail.url", &sink.url())]).await;
    let dana = app.register("acme").await;
    let [owner, admin] = [app.join(&dana, "owner").await, app.join(&dana, "admin").await];
    app.mint(&admin, "harmless", "write").await;
    app.mint(&admin, "terraform https://evil.example", "admin").await;
    for person in [&dana, &owner] {
        let mail = sink.mail(&person.email, "An admin API key was made in acme").await;
        let text = mail["text"].as_str().unwrap();
        assert!(text.contains("the API key terraform https//evilexample"), "{text}");
    }
    let others = sink.mails_to(&admin.email);
    assert!(others.iter().all(|mail| mail["subject"] != "An admin API key was made in acme"));
}
