use std::{fmt, str::FromStr};

use axum::{
    extract::FromRequestParts,
    http::{Uri, request::Parts},
};
use percent_encoding::percent_decode_str;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{
    http::{ApiError, error::Code},
    model::page::{DEFAULT_LIMIT, MAX_LIMIT, MAX_OFFSET, Page, read_cursor},
};

/// The query string: known parameters are read with their types, unknown ones ignored.
pub struct Query(Vec<(String, String)>);

impl fmt::Debug for Query {
    /// Names alone: values may be codes and passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::of(&parts.uri)
    }
}

impl Query {
    /// Reads the query string of a URI.
    ///
    /// # Errors
    /// When it is malformed.
    pub(super) fn of(uri: &Uri) -> Result<Self, ApiError> {
        Self::parse(uri.query().unwrap_or_default())
            .ok_or_else(|| ApiError::new(Code::BadRequest, "the query string is malformed"))
    }

    /// Reads pairs as a query string or a form has them; none where it is malformed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    /// Of names and values that came in another way.
    pub(super) fn of_pairs(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// Names and values, in their order.
    #[must_use]
    pub fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }

    /// As a person filled it in: what was left empty is not there, and moments are of UTC, to the minute.
    #[must_use]
    pub fn as_filled_in(self) -> Self {
        let filled = self.0.into_iter().filter(|(_, value)| !value.trim().is_empty());
        let pair = |(name, value): (String, String)| {
            let is_local =
                ["since", "until"].contains(&&*name) && value.len() == "2026-01-31T12:00".len();
            (name, if is_local { format!("{value}:00Z") } else { value.trim().to_owned() })
        };
        Self(filled.map(pair).collect())
    }

    /// The same, with a parameter that is this unless it is set.
    #[must_use]
    pub fn with_default(mut self, name: &str, value: &str) -> Self {
        if !self.0.iter().any(|(known, _)| known == name) {
            self.0.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Names and values, in their order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// A parameter's text, if it is there.
    ///
    /// # Errors
    /// When it is there twice, or holds a NUL.
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

    /// A parameter of some type, if it is there; `what` tells what it must be.
    ///
    /// # Errors
    /// When it is not that, or there twice.
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

    /// A timestamp, if it is there.
    ///
    /// # Errors
    /// When it is none, or there twice.
    pub fn timestamp(&self, name: &'static str) -> Result<Option<OffsetDateTime>, ApiError> {
        let parse = |text: &str| {
            // A plus sign that was not encoded arrives as a space.
            OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339)
                .ok()
                .and_then(|moment| moment.checked_to_offset(UtcOffset::UTC))
                // Nothing here is older than that, and ids do not reach further back.
                .map(|moment| moment.max(OffsetDateTime::UNIX_EPOCH))
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

    /// Which part of a list is wanted by a person, who sees so many items at a time.
    ///
    /// # Errors
    /// As [`Self::page`].
    pub fn page_of(&self, limit: i64) -> Result<Page, ApiError> {
        Ok(Page { limit, ..self.page()? })
    }

    /// Which part of a list is wanted.
    ///
    /// # Errors
    /// When `limit`, `cursor` or `offset` is wrong.
    pub fn page(&self) -> Result<Page, ApiError> {
        let limit = self.parse_as::<i64>("limit", "a whole number from 1 to 100")?;
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::invalid("limit", "limit must be a whole number from 1 to 100"));
        }
        let what = format!("a whole number from 0 to {MAX_OFFSET}; go on with a cursor");
        let offset = self.parse_as::<u32>("offset", &what)?;
        if offset.is_some_and(|offset| offset > MAX_OFFSET) {
            return Err(ApiError::invalid("offset", format!("offset must be {what}")));
        }
        let before = self.text("cursor")?.map(read_cursor).transpose();
        let before = before.map_err(|why| ApiError::invalid_parameter("cursor", why))?;
        if before.is_some() && offset.is_some() {
            return Err(ApiError::invalid("offset", "offset must not be given with a cursor"));
        }
        Ok(Page { limit, before, offset: i64::from(offset.unwrap_or(0)) })
    }
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let complete = |at: usize| {
        bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    };
    if !bytes.iter().enumerate().all(|(at, byte)| *byte != b'%' || complete(at)) {
        return None;
    }
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded() {
        let query = Query::parse("a=1%202&b=x+y&c&a%26=%C3%A9").unwrap();
        assert_eq!(query.text("a").unwrap(), Some("1 2"));
        assert_eq!(query.text("b").unwrap(), Some("x y"));
        assert_eq!(query.text("c").unwrap(), Some(""));
        assert_eq!(query.text("d").unwrap(), None);
        assert_eq!(query.text("a&").unwrap(), Some("é"));
    }

    #[test]
    fn what_is_malformed_is_noticed() {
        for text in ["a=%", "a=%2", "a=%zz", "%ff=1", "a=%c3"] {
            assert!(Query::parse(text).is_none(), "{text}");
        }
        assert!(Query::parse("a=1&a=2").unwrap().text("a").is_err());
        assert!(Query::parse("a=%00").unwrap().text("a").is_err());
    }

    #[test]
    fn timestamps_take_an_unescaped_plus() {
        let query = Query::parse("since=2026-01-31T12:00:00+01:00&until=tomorrow").unwrap();
        assert_eq!(query.timestamp("since").unwrap().unwrap().unix_timestamp(), 1_769_857_200);
        assert!(query.timestamp("until").is_err());
    }
}
