//! Parameters that several requests of clients have in common.

use super::{OAuthError, OAuthErrorCode};
use crate::model::{
    oauth::{
        parameters::{Parameters, RESOURCE},
        resource::ProtectedResources,
    },
    scope::Scope,
};

/// Returns a required parameter, or `invalid_request` if it is missing.
pub(super) fn required_parameter<'a>(
    parameters: &'a Parameters,
    name: &'static str,
) -> Result<&'a str, OAuthError> {
    parameters.get(name).ok_or_else(|| OAuthError::invalid_request(format!("{name} is missing")))
}

/// Returns the highest known scope that a request names, or `None` without a `scope` parameter.
/// Unknown scopes such as `offline_access` are ignored.
///
/// # Errors
/// [`OAuthErrorCode::InvalidScope`] if the request names only unknown scopes.
pub(super) fn requested_scope(parameters: &Parameters) -> Result<Option<Scope>, OAuthError> {
    let Some(requested) = parameters.get("scope") else { return Ok(None) };
    let known = Scope::from_oauth_scope(requested);
    let unknown = || {
        let names = Scope::ALL.map(Scope::oauth_name).join(", ");
        OAuthError::new(
            OAuthErrorCode::InvalidScope,
            format!("none of the requested scopes is known; supported scopes: {names}"),
        )
    };
    known.ok_or_else(unknown).map(Some)
}

/// Returns the resources that a request names, in the form that tokens use (RFC 8707). Without a
/// `resource` parameter this is the service's own API.
///
/// # Errors
/// [`OAuthErrorCode::InvalidTarget`] for a resource that is not configured.
pub(super) fn requested_resources(
    parameters: &Parameters,
    resources: &ProtectedResources,
) -> Result<Vec<String>, OAuthError> {
    let mut named: Vec<String> = Vec::new();
    for requested in parameters.all(RESOURCE) {
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

/// Creates the error for a resource for which the client gets no tokens.
pub(super) fn unknown_resource() -> OAuthError {
    OAuthError::new(
        OAuthErrorCode::InvalidTarget,
        "this server does not issue tokens for this resource",
    )
}
