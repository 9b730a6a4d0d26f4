use std::fmt;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderName, header},
};
use secrecy::SecretString;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use super::body::read_body;
use crate::{
    http::{ApiError, App, error::ErrorCode},
    idempotency::IdempotentRequest,
};

/// A JSON body. An empty body counts as `{}`.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = json_bytes(&parts.headers, body, app).await?;
        parse(&bytes).map(Self)
    }
}

/// The JSON body of a request that creates something, with its idempotency key.
pub struct IdempotentJson<T> {
    /// The parsed body.
    pub body: T,
    /// Identifies a retry: the `Idempotency-Key` header, if any, and the body.
    pub attempt: IdempotentRequest,
}

impl<T: DeserializeOwned> FromRequest<App> for IdempotentJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = json_bytes(&parts.headers, body, app).await?;
        let attempt = IdempotentRequest::new(idempotency_key(&parts.headers)?, &bytes);
        Ok(Self { body: parse(&bytes)?, attempt })
    }
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

fn idempotency_key(headers: &HeaderMap) -> Result<Option<SecretString>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| {
        (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.into())),
        _ => Err(ApiError::invalid(
            "Idempotency-Key",
            "Idempotency-Key must be sent once and have 1 to 255 visible ASCII characters",
        )),
    }
}

/// Reads a body with a JSON content type; an empty body counts as `{}`.
async fn json_bytes(headers: &HeaderMap, body: Body, app: &App) -> Result<Bytes, ApiError> {
    let bytes = read_body(headers, body, app).await?;
    if bytes.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    if !is_json(headers) {
        let message = "the body must be JSON, with Content-Type: application/json";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    Ok(bytes)
}

/// True for `application/json` and for media types with the suffix `+json` (RFC 6839).
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|text| text.split(';').next()).unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // `T` may keep parts of the body as raw text, which serde does not check: check all of it
    // first.
    parse_as::<Storable>(bytes)?;
    parse_as(bytes)
}

fn parse_as<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer);
    let value = parsed.map_err(|error| {
        // Report the field, not the item of its list.
        let path = error.path().to_string();
        explain(&safe_field_name(path.split('[').next().unwrap_or_default()), error.inner())
    })?;
    deserializer.end().map_err(|error| explain(".", &error))?;
    Ok(value)
}

/// Translates an error of serde: its own text may quote the value, which may be a secret.
fn explain(path: &str, error: &serde_json::Error) -> ApiError {
    if error.classify() != Category::Data {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let problem = match text.as_str() {
            text if text.starts_with("number out of range") => "has a number out of range",
            text if text.starts_with("recursion limit") => "is nested too deeply",
            _ => "is not valid JSON",
        };
        let message = format!("the body {problem}, at line {line} column {column}");
        return ApiError::new(ErrorCode::BadRequest, message);
    }
    let text = error.to_string();
    let quoted = |start: &str| {
        text.strip_prefix(start).and_then(|rest| rest.split('`').next()).map(str::to_owned)
    };
    let qualified = |field: String| if path == "." { field } else { format!("{path}.{field}") };
    if let Some(field) = quoted("missing field `") {
        let field = qualified(field);
        return ApiError::invalid(field.clone(), format!("{field} is required"));
    }
    if let Some(field) = quoted("unknown field `") {
        let field = safe_field_name(&field);
        return ApiError::invalid(field.clone(), format!("{field} is not a field of this request"));
    }
    if let Some(field) = quoted("duplicate field `") {
        return ApiError::invalid(field.clone(), format!("{field} must not be repeated"));
    }
    // Search from the end: the value before it may contain the same words.
    let expected = text.rsplit_once(", expected ").map(|(_, expected)| expected);
    let expected = expected.and_then(|expected| expected.split(" at line ").next());
    match (path, expected) {
        (".", _) => ApiError::new(ErrorCode::ValidationFailed, "the body must be a JSON object"),
        (field, Some(expected)) => ApiError::invalid(
            field.to_owned(),
            format!("{field} must be {}", without_rust_types(expected)),
        ),
        // The error of one of the crate's own types, which starts with "must".
        (field, None) => {
            let reason = text.split(" at line ").next().unwrap_or_default();
            ApiError::invalid(field.to_owned(), format!("{field} {reason}"))
        }
    }
}

/// A field's name, safe to repeat in an error: shortened, and redacted if it contains a credential.
/// The client chooses it, so it may be long or a secret.
pub(super) fn safe_field_name(field: &str) -> String {
    let short: String = field.chars().filter(|c| !c.is_control()).take(64).collect();
    if short.contains("call2me_") || short.contains("eyJ") {
        "[redacted]".to_owned()
    } else {
        short
    }
}

/// Replaces the Rust type names in serde's description of the expected value.
fn without_rust_types(expected: &str) -> String {
    match expected {
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        other => {
            other.replace('`', "").replace("u32", "a whole number").replace("i64", "a whole number")
        }
    }
}

/// Any JSON value that PostgreSQL can store: no NUL in strings or names, no lone surrogates, no
/// nesting beyond the recursion limit.
struct Storable;

impl<'de> serde::Deserialize<'de> for Storable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Storable {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self, E> {
        if text.contains('\0') { Err(E::custom("must not contain NUL")) } else { Ok(self) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        while fields.next_key::<Self>()?.is_some() {
            fields.next_value::<Self>()?;
        }
        Ok(self)
    }
}
