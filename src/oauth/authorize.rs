//! The authorization request and response (OAuth 2.1, section 4.1).
//!
//! An error is sent to the client only after its redirect URI was validated; until then it is shown
//! to the user. [`consent`](super::consent) continues with a valid request.

use url::form_urlencoded;

use super::{OAuth, OAuthError, OAuthErrorCode, requested_scope};
use crate::model::{
    oauth::{
        client::{Client, GrantType},
        parameters::Parameters,
        pkce::CodeChallenge,
        redirect_uri,
    },
    scope::Scope,
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
}

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
    redirect_uri: &'a str,
    state: Option<&'a str>,
    issuer: &'a str,
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

    fn authorization_error(&self, error: OAuthError) -> AuthorizationError {
        match error {
            OAuthError::Protocol { code, description } => AuthorizationError::Redirect(
                self.redirect_url(&[("error", code.as_str()), ("error_description", &description)]),
            ),
            failed @ OAuthError::Service(_) => AuthorizationError::Page(failed),
        }
    }
}

impl OAuth {
    /// Validates an authorization request.
    ///
    /// # Errors
    /// [`AuthorizationError::Page`] if the client or its redirect URI is not valid, else
    /// [`AuthorizationError::Redirect`].
    pub async fn validate_authorization_request(
        &self,
        parameters: &Parameters,
    ) -> Result<AuthorizationRequest, AuthorizationError> {
        let (client, redirect_uri) =
            self.resolve_redirect_uri(parameters).await.map_err(AuthorizationError::Page)?;
        let state = parameters.get("state").filter(|_| !parameters.is_repeated("state"));
        let answer =
            AuthorizationResponse { redirect_uri: &redirect_uri, state, issuer: &self.issuer };
        match self.check_request(&client, parameters) {
            Ok((scope, resources, challenge, prompt)) => Ok(AuthorizationRequest {
                state: state.map(str::to_owned),
                login_hint: parameters.get("login_hint").map(str::to_owned),
                client,
                redirect_uri,
                scope,
                resources,
                challenge,
                prompt,
            }),
            Err(error) => Err(answer.authorization_error(error)),
        }
    }

    /// Returns the client and the redirect URI of the response. Without a `redirect_uri` parameter
    /// the client must have exactly one redirect URI.
    async fn resolve_redirect_uri(
        &self,
        parameters: &Parameters,
    ) -> Result<(Client, String), OAuthError> {
        for name in ["client_id", "redirect_uri"] {
            if parameters.is_repeated(name) {
                return Err(OAuthError::invalid_request(format!("{name} must not be repeated")));
            }
        }
        let client_id = parameters.get("client_id");
        let client_id =
            client_id.ok_or_else(|| OAuthError::invalid_request("client_id is missing"))?;
        let client = self.resolve_client(client_id).await?;
        let uri = match (parameters.get("redirect_uri"), client.redirect_uris.as_slice()) {
            (Some(requested), known) => {
                let is_known =
                    known.iter().any(|known| redirect_uri::matches_registered(known, requested));
                is_known.then(|| requested.to_owned())
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        };
        let uri = uri.ok_or_else(|| {
            OAuthError::invalid_request("redirect_uri is not registered for this client")
        })?;
        Ok((client, uri))
    }

    fn check_request(
        &self,
        client: &Client,
        parameters: &Parameters,
    ) -> Result<(Scope, Vec<String>, CodeChallenge, Prompt), OAuthError> {
        if let Some(fault) = parameters.validation_error() {
            return Err(OAuthError::invalid_request(fault));
        }
        for name in ["request", "request_uri"] {
            if parameters.get(name).is_some() {
                return Err(OAuthError::invalid_request(format!("{name} is not supported")));
            }
        }
        match parameters.get("response_type") {
            Some("code") => {}
            Some(_) => {
                let message = "response_type must be code";
                return Err(OAuthError::new(OAuthErrorCode::UnsupportedResponseType, message));
            }
            None => return Err(OAuthError::invalid_request("response_type is missing")),
        }
        if parameters.get("response_mode").is_some_and(|mode| mode != "query") {
            return Err(OAuthError::invalid_request("response_mode must be query"));
        }
        if !client.allows_grant_type(GrantType::AuthorizationCode) {
            let message = "the client is not registered for authorization_code";
            return Err(OAuthError::new(OAuthErrorCode::UnauthorizedClient, message));
        }
        if parameters.get("code_challenge_method") != Some("S256") {
            return Err(OAuthError::invalid_request("code_challenge_method must be S256"));
        }
        let challenge = parameters.get("code_challenge").and_then(CodeChallenge::parse);
        let challenge = challenge.ok_or_else(|| {
            OAuthError::invalid_request(
                "code_challenge must be a SHA-256 hash in base64url (RFC 7636)",
            )
        })?;
        let scope = client.effective_scope(requested_scope(parameters)?);
        let resources = self.requested_resources(parameters)?;
        Ok((scope, resources, challenge, parse_prompt(parameters)?))
    }

    /// Returns the redirect URL that carries an error to the client.
    #[must_use]
    pub fn error_redirect_url(
        &self,
        request: &AuthorizationRequest,
        code: OAuthErrorCode,
        why: &str,
    ) -> String {
        self.authorization_response(request)
            .redirect_url(&[("error", code.as_str()), ("error_description", why)])
    }

    pub(super) fn authorization_response<'a>(
        &'a self,
        request: &'a AuthorizationRequest,
    ) -> AuthorizationResponse<'a> {
        AuthorizationResponse {
            redirect_uri: &request.redirect_uri,
            state: request.state.as_deref(),
            issuer: &self.issuer,
        }
    }

    /// Returns the validated redirect URI of a request, even if its other parameters are not valid.
    pub async fn validated_redirect_uri(&self, parameters: &Parameters) -> Option<String> {
        self.resolve_redirect_uri(parameters).await.ok().map(|(_, uri)| uri)
    }
}

fn parse_prompt(parameters: &Parameters) -> Result<Prompt, OAuthError> {
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
