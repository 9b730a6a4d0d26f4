//! Logs for the operator: to standard error, as text or JSON, with credentials cut out.
//!
//! Nothing here should ever see a secret: types keep them from being printed. What slips through all
//! the same, in a library's message or a URL, is redacted by its form before it is written.

use std::io::{self, Write};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::Log;

/// What credentials look like: prefix, and how much of it may be shown.
const MARKS: [&str; 5] = ["sk_call2me_", "rt_call2me_", "cs_call2me_", "eyJ", "$argon2"];

/// Sets logging up, once a process.
pub fn init(settings: &Log) {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = fmt().with_env_filter(filter).with_writer(|| Redacting(io::stderr()));
    // A second call in one process, as tests make, changes nothing.
    if settings.json {
        subscriber.json().flatten_event(true).with_current_span(false).try_init().ok();
    } else {
        subscriber.with_target(false).try_init().ok();
    }
}

/// Cuts credentials out of what is written through it, a whole line at a time.
struct Redacting<W>(W);

impl<W: Write> Write for Redacting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        if MARKS.iter().any(|mark| text.contains(mark)) {
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

/// Replaces what follows a mark, up to a character that no credential has.
fn redact(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, mark)) =
        MARKS.iter().filter_map(|mark| rest.find(mark).map(|at| (at, *mark))).min()
    {
        redacted.push_str(&rest[..at]);
        redacted.push_str("[redacted]");
        let secret = &rest[at + mark.len()..];
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
    fn credentials_are_cut_out() {
        let line = "GET /x sk_call2me_live_abc123 \"rt_call2me_A-b_c\" eyJ0.eyJz.x-_ \
                    $argon2id$v=19$m=1,t=2,p=1$aa$bb end";
        assert_eq!(redact(line), "GET /x [redacted] \"[redacted]\" [redacted] [redacted] end");
    }

    #[test]
    fn other_text_stays() {
        let mut out = Vec::new();
        Redacting(&mut out).write_all("a plain line é\n".as_bytes()).unwrap();
        assert_eq!(out, "a plain line é\n".as_bytes());
    }
}
