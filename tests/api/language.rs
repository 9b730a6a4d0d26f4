//! The language rules that CONTRIBUTING.md states, as far as a test can check them: pronouns in
//! place of roles, comments that open with a question word, long lines and old metaphors.

use std::{fs, path::Path};

use crate::fixture::files_in;

/// Pronouns that stand for a role, such as "user" or "client".
const PRONOUNS: [&str; 14] = [
    "whatever",
    "whichever",
    "who",
    "whoever",
    "whom",
    "whose",
    "somebody",
    "someone",
    "nobody",
    "anybody",
    "anyone",
    "everybody",
    "everyone",
    "oneself",
];

/// Words that make a comment open like a question.
const QUESTION_WORDS: [&str; 9] =
    ["What", "Who", "Whether", "Whose", "Which", "How", "When", "Where", "Why"];

/// Phrases that have a plain or standard equivalent.
const PHRASES: [&str; 11] = [
    "what is there",
    "let in",
    "taken out",
    "made anew",
    "of one's own",
    "one's own",
    "as may be",
    "worth nothing",
    "no longer believed",
    "the one before",
    "its own doings",
];

/// Columns of a line, comments included.
const MAX_COLUMNS: usize = 100;

/// Markers of comments in Rust files. The first one that fits counts.
const RUST_MARKERS: &[&str] = &["///", "//!", "//"];
/// Markers of comments in SQL files. A line of hyphens is a separator.
const SQL_MARKERS: &[&str] = &["-- "];

/// Returns the comment blocks of a file: consecutive comment lines, without their markers.
fn comment_blocks(text: &str, markers: &[&str]) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines().map(str::trim_start) {
        let comment = markers.iter().find_map(|marker| line.strip_prefix(marker));
        match comment {
            Some(comment) => {
                let block = blocks.last_mut().unwrap();
                block.push_str(comment);
                block.push('\n');
            }
            None if blocks.last().is_some_and(|block| !block.is_empty()) => {
                blocks.push(String::new());
            }
            None => {}
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// Returns the text of a Markdown file without code.
fn prose(text: &str) -> String {
    let without_blocks = text.split("```").step_by(2).collect::<String>();
    without_blocks.split('`').step_by(2).collect()
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// Returns the pronouns for each 1,000 words.
fn pronouns_per_thousand(texts: &[String]) -> f64 {
    let all = texts.iter().flat_map(|text| words(text)).collect::<Vec<_>>();
    let odd = all.iter().filter(|word| PRONOUNS.contains(&word.as_str())).count();
    let count = |number: usize| f64::from(u32::try_from(number).unwrap());
    count(odd) * 1000.0 / count(all.len())
}

fn comments_in(folders: &[&str]) -> Vec<(String, String)> {
    let files_with = |extension| folders.iter().flat_map(move |folder| files_in(folder, extension));
    let rust = files_with("rs").map(|path| (path, RUST_MARKERS));
    let sql = files_with("sql").map(|path| (path, SQL_MARKERS));
    rust.chain(sql)
        .filter(|(path, _)| !path.ends_with("language.rs"))
        .flat_map(|(path, markers)| {
            let text = fs::read_to_string(&path).unwrap();
            let blocks = comment_blocks(&text, markers).into_iter();
            let path = path.display().to_string();
            blocks.map(move |block| (path.clone(), block)).collect::<Vec<_>>()
        })
        .collect()
}

fn check_phrases(texts: &[(String, String)]) {
    for (path, text) in texts {
        let text = words(text).collect::<Vec<_>>().join(" ");
        for phrase in PHRASES {
            assert!(
                !format!(" {text} ").contains(&format!(" {phrase} ")),
                "{path}: “{phrase}” in “{text}”"
            );
        }
    }
}

#[test]
fn comments_use_names_of_roles_instead_of_pronouns() {
    for (folders, limit) in
        [(&["src"][..], 3.0), (&["tests", "benches"], 4.0), (&["migrations"], 3.0)]
    {
        let comments = comments_in(folders);
        assert!(comments.len() > 100, "{folders:?}");
        check_phrases(&comments);
        let texts = comments.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
        let found = pronouns_per_thousand(&texts);
        assert!(found <= limit, "{folders:?}: {found:.1} pronouns per 1,000 words");
        let opened = texts.iter().filter(|text| {
            let first = text.split_whitespace().next().unwrap_or_default();
            QUESTION_WORDS.contains(&first)
        });
        let share = opened.count() * 100 / texts.len();
        assert!(share <= 6, "{folders:?}: {share} % of comments open with a question word");
    }
}

#[test]
fn documents_use_names_of_roles_instead_of_pronouns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = files_in("docs", "md");
    files.extend(
        ["README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md"].map(|name| root.join(name)),
    );
    for path in files {
        let text = prose(&fs::read_to_string(&path).unwrap());
        let name = path.display().to_string();
        // The glossary and the style rules name the words that they advise against.
        if name.ends_with("glossary.md") || name.ends_with("CONTRIBUTING.md") {
            continue;
        }
        check_phrases(&[(name.clone(), text.clone())]);
        let found = pronouns_per_thousand(&[text]);
        assert!(found <= 4.0, "{name}: {found:.1} pronouns per 1,000 words");
    }
}

#[test]
fn pages_and_emails_use_plain_phrases() {
    let mut files = files_in("src", "html");
    files.extend(files_in("src", "txt"));
    assert!(files.len() > 30);
    let texts =
        files.iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()));
    check_phrases(&texts.collect::<Vec<_>>());
}

#[test]
fn comments_fit_into_a_line() {
    for (folder, extension, marker) in [
        ("src", "rs", "//"),
        ("tests", "rs", "//"),
        ("benches", "rs", "//"),
        ("migrations", "sql", "--"),
    ] {
        for path in files_in(folder, extension) {
            for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
                let is_comment = line.trim_start().starts_with(marker);
                assert!(
                    !is_comment || line.chars().count() <= MAX_COLUMNS,
                    "{}:{}: more than {MAX_COLUMNS} columns",
                    path.display(),
                    number + 1,
                );
            }
        }
    }
}

#[test]
fn comment_blocks_are_read() {
    let text = "//! A.\n//! B.\n\n/// C.\nfn c() {} // not read\n    // D.\n";
    assert_eq!(comment_blocks(text, RUST_MARKERS), [" A.\n B.\n", " C.\n", " D.\n"]);
    let text = "-- A.\n-- B.\n\n------\n-- C.\nSELECT 1; -- not read\n    -- D.\n";
    assert_eq!(comment_blocks(text, SQL_MARKERS), ["A.\nB.\n", "C.\n", "D.\n"]);
}
