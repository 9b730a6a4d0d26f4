use axum::http::{HeaderMap, header};

use crate::{
    auth::authenticate::Authenticated,
    http::{ApiError, App, error::Code},
};

/// Longer than any credential that was issued here.
const MAX_LEN: usize = 4096;

/// Who sends this request.
///
/// # Errors
/// Also where no credential is sent at all.
pub(super) async fn authenticate(
    app: &App,
    headers: &HeaderMap,
) -> Result<Authenticated, ApiError> {
    let credential = bearer(headers)?.ok_or_else(ApiError::no_credential)?;
    Ok(app.auth.authenticate(credential).await?)
}

/// The credential behind `Authorization: Bearer` (RFC 6750, section 2.1), the only place that one is
/// read from.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let message = "there must be one Authorization header";
        return Err(ApiError::new(Code::BadRequest, message));
    }
    let malformed = || {
        ApiError::new(Code::Unauthorized, "the Authorization header must be: Bearer <credential>")
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, credential) = text.split_once(' ').ok_or_else(malformed)?;
    let credential = credential.trim_matches(' ');
    let is_token = !credential.is_empty()
        && credential.len() <= MAX_LEN
        && credential.bytes().all(|byte| byte.is_ascii_graphic());
    if !scheme.eq_ignore_ascii_case("bearer") || !is_token {
        return Err(malformed());
    }
    Ok(Some(credential))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(values: &[&[u8]]) -> Result<Option<String>, Code> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        bearer(&headers).map(|found| found.map(str::to_owned)).map_err(|error| error.code())
    }

    #[test]
    fn the_scheme_is_read_without_case() {
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(read(&[value.as_bytes()]), Ok(Some("abc".to_owned())), "{value}");
        }
        assert_eq!(read(&[]), Ok(None));
    }

    #[test]
    fn other_headers_are_refused() {
        for value in ["", "Bearer", "Bearer ", "Basic abc", "abc", "Bearer a b", "Bearer\tabc"] {
            assert_eq!(read(&[value.as_bytes()]), Err(Code::Unauthorized), "{value}");
        }
        assert_eq!(read(&[b"Bearer \xff"]), Err(Code::Unauthorized));
        assert_eq!(
            read(&[format!("Bearer {}", "a".repeat(4097)).as_bytes()]),
            Err(Code::Unauthorized)
        );
        assert_eq!(read(&[b"Bearer a", b"Bearer a"]), Err(Code::BadRequest));
    }
}
