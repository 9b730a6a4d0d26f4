use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequest, Multipart, Request},
    http::{HeaderMap, header, request::Parts},
};
use tokio::time::timeout;

use super::Query;
use crate::http::{ApiError, App, error::ErrorCode, large_body::SlowBody};

/// Reads a request body of any content type, up to `server.max_body_bytes`, within the body
/// timeout.
///
/// # Errors
/// [`ErrorCode::PayloadTooLarge`] if it is too large, [`ErrorCode::UnsupportedMediaType`] if it is
/// compressed, [`ErrorCode::BadRequest`] if it does not arrive in time or the connection fails.
pub async fn read_body(headers: &HeaderMap, body: Body, app: &App) -> Result<Bytes, ApiError> {
    read_body_up_to(headers, body, app, app.settings.max_body_bytes).await
}

/// Reads a request body as [`read_body`], up to `max` bytes.
///
/// # Errors
/// As [`read_body`].
pub async fn read_body_up_to(
    headers: &HeaderMap,
    body: Body,
    app: &App,
    max: usize,
) -> Result<Bytes, ApiError> {
    let max = max.min(app.settings.max_body_bytes);
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let message = "the body must not be compressed";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    let too_large = || {
        ApiError::new(ErrorCode::PayloadTooLarge, format!("the body must be at most {max} bytes"))
    };
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let declared = declared.and_then(|length| length.parse::<usize>().ok());
    if declared.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let read = timeout(app.settings.body_timeout, to_bytes(body, max)).await;
    let too_slow = || ApiError::new(ErrorCode::BadRequest, "the body took too long to arrive");
    let Ok(read) = read else { return Err(too_slow()) };
    read.map_err(|error| {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            if error.is::<SlowBody>() {
                return too_slow();
            }
            if error.is::<http_body_util::LengthLimitError>() {
                return too_large();
            }
            cause = error.source();
        }
        ApiError::new(ErrorCode::BadRequest, "the body could not be read")
    })
}

/// Maximum number of text fields in a multipart form.
const MAX_FIELDS: usize = 50;

/// Reads a multipart form (RFC 7578): its text fields, and its file if the user chose one.
///
/// # Errors
/// As [`read_body`]; [`ErrorCode::UnsupportedMediaType`] if the body is not `multipart/form-data`,
/// [`ErrorCode::BadRequest`] if it is malformed or has two files.
pub async fn read_multipart_form(
    parts: Parts,
    body: Body,
    app: &App,
) -> Result<(Query, Option<Bytes>), ApiError> {
    let bytes = read_body(&parts.headers, body, app).await?;
    let malformed = || ApiError::new(ErrorCode::BadRequest, "the form is malformed");
    let request = Request::from_parts(parts, Body::from(bytes));
    let form = Multipart::from_request(request, app).await;
    let mut form = form.map_err(|_| {
        ApiError::new(ErrorCode::UnsupportedMediaType, "the body must be multipart/form-data")
    })?;
    let (mut fields, mut file) = (Vec::new(), None);
    while let Some(field) = form.next_field().await.map_err(|_| malformed())? {
        let name = field.name().unwrap_or_default().to_owned();
        if field.file_name().is_some() {
            let bytes = field.bytes().await.map_err(|_| malformed())?;
            // If no file was chosen, browsers send an empty one without a name.
            if !bytes.is_empty() && file.replace(bytes).is_some() {
                return Err(malformed());
            }
        } else {
            fields.push((name, field.text().await.map_err(|_| malformed())?));
        }
        if fields.len() > MAX_FIELDS {
            return Err(malformed());
        }
    }
    Ok((Query::from_pairs(fields), file))
}

/// True if the body has this media type, whatever its parameters.
#[must_use]
pub fn has_media_type(headers: &HeaderMap, media_type: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|text| text.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case(media_type)
}

/// Reads an HTML form of up to `max` bytes, which is encoded like a query string.
///
/// # Errors
/// As [`read_body`]; [`ErrorCode::UnsupportedMediaType`] if the body is not
/// `application/x-www-form-urlencoded`, [`ErrorCode::BadRequest`] if it is malformed.
pub async fn read_urlencoded_form(
    headers: &HeaderMap,
    body: Body,
    app: &App,
    max: usize,
) -> Result<Query, ApiError> {
    let bytes = read_body_up_to(headers, body, app, max).await?;
    if !has_media_type(headers, "application/x-www-form-urlencoded") {
        return Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "the body must be application/x-www-form-urlencoded",
        ));
    }
    let text = std::str::from_utf8(&bytes).ok().and_then(Query::parse);
    text.ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "the form is malformed"))
}
