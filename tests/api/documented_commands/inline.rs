//! Commands in the text of documents.

use std::{fs, path::Path, process::Command};

use super::{markdown::blocks, stand_ins::has_test};
use crate::fixture::files_in;

/// Returns the paths and texts of all documents.
fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
    let mut paths = files_in("docs", "md");
    paths.extend(pages.map(|name| root.join(name)));
    let read = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(root).unwrap().display().to_string(), text)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_document_with_code_has_a_test() {
    for (path, text) in documents() {
        let name = path.rsplit('/').next().unwrap().trim_end_matches(".md");
        let name = name.to_lowercase().replace('-', "_");
        let test = format!("documented_commands::{{}}::{name}_commands_work");
        let exists = ["deployment", "gateways", "pages", "physical_backups"]
            .iter()
            .any(|module| has_test(&test.replace("{}", module)));
        assert!(exists || blocks(&text).is_empty(), "{path} has code blocks and no test {test}");
    }
}

/// Returns the texts in backquotes that start with `prefix`, without it.
fn spans_after<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.split('`').filter_map(move |span| span.strip_prefix(prefix))
}

#[test]
fn scripts_and_commands_in_texts_exist() {
    let mut checked = 0;
    for (path, text) in documents() {
        for script in spans_after(&text, "./scripts/") {
            let script = script.split_whitespace().next().unwrap();
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
            assert!(file.exists(), "{path}: there is no ./scripts/{script}");
            checked += 1;
        }
        for command in spans_after(&text, "call2me-auth ") {
            let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let words = command.split_whitespace().take_while(|word| !word.starts_with("--"));
            let words: Vec<_> = words.take_while(is_word).collect();
            let mut help = Command::new(env!("CARGO_BIN_EXE_call2me-auth"));
            let status = help.args(&words).arg("--help").output().unwrap().status;
            assert!(status.success(), "{path}: there is no command {words:?}");
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}
