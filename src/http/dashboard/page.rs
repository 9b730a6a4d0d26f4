//! How every page goes out.

use std::sync::LazyLock;

use askama::Template;
use axum::{
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
};
use data_encoding::BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use sha2::{Digest as _, Sha256};
use tracing::error;

use super::{
    layout::{self, Layout},
    second_factor,
    words::Sentence,
};
use crate::{
    http::{ApiError, error::Code},
    model::brand::Brand,
};

/// The style of all pages. It stands in each of them, so that a page is shown after one round trip.
pub(super) const STYLE: &str = include_str!("assets/style.css");

/// Its hash, as the policy names it.
static STYLE_HASH: LazyLock<String> = LazyLock::new(|| source_of(STYLE));

/// A text of a page, as a source of its policy (CSP 3, section 2.3.1).
fn source_of(text: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text)))
}

/// Nothing from elsewhere, nothing inline but our own styles, in nobody's frame. Forms may lead to `way`, too.
fn policy(brand: &Brand, way: Option<&str>) -> String {
    let styles = match layout::style(brand) {
        Some(style) => format!("{} {}", *STYLE_HASH, source_of(&style)),
        None => STYLE_HASH.clone(),
    };
    let way = way.map(|way| format!(" {way}")).unwrap_or_default();
    format!(
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src {styles}; img-src 'self' data:; \
         base-uri 'none'; frame-ancestors 'none'; form-action 'self'{way}"
    )
}

/// Items of a list on a page: as many as one looks at, and as keep the page small.
pub(super) const ITEMS: i64 = 20;

/// What tokens are made of may stand in a URL as it is.
const IN_A_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// A text as a parameter of a query string.
pub(super) fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, IN_A_QUERY)
}

/// A page that says one thing.
#[derive(Template)]
#[template(path = "message.html")]
pub(super) struct Message<'a> {
    /// What is around it.
    pub(super) layout: Layout,
    /// What it is about.
    pub(super) title: &'a str,
    /// What it says.
    pub(super) text: &'a str,
    /// Where to go next: the page and the words.
    pub(super) link: Option<(&'a str, &'a str)>,
}

/// A page that says one thing, to nobody in particular.
pub(super) fn message(status: u16, title: &str, text: &str, link: (&str, &str)) -> Response {
    let message = Message { layout: Layout::default(), title, text, link: Some(link) };
    render(status, &message, &Brand::default())
}

/// A page with the headers of all pages.
pub(super) fn render<T: Template>(status: u16, template: &T, brand: &Brand) -> Response {
    let mut response = rendered(status, template, &policy(brand, None));
    let opener = HeaderName::from_static("cross-origin-opener-policy");
    response.headers_mut().insert(opener, HeaderValue::from_static("same-origin"));
    response
}

/// A page of a way that ends at a client: its forms may lead there, for browsers hold redirects to the policy of the
/// page that the form was on. And it may stand in a window that the client has opened and wants to hear from, which
/// it could not where windows are kept apart by `Cross-Origin-Opener-Policy`.
pub(super) fn render_on_the_way<T: Template>(
    status: u16,
    template: &T,
    brand: &Brand,
    to: &str,
) -> Response {
    rendered(status, template, &policy(brand, Some(to)))
}

/// Sees to it that what an answer leads to does not learn where it came from, and that nobody keeps it.
pub(super) fn conceal(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

fn rendered<T: Template>(status: u16, template: &T, policy: &str) -> Response {
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return ApiError::internal("a page has no policy").into_response();
    };
    let text = match template.render() {
        Ok(text) => text,
        Err(reason) => {
            error!(%reason, "a page cannot be rendered");
            return ApiError::internal("a page cannot be rendered").into_response();
        }
    };
    let mut response = Html(text).into_response();
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        // For browsers that do not know frame-ancestors.
        (header::X_FRAME_OPTIONS, "DENY"),
        // Links of mails hold tokens.
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

/// A refusal as people read it, other answers as they are. Who is not signed in is asked to do so, and
/// comes back.
pub(in crate::http) fn of_refusal(response: Response, method: &Method, wanted: &str) -> Response {
    let Some(error) = ApiError::of(&response) else { return response };
    let mut page = of_error(error, method, wanted);
    // What the guard said of limits.
    for (name, value) in response.headers() {
        if !page.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            page.headers_mut().append(name, value.clone());
        }
    }
    if let Some(seconds) = error.retry_after() {
        page.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    page
}

/// What a browser is shown where there is no page, or none that is opened so.
pub(in crate::http) fn of_nothing(error: &ApiError) -> Response {
    let text =
        "Perhaps the address is mistyped, or the page is behind a form that was sent before.";
    message(
        error.code().status().as_u16(),
        "There is no such page",
        text,
        ("/", "Back to the start"),
    )
}

fn of_error(error: &ApiError, method: &Method, wanted: &str) -> Response {
    if error.code() == Code::Unauthorized {
        let is_page = [Method::GET, Method::HEAD].contains(method);
        let next = if is_page { wanted } else { "/" };
        return Redirect::to(&format!("/sign-in?next={}", encoded(next))).into_response();
    }
    if error.lacks_second_factor() {
        return Redirect::to(second_factor::HERE).into_response();
    }
    let title = match error.code() {
        Code::NotFound => "There is no such page",
        Code::RateLimited => "Too many attempts",
        _ => "Something went wrong",
    };
    message(error.code().status().as_u16(), title, error.message(), ("/", "Back to the start"))
}

/// What a form says of a refusal that its page can explain; other refusals are pages of their own.
///
/// # Errors
/// The refusal, where it is another.
pub(super) fn explained(error: ApiError) -> Result<(u16, String), ApiError> {
    match error.code() {
        // No credential was sent, so it is not for a 401 to ask for one.
        Code::InvalidCredentials | Code::ValidationFailed => Ok((422, for_people(error.message()))),
        Code::Forbidden | Code::Conflict | Code::NotFound => {
            Ok((error.code().status().as_u16(), for_people(error.message())))
        }
        _ => Err(error),
    }
}

/// What the API says of a field, in the words of a form.
pub(super) fn for_people(message: &str) -> String {
    const FIELDS: [(&str, &str); 11] = [
        ("current_password ", "your current password "),
        ("new_password ", "the new password "),
        ("password ", "the password "),
        ("allowed_ips ", "the networks "),
        ("full_name ", "your name "),
        ("workspace_name ", "the workspace's name "),
        ("brand_name ", "the name "),
        ("primary_color ", "the colour "),
        ("email ", "the address "),
        ("name ", "the name "),
        ("logo ", "the logo "),
    ];
    let known = FIELDS.iter().find_map(|(field, words)| {
        message.strip_prefix(field).map(|rest| format!("{words}{rest}"))
    });
    Sentence(known.as_deref().unwrap_or(message)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_not_told_the_names_of_fields() {
        for (api, people) in [
            ("current_password is wrong", "Your current password is wrong."),
            ("name must be 1 to 100 characters", "The name must be 1 to 100 characters."),
            ("there is no such event", "There is no such event."),
            ("", ""),
        ] {
            assert_eq!(for_people(api), people);
        }
    }
}
