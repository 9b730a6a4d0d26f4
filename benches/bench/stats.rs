//! Medians, percentiles and number formats.

use std::time::Duration;

/// Returns the median; of an even number of values, the mean of the two in the middle. NaN if there
/// are no values.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        None => f64::NAN,
        Some(upper) if values.len() % 2 == 1 => *upper,
        Some(upper) => f64::midpoint(values[middle - 1], *upper),
    }
}

/// Returns the smallest value that at least `percent` percent of the values do not exceed. NaN if
/// there are no values.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Converts a whole number.
#[expect(clippy::cast_precision_loss, reason = "all numbers here are far below 2^52")]
pub(crate) fn to_f64(number: u64) -> f64 {
    number as f64
}

/// Formats a number with this many decimals, and with commas between the thousands.
pub(crate) fn format_number(value: f64, digits: usize) -> String {
    if value.is_nan() {
        return "–".to_owned();
    }
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut spaced = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) && !spaced.ends_with('-') {
            spaced.push(',');
        }
        spaced.push(digit);
    }
    spaced + rest
}

/// Formats microseconds as milliseconds.
pub(crate) fn format_millis(micros: f64) -> String {
    format_number(micros / 1000.0, 2)
}

/// Converts a duration to microseconds.
pub(crate) fn duration_micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
