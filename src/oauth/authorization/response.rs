//! The authorization response (OAuth 2.1, section 4.1.2).

use url::form_urlencoded;

use crate::oauth::OAuthError;

/// The error of an authorization request that does not lead to the consent page.
#[derive(Debug)]
pub enum AuthorizationError {
    /// The redirect URI is unknown or not trusted: show the error to the user.
    Page(OAuthError),
    /// Redirect to this URL, which carries the error to the client.
    Redirect(String),
}

/// Builds the redirect that carries a response to the client.
pub(super) struct AuthorizationResponse<'a> {
    pub(super) redirect_uri: &'a str,
    pub(super) state: Option<&'a str>,
    pub(super) issuer: &'a str,
}

impl AuthorizationResponse<'_> {
    /// Returns the redirect URL with these parameters, `state` and `iss` (RFC 6749, section 4.1.2;
    /// RFC 9207, section 2).
    pub(super) fn redirect_url(&self, pairs: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(pairs).extend_pairs(self.state.map(|state| ("state", state)));
        let query = query.append_pair("iss", self.issuer).finish();
        let (uri, separator) =
            (self.redirect_uri, if self.redirect_uri.contains('?') { '&' } else { '?' });
        format!("{uri}{separator}{query}")
    }

    pub(super) fn authorization_error(&self, error: OAuthError) -> AuthorizationError {
        match error {
            OAuthError::Protocol { code, description } => AuthorizationError::Redirect(
                self.redirect_url(&[("error", code.as_str()), ("error_description", &description)]),
            ),
            failed @ OAuthError::Service(_) => AuthorizationError::Page(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirect_url_keeps_query_of_redirect_uri() {
        let redirect_url = |redirect_uri, state| {
            AuthorizationResponse { redirect_uri, state, issuer: "https://a.example" }
                .redirect_url(&[("code", "x&y")])
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
