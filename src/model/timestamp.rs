//! Timestamps in API responses and on pages.
//!
//! The API format is RFC 3339 in UTC, always with six digits of the second, so that timestamps sort
//! as text.

use serde::{Deserialize, Deserializer, Serializer};
use time::{
    OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description,
};

/// Length of a formatted timestamp in bytes.
const LEN: usize = "2026-01-31T12:00:00.000000Z".len();

/// Returns the microseconds since 1970, in which PostgreSQL stores times.
#[must_use]
pub fn to_micros(moment: OffsetDateTime) -> i64 {
    i64::try_from(moment.unix_timestamp_nanos().div_euclid(1000)).unwrap_or(i64::MAX)
}

/// Formats a time for the API: `2026-01-31T12:00:00.000000Z`.
#[must_use]
pub fn format(moment: OffsetDateTime) -> String {
    str::from_utf8(&format_bytes(moment)).unwrap_or_default().to_owned()
}

/// Formats without a heap allocation, because each audit event contains a timestamp.
fn format_bytes(moment: OffsetDateTime) -> [u8; LEN] {
    let moment = moment.to_offset(UtcOffset::UTC);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |range: std::ops::Range<usize>, number: u32| {
        let mut rest = number;
        for digit in text[range].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
        }
    };
    put(0..4, moment.year().unsigned_abs());
    put(5..7, u8::from(moment.month()).into());
    put(8..10, moment.day().into());
    put(11..13, moment.hour().into());
    put(14..16, moment.minute().into());
    put(17..19, moment.second().into());
    put(20..26, moment.microsecond());
    text
}

/// Formats a time for pages, to the minute: `2026-01-31 12:00 UTC`.
#[must_use]
pub fn format_to_minute(moment: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// Formats only the time of day: `12:00`.
#[must_use]
pub fn format_time_of_day(moment: OffsetDateTime) -> String {
    let format = format_description!("[hour]:[minute]");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// Formats only the day and the month: `31 Jan`.
#[must_use]
pub fn format_day_and_month(moment: OffsetDateTime) -> String {
    let format = format_description!("[day padding:none] [month repr:short]");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// Formats a time for pages, to the second: `2026-01-31 12:00:00 UTC`.
#[must_use]
pub fn format_to_second(moment: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// Serializes a timestamp, for `#[serde(with)]`.
///
/// # Errors
/// The serializer's error.
pub fn serialize<S: Serializer>(moment: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(str::from_utf8(&format_bytes(*moment)).unwrap_or_default())
}

/// Deserializes a timestamp, for `#[serde(with)]`.
///
/// # Errors
/// The deserializer's error if the text is not an RFC 3339 timestamp.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)
}

/// Serialization of optional timestamps, for `#[serde(with)]`.
pub mod option {
    use super::{OffsetDateTime, Serializer, format};

    /// Serializes an optional timestamp, for `#[serde(with)]`.
    ///
    /// # Errors
    /// The serializer's error.
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

    proptest::proptest! {
        #[test]
        fn timestamp_equals_output_of_general_formatter(
            nanos in -62_135_596_800_000_000_000_i128..253_402_300_799_999_999_999,
        ) {
            let moment = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
            let format = time::macros::format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
            );
            proptest::prop_assert_eq!(super::format(moment), moment.format(format).unwrap());
        }
    }

    #[test]
    fn timestamp_has_six_fraction_digits_and_is_utc() {
        for (moment, text) in [
            (datetime!(2026-01-31 12:00:00 UTC), "2026-01-31T12:00:00.000000Z"),
            (datetime!(2026-01-31 12:00:00.67881 +01:00), "2026-01-31T11:00:00.678810Z"),
        ] {
            assert_eq!(super::format(moment), text);
        }
    }
}
