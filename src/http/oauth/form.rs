//! Parameters and client authentication of requests to the OAuth endpoints.

use std::{borrow::Cow, fmt, sync::Arc};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use crate::{
    http::{App, error::EndpointError, extract},
    model::{
        audit::RequestInfo,
        oauth::parameters::{Parameters, printable_name},
    },
    oauth::{
        ProtocolError,
        clients::{AuthenticatedClient, ClientCredentials, authentication::BasicCredentials},
    },
};

/// Maximum size of a body, in bytes: several times that of the longest valid one.
const MAX_BODY: usize = 16 * 1024;

/// The parameters that a client sent to an OAuth endpoint, with its credentials. The body is a
/// form; a JSON object is accepted, too, because many HTTP libraries send one by default.
pub struct OAuthForm {
    /// The parameters. They are well-formed, and only `resource` is repeated.
    pub parameters: Parameters,
    credentials: ClientCredentials,
}

impl OAuthForm {
    /// Authenticates the client.
    ///
    /// # Errors
    /// [`OAuthErrorCode::InvalidClient`](crate::oauth::OAuthErrorCode::InvalidClient) for an
    /// unknown client or wrong credentials.
    pub async fn authenticate_client(
        &self,
        app: &App,
        request: &Arc<RequestInfo>,
    ) -> Result<AuthenticatedClient, EndpointError> {
        Ok(app.oauth.clients.authenticate(&self.credentials, request).await?)
    }
}

impl FromRequest<App> for OAuthForm {
    type Rejection = EndpointError;

    async fn from_request(request: Request, app: &App) -> Result<Self, EndpointError> {
        let (parts, body) = request.into_parts();
        let basic = basic_credentials(&parts.headers)?;
        let pairs = if extract::has_media_type(&parts.headers, "application/json") {
            let body = extract::read_body_up_to(&parts.headers, body, app, MAX_BODY).await?;
            json_pairs(&body)?
        } else {
            extract::read_urlencoded_form(&parts.headers, body, app, MAX_BODY).await?.into_pairs()
        };
        let parameters = Parameters::new(pairs);
        let credentials = ClientCredentials::parse(basic, &parameters)?;
        Ok(Self { parameters, credentials })
    }
}

/// Reads the members of a JSON object as parameters. Those with the value `null` are absent, and an
/// array is a repeated parameter.
fn json_pairs(body: &[u8]) -> Result<Vec<(String, String)>, ProtocolError> {
    let malformed = |_| ProtocolError::invalid_request("the body must be a JSON object or a form");
    let JsonMembers(members) = serde_json::from_slice(body).map_err(malformed)?;
    let mut pairs = Vec::new();
    for (name, value) in members {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                Value::Null => {}
                Value::String(text) => pairs.push((name.clone(), text)),
                Value::Number(_) | Value::Bool(_) => pairs.push((name.clone(), value.to_string())),
                Value::Array(_) | Value::Object(_) => {
                    let name = printable_name(&name);
                    let message = format!("{name} must be a string");
                    return Err(ProtocolError::invalid_request(message));
                }
            }
        }
    }
    Ok(pairs)
}

/// The members of a JSON object, with repeated ones, which a map would drop.
struct JsonMembers(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for JsonMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = JsonMembers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonMembers, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(JsonMembers(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// Reads the credentials of an `Authorization: Basic` header. Another scheme is no client
/// authentication: some clients send their access token with every request.
///
/// Both parts are form-encoded (RFC 6749, section 2.3.1). Encoding changes no character that our
/// client ids and secrets use, so clients that forget it work too.
fn basic_credentials(headers: &HeaderMap) -> Result<Option<BasicCredentials>, ProtocolError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let malformed = || ProtocolError::invalid_client("the Authorization header is malformed");
    let scheme = value.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return Ok(None);
    }
    let encoded = value.as_bytes()[scheme.len()..].trim_ascii();
    let decoded = BASE64.decode(encoded).ok();
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or_else(malformed)?;
    let (id, secret) = decoded.split_once(':').ok_or_else(malformed)?;
    Ok(Some(BasicCredentials {
        client_id: form_decoded(id).into_owned(),
        secret: form_decoded(secret).into_owned().into(),
    }))
}

fn form_decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8().unwrap_or(Cow::Borrowed(text))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(value: &str) -> Result<Option<(String, String)>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        let credentials = basic_credentials(&headers).map_err(|_| ())?;
        Ok(credentials.map(|basic| (basic.client_id, basic.secret.expose_secret().to_owned())))
    }

    #[test]
    fn basic_credentials_encoded_or_plain_are_decoded() {
        let pair = |id: &str, secret: &str| Ok(Some((id.to_owned(), secret.to_owned())));
        let of = |text: &str| read(&format!("Basic {}", BASE64.encode(text.as_bytes())));
        assert_eq!(of("client_1:cs_a-b"), pair("client_1", "cs_a-b"));
        assert_eq!(of("client%5F1:cs%5Fa%2Db"), pair("client_1", "cs_a-b"));
        assert_eq!(of("a:b:c"), pair("a", "b:c"));
        assert_eq!(of("a:"), pair("a", ""));
        assert_eq!(of("a"), Err(()));
        assert_eq!(read("basic YTpi"), pair("a", "b"));
        assert_eq!(read("Basic !"), Err(()));
        assert_eq!(read("Basic"), Err(()));
        for other in ["Bearer abc", "Bearer YTpi", "Negotiate", "", "BasicYTpi"] {
            assert_eq!(read(other), Ok(None), "{other}");
        }
        let opaque =
            HeaderMap::from_iter([(header::AUTHORIZATION, [0xff].as_slice().try_into().unwrap())]);
        assert!(basic_credentials(&opaque).unwrap().is_none());
        let without_header = basic_credentials(&HeaderMap::new()).map_err(|_| ());
        assert_eq!(without_header.unwrap().map(|_| ()), None);
    }
}
