use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, error::Category};

use crate::http::{ApiError, App, error::Code};

/// A JSON body. An absent one counts as `{}`.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, app.settings.max_body_bytes).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        if !is_json(&parts.headers) {
            let message = "the body must be JSON, with Content-Type: application/json";
            return Err(ApiError::new(Code::UnsupportedMediaType, message));
        }
        parse(&bytes).map(Self)
    }
}

async fn read(headers: &HeaderMap, body: Body, max: usize) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(Code::PayloadTooLarge, format!("the body must be at most {max} bytes"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > max as u64) {
        return Err(too_large());
    }
    to_bytes(body, max).await.map_err(|error| {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            if error.is::<http_body_util::LengthLimitError>() {
                return too_large();
            }
            cause = error.source();
        }
        ApiError::new(Code::BadRequest, "the body could not be read")
    })
}

/// `application/json`, or a media type that is JSON by its suffix (RFC 6839).
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer);
    let value = parsed.map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    deserializer.end().map_err(|error| explain(".", &error))?;
    if bytes.windows(6).any(|window| window == b"\\u0000") {
        refuse_nul(bytes)?;
    }
    Ok(value)
}

/// What serde says about a body, in our words: its own may quote the value, which may be a secret.
fn explain(path: &str, error: &serde_json::Error) -> ApiError {
    if error.classify() != Category::Data {
        let (line, column) = (error.line(), error.column());
        let message = format!("the body is not valid JSON, at line {line} column {column}");
        return ApiError::new(Code::BadRequest, message);
    }
    let text = error.to_string();
    let quoted = |start: &str| {
        text.strip_prefix(start).and_then(|rest| rest.split('`').next()).map(str::to_owned)
    };
    let within = |field: String| if path == "." { field } else { format!("{path}.{field}") };
    if let Some(field) = quoted("missing field `") {
        let field = within(field);
        return ApiError::invalid(field.clone(), format!("{field} is required"));
    }
    if let Some(field) = quoted("unknown field `") {
        // The name is the client's own; a few characters of it are enough to find it.
        let field: String = field.chars().filter(|c| !c.is_control()).take(64).collect();
        return ApiError::invalid(field.clone(), format!("{field} is no field of this request"));
    }
    if let Some(field) = quoted("duplicate field `") {
        return ApiError::invalid(field.clone(), format!("{field} must not be repeated"));
    }
    let expected = text.split_once("expected ").map(|(_, expected)| expected);
    let expected = expected.and_then(|expected| expected.split(" at line ").next());
    match (path, expected) {
        (".", _) => ApiError::new(Code::ValidationFailed, "the body must be a JSON object"),
        (field, Some(expected)) => {
            ApiError::invalid(field.to_owned(), format!("{field} must be {}", plain(expected)))
        }
        // The text of one of our own types, which begins with what it must be.
        (field, None) => {
            let reason = text.split(" at line ").next().unwrap_or_default();
            ApiError::invalid(field.to_owned(), format!("{field} {reason}"))
        }
    }
}

/// serde's words for what a value must be, without Rust's names for it.
fn plain(expected: &str) -> String {
    match expected {
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        other => {
            other.replace('`', "").replace("u32", "a whole number").replace("i64", "a whole number")
        }
    }
}

/// PostgreSQL stores no NUL, in text as in JSON; and nobody needs one.
fn refuse_nul(bytes: &[u8]) -> Result<(), ApiError> {
    fn holds_nul(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains('\0'),
            Value::Array(items) => items.iter().any(holds_nul),
            Value::Object(fields) => {
                fields.iter().any(|(name, value)| name.contains('\0') || holds_nul(value))
            }
            _ => false,
        }
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|_| ApiError::new(Code::BadRequest, "the body is not valid JSON"))?;
    let Value::Object(fields) = &value else { return Ok(()) };
    for (name, value) in fields {
        if name.contains('\0') || holds_nul(value) {
            let name = name.replace('\0', "");
            return Err(ApiError::invalid(name.clone(), format!("{name} must not contain NUL")));
        }
    }
    Ok(())
}
