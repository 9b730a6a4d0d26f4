//! URLs of authorization requests: a long request is kept on the server, and its URL names it.

use std::net::IpAddr;

use super::{authorize::to_api_error, page::encode_query_value, paths::AUTHORIZE};
use crate::{
    http::{ApiError, App, error::ErrorCode, extract::Query},
    oauth::authorization::ValidatedRequest,
};

/// The parameter that names a kept request.
const KEPT_REQUEST: &str = "kept_request";

/// Maximum length of the query of a request in a URL, encoded once more, as the URL of the sign-in
/// page contains it. The default buffer of nginx for the headers of a response has 4 KiB.
const MAX_ENCODED_QUERY: usize = 1000;

/// Returns the path of an authorization request. If the request is long, the server keeps it.
///
/// # Errors
/// [`ErrorCode::Unavailable`] if the database is unavailable.
pub(super) async fn authorization_path(
    app: &App,
    query: &str,
    ip: IpAddr,
) -> Result<String, ApiError> {
    let is_long = encode_query_value(query).map(str::len).sum::<usize>() > MAX_ENCODED_QUERY;
    if is_long {
        let kept = app.oauth.authorization.keep_request(query, ip).await;
        if let Some(id) = kept.map_err(to_api_error)? {
            return Ok(format!("{AUTHORIZE}?{KEPT_REQUEST}={}", id.simple()));
        }
    }
    Ok(format!("{AUTHORIZE}?{query}"))
}

/// Returns the parameters of an authorization request: those of the kept one that they name, or the
/// parameters themselves.
///
/// # Errors
/// [`ErrorCode::BadRequest`] if the request is no longer kept.
pub(super) async fn expand_request(
    app: &App,
    pairs: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, ApiError> {
    let Some((_, id)) = pairs.iter().find(|(name, _)| name == KEPT_REQUEST) else {
        return Ok(pairs);
    };
    let kept = match id.parse() {
        Ok(id) => app.oauth.authorization.kept_request(id).await.map_err(to_api_error)?,
        Err(_) => None,
    };
    kept.as_deref().and_then(Query::parse).map(Query::into_pairs).ok_or_else(|| {
        let message = "This request has expired. Go back to the app and start again.";
        ApiError::new(ErrorCode::BadRequest, message)
    })
}

/// Returns the URL of a sign-in that leads back to this request.
///
/// With `again`, a signed-in user must sign in once more. The request then no longer has
/// `prompt=login`, which would ask for another sign-in.
pub(super) async fn sign_in_path(
    app: &App,
    request: &ValidatedRequest,
    query: &str,
    ip: IpAddr,
    again: bool,
) -> Result<String, ApiError> {
    let mut pairs = Query::parse(query).map(Query::into_pairs).unwrap_or_default();
    if again {
        // `prompt=login consent` still requires consent.
        for (_, value) in pairs.iter_mut().filter(|(name, _)| name == "prompt") {
            let is_consent = value.split(' ').any(|prompt| prompt == "consent");
            if is_consent { "consent" } else { "" }.clone_into(value);
        }
        pairs.retain(|(name, value)| name != "prompt" || !value.is_empty());
    }
    let next = authorization_path(app, &query_of(&pairs), ip).await?;
    let mut path = format!("/sign-in?next={}", encode_query_value(&next));
    // A longer hint is no email address.
    if let Some(hint) = request.login_hint.as_deref().filter(|hint| hint.len() <= 254) {
        path.push_str("&email=");
        path.extend(encode_query_value(hint));
    }
    if again {
        path.push_str("&again=1");
    }
    Ok(path)
}

/// Encodes the parameters of an authorization request as a query.
pub(super) fn query_of(pairs: &[(String, String)]) -> String {
    let pair = |(name, value): &(String, String)| {
        format!("{}={}", encode_query_value(name), encode_query_value(value))
    };
    pairs.iter().map(pair).collect::<Vec<_>>().join("&")
}
