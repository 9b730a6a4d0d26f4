//! Parameters that several kinds of requests have in common.
//!
//! Each kind of request has a type in the module of its service. Handlers parse it once; services
//! take only the typed request. An error that must not be reported before another check, such as
//! an unknown resource, is a value of the type.

use secrecy::SecretString;

use super::{OAuthErrorCode, ProtocolError};
use crate::model::{
    id::GrantId,
    oauth::{
        client::{Client, GrantType},
        parameters::{Parameters, RESOURCE},
        resource::ProtectedResources,
    },
    refresh_token::PresentedToken,
    scope::Scope,
};

/// Returns a required parameter, or `invalid_request` if it is missing.
pub(super) fn required_parameter<'a>(
    parameters: &'a Parameters,
    name: &'static str,
) -> Result<&'a str, ProtocolError> {
    let value = parameters.get(name);
    value.ok_or_else(|| ProtocolError::invalid_request(format!("{name} is missing")))
}

/// Checks that a client is registered for a grant type.
///
/// # Errors
/// [`OAuthErrorCode::UnauthorizedClient`] if it is not.
pub(super) fn require_grant_type(client: &Client, grant: GrantType) -> Result<(), ProtocolError> {
    if client.allows_grant_type(grant) {
        return Ok(());
    }
    let message = format!("the client is not registered for {}", grant.as_str());
    Err(ProtocolError::new(OAuthErrorCode::UnauthorizedClient, message))
}

/// The `token` parameter of a revocation or introspection request. `token_type_hint` is ignored,
/// because the type is evident from the token.
#[derive(Debug)]
pub(super) enum TokenParameter {
    Refresh(PresentedToken<GrantId>),
    /// The token can only be an access token.
    Access(SecretString),
}

impl TokenParameter {
    /// Recognizes the type of a token. Does not verify it.
    pub(super) fn parse(token: &str) -> Self {
        match PresentedToken::parse(token) {
            Some(refresh_token) => Self::Refresh(refresh_token),
            None => Self::Access(token.into()),
        }
    }
}

/// Returns the highest known scope of the `scope` parameter (RFC 6749, section 3.3). Other scopes,
/// such as `offline_access`, are ignored. `None` if the request names no known one: the default
/// applies.
pub(super) fn requested_scope(parameters: &Parameters) -> Option<Scope> {
    parameters.get("scope").and_then(Scope::from_oauth_scope)
}

/// The `resource` parameters of a request (RFC 8707), as the client sent them.
#[derive(Debug, Clone)]
pub(super) struct RequestedResources(Vec<String>);

impl RequestedResources {
    /// Reads the `resource` parameters.
    pub(super) fn parse(parameters: &Parameters) -> Self {
        Self(parameters.all(RESOURCE).map(str::to_owned).collect())
    }

    /// Returns the requested resources, each once and in the form that tokens use. If the request
    /// names none, this is the service's own API.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidTarget`] for a resource that is not configured.
    pub(super) fn resolve(
        &self,
        resources: &ProtectedResources,
    ) -> Result<Vec<String>, ProtocolError> {
        let mut named: Vec<String> = Vec::new();
        for requested in &self.0 {
            let known = resources.find(requested).ok_or_else(unknown_resource)?;
            if !named.iter().any(|named| named == known) {
                named.push(known.to_owned());
            }
        }
        if named.is_empty() {
            named.push(resources.own_api().to_owned());
        }
        Ok(named)
    }

    /// Returns the requested resources, which must be a subset of the granted ones. If the request
    /// names none, these are all granted resources.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidTarget`] for a resource that is not configured or not granted.
    pub(super) fn narrow(
        &self,
        granted: &[String],
        resources: &ProtectedResources,
    ) -> Result<Vec<String>, ProtocolError> {
        if self.0.is_empty() {
            return Ok(granted.to_vec());
        }
        let named = self.resolve(resources)?;
        if named.iter().all(|named| granted.contains(named)) {
            Ok(named)
        } else {
            Err(unknown_resource())
        }
    }
}

fn unknown_resource() -> ProtocolError {
    ProtocolError::new(
        OAuthErrorCode::InvalidTarget,
        "this server does not issue tokens for this resource",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> Parameters {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Parameters::new(pairs.collect())
    }

    #[test]
    fn unknown_scopes_are_ignored() {
        let parse = |scope| requested_scope(&parameters(&[("scope", scope)]));
        for (value, scope) in [
            ("", None),
            ("offline_access", None),
            ("CALL2ME:READ", None),
            ("offline_access call2me:read call2me:write", Some(Scope::Write)),
            ("call2me:read,call2me:write", Some(Scope::Write)),
            ("email, call2me:read,", Some(Scope::ReadOnly)),
        ] {
            assert_eq!(parse(value), scope, "{value}");
        }
    }

    #[test]
    fn resources_are_resolved_once_each_and_narrowed_to_granted_ones() {
        let (own, mcp) = ("https://auth.example".to_owned(), "https://mcp.example".to_owned());
        let known = ProtectedResources::new(&own, std::slice::from_ref(&mcp));
        let parse = |values: &[&str]| {
            let pairs: Vec<_> = values.iter().map(|value| (RESOURCE, *value)).collect();
            RequestedResources::parse(&parameters(&pairs))
        };
        let twice = parse(&["https://mcp.example/", "https://mcp.example"]);
        assert_eq!(twice.resolve(&known).unwrap(), std::slice::from_ref(&mcp));
        assert_eq!(parse(&[]).resolve(&known).unwrap(), std::slice::from_ref(&own));
        let granted = [own.clone(), mcp.clone()];
        assert_eq!(parse(&[]).narrow(&granted, &known).unwrap(), granted);
        assert_eq!(twice.narrow(&granted, &known).unwrap(), [mcp]);
        for refused in [twice.narrow(&[own], &known), parse(&["https://x.example"]).resolve(&known)]
        {
            assert_eq!(refused.unwrap_err().code, OAuthErrorCode::InvalidTarget);
        }
    }
}
