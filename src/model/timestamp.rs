//! Timestamps as clients see them: RFC 3339, UTC, always six digits of a second, so that they sort as
//! text.

use serde::{Deserialize, Deserializer, Serializer};
use time::{
    OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description,
};

/// How long the text of a moment is.
const LEN: usize = "2026-01-31T12:00:00.000000Z".len();

/// The text of a moment.
#[must_use]
pub fn format(moment: OffsetDateTime) -> String {
    str::from_utf8(&digits(moment)).unwrap_or_default().to_owned()
}

/// By hand and without an allocation: it is made for each event of the log.
fn digits(moment: OffsetDateTime) -> [u8; LEN] {
    let moment = moment.to_offset(UtcOffset::UTC);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |place: std::ops::Range<usize>, number: u32| {
        let mut rest = number;
        for digit in text[place].iter_mut().rev() {
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

/// A moment as people read it, to the minute.
#[must_use]
pub fn for_people(moment: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// The same, as a time of the day alone.
#[must_use]
pub fn time_of_day(moment: OffsetDateTime) -> String {
    let format = format_description!("[hour]:[minute]");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// The same, as a day of the year alone.
#[must_use]
pub fn day_of_the_year(moment: OffsetDateTime) -> String {
    let format = format_description!("[day padding:none] [month repr:short]");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// The same, to the second.
#[must_use]
pub fn to_the_second(moment: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// For `#[serde(with)]`.
///
/// # Errors
/// When the serializer fails.
pub fn serialize<S: Serializer>(moment: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(str::from_utf8(&digits(*moment)).unwrap_or_default())
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

    proptest::proptest! {
        #[test]
        fn as_a_general_formatter_has_it(nanos in -62_135_596_800_000_000_000_i128..253_402_300_799_999_999_999) {
            let moment = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap();
            let format = time::macros::format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
            );
            proptest::prop_assert_eq!(super::format(moment), moment.format(format).unwrap());
        }
    }

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
