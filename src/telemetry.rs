//! Logging: writes to standard error, as text or JSON, with credentials redacted.
//!
//! Types keep secrets from being printed in the first place. As a second line of defense, anything
//! that looks like a credential, such as in a library's message or a URL, is redacted before it is
//! written.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::Log;

/// Prefixes by which credentials are recognized.
const SECRET_PREFIXES: [&str; 6] =
    ["sk_call2me_", "rt_call2me_", "cs_call2me_", "mac_call2me_", "eyJ", "$argon2"];

/// The time in which [`LogLimiter`] counts lines.
const LIMIT_WINDOW: Duration = Duration::from_secs(10);
/// Maximum number of lines with one text in a window.
const LINES_PER_WINDOW: u32 = 10;
/// Maximum number of texts with a count of their own. Further texts share one count.
const MAX_TEXTS: usize = 64;

/// Limits log lines that repeat, such as those of failed requests during an outage.
#[derive(Debug, Default)]
pub struct LogLimiter(Mutex<HashMap<String, LimitWindow>>);

/// The lines with one text.
#[derive(Debug, Default)]
struct LimitWindow {
    started_at: Duration,
    lines: u32,
    suppressed: u64,
}

impl LogLimiter {
    /// Counts a line with this text. Returns how many were suppressed since the last line, or
    /// `None` if this line is to be suppressed, too. `now` is on the monotonic clock.
    pub fn admit(&self, text: &str, now: Duration) -> Option<u64> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MAX_TEXTS && !windows.contains_key(text) {
            windows.retain(|_, window| now < window.started_at + LIMIT_WINDOW);
        }
        let is_separate = windows.len() < MAX_TEXTS || windows.contains_key(text);
        let window = windows.entry(if is_separate { text } else { "" }.to_owned()).or_default();
        if now >= window.started_at + LIMIT_WINDOW {
            (window.started_at, window.lines) = (now, 0);
        }
        if window.lines >= LINES_PER_WINDOW {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

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
    fn repeated_lines_are_limited_by_text_and_counted() {
        let (limiter, start) = (LogLimiter::default(), Duration::from_secs(100));
        let admit = |text: &str, now| limiter.admit(text, now);
        for _ in 0..LINES_PER_WINDOW {
            assert_eq!(admit("a", start), Some(0));
        }
        assert_eq!((admit("a", start), admit("a", start)), (None, None));
        assert_eq!(admit("b", start), Some(0), "another text");
        assert_eq!(admit("a", start + LIMIT_WINDOW), Some(2));
        assert_eq!(admit("a", start + LIMIT_WINDOW), Some(0));
    }

    #[test]
    fn number_of_limited_texts_is_bounded() {
        let (limiter, start) = (LogLimiter::default(), Duration::from_secs(100));
        let admitted = (0..1000).filter(|text| limiter.admit(&text.to_string(), start).is_some());
        assert!(admitted.count() <= MAX_TEXTS + LINES_PER_WINDOW as usize);
        assert!(limiter.0.lock().unwrap().len() <= MAX_TEXTS + 1);
        assert_eq!(limiter.admit("new", start + LIMIT_WINDOW), Some(0));
    }

    #[test]
    fn other_text_is_unchanged() {
        let mut out = Vec::new();
        RedactingWriter(&mut out).write_all("a plain line é\n".as_bytes()).unwrap();
        assert_eq!(out, "a plain line é\n".as_bytes());
    }
}
