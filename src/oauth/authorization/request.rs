//! The authorization request (OAuth 2.1, section 4.1.1).

use crate::{
    model::{
        oauth::{parameters::Parameters, pkce::CodeChallenge},
        scope::Scope,
    },
    oauth::{
        OAuthErrorCode, ProtocolError,
        request::{RequestedResources, requested_scope, required_parameter},
    },
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

/// An authorization request as a client sent it.
///
/// Errors of the parameters are sent to the redirect URI. They are kept here until the redirect URI
/// has been validated.
#[derive(Debug)]
pub struct AuthorizationRequest {
    pub(super) client_id: String,
    pub(super) redirect_uri: Option<String>,
    /// `None` also if the parameter is repeated: the response could contain only one of the values.
    pub(super) state: Option<String>,
    pub(super) login_hint: Option<String>,
    /// The error if the request is malformed, or needs a feature that this server does not have.
    pub(super) support: Result<(), ProtocolError>,
    pub(super) challenge: Result<CodeChallenge, ProtocolError>,
    pub(super) scope: Option<Scope>,
    pub(super) resources: RequestedResources,
    pub(super) prompt: Result<Prompt, ProtocolError>,
}

impl AuthorizationRequest {
    /// Parses an authorization request.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidRequest`] if the request does not name one client, or names several
    /// redirect URIs. This error must not be sent to a redirect URI.
    pub fn parse(parameters: &Parameters) -> Result<Self, ProtocolError> {
        for name in ["client_id", "redirect_uri"] {
            if parameters.is_repeated(name) {
                let message = format!("{name} must not be repeated");
                return Err(ProtocolError::invalid_request(message));
            }
        }
        let owned = |name| parameters.get(name).map(str::to_owned);
        Ok(Self {
            client_id: required_parameter(parameters, "client_id")?.to_owned(),
            redirect_uri: owned("redirect_uri"),
            state: owned("state").filter(|_| !parameters.is_repeated("state")),
            login_hint: owned("login_hint"),
            support: check_support(parameters),
            challenge: parse_challenge(parameters),
            scope: requested_scope(parameters),
            resources: RequestedResources::parse(parameters),
            prompt: parse_prompt(parameters),
        })
    }
}

fn check_support(parameters: &Parameters) -> Result<(), ProtocolError> {
    if let Some(fault) = parameters.validation_error() {
        return Err(ProtocolError::invalid_request(fault));
    }
    for name in ["request", "request_uri"] {
        if parameters.get(name).is_some() {
            return Err(ProtocolError::invalid_request(format!("{name} is not supported")));
        }
    }
    if required_parameter(parameters, "response_type")? != "code" {
        let message = "response_type must be code";
        return Err(ProtocolError::new(OAuthErrorCode::UnsupportedResponseType, message));
    }
    if parameters.get("response_mode").is_some_and(|mode| mode != "query") {
        return Err(ProtocolError::invalid_request("response_mode must be query"));
    }
    Ok(())
}

fn parse_challenge(parameters: &Parameters) -> Result<CodeChallenge, ProtocolError> {
    let refuse = |message: &'static str| Err(ProtocolError::invalid_request(message));
    let Some(challenge) = parameters.get("code_challenge") else {
        return refuse(
            "code_challenge is missing: PKCE (RFC 7636) with the method S256 is required",
        );
    };
    match parameters.get("code_challenge_method") {
        Some("S256") => {}
        Some(_) => return refuse("code_challenge_method must be S256"),
        None => return refuse("code_challenge_method is missing: it must be S256"),
    }
    match CodeChallenge::parse(challenge) {
        Some(challenge) => Ok(challenge),
        None => refuse("code_challenge must be a SHA-256 hash in base64url (RFC 7636)"),
    }
}

fn parse_prompt(parameters: &Parameters) -> Result<Prompt, ProtocolError> {
    let values: Vec<_> = parameters.get("prompt").unwrap_or_default().split(' ').collect();
    let has = |name: &str| values.contains(&name);
    match values.as_slice() {
        ["none"] => Ok(Prompt::None),
        _ if has("none") => {
            let message = "prompt=none cannot be combined with other values";
            Err(ProtocolError::invalid_request(message))
        }
        _ if has("login") || has("select_account") => Ok(Prompt::Login),
        _ if has("consent") => Ok(Prompt::Consent),
        _ => Ok(Prompt::Unspecified),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<AuthorizationRequest, ProtocolError> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        AuthorizationRequest::parse(&Parameters::new(pairs.collect()))
    }

    #[test]
    fn prompt_values_are_parsed_or_rejected() {
        let parse = |prompt: &str| parse(&[("client_id", "c"), ("prompt", prompt)]).unwrap().prompt;
        assert_eq!(parse(""), Ok(Prompt::Unspecified));
        assert_eq!(parse("create"), Ok(Prompt::Unspecified));
        assert_eq!(parse("none"), Ok(Prompt::None));
        assert!(parse("none login").is_err());
        assert_eq!(parse("consent login"), Ok(Prompt::Login));
        assert_eq!(parse("select_account"), Ok(Prompt::Login));
        assert_eq!(parse("consent"), Ok(Prompt::Consent));
    }

    #[test]
    fn only_errors_of_client_and_redirect_uri_are_reported_at_once() {
        assert!(parse(&[]).is_err());
        assert!(parse(&[("client_id", "c"), ("client_id", "c")]).is_err());
        let two = [("client_id", "c"), ("redirect_uri", "x:"), ("redirect_uri", "x:")];
        assert!(parse(&two).is_err());
        let request = parse(&[("client_id", "c"), ("state", "1"), ("state", "2")]).unwrap();
        assert_eq!(request.state, None);
        let message = "state must not be repeated".to_owned();
        assert_eq!(request.support, Err(ProtocolError::invalid_request(message)));
        assert!(request.challenge.is_err());
    }
}
