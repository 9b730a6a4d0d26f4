//! Validation of short texts that users enter: names and descriptions.

use super::ValidationError;

/// Validates a name and returns it without surrounding whitespace: one line of 1 to 100 characters,
/// without control characters or invisible characters.
///
/// # Errors
/// [`ValidationError`] for any other text. The message begins with `field`.
pub fn validate_name(field: &str, text: &str) -> Result<String, ValidationError> {
    let text = text.trim();
    match text.chars().count() {
        1..=100 if !text.contains(['\n', '\t']) => check_printable(field, text),
        1..=100 => Err(ValidationError::new(format!("{field} must be a single line without tabs"))),
        _ => Err(ValidationError::new(format!("{field} must be 1 to 100 characters"))),
    }
}

/// Validates a description: at most 500 characters, without invisible characters, and without
/// control characters other than line breaks and tabs.
///
/// # Errors
/// [`ValidationError`] for any other text. The message begins with `field`.
pub fn validate_description(field: &str, text: &str) -> Result<String, ValidationError> {
    if text.chars().count() > 500 {
        return Err(ValidationError::new(format!("{field} must be at most 500 characters")));
    }
    check_printable(field, text)
}

fn check_printable(field: &str, text: &str) -> Result<String, ValidationError> {
    if text.chars().any(|c| c != '\n' && c != '\t' && is_unprintable(c)) {
        return Err(ValidationError::new(format!(
            "{field} must not contain control characters or invisible characters"
        )));
    }
    Ok(text.to_owned())
}

/// Returns a text as one line without control characters and invisible characters. For texts of
/// clients that should not fail a request.
#[must_use]
pub fn printable(text: &str) -> String {
    let text: String = text.chars().filter(|c| c.is_whitespace() || !is_unprintable(*c)).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_unprintable(c: char) -> bool {
    c.is_control() || is_invisible(c)
}

/// Returns true for characters that are invisible or change the direction of the following text:
/// a name in the audit log must be what it looks like. Joiners are allowed, because many scripts
/// need them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{e0000}'..='\u{e007f}')
}

/// Returns at most `max` bytes of a text, cut at a character boundary. For texts that are stored
/// but should not fail a request when they are too long.
#[must_use]
pub fn truncate_bytes(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
