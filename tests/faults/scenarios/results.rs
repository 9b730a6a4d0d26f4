//! The results in docs/faults.md.

use std::{collections::HashMap, iter};

use super::{Figures, Scenario};

/// The heading of the section with the results.
const SECTION: &str = "## Results";
/// Columns of the text.
const COLUMNS: usize = 120;

/// The rows of all scenarios that have run, of this run and of earlier ones.
pub struct Results {
    /// The machine and the programs of this run.
    machine: String,
    rows: HashMap<String, Row>,
}

/// The results of one scenario.
#[derive(Default)]
struct Row {
    cells: Vec<String>,
    notes: Vec<String>,
}

impl Results {
    /// Creates results without rows.
    pub fn new(machine: String) -> Self {
        Self { machine, rows: HashMap::new() }
    }

    /// Reads the rows of earlier runs from the document.
    pub fn read(machine: String, document: &str) -> Self {
        let mut results = Self::new(machine);
        let (_, section, _) = split(document);
        for line in section.lines() {
            if let Some((name, rest)) = split_label(line, "| `", "` |") {
                let cells =
                    rest.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned());
                results.row(name).cells = cells.collect();
            }
        }
        for item in section.split("\n- ").skip(1) {
            let item = item.split("\n\n").next().unwrap_or_default();
            let item = item.split_whitespace().collect::<Vec<_>>().join(" ");
            if let Some((name, note)) = split_label(&item, "`", "`: ") {
                results.row(name).notes.push(note.to_owned());
            }
        }
        results
    }

    fn row(&mut self, name: &str) -> &mut Row {
        self.rows.entry(name.to_owned()).or_default()
    }

    /// Replaces the row of a scenario.
    pub fn store(&mut self, name: &str, figures: &Figures) {
        *self.row(name) = Row { cells: figures.cells().into(), notes: figures.notes() };
    }

    /// Removes the row of a scenario that did not run to its end.
    pub fn remove(&mut self, name: &str) {
        self.rows.remove(name);
    }

    /// Renders the tables, with a row for each of these scenarios that has results. Names those
    /// that have none.
    pub fn render(&self, scenarios: &[Scenario]) -> String {
        let tables = scenarios
            .chunk_by(|one, next| one.table == next.table)
            .map(|table| self.render_table(table));
        let missing: Vec<_> = scenarios
            .iter()
            .filter(|scenario| !self.rows.contains_key(scenario.name))
            .map(|scenario| format!("`{}`", scenario.name))
            .collect();
        let mut head = format!("{SECTION}\n\n{}", wrap(&self.machine));
        if !missing.is_empty() {
            head.push('\n');
            head.push_str(&wrap(&format!("Not measured yet: {}.", missing.join(", "))));
        }
        iter::once(head).chain(tables).collect()
    }

    fn render_table(&self, scenarios: &[Scenario]) -> String {
        let rows: Vec<_> = scenarios
            .iter()
            .filter_map(|scenario| Some((scenario.name, self.rows.get(scenario.name)?)))
            .collect();
        if rows.is_empty() {
            return String::new();
        }
        let columns = &Figures::HEAD;
        let mut lines = vec![
            format!("\n### {}\n\n| scenario | {} |\n", scenarios[0].table, columns.join(" | ")),
            format!("|---|{}\n", "--:|".repeat(columns.len())),
        ];
        let cells =
            |(name, row): &(&str, &Row)| format!("| `{name}` | {} |\n", row.cells.join(" | "));
        lines.extend(rows.iter().map(cells));
        let notes: String = rows
            .iter()
            .flat_map(|(name, row)| row.notes.iter().map(move |note| (name, note)))
            .map(|(name, note)| wrap(&format!("- `{name}`: {note}")))
            .collect();
        if !notes.is_empty() {
            lines.push(format!("\n{notes}"));
        }
        lines.concat()
    }

    /// Returns the document with these results.
    pub fn replace_in(&self, document: &str, scenarios: &[Scenario]) -> String {
        let (before, _, after) = split(document);
        format!("{before}{}\n{after}", self.render(scenarios))
    }
}

/// Splits the document into the text before the section, the section, and the text after it.
fn split(document: &str) -> (&str, &str, &str) {
    let start = document.find(SECTION).unwrap();
    let (before, rest) = document.split_at(start);
    let end = rest.find("\n## ").map_or(rest.len(), |end| end + 1);
    let (section, after) = rest.split_at(end);
    (before, section, after)
}

/// Returns the text between `open` and `close`, and the text after them.
fn split_label<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    text.strip_prefix(open)?.split_once(close)
}

/// Wraps a paragraph or an item of a list.
fn wrap(text: &str) -> String {
    let indent = if text.starts_with("- ") { "  " } else { "" };
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().unwrap();
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push(format!("{indent}{word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::faults::{
        histories::History,
        scenarios::{Recovery, scenarios},
    };

    fn figures(seconds: u64) -> Figures {
        let recovery = Recovery::After(Duration::from_secs(seconds));
        Figures::of("a title", &History::default(), None, recovery)
    }

    #[test]
    fn run_replaces_its_rows_and_keeps_others() {
        let scenarios = scenarios();
        let [one, other] = [scenarios[0].name, scenarios[1].name];
        let document = "# Faults\n\n## Results\n\nold\n\n## Read on\n";
        let mut results = Results::read("machine".to_owned(), document);
        results.store(other, &figures(1));
        let long_note = "a long note ".repeat(20);
        results.store(one, &figures(2).with_remark(long_note.trim()));
        let document = results.replace_in(document, &scenarios);
        let mut results = Results::read("machine".to_owned(), &document);
        assert_eq!(results.replace_in(&document, &scenarios), document);
        results.store(other, &figures(3));
        let document = results.replace_in(&document, &scenarios);
        assert!(document.starts_with("# Faults\n\n## Results\n\nmachine\n"), "{document}");
        assert!(document.ends_with("\n\n## Read on\n"), "{document}");
        let row = |name, time| format!("\n| `{name}` | 0 | 0 | 0 | 0 | 0 | 0 | 0 | {time} |\n");
        let rows = [row(one, "2.0 s"), row(other, "3.0 s")].map(|row| document.find(row.trim()));
        assert!(rows.is_sorted() && rows[0].is_some(), "{document}");
        let (_, missing) = document.split_once("Not measured yet: ").unwrap();
        let missing = missing.split("\n\n").next().unwrap();
        assert!(missing.contains(scenarios[2].name) && !missing.contains(one), "{document}");
        assert!(document.contains(&format!("\n- `{one}`: a long note a long")), "{document}");
        assert!(
            document.lines().all(|line| line.starts_with('|') || line.len() <= COLUMNS),
            "{document}"
        );
    }

    #[test]
    fn documented_scenarios_exist() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
        let document = std::fs::read_to_string(path).unwrap();
        let results = Results::read(String::new(), &document);
        for name in results.rows.keys() {
            assert!(scenarios().iter().any(|it| it.name == name), "there is no scenario {name}");
        }
        let (_, section, _) = split(&document);
        for scenario in scenarios() {
            let name = format!("`{}`", scenario.name);
            assert!(section.contains(&name), "{name} has neither results nor a note");
        }
    }
}
