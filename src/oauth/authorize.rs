//! The authorization request, and its answers (OAuth 2.1, section 4.1).

use url::form_urlencoded;

use super::{Code, OAuth, OAuthError, scope_of};
use crate::model::{
    oauth::{
        client::{Client, GrantType},
        parameters::Parameters,
        pkce::CodeChallenge,
        redirect_uri,
    },
    scope::Scope,
};

/// What a client asks of the person, beside consent (`OpenID` Connect Core, section 3.1.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// Nothing: consent that was given before will do.
    Unsaid,
    /// Nothing at all is to be shown.
    None,
    /// To sign in anew.
    Login,
    /// To consent anew.
    Consent,
}

/// A request that may be answered: its client is known, and its answer goes where the client may be sent it.
#[derive(Debug)]
pub struct AuthorizationRequest {
    /// Who asks.
    pub client: Client,
    /// Where the answer goes.
    pub redirect_uri: String,
    /// What comes back with it.
    pub state: Option<String>,
    /// What for.
    pub scope: Scope,
    /// Against which resources.
    pub resources: Vec<String>,
    /// What binds the code to whoever asked for it.
    pub challenge: CodeChallenge,
    /// What is asked of the person.
    pub prompt: Prompt,
    /// The address that the person will sign in with, perhaps.
    pub login_hint: Option<String>,
}

/// Why a request is not answered with a page that asks.
#[derive(Debug)]
pub enum NotAsked {
    /// Nobody knows where an answer may go: the person is told.
    Stay(OAuthError),
    /// The client is told, at this URL.
    Redirect(String),
}

/// An answer under way to the client.
pub(super) struct Answer<'a> {
    redirect_uri: &'a str,
    state: Option<&'a str>,
    issuer: &'a str,
}

impl Answer<'_> {
    /// The URL of the answer (RFC 6749, section 4.1.2; RFC 9207, section 2).
    pub(super) fn with(&self, pairs: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(pairs).extend_pairs(self.state.map(|state| ("state", state)));
        let query = query.append_pair("iss", self.issuer).finish();
        let (uri, sign) =
            (self.redirect_uri, if self.redirect_uri.contains('?') { '&' } else { '?' });
        format!("{uri}{sign}{query}")
    }

    fn error(&self, error: OAuthError) -> NotAsked {
        match error {
            OAuthError::Refused { code, description } => NotAsked::Redirect(
                self.with(&[("error", code.as_str()), ("error_description", &description)]),
            ),
            failed @ OAuthError::Failed(_) => NotAsked::Stay(failed),
        }
    }
}

impl OAuth {
    /// Reads an authorization request.
    ///
    /// # Errors
    /// [`NotAsked`].
    pub async fn authorization_request(
        &self,
        parameters: &Parameters,
    ) -> Result<AuthorizationRequest, NotAsked> {
        let (client, redirect_uri) = self.addressee(parameters).await.map_err(NotAsked::Stay)?;
        let state = parameters.get("state").filter(|_| !parameters.is_repeated("state"));
        let answer = Answer { redirect_uri: &redirect_uri, state, issuer: &self.issuer };
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
            Err(error) => Err(answer.error(error)),
        }
    }

    /// Who asks, and where the answer may go.
    async fn addressee(&self, parameters: &Parameters) -> Result<(Client, String), OAuthError> {
        for name in ["client_id", "redirect_uri"] {
            if parameters.is_repeated(name) {
                return Err(OAuthError::request(format!("{name} must not be repeated")));
            }
        }
        let client_id = parameters.get("client_id");
        let client_id = client_id.ok_or_else(|| OAuthError::request("there is no client_id"))?;
        let client = self.resolve_client(client_id).await?;
        let uri = match (parameters.get("redirect_uri"), client.redirect_uris.as_slice()) {
            (Some(given), known) => {
                let is_known = known.iter().any(|known| redirect_uri::is_same(known, given));
                is_known.then(|| given.to_owned())
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        };
        let uri = uri.ok_or_else(|| {
            OAuthError::request("the redirect_uri is none of those that the client has")
        })?;
        Ok((client, uri))
    }

    fn check_request(
        &self,
        client: &Client,
        parameters: &Parameters,
    ) -> Result<(Scope, Vec<String>, CodeChallenge, Prompt), OAuthError> {
        if let Some(fault) = parameters.fault() {
            return Err(OAuthError::request(fault));
        }
        for name in ["request", "request_uri"] {
            if parameters.get(name).is_some() {
                return Err(OAuthError::request(format!("{name} is not supported")));
            }
        }
        match parameters.get("response_type") {
            Some("code") => {}
            Some(_) => {
                let what = "response_type must be code";
                return Err(OAuthError::new(Code::UnsupportedResponseType, what));
            }
            None => return Err(OAuthError::request("there is no response_type")),
        }
        if parameters.get("response_mode").is_some_and(|mode| mode != "query") {
            return Err(OAuthError::request("response_mode must be query"));
        }
        if !client.may(GrantType::AuthorizationCode) {
            let what = "the client is not registered for authorization_code";
            return Err(OAuthError::new(Code::UnauthorizedClient, what));
        }
        if parameters.get("code_challenge_method") != Some("S256") {
            return Err(OAuthError::request("code_challenge_method must be S256"));
        }
        let challenge = parameters.get("code_challenge").and_then(CodeChallenge::parse);
        let challenge = challenge.ok_or_else(|| {
            OAuthError::request("code_challenge must be a SHA-256 in base64url (RFC 7636)")
        })?;
        let scope = client.scope_of(scope_of(parameters)?);
        let resources = self.resources_of(parameters)?;
        Ok((scope, resources, challenge, prompt_of(parameters)?))
    }

    /// The answer that tells the client of an error.
    #[must_use]
    pub fn error_answer(&self, request: &AuthorizationRequest, code: Code, why: &str) -> String {
        self.answer(request).with(&[("error", code.as_str()), ("error_description", why)])
    }

    pub(super) fn answer<'a>(&'a self, request: &'a AuthorizationRequest) -> Answer<'a> {
        Answer {
            redirect_uri: &request.redirect_uri,
            state: request.state.as_deref(),
            issuer: &self.issuer,
        }
    }

    /// Where the answer to a request would go, whatever else is wrong with it.
    pub async fn redirect_uri_of(&self, parameters: &Parameters) -> Option<String> {
        self.addressee(parameters).await.ok().map(|(_, uri)| uri)
    }
}

fn prompt_of(parameters: &Parameters) -> Result<Prompt, OAuthError> {
    let asked: Vec<_> = parameters.get("prompt").unwrap_or_default().split(' ').collect();
    let asks = |name: &str| asked.contains(&name);
    match asked.as_slice() {
        ["none"] => Ok(Prompt::None),
        _ if asks("none") => Err(OAuthError::request("prompt=none goes with nothing else")),
        _ if asks("login") || asks("select_account") => Ok(Prompt::Login),
        _ if asks("consent") => Ok(Prompt::Consent),
        _ => Ok(Prompt::Unsaid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_what_the_redirect_uri_has() {
        let answer = |redirect_uri, state| {
            Answer { redirect_uri, state, issuer: "https://a.example" }.with(&[("code", "x&y")])
        };
        let iss = "iss=https%3A%2F%2Fa.example";
        assert_eq!(
            answer("https://c.example/cb", None),
            format!("https://c.example/cb?code=x%26y&{iss}")
        );
        assert_eq!(
            answer("https://c.example/cb?a=b", Some("s t#")),
            format!("https://c.example/cb?a=b&code=x%26y&state=s+t%23&{iss}")
        );
        assert_eq!(
            answer("com.example.app:/cb", None),
            format!("com.example.app:/cb?code=x%26y&{iss}")
        );
    }

    #[test]
    fn prompts_are_read() {
        let of = |prompt: &str| {
            prompt_of(&Parameters::new(vec![("prompt".to_owned(), prompt.to_owned())])).ok()
        };
        assert_eq!(of(""), Some(Prompt::Unsaid));
        assert_eq!(of("create"), Some(Prompt::Unsaid));
        assert_eq!(of("none"), Some(Prompt::None));
        assert_eq!(of("none login"), None);
        assert_eq!(of("consent login"), Some(Prompt::Login));
        assert_eq!(of("select_account"), Some(Prompt::Login));
        assert_eq!(of("consent"), Some(Prompt::Consent));
    }
}
