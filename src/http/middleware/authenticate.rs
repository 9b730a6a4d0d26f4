use std::time::Duration;

use axum::http::{HeaderMap, header};

use crate::{
    auth::authenticate::Authenticated,
    http::{ApiError, App, dashboard::browser::session_cookie, error::Code},
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
    began: Duration,
) -> Result<Authenticated, ApiError> {
    let credential = bearer(headers)?.ok_or_else(ApiError::no_credential)?;
    Ok(app.auth.authenticate(credential, began).await?)
}

/// Whose browser sends this request. Pages take no other credential, and the API takes no cookie: what one
/// site can make a browser send cannot be used on the other.
///
/// # Errors
/// Also where nobody is signed in.
pub(super) async fn authenticate_cookie(
    app: &App,
    headers: &HeaderMap,
) -> Result<Authenticated, ApiError> {
    let cookie = session_cookie(app, headers).ok_or_else(ApiError::no_credential)?;
    Ok(Authenticated::Principal(app.auth.authenticate_cookie(&cookie).await?))
}

/// Two `Authorization` headers are refused: nobody knows which one a proxy in between went by.
///
/// # Errors
/// Where there are two or more.
pub(super) fn check_count(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get_all(header::AUTHORIZATION).iter().count() > 1 {
        let message = "there must be one Authorization header";
        return Err(ApiError::new(Code::BadRequest, message));
    }
    Ok(())
}

/// The credential behind `Authorization: Bearer` (RFC 6750, section 2.1), the only place that one is
/// read from.
///
/// # Errors
/// Where there are two, or what is there cannot be a credential.
pub(in crate::http) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    check_count(headers)?;
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let malformed = || {
        ApiError::new(Code::Unauthorized, "the Authorization header must be: Bearer <credential>")
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, credential) = text.split_once(' ').unwrap_or((text, ""));
    let credential = credential.trim_matches(' ');
    // Another scheme is no credential of ours (RFC 6750, section 3.1), nor is an empty one.
    if !scheme.eq_ignore_ascii_case("bearer") || credential.is_empty() {
        return Ok(None);
    }
    let is_token =
        credential.len() <= MAX_LEN && credential.bytes().all(|byte| byte.is_ascii_graphic());
    if is_token { Ok(Some(credential)) } else { Err(malformed()) }
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
    fn other_headers_are_none_or_refused() {
        for value in ["", "Bearer", "Bearer ", "Basic abc", "abc", "Bearer\tabc"] {
            assert_eq!(read(&[value.as_bytes()]), Ok(None), "{value}");
        }
        assert_eq!(read(&[b"Bearer a b"]), Err(Code::Unauthorized));
        assert_eq!(read(&[b"Bearer \xff"]), Err(Code::Unauthorized));
        assert_eq!(
            read(&[format!("Bearer {}", "a".repeat(4097)).as_bytes()]),
            Err(Code::Unauthorized)
        );
        assert_eq!(read(&[b"Bearer a", b"Bearer a"]), Err(Code::BadRequest));
    }
}
