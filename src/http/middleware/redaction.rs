//! Redacts credentials in the paths and headers that the audit log shows: clients sometimes put one
//! there by mistake.
//!
//! Only the credential itself is replaced, and only text that has its shape. Otherwise a client
//! could hide a part of its path from the log, by a prefix that looks like a credential.

/// Minimum length of a random part, in characters. It is shorter than that of every credential, so
/// that a truncated one is redacted too.
const MIN_RANDOM: usize = 16;

/// Encodings of an underscore and of a dot in a URL.
const ENCODED_UNDERSCORE: [&str; 2] = ["%5f", "%255f"];
const ENCODED_DOT: [&str; 2] = ["%2e", "%252e"];

/// Returns the text with `[redacted]` in place of each API key, token and secret.
pub(super) fn redact_credentials(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((start, length)) = find_credential(rest) {
        redacted.push_str(&rest[..start]);
        redacted.push_str("[redacted]");
        rest = &rest[start + length..];
    }
    redacted.push_str(rest);
    redacted
}

/// Returns the start and the length of the first credential.
fn find_credential(text: &str) -> Option<(usize, usize)> {
    let own = text.match_indices("call2me").find_map(|(at, _)| own_credential(text, at));
    let jwt = text.match_indices("eyJ").find_map(|(at, _)| jwt(text, at));
    own.into_iter().chain(jwt).min()
}

/// Returns the credential of this service whose prefix contains the word at a position, such as
/// `sk_call2me_live_…`. It may lack the start of the prefix.
fn own_credential(text: &str, word: usize) -> Option<(usize, usize)> {
    let (before, after) = (&text[..word], &text[word + "call2me".len()..]);
    let separator = separator_length(after)?;
    let random = token_length(&after[separator..], b"_-", &ENCODED_UNDERSCORE);
    let start = start_of_prefix(before);
    let end = text.len() - after.len() + separator + random;
    (random >= MIN_RANDOM).then_some((start, end - start))
}

fn separator_length(text: &str) -> Option<usize> {
    if text.starts_with('_') {
        return Some(1);
    }
    ENCODED_UNDERSCORE.iter().find(|code| starts_with(text, code)).map(|code| code.len())
}

/// Returns the position at which the kind of a credential, such as `sk_`, starts at the end of a
/// text.
fn start_of_prefix(text: &str) -> usize {
    let separators = ["_"].into_iter().chain(ENCODED_UNDERSCORE);
    let without = separators.filter_map(|separator| {
        let at = text.len().checked_sub(separator.len())?;
        text.is_char_boundary(at)
            .then(|| text.split_at(at))
            .filter(|(_, end)| end.eq_ignore_ascii_case(separator))
    });
    let kinds = ["sk", "rt", "cs"];
    without
        .filter(|(start, _)| kinds.iter().any(|kind| start.ends_with(kind)))
        .map(|(start, _)| start.len() - 2)
        .next()
        .unwrap_or(text.len())
}

/// Returns the JWT at a position, which starts with the base64url of `{"`: a header, a dot and
/// further parts.
fn jwt(text: &str, start: usize) -> Option<(usize, usize)> {
    let token = &text[start..];
    let header = token_length(token, b"_-", &[]);
    let parts = token_length(&token[header..], b"_-.=", &ENCODED_DOT);
    (header >= MIN_RANDOM && parts > 1).then_some((start, header + parts))
}

/// Returns the length of the letters, digits, `others` and `encoded` characters at the start.
fn token_length(text: &str, others: &[u8], encoded: &[&str]) -> usize {
    let mut length = 0;
    while let Some(byte) = text.as_bytes().get(length) {
        length += if byte.is_ascii_alphanumeric() || others.contains(byte) {
            1
        } else if let Some(code) = encoded.iter().find(|code| starts_with(&text[length..], code)) {
            code.len()
        } else {
            break;
        };
    }
    length
}

fn starts_with(text: &str, code: &str) -> bool {
    text.get(..code.len()).is_some_and(|start| start.eq_ignore_ascii_case(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sk_call2me_live_0123456789abcdefghijABCDEFGHIJ000000";
    const JWT: &str = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ1In0.c2lnbmF0dXJl-_";

    #[test]
    fn credential_is_redacted_without_its_surroundings() {
        let encoded = KEY.replace('_', "%5F");
        let twice = KEY.replace('_', "%255f");
        for credential in [
            KEY,
            &encoded,
            &twice,
            &KEY[..40],
            &KEY[3..],
            "rt_call2me_AaIMkgPff-0123456789_abc",
            "cs_call2me_0123456789abcdefghijklmnop",
            JWT,
            &JWT.replace('.', "%2E"),
            &JWT[..30],
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1In0.",
        ] {
            for (before, after) in [
                ("", ""),
                ("/v1/agents/", ""),
                ("/v1/agents/", "/calls"),
                ("/v1/x;", ";delete"),
                ("curl/8 (", ") é"),
                ("/é", "%2Fdelete"),
            ] {
                let text = format!("{before}{credential}{after}");
                let expected = format!("{before}[redacted]{after}");
                assert_eq!(redact_credentials(&text), expected, "{text}");
            }
        }
        let both = format!("/{JWT}/{KEY}/{JWT}");
        assert_eq!(redact_credentials(&both), "/[redacted]/[redacted]/[redacted]");
    }

    #[test]
    fn text_without_shape_of_credential_is_unchanged() {
        for text in [
            "/v1/agents",
            "/real/eyJ/x;eyJ=1",
            "/eyJ.eyJ.eyJ/delete",
            "/heyJude/eyJhbGciOiJFZERTQSJ9",
            "/eyJhbGciOiJFZERTQSJ9./x",
            "/call2me",
            "/call2me_docs/sk_call2me_live_/x",
            "/sk_call2me_live_abc/delete",
            "/call2me%5/x",
            "/call2me%2F0123456789abcdefghijklmnop",
            "é/call2me",
        ] {
            assert_eq!(redact_credentials(text), text);
        }
    }
}
