//! The authorization response (OAuth 2.1, section 4.1.2).

use std::sync::Arc;

use url::form_urlencoded;

use crate::oauth::OAuthErrorCode;

/// The recipient of an authorization response: a validated redirect URI.
#[derive(Debug)]
pub(super) struct ResponseTarget {
    pub(super) redirect_uri: String,
    /// The `state` parameter of the request, returned unchanged in the response.
    pub(super) state: Option<String>,
    pub(super) issuer: Arc<str>,
}

impl ResponseTarget {
    /// Returns the redirect URL that carries an authorization code to the client.
    pub(super) fn code_url(&self, code: &str) -> String {
        self.url(&[("code", code)])
    }

    /// Returns the redirect URL that carries an error to the client.
    pub(super) fn error_url(&self, code: OAuthErrorCode, description: &str) -> String {
        self.url(&[("error", code.as_str()), ("error_description", description)])
    }

    /// Returns the redirect URL with these parameters, `state` and `iss` (RFC 6749, section 4.1.2;
    /// RFC 9207, section 2).
    fn url(&self, pairs: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let state = self.state.as_deref().map(|state| ("state", state));
        query.extend_pairs(pairs).extend_pairs(state);
        let query = query.append_pair("iss", &self.issuer).finish();
        let separator = if self.redirect_uri.contains('?') { '&' } else { '?' };
        format!("{}{separator}{query}", self.redirect_uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirect_url_keeps_query_of_redirect_uri() {
        let redirect_url = |redirect_uri: &str, state: Option<&str>| {
            let (redirect_uri, state) = (redirect_uri.to_owned(), state.map(str::to_owned));
            let issuer = "https://a.example".into();
            ResponseTarget { redirect_uri, state, issuer }.code_url("x&y")
        };
        let iss = "iss=https%3A%2F%2Fa.example";
        assert_eq!(
            redirect_url("https://c.example/cb", None),
            format!("https://c.example/cb?code=x%26y&{iss}")
        );
        assert_eq!(
            redirect_url("https://c.example/cb?a=b", Some("s t#")),
            format!("https://c.example/cb?a=b&code=x%26y&state=s+t%23&{iss}")
        );
        assert_eq!(
            redirect_url("com.example.app:/cb", None),
            format!("com.example.app:/cb?code=x%26y&{iss}")
        );
    }
}
