//! The queries for alerts: their syntax, and that their metrics exist.

use std::{collections::BTreeSet, fs, path::Path};

use crate::fixture::Script;

/// Checks a query and those of the alerts in the same document. `metrics` is what a node serves.
pub async fn check(query: &str, metrics: &str) {
    let mut queries = alerts();
    queries.push(query.to_owned());
    assert!(queries.len() >= 10, "{queries:?}");
    let existing: BTreeSet<_> = metrics.lines().map(name_at_beginning).collect();
    for query in &queries {
        for (position, _) in query.match_indices("call2me_auth_") {
            let name = name_at_beginning(&query[position..]);
            assert!(existing.contains(name), "there is no metric {name} in\n{metrics}");
        }
    }
    let arguments: Vec<_> = queries.iter().map(String::as_str).collect();
    Script::node("promql.mjs", &arguments, &[]).expect_success().await;
}

/// Returns the expressions of the table of alerts.
fn alerts() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operate.md");
    let page = fs::read_to_string(page).unwrap();
    let section = page.split("### Alerts").nth(1).unwrap().split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let expressions = rows.map(|row| row.split('`').next().unwrap());
    expressions.map(|expression| expression.replace("{…}", "call2me_auth_")).collect()
}

fn name_at_beginning(text: &str) -> &str {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    &text[..text.find(|c| !is_part(c)).unwrap_or(text.len())]
}
