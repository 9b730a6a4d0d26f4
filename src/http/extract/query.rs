use std::{fmt, str::FromStr, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{Uri, request::Parts},
};
use percent_encoding::percent_decode_str;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use super::json::safe_field_name;
use crate::{
    http::{ApiError, error::ErrorCode},
    model::page::{DEFAULT_LIMIT, MAX_LIMIT, MAX_OFFSET, PageRequest, decode_cursor},
};

/// The parameters of a query string or form. Handlers read those that they know. For others, see
/// [`AcceptedParameters`].
pub struct Query(Vec<(String, String)>);

/// The query parameters that a route accepts.
#[derive(Debug, Clone)]
pub enum AcceptedParameters {
    /// Any. Those that the handler does not read are ignored.
    Any,
    /// Those with these names. Others are rejected: a misspelled condition, such as `if_quite`,
    /// must not make a change unconditional.
    Only(Arc<[String]>),
}

impl AcceptedParameters {
    /// Checks the names in the query string of a URI. One that is malformed passes, because
    /// [`Query::from_uri`] reports it.
    ///
    /// # Errors
    /// [`ApiError::invalid`] for the first parameter that is not accepted.
    pub(in crate::http) fn check(&self, uri: &Uri) -> Result<(), ApiError> {
        let (Self::Only(names), Some(query)) = (self, uri.query()) else { return Ok(()) };
        let query = Query::parse(query).unwrap_or(Query(Vec::new()));
        match query.pairs().find(|(name, _)| !names.iter().any(|known| known == name)) {
            None => Ok(()),
            Some((name, _)) => {
                let name = safe_field_name(name);
                let message = format!("{name} is not a query parameter of this request");
                Err(ApiError::invalid(name, message))
            }
        }
    }
}

impl fmt::Debug for Query {
    /// Prints only the names: values may be codes or passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::from_uri(&parts.uri)
    }
}

impl Query {
    /// Parses the query string of a URI.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] if it is malformed.
    pub(super) fn from_uri(uri: &Uri) -> Result<Self, ApiError> {
        Self::parse(uri.query().unwrap_or_default())
            .ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "the query string is malformed"))
    }

    /// Parses the text of a query string or form; `None` if it is malformed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    /// Wraps names and values from another source, such as a multipart form.
    pub(super) fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// Returns the names and values, in order.
    #[must_use]
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }

    /// Normalizes the values of an HTML form: trims them, drops empty ones, and reads `since` and
    /// `until` of `datetime-local` inputs, which have neither seconds nor a zone, as UTC.
    #[must_use]
    pub fn normalize_form_values(self) -> Self {
        let filled = self.0.into_iter().filter(|(_, value)| !value.trim().is_empty());
        let pair = |(name, value): (String, String)| {
            let is_local =
                ["since", "until"].contains(&&*name) && value.len() == "2026-01-31T12:00".len();
            (name, if is_local { format!("{value}:00Z") } else { value.trim().to_owned() })
        };
        Self(filled.map(pair).collect())
    }

    /// Adds a parameter unless it is already there.
    #[must_use]
    pub fn with_default(mut self, name: &str, value: &str) -> Self {
        if !self.0.iter().any(|(known, _)| known == name) {
            self.0.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Iterates over the names and values, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Returns a parameter's value; `None` if it is absent.
    ///
    /// # Errors
    /// [`ApiError::invalid`] if it is repeated or contains NUL.
    pub fn text(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        let value = values.next().map(String::as_str);
        if values.next().is_some() {
            return Err(ApiError::invalid(name, format!("{name} must not be repeated")));
        }
        if value.is_some_and(|value| value.contains('\0')) {
            return Err(ApiError::invalid(name, format!("{name} must not contain NUL")));
        }
        Ok(value)
    }

    /// Parses a parameter; `None` if it is absent. `what` completes the message "`name` must be …".
    ///
    /// # Errors
    /// [`ApiError::invalid`] if it cannot be parsed, is repeated or contains NUL.
    pub fn parse_as<T: FromStr>(
        &self,
        name: &'static str,
        what: &str,
    ) -> Result<Option<T>, ApiError> {
        let parse = |text: &str| {
            text.parse().map_err(|_| ApiError::invalid(name, format!("{name} must be {what}")))
        };
        self.text(name)?.map(parse).transpose()
    }

    /// Parses an RFC 3339 timestamp, in UTC; `None` if it is absent. A time before 1970 becomes
    /// 1970.
    ///
    /// # Errors
    /// [`ApiError::invalid`] if it cannot be parsed, is repeated or contains NUL.
    pub fn timestamp(&self, name: &'static str) -> Result<Option<OffsetDateTime>, ApiError> {
        let parse = |text: &str| {
            // An unencoded plus sign arrives as a space.
            OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339)
                .ok()
                .and_then(|time| time.checked_to_offset(UtcOffset::UTC))
                // No data is older than 1970, and UUIDv7 ids cannot represent an earlier time.
                .map(|time| time.max(OffsetDateTime::UNIX_EPOCH))
                .ok_or_else(|| {
                    ApiError::invalid(
                        name,
                        format!(
                            "{name} must be an RFC 3339 timestamp such as 2026-01-31T12:00:00Z"
                        ),
                    )
                })
        };
        self.text(name)?.map(parse).transpose()
    }

    /// Reads the page of a list as [`Self::page`], but with a fixed number of items.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub fn page_with_limit(&self, limit: i64) -> Result<PageRequest, ApiError> {
        Ok(PageRequest { limit, ..self.page()? })
    }

    /// Reads the page of a list from `limit`, `cursor` and `offset`.
    ///
    /// # Errors
    /// [`ApiError::invalid`] if one of them is invalid, or `cursor` and `offset` are combined.
    pub fn page(&self) -> Result<PageRequest, ApiError> {
        let limit = self.parse_as::<i64>("limit", "a whole number from 1 to 100")?;
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::invalid("limit", "limit must be a whole number from 1 to 100"));
        }
        let what = format!("a whole number from 0 to {MAX_OFFSET}; use cursor to go further");
        let offset = self.parse_as::<u32>("offset", &what)?;
        if offset.is_some_and(|offset| offset > MAX_OFFSET) {
            return Err(ApiError::invalid("offset", format!("offset must be {what}")));
        }
        let before = self.text("cursor")?.map(decode_cursor).transpose();
        let before = before.map_err(|error| ApiError::invalid_parameter("cursor", error))?;
        if before.is_some() && offset.is_some() {
            return Err(ApiError::invalid("offset", "offset cannot be combined with cursor"));
        }
        Ok(PageRequest { limit, before, offset: i64::from(offset.unwrap_or(0)) })
    }
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_escape = |at: usize| {
        bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    if !bytes.iter().enumerate().all(|(at, byte)| *byte != b'%' || is_escape(at)) {
        return None;
    }
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_percent_decoded() {
        let query = Query::parse("a=1%202&b=x+y&c&a%26=%C3%A9").unwrap();
        assert_eq!(query.text("a").unwrap(), Some("1 2"));
        assert_eq!(query.text("b").unwrap(), Some("x y"));
        assert_eq!(query.text("c").unwrap(), Some(""));
        assert_eq!(query.text("d").unwrap(), None);
        assert_eq!(query.text("a&").unwrap(), Some("é"));
    }

    #[test]
    fn malformed_or_repeated_parameters_are_rejected() {
        for text in ["a=%", "a=%2", "a=%zz", "%ff=1", "a=%c3"] {
            assert!(Query::parse(text).is_none(), "{text}");
        }
        assert!(Query::parse("a=1&a=2").unwrap().text("a").is_err());
        assert!(Query::parse("a=%00").unwrap().text("a").is_err());
    }

    #[test]
    fn unaccepted_parameter_is_rejected() {
        let accepted = AcceptedParameters::Only(Arc::new(["if_quiet".to_owned()]));
        let check = |accepted: &AcceptedParameters, uri: &'static str| {
            accepted.check(&Uri::from_static(uri)).is_ok()
        };
        for uri in ["/k", "/k?", "/k?&", "/k?if_quiet=true", "/k?if%5Fquiet=true", "/k?%zz"] {
            assert!(check(&accepted, uri), "{uri}");
        }
        for uri in ["/k?if_quite=true", "/k?if_quiet=true&x", "/k?=", "/k?If_quiet=true"] {
            assert!(!check(&accepted, uri), "{uri}");
            assert!(check(&AcceptedParameters::Any, uri), "{uri}");
        }
    }

    #[test]
    fn timestamp_with_unescaped_plus_is_parsed() {
        let query = Query::parse("since=2026-01-31T12:00:00+01:00&until=tomorrow").unwrap();
        assert_eq!(query.timestamp("since").unwrap().unwrap().unix_timestamp(), 1_769_857_200);
        assert!(query.timestamp("until").is_err());
    }
}
