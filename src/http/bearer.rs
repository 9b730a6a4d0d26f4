//! The bearer credential of a request.

use axum::http::{HeaderMap, header};

use super::{ApiError, error::ErrorCode};

/// Maximum length of a credential, in bytes; longer than any that this service issues.
const MAX_LEN: usize = 4096;

/// Rejects repeated `Authorization` headers: a proxy may have checked another one than this service
/// would.
///
/// # Errors
/// [`ErrorCode::BadRequest`] if there are two or more.
pub(super) fn check_single_authorization(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get_all(header::AUTHORIZATION).iter().count() > 1 {
        let message = "send exactly one Authorization header";
        return Err(ApiError::new(ErrorCode::BadRequest, message));
    }
    Ok(())
}

/// Reads the credential from `Authorization: Bearer` (RFC 6750, section 2.1).
///
/// This is the only place of a request that a bearer credential is accepted from. `None` if the
/// header is absent, has another scheme or is empty.
///
/// # Errors
/// [`ErrorCode::BadRequest`] if the header is repeated, [`ErrorCode::Unauthorized`] if its value
/// cannot be a credential.
pub(super) fn bearer_credential(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    check_single_authorization(headers)?;
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let malformed = || {
        ApiError::new(
            ErrorCode::Unauthorized,
            "the Authorization header must have the form: Bearer <credential>",
        )
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, credential) = text.split_once(' ').unwrap_or((text, ""));
    let credential = credential.trim_matches(' ');
    // Another scheme, or an empty credential, counts as no credential (RFC 6750, section 3.1).
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

    fn read_bearer(values: &[&[u8]]) -> Result<Option<String>, ErrorCode> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        bearer_credential(&headers)
            .map(|credential| credential.map(str::to_owned))
            .map_err(|error| error.code())
    }

    #[test]
    fn bearer_scheme_in_any_case_is_accepted() {
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(read_bearer(&[value.as_bytes()]), Ok(Some("abc".to_owned())), "{value}");
        }
        assert_eq!(read_bearer(&[]), Ok(None));
    }

    #[test]
    fn malformed_authorization_is_ignored_or_rejected() {
        for value in ["", "Bearer", "Bearer ", "Basic abc", "abc", "Bearer\tabc"] {
            assert_eq!(read_bearer(&[value.as_bytes()]), Ok(None), "{value}");
        }
        assert_eq!(read_bearer(&[b"Bearer a b"]), Err(ErrorCode::Unauthorized));
        assert_eq!(read_bearer(&[b"Bearer \xff"]), Err(ErrorCode::Unauthorized));
        assert_eq!(
            read_bearer(&[format!("Bearer {}", "a".repeat(4097)).as_bytes()]),
            Err(ErrorCode::Unauthorized)
        );
        assert_eq!(read_bearer(&[b"Bearer a", b"Bearer a"]), Err(ErrorCode::BadRequest));
    }
}
