//! Cookies of browsers on the dashboard. [`super::dashboard`] says what they protect.

use axum::{
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use cookie::{Cookie, SameSite, time::Duration};

use super::App;

/// The cookie of a session.
pub(super) const SESSION_COOKIE: &str = "call2me_session";
/// The cookie that identifies a browser before sign-in.
pub(super) const BROWSER_COOKIE: &str = "call2me_browser";

/// Request extension: the caller was authenticated by the session cookie.
#[derive(Clone, Copy)]
pub(super) struct CookieAuthenticated;

/// Returns the value of the session cookie.
pub(super) fn session_cookie(app: &App, headers: &HeaderMap) -> Option<String> {
    read_cookie(app, headers, SESSION_COOKIE)
}

fn is_secure(app: &App) -> bool {
    app.settings.public_url.starts_with("https://")
}

fn cookie_name(app: &App, name: &str) -> String {
    if is_secure(app) { format!("__Host-{name}") } else { name.to_owned() }
}

/// Returns the value of a cookie; `None` if there are several, since any of them may be planted.
pub(super) fn read_cookie(app: &App, headers: &HeaderMap, name: &str) -> Option<String> {
    let name = cookie_name(app, name);
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookies = texts.flat_map(Cookie::split_parse).filter_map(Result::ok);
    let mut values = cookies.filter(|cookie| cookie.name() == name);
    match (values.next(), values.next()) {
        (Some(only), None) => Some(only.value().to_owned()),
        _ => None,
    }
}

/// Adds a cookie to a response; without `max_age` it lasts until the browser is closed.
pub(super) fn set_cookie(
    app: &App,
    response: &mut Response,
    name: &str,
    value: String,
    max_age: Option<Duration>,
) {
    let mut cookie = Cookie::build((cookie_name(app, name), value))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(is_secure(app))
        .build();
    cookie.set_max_age(max_age);
    if let Ok(value) = HeaderValue::try_from(cookie.to_string()) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}
