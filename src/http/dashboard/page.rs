//! Rendering of pages, and of errors as pages.
//!
//! Every page has the same security headers: a Content-Security-Policy without inline scripts,
//! `no-store`, and no framing. The HTML around a page comes from the module `layout`.

use std::sync::LazyLock;

use askama::Template;
use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
};
use data_encoding::BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use super::{
    format::Sentence,
    layout::{self, Layout},
    paths,
};
use crate::{
    http::{ApiError, error::ErrorCode, static_content::SegmentedBody},
    model::brand::Brand,
};

/// The style sheet of all pages. It is inlined, so a page is displayed after one round trip.
const STYLE: &str = include_str!("assets/style.css");

/// The tag after which a page has its style sheet. Texts of users contain no tags.
const STYLE_TAG: &str = "<style>";

/// The CSP hash source of [`STYLE`].
static STYLE_HASH: LazyLock<String> = LazyLock::new(|| csp_hash(STYLE));

/// Returns the CSP hash source of an inline text (CSP 3, section 2.3.1).
fn csp_hash(text: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text)))
}

/// The targets of the forms of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormTargets {
    /// This service only.
    Own,
    /// Any: the form ends at an OAuth client. Browsers apply `form-action` to all redirects after a
    /// form, and a client may redirect anywhere, also to the scheme of a program.
    Any,
}

/// Returns the Content-Security-Policy of a page: nothing from other origins, no inline content
/// except our style sheets, no framing.
fn content_security_policy(brand: &Brand, targets: FormTargets) -> String {
    let styles = match layout::brand_style(brand) {
        Some(style) => format!("{} {}", *STYLE_HASH, csp_hash(&style)),
        None => STYLE_HASH.clone(),
    };
    let form_action = match targets {
        FormTargets::Own => "; form-action 'self'",
        FormTargets::Any => "",
    };
    format!(
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src {styles}; img-src 'self' data:; \
         base-uri 'none'; frame-ancestors 'none'{form_action}"
    )
}

/// The number of items on one page of a list: few enough to read, and to keep the page small.
pub(super) const PAGE_SIZE: i64 = 20;

/// The characters to percent-encode in a query. Tokens consist of letters, digits, `-` and `_`, and
/// stay as they are.
const QUERY_ENCODE_SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Percent-encodes a text as a parameter of a query string.
pub(super) fn encode_query_value(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, QUERY_ENCODE_SET)
}

/// A page with a title, one paragraph and an optional link.
#[derive(Template)]
#[template(path = "message.html")]
pub(super) struct MessagePage<'a> {
    pub(super) layout: Layout,
    pub(super) title: &'a str,
    pub(super) text: &'a str,
    /// The path and the label of the link.
    pub(super) link: Option<(&'a str, &'a str)>,
}

/// Returns a message page without branding and navigation.
pub(super) fn message_page(
    status: u16,
    title: &str,
    text: &str,
    link: (&str, &str),
) -> Result<Response, ApiError> {
    let message = MessagePage { layout: Layout::default(), title, text, link: Some(link) };
    render(status, &message, &Brand::default(), FormTargets::Own)
}

/// Separates the window of a page from the window that opened it. Pages before the sign-in and the
/// consent page are not separated: an OAuth client may have opened them in a popup, which has to
/// report back at the end.
pub(super) fn isolate_window(response: &mut Response) {
    let opener = HeaderName::from_static("cross-origin-opener-policy");
    response.headers_mut().insert(opener, HeaderValue::from_static("same-origin"));
}

/// Forbids caches to store a response, and its target to see the referrer.
pub(super) fn set_private_headers(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

/// Renders a page with the headers of all pages.
///
/// # Errors
/// [`ErrorCode::Internal`] if the template fails.
pub(super) fn render<T: Template>(
    status: u16,
    template: &T,
    brand: &Brand,
    form_targets: FormTargets,
) -> Result<Response, ApiError> {
    let policy = HeaderValue::try_from(content_security_policy(brand, form_targets))
        .map_err(|_| ApiError::internal("invalid Content-Security-Policy"))?;
    let text = template
        .render()
        .map_err(|error| ApiError::internal(&format!("failed to render a page: {error}")))?;
    let mut response = Html(Body::new(insert_style(text))).into_response();
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        // For browsers without support for frame-ancestors.
        (header::X_FRAME_OPTIONS, "DENY"),
        // The URLs of mailed links contain tokens.
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

/// Inserts the style sheet into a page. It is most of the page, and all pages share it, so that a
/// client which reads slowly keeps only the rest in memory.
fn insert_style(page: String) -> SegmentedBody {
    let position = page.find(STYLE_TAG).map(|start| start + STYLE_TAG.len());
    let mut rest = Bytes::from(page);
    match position {
        Some(position) => {
            let start = rest.split_to(position);
            SegmentedBody::new([start, Bytes::from_static(STYLE.as_bytes()), rest])
        }
        None => SegmentedBody::new([rest]),
    }
}

/// Renders an error as a page.
///
/// A user without a session is redirected to the sign-in, and from there back to `wanted`.
pub(in crate::http) fn render_error(error: &ApiError, method: &Method, wanted: &str) -> Response {
    let mut response = error_page(error, method, wanted);
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn error_page(error: &ApiError, method: &Method, wanted: &str) -> Response {
    if error.code() == ErrorCode::Unauthorized {
        let is_page = [Method::GET, Method::HEAD].contains(method);
        let next = if is_page { wanted } else { "/" };
        return Redirect::to(&format!("/sign-in?next={}", encode_query_value(next)))
            .into_response();
    }
    if error.is_second_factor_missing() {
        return Redirect::to(paths::SECOND_FACTOR).into_response();
    }
    let (title, text) = match error.code() {
        _ if error.is_route_missing() => (
            "Page not found",
            "Check the address. If you came from a form, go back to it and send it again.",
        ),
        ErrorCode::NotFound => ("Page not found", error.message()),
        ErrorCode::RateLimited => ("Too many attempts", error.message()),
        _ => ("Something went wrong", error.message()),
    };
    let status = error.code().status();
    message_page(status.as_u16(), title, text, ("/", "Go to the dashboard"))
        .unwrap_or_else(|_| status.into_response())
}

/// Returns the status and the message that a form displays for an error.
///
/// # Errors
/// Returns `error` itself if it does not belong on the page of the form: it gets a page of its own.
pub(super) fn form_error(error: ApiError) -> Result<(u16, String), ApiError> {
    match error.code() {
        // Not 401: that status would ask the browser for a credential.
        ErrorCode::InvalidCredentials | ErrorCode::ValidationFailed => {
            Ok((422, user_message(error.message())))
        }
        ErrorCode::Forbidden | ErrorCode::Conflict | ErrorCode::NotFound => {
            Ok((error.code().status().as_u16(), user_message(error.message())))
        }
        _ => Err(error),
    }
}

/// Rewrites an API error message for users: replaces the field name by its label, and makes the
/// message a sentence.
pub(super) fn user_message(message: &str) -> String {
    const FIELDS: [(&str, &str); 12] = [
        ("current_password ", "your current password "),
        ("new_password ", "the new password "),
        ("password ", "the password "),
        ("allowed_ips ", "the allowed networks "),
        ("rate_limit_per_minute ", "the rate limit "),
        ("full_name ", "your name "),
        ("workspace_name ", "the workspace name "),
        ("brand_name ", "the brand name "),
        ("primary_color ", "the button colour "),
        ("email ", "the email address "),
        ("name ", "the name "),
        ("logo ", "the logo "),
    ];
    let labelled = FIELDS.iter().find_map(|(field, label)| {
        message.strip_prefix(field).map(|rest| format!("{label}{rest}"))
    });
    Sentence(labelled.as_deref().unwrap_or(message)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_name_becomes_label_in_message() {
        for (api_message, expected) in [
            ("current_password is wrong", "Your current password is wrong."),
            ("name must be 1 to 100 characters", "The name must be 1 to 100 characters."),
            ("there is no such event", "There is no such event."),
            ("", ""),
        ] {
            assert_eq!(user_message(api_message), expected);
        }
    }
}
