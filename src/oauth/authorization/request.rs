//! The authorization request (OAuth 2.1, section 4.1.1).

use std::sync::Arc;

use super::AuthorizationResponse;
use crate::{
    model::{
        oauth::{client::Client, parameters::Parameters, pkce::CodeChallenge},
        scope::Scope,
    },
    oauth::{OAuthError, OAuthErrorCode},
};

/// The `prompt` parameter (`OpenID` Connect Core, section 3.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// No prompt is requested: an earlier consent is sufficient.
    Unspecified,
    /// The user must not see any page.
    None,
    /// The user must sign in again.
    Login,
    /// The user must consent again.
    Consent,
}

/// A valid authorization request: the client is known and the redirect URI belongs to it.
#[derive(Debug)]
pub struct AuthorizationRequest {
    /// The client.
    pub client: Client,
    /// The redirect URI of the response.
    pub redirect_uri: String,
    /// The `state` parameter, returned unchanged in the response.
    pub state: Option<String>,
    /// The requested scope.
    pub scope: Scope,
    /// The requested resources (RFC 8707).
    pub resources: Vec<String>,
    /// The PKCE challenge, which binds the code to the client that requested it (RFC 7636).
    pub challenge: CodeChallenge,
    /// The requested interaction with the user.
    pub prompt: Prompt,
    /// The email address with which the user probably signs in.
    pub login_hint: Option<String>,
    /// The issuer of the response (RFC 9207).
    pub(super) issuer: Arc<str>,
}

impl AuthorizationRequest {
    /// Returns the redirect URL that carries an error to the client.
    #[must_use]
    pub fn error_redirect_url(&self, code: OAuthErrorCode, why: &str) -> String {
        self.response().redirect_url(&[("error", code.as_str()), ("error_description", why)])
    }

    /// Returns the redirect URL that carries an authorization code to the client.
    pub(super) fn code_redirect_url(&self, code: &str) -> String {
        self.response().redirect_url(&[("code", code)])
    }

    fn response(&self) -> AuthorizationResponse<'_> {
        AuthorizationResponse {
            redirect_uri: &self.redirect_uri,
            state: self.state.as_deref(),
            issuer: &self.issuer,
        }
    }
}

pub(super) fn parse_prompt(parameters: &Parameters) -> Result<Prompt, OAuthError> {
    let values: Vec<_> = parameters.get("prompt").unwrap_or_default().split(' ').collect();
    let has = |name: &str| values.contains(&name);
    match values.as_slice() {
        ["none"] => Ok(Prompt::None),
        _ if has("none") => {
            Err(OAuthError::invalid_request("prompt=none cannot be combined with other values"))
        }
        _ if has("login") || has("select_account") => Ok(Prompt::Login),
        _ if has("consent") => Ok(Prompt::Consent),
        _ => Ok(Prompt::Unspecified),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_values_are_parsed_or_rejected() {
        let parse = |prompt: &str| {
            parse_prompt(&Parameters::new(vec![("prompt".to_owned(), prompt.to_owned())])).ok()
        };
        assert_eq!(parse(""), Some(Prompt::Unspecified));
        assert_eq!(parse("create"), Some(Prompt::Unspecified));
        assert_eq!(parse("none"), Some(Prompt::None));
        assert_eq!(parse("none login"), None);
        assert_eq!(parse("consent login"), Some(Prompt::Login));
        assert_eq!(parse("select_account"), Some(Prompt::Login));
        assert_eq!(parse("consent"), Some(Prompt::Consent));
    }
}
