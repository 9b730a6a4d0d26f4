//! Logging: writes to standard error, as text or JSON, with credentials redacted.
//!
//! Types keep secrets from being printed in the first place. As a second line of defense, anything
//! that looks like a credential, such as in a library's message or a URL, is redacted before it is
//! written.

use std::io::{self, Write};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::Log;

/// Prefixes by which credentials are recognized.
const SECRET_PREFIXES: [&str; 6] =
    ["sk_call2me_", "rt_call2me_", "cs_call2me_", "mac_call2me_", "eyJ", "$argon2"];

/// Initializes logging for the process.
pub fn init(settings: &Log) {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = fmt().with_env_filter(filter).with_writer(|| RedactingWriter(io::stderr()));
    // A second call in the same process, as in tests, has no effect.
    if settings.is_json {
        subscriber.json().flatten_event(true).with_current_span(false).try_init().ok();
    } else {
        subscriber.with_target(false).try_init().ok();
    }
}

/// A writer that redacts credentials. Each write must contain whole lines.
struct RedactingWriter<W>(W);

impl<W: Write> Write for RedactingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        if SECRET_PREFIXES.iter().any(|prefix| text.contains(prefix)) {
            self.0.write_all(redact(&text).as_bytes())?;
        } else {
            self.0.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Replaces every credential, from its prefix up to a character that no credential contains.
pub(crate) fn redact(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, prefix)) =
        SECRET_PREFIXES.iter().filter_map(|prefix| rest.find(prefix).map(|at| (at, *prefix))).min()
    {
        redacted.push_str(&rest[..at]);
        redacted.push_str("[redacted]");
        let secret = &rest[at + prefix.len()..];
        let end = secret.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.$+/=,".contains(c)));
        rest = end.map_or("", |end| &secret[end..]);
    }
    redacted.push_str(rest);
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_redacted() {
        let line = "GET /x sk_call2me_live_abc123 \"rt_call2me_A-b_c\" eyJ0.eyJz.x-_ \
                    $argon2id$v=19$m=1,t=2,p=1$aa$bb end";
        assert_eq!(redact(line), "GET /x [redacted] \"[redacted]\" [redacted] [redacted] end");
    }

    #[test]
    fn other_text_is_unchanged() {
        let mut out = Vec::new();
        RedactingWriter(&mut out).write_all("a plain line é\n".as_bytes()).unwrap();
        assert_eq!(out, "a plain line é\n".as_bytes());
    }
}
