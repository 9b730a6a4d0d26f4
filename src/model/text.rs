//! Short texts that people give things: names and descriptions.

use super::Invalid;

/// Checks a name: 1 to 100 characters, none of them a control character, not only spaces. Spaces
/// around it are dropped.
///
/// # Errors
/// With a sentence that begins with the field's name.
pub fn name(field: &str, text: &str) -> Result<String, Invalid> {
    let text = text.trim();
    match text.chars().count() {
        1..=100 if !text.contains(['\n', '\t']) => printable(field, text),
        1..=100 => Err(Invalid::new(format!("{field} must be one line, without tabs"))),
        _ => Err(Invalid::new(format!("{field} must be 1 to 100 characters"))),
    }
}

/// Checks a description: at most 500 characters, none of them a control character but line breaks.
///
/// # Errors
/// With a sentence that begins with the field's name.
pub fn description(field: &str, text: &str) -> Result<String, Invalid> {
    if text.chars().count() > 500 {
        return Err(Invalid::new(format!("{field} must be at most 500 characters")));
    }
    printable(field, text)
}

fn printable(field: &str, text: &str) -> Result<String, Invalid> {
    if text.chars().any(|c| (c.is_control() && c != '\n' && c != '\t') || is_invisible(c)) {
        return Err(Invalid::new(format!(
            "{field} must not contain control characters or invisible ones"
        )));
    }
    Ok(text.to_owned())
}

/// Characters that show nothing or turn what follows around: a name in a log is to be what it looks
/// like. Joiners are spared, which many scripts need.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{e0000}'..='\u{e007f}')
}

/// At most `max` bytes of a text, cut between characters; for what is kept but not worth a refusal.
#[must_use]
pub fn shorten(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
