//! Form parameters and client authentication of requests to the OAuth endpoints.

use std::{borrow::Cow, sync::Arc};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use data_encoding::BASE64;
use percent_encoding::percent_decode_str;

use crate::{
    http::{App, error::EndpointError, extract},
    model::{audit::RequestInfo, oauth::parameters::Parameters},
    oauth::{
        ProtocolError,
        clients::{AuthenticatedClient, ClientCredentials, authentication::BasicCredentials},
    },
};

/// Maximum size of a form, in bytes: several times that of the longest valid one.
const MAX_FORM: usize = 16 * 1024;

/// A form that a client sent to an OAuth endpoint, with its credentials.
pub struct OAuthForm {
    /// The form parameters. They are well-formed, and only `resource` is repeated.
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
        let fields = extract::read_urlencoded_form(&parts.headers, body, app, MAX_FORM).await?;
        let parameters = Parameters::new(fields.into_pairs());
        let credentials = ClientCredentials::parse(basic, &parameters)?;
        Ok(Self { parameters, credentials })
    }
}

/// Reads the credentials of an `Authorization: Basic` header.
///
/// Both parts are form-encoded (RFC 6749, section 2.3.1). Encoding changes no character that our
/// client ids and secrets use, so clients that forget it work too.
fn basic_credentials(headers: &HeaderMap) -> Result<Option<BasicCredentials>, ProtocolError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let refuse = |why: &'static str| ProtocolError::invalid_client(why);
    let text = value.to_str().map_err(|_| refuse("the Authorization header is malformed"))?;
    let (scheme, encoded) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(refuse("authenticate the client with HTTP Basic or in the request body"));
    }
    let decoded = BASE64.decode(encoded.trim().as_bytes()).ok();
    let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let malformed = || refuse("the Authorization header is malformed");
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
        assert_eq!(read("Bearer abc"), Err(()));
        let without_header = basic_credentials(&HeaderMap::new()).map_err(|_| ());
        assert_eq!(without_header.unwrap().map(|_| ()), None);
    }
}
