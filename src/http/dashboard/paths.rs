//! Paths that pages redirect to.

use axum::http::Uri;

/// The page after the sign-in if the user asked for no other.
pub(super) const HOME: &str = "/api-keys";
/// The authorization endpoint, whose pages ask for consent.
pub(super) const AUTHORIZE: &str = "/oauth/authorize";
/// The security settings of a user.
pub(super) const SECOND_FACTOR: &str = "/second-factor";

/// True if a path leads to the authorization endpoint, and from there to an OAuth client.
pub(super) fn is_authorization_request(path: &str) -> bool {
    path.strip_prefix(AUTHORIZE).is_some_and(|rest| rest.starts_with('?'))
}

/// Returns `next` if it is a path on our origin, otherwise [`HOME`]: there is no open redirect.
pub(super) fn same_origin_path(next: &str) -> &str {
    let is_path = next.starts_with('/') && !next.starts_with("//");
    let is_uri = next.parse::<Uri>().is_ok_and(|uri| uri.authority().is_none());
    // Browsers treat a backslash as a slash.
    if is_path && is_uri && !next.contains('\\') { next } else { HOME }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_next_page_is_replaced_by_home() {
        for own in ["/", "/sessions", "/accept-invitation?token=a-b_c", "/a//b"] {
            assert_eq!(same_origin_path(own), own);
        }
        for foreign in [
            "",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "evil.example",
            "\\\\evil.example",
            "/\r\nSet-Cookie: a=b",
        ] {
            assert_eq!(same_origin_path(foreign), HOME, "{foreign:?}");
        }
    }
}
