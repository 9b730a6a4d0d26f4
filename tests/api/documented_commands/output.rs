//! Compares the output of a command with the one in a document.
//!
//! In a document, `…` stands for any text. Ids, credentials and times differ from run to run; a
//! documented one stands for any other of its kind. Line breaks and spaces do not count, because
//! documents wrap long lines.

use std::sync::LazyLock;

use regex::Regex;

/// Values that differ from run to run: the form of a documented one, and the form of a real one.
const VARIABLE_VALUES: [(&str, &str); 5] = [
    // An API key, refresh token or client secret.
    ("_call2me_[0-9A-Za-z_-]+", "_call2me_[0-9A-Za-z_-]+"),
    // The end of an id such as `key_01m8n3mevvf8rsq77k5qavjhtf`.
    ("_[0-9a-z]{26}", "_[0-9a-z]{26}"),
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", r"\d{4}-\d\d-\d\dT[0-9:.]+Z"),
    // The user code of a device.
    ("[B-Z]{4}-[B-Z]{4}", "[B-Z]{4}-[B-Z]{4}"),
    // Seconds since 1970.
    (r"\b1[789]\d{8}\b", r"\d{10}"),
];

static VARIABLE: LazyLock<Regex> = LazyLock::new(|| {
    let forms = VARIABLE_VALUES.map(|(documented, _)| format!("({documented})"));
    Regex::new(&format!("{}|(…)", forms.join("|"))).unwrap()
});

/// Returns true if `actual` is what a document says.
pub fn is_as_documented(documented: &str, actual: &str) -> bool {
    pattern(&without_spaces(documented)).is_match(&without_spaces(actual))
}

fn without_spaces(text: &str) -> String {
    text.split_whitespace().collect()
}

fn pattern(documented: &str) -> Regex {
    let mut pattern = "(?s)^".to_owned();
    let mut end = 0;
    for found in VARIABLE.captures_iter(documented) {
        let whole = found.get(0).unwrap();
        pattern += &regex::escape(&documented[end..whole.start()]);
        let kind = (0..VARIABLE_VALUES.len()).find(|kind| found.get(kind + 1).is_some());
        pattern += kind.map_or(".*?", |kind| VARIABLE_VALUES[kind].1);
        end = whole.end();
    }
    pattern += &regex::escape(&documented[end..]);
    Regex::new(&(pattern + "$")).unwrap()
}

#[test]
fn output_may_differ_in_ids_times_and_omissions_only() {
    let id = |digit: &str| format!("key_{}", digit.repeat(26));
    let line = |id: &str, time: &str, rest: &str| {
        format!("{{\"id\":\"{id}\",\"at\":\"2026-{time}T02:13:24.801000Z\",{rest}}}")
    };
    let documented = line(&id("0"), "11-30", "…\n  \"requests\":5");
    let check = |actual: &str| is_as_documented(&documented, actual);
    assert!(check(&line(&id("7"), "06-15", "\"name\":\"prod\",\"requests\":5")));
    assert!(!check(&line(&id("7"), "06-15", "\"name\":\"prod\",\"requests\":6")));
    assert!(!check(&line("key_7", "06-15", "\"requests\":5")));
    assert!(!check(&(line(&id("7"), "06-15", "\"requests\":5") + " and more")));
    assert!(is_as_documented("sk_call2me_live_jvVY…", "sk_call2me_live_0000"));
    assert!(!is_as_documented("\"exp\":1796008432", "\"exp\":null"));
}
