//! Pages of an authorization in a real browser, which applies the policies of their headers.

use axum::{
    Router,
    response::{Html, Redirect},
    routing::get,
};
use serde_json::json;

use crate::fixture::{
    Chromium, PASSWORD, TestClient,
    oauth::{OAuthClient, OAuthExt},
};

/// Serves the website of a client, on an origin of its own, and returns its URL.
async fn serve_site(site: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, site).await });
    url
}

/// The callback of claude.ai redirects once more, to claude://. Browsers apply the `form-action` of
/// the consent page to that redirect, too.
#[tokio::test(flavor = "multi_thread")]
async fn callback_may_redirect_to_other_origins() {
    let app = TestClient::shared();
    let dana = app.register("acme").await;
    let last = serve_site(Router::new().route("/done", get(async || "You are back."))).await;
    let hop = format!("{last}/done");
    let relay = Router::new().route("/relay", get(async move || Redirect::to(&hop)));
    let relay = format!("{}/relay", serve_site(relay).await);
    let done = format!("{last}/done");
    let site = Router::new()
        .route("/once", get(async move || Redirect::to(&done)))
        .route("/twice", get(async move || Redirect::temporary(&relay)));
    let site = serve_site(site).await;
    let uris = ["once", "twice"].map(|path| format!("{site}/{path}"));
    let client = app.register_client(json!({ "redirect_uris": uris })).await;
    let chromium = Chromium::start().await;
    chromium.open(&format!("{}/sign-in", app.url)).await;
    chromium.fill("[name=email]", &dana.email).await;
    chromium.fill("[name=password]", PASSWORD).await;
    chromium.click("main form button").await;
    chromium.wait_for_text("/api-keys", "API keys").await;
    for (uri, decision) in [(&uris[0], "allow"), (&uris[1], "allow"), (&uris[0], "deny")] {
        let request = client.authorization_url(&[("redirect_uri", uri)]);
        chromium.open(&format!("{}{request}", app.url)).await;
        chromium.click(&format!("button[value={decision}]")).await;
        chromium.wait_for_text("/done", "You are back.").await;
    }
}

/// A client may open the authorization in a popup, which reports to its opener at the end. No page
/// on the way may separate the two.
#[tokio::test(flavor = "multi_thread")]
async fn popup_keeps_its_opener_until_the_user_is_signed_in() {
    let app = TestClient::shared();
    let client = app.register_client(json!({})).await;
    let unknown = OAuthClient { id: "client_unknown".to_owned(), ..client.clone() };
    let site = serve_site(Router::new().route("/", get(async || Html("<p>An app</p>")))).await;
    let chromium = Chromium::start().await;
    chromium.open(&site).await;
    for path in [
        "/forgot-password",
        "/sign-up",
        "/reset-password?token=x",
        "/no-such-page",
        &*client.authorization_url(&[]),
        &*client.authorization_url(&[("response_type", "token")]),
        &*unknown.authorization_url(&[]),
    ] {
        chromium.run_script(&format!("window.popup = window.open('{}{path}')", app.url)).await;
        // The location of another origin cannot be read.
        let is_loaded = "if (popup.closed) return true; \
             try { return popup.location.href === '' } catch { return true }";
        chromium.wait_until("the popup is loaded", is_loaded).await;
        assert_eq!(chromium.run_script("return popup.closed").await, false, "{path}");
        chromium.run_script("popup.close()").await;
    }
}
