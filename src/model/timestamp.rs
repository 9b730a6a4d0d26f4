//! Timestamps as clients see them: RFC 3339, UTC, always six digits of a second, so that they sort as
//! text.

use serde::{Deserialize, Deserializer, Serializer};
use time::{
    OffsetDateTime, UtcOffset,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};

const FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// The text of a moment.
#[must_use]
pub fn format(moment: OffsetDateTime) -> String {
    moment.to_offset(UtcOffset::UTC).format(FORMAT).unwrap_or_default()
}

/// A moment as people read it, to the minute.
#[must_use]
pub fn for_people(moment: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// For `#[serde(with)]`.
///
/// # Errors
/// When the serializer fails.
pub fn serialize<S: Serializer>(moment: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*moment))
}

/// For `#[serde(with)]`.
///
/// # Errors
/// When it is no timestamp of RFC 3339.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)
}

/// For `#[serde(with)]`, of a moment that may be missing.
pub mod option {
    use super::{OffsetDateTime, Serializer, format};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When the serializer fails.
    pub fn serialize<S: Serializer>(
        moment: &Option<OffsetDateTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match moment {
            Some(moment) => serializer.serialize_some(&format(*moment)),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    #[test]
    fn six_digits_always() {
        for (moment, text) in [
            (datetime!(2026-01-31 12:00:00 UTC), "2026-01-31T12:00:00.000000Z"),
            (datetime!(2026-01-31 12:00:00.67881 +01:00), "2026-01-31T11:00:00.678810Z"),
        ] {
            assert_eq!(super::format(moment), text);
        }
    }
}
