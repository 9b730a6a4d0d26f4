use std::{borrow::Cow, sync::Arc};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use data_encoding::BASE64;
use percent_encoding::percent_decode_str;

use crate::{
    http::{App, error::OAuthRefusal, extract},
    model::{
        audit::RequestInfo,
        oauth::{client::Client, parameters::Parameters},
    },
    oauth::{Code, clients::BasicCredentials},
};

/// What a client sends to the token endpoint and the like.
pub struct OAuthForm {
    /// The fields.
    pub parameters: Parameters,
    /// Who it says it is, in the header.
    pub basic: Option<BasicCredentials>,
}

impl OAuthForm {
    /// The client that sends it, once it has shown who it is.
    ///
    /// # Errors
    /// As RFC 6749, section 5.2 says.
    pub async fn client(
        &self,
        app: &App,
        request: &Arc<RequestInfo>,
    ) -> Result<Client, OAuthRefusal> {
        let (basic, parameters) = (self.basic.as_ref(), &self.parameters);
        Ok(app.oauth.authenticate_client(basic, parameters, request).await?)
    }
}

impl FromRequest<App> for OAuthForm {
    type Rejection = OAuthRefusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, OAuthRefusal> {
        let (parts, body) = request.into_parts();
        let basic = basic(&parts.headers)?;
        let fields = extract::form_fields(&parts.headers, body, app).await?;
        Ok(Self { parameters: Parameters::new(fields.into_pairs()), basic })
    }
}

/// The credentials of `Authorization: Basic`, where that is what there is. Both halves are form-encoded (RFC 6749,
/// section 2.3.1); ours have no letters that this would change, so that clients who forget it get in too.
fn basic(headers: &HeaderMap) -> Result<Option<BasicCredentials>, OAuthRefusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let refuse = |why: &str| OAuthRefusal::Told(Code::InvalidClient, why.to_owned());
    let text = value.to_str().map_err(|_| refuse("the Authorization header is malformed"))?;
    let (scheme, encoded) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(refuse("a client shows who it is by Basic, or in the body"));
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
        let read = basic(&headers).map_err(|_| ())?;
        Ok(read.map(|basic| (basic.client_id, basic.secret.expose_secret().to_owned())))
    }

    #[test]
    fn both_halves_are_read_encoded_and_plain() {
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
        assert_eq!(basic(&HeaderMap::new()).map_err(|_| ()).unwrap().map(|_| ()), None);
    }
}
