//! The house stands as its plan says: who may import whom, who may name which library.

use std::{collections::BTreeMap, fs, path::Path};

/// Modules from the top down; each may use those of lines below it, and of its own line.
const FLOORS: [&[&str]; 10] = [
    &["main", "cli"],
    &["app", "server", "observe"],
    &["http"],
    &["oauth"],
    &["auth", "resources", "audit", "idempotency", "limit", "mail"],
    &["coherence"],
    &["store"],
    &["config", "telemetry"],
    &["metrics"],
    &["model", "env"],
];

fn floor(module: &str) -> usize {
    let found = FLOORS.iter().position(|modules| modules.contains(&module));
    found.unwrap_or_else(|| panic!("{module} has no place in the plan"))
}

fn sources() -> BTreeMap<String, String> {
    fn walk(folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.insert(path.display().to_string(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    walk(&root, &mut found);
    let strip =
        |path: String| path.strip_prefix(&format!("{}/", root.display())).unwrap().to_owned();
    found.into_iter().map(|(path, text)| (strip(path), text)).collect()
}

fn module(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Top-level modules of this crate that a file names in code.
fn used(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // The first word after the brace and after each comma of the outermost level.
            let (mut depth, mut start) = (0, true);
            for (place, letter) in group.char_indices() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    letter if start && letter.is_alphabetic() => {
                        modules.push(word(&group[place..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            modules.push(word(rest));
        }
    }
    modules
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn imports_run_downwards() {
    let mut checked = 0;
    for (path, text) in sources() {
        if path == "lib.rs" || path == "main.rs" {
            continue;
        }
        for target in used(&text) {
            assert!(
                floor(module(&path)) <= floor(&target),
                "{path} uses {target}, which stands above it"
            );
            checked += 1;
        }
    }
    assert!(checked > 200, "{checked}");
}

#[test]
fn libraries_stay_in_their_rooms() {
    for (library, rooms) in [
        ("sqlx::", &["store"][..]),
        ("axum::", &["http", "app", "server", "config"]),
        ("hyper::", &["server", "http"]),
        ("clap::", &["cli"]),
        ("argon2::", &["auth"]),
        ("jsonwebtoken::", &["auth"]),
        ("governor::", &["limit", "http"]),
        ("redis::", &["limit"]),
        ("reqwest::", &["oauth"]),
        ("tower_http::", &["http"]),
    ] {
        for (path, text) in sources() {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let named = code.into_iter().any(|line| {
                line.match_indices(library)
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            assert!(!named || rooms.contains(&module(&path)), "{path} names {library}");
        }
    }
}

#[test]
fn main_is_short() {
    assert!(sources()["main.rs"].lines().count() <= 50);
}

#[test]
fn the_reader_of_uses_reads_groups() {
    let text = "use crate::{\n    auth::{a, b},\n    store::x,\n    model,\n};\ncrate::env::y();\n// crate::http";
    assert_eq!(used(text), ["auth", "store", "model", "env"]);
}
