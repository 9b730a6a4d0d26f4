//! Formatting of times, durations, numbers and sentences for pages.

use std::fmt;

use askama::{Template, filters::HtmlSafe};
use time::{Duration, OffsetDateTime};

use crate::model::timestamp;

/// A time relative to now, such as "5 minutes ago". The title of the element has the exact time.
#[derive(Debug, Clone, Copy, Template)]
#[template(
    ext = "html",
    source = r#"<time datetime="{{ timestamp::format(*self.moment) }}" title="{{ timestamp::format_to_second(*self.moment) }}">{{ self.ago() }}</time>"#
)]
pub(super) struct RelativeTime {
    moment: OffsetDateTime,
    now: OffsetDateTime,
}

impl RelativeTime {
    /// Creates a time relative to `now`.
    pub(super) fn new(moment: OffsetDateTime, now: OffsetDateTime) -> Self {
        Self { moment, now }
    }

    fn ago(self) -> String {
        match self.now - self.moment {
            elapsed if elapsed < Duration::seconds(10) => "just now".to_owned(),
            elapsed => format!("{} ago", HumanDuration(elapsed)),
        }
    }
}

impl HtmlSafe for RelativeTime {}

/// A duration in whole seconds, minutes, hours or days. Hours are used up to 48.
#[derive(Debug, Clone, Copy)]
pub(super) struct HumanDuration(pub(super) Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(length) = self;
        let (count, unit) = match length.whole_seconds() {
            seconds @ ..60 => (seconds.max(0), "second"),
            seconds @ 60..3600 => (seconds / 60, "minute"),
            seconds @ 3600..172_800 => (seconds / 3600, "hour"),
            seconds => (seconds / 86_400, "day"),
        };
        write!(f, "{count} {unit}{}", if count == 1 { "" } else { "s" })
    }
}

/// A text as a sentence: with an initial capital and a full stop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sentence<'a>(pub(super) &'a str);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.chars();
        rest.next().map_or(Ok(()), |first| write!(f, "{}{}.", first.to_uppercase(), rest.as_str()))
    }
}

/// A number with thousands separators.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count(pub(super) i64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.unsigned_abs().to_string();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// `1 request`, `1,204 requests`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestCount(pub(super) i64);

impl fmt::Display for RequestCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} request{}", Count(self.0), if self.0 == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn past_time_is_shown_in_its_largest_unit() {
        let now = datetime!(2026-03-01 12:00:00 UTC);
        for (seconds, expected) in [
            (-5, "just now"),
            (0, "just now"),
            (10, "10 seconds ago"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (3600, "1 hour ago"),
            (172_799, "47 hours ago"),
            (172_800, "2 days ago"),
            (86_400 * 400, "400 days ago"),
        ] {
            let when = RelativeTime::new(now - Duration::seconds(seconds), now).to_string();
            assert!(when.ends_with(&format!(">{expected}</time>")), "{when}");
        }
        let when = RelativeTime::new(datetime!(2026-01-31 08:05:09.5 UTC), now).to_string();
        assert!(
            when.contains(
                r#"datetime="2026-01-31T08:05:09.500000Z" title="2026-01-31 08:05:09 UTC""#
            )
        );
    }

    #[test]
    fn large_number_has_thousands_separators() {
        for (number, expected) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567"), (-1000, "-1,000")]
        {
            assert_eq!(Count(number).to_string(), expected);
        }
        assert_eq!(RequestCount(1).to_string(), "1 request");
        assert_eq!(RequestCount(1204).to_string(), "1,204 requests");
    }
}
