//! Architecture rules: the modules that each module may import, and the modules that may use each
//! library.

use std::{collections::BTreeMap, fs, path::Path};

/// Layers of modules from the top down. A module may import from its own layer and lower ones.
const LAYERS: [&[&str]; 10] = [
    &["main", "cli"],
    &["app", "server", "service_metrics"],
    &["http"],
    &["oauth"],
    &["auth", "resources", "audit", "idempotency", "limit", "mail"],
    &["cache_invalidation"],
    &["store"],
    &["config", "telemetry"],
    &["metrics"],
    &["model", "env"],
];

fn layer_index(module: &str) -> usize {
    let index = LAYERS.iter().position(|modules| modules.contains(&module));
    index.unwrap_or_else(|| panic!("the module {module} is in no layer"))
}

fn read_sources() -> BTreeMap<String, String> {
    fn collect_sources(folder: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect_sources(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.insert(path.display().to_string(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    collect_sources(&root, &mut sources);
    let strip =
        |path: String| path.strip_prefix(&format!("{}/", root.display())).unwrap().to_owned();
    sources.into_iter().map(|(path, text)| (strip(path), text)).collect()
}

fn top_level_module(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Returns the top-level modules of this crate that the code of a file refers to.
fn imported_modules(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let mut modules = Vec::new();
    for (position, _) in code.match_indices("crate::") {
        let rest = &code[position + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // The first identifier after the brace and after each comma of the outermost level.
            let (mut depth, mut expects_identifier) = (0, true);
            for (index, character) in group.char_indices() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => expects_identifier = true,
                    character if expects_identifier && character.is_alphabetic() => {
                        modules.push(leading_identifier(&group[index..]));
                        expects_identifier = false;
                    }
                    _ => {}
                }
            }
        } else {
            modules.push(leading_identifier(rest));
        }
    }
    modules
}

fn leading_identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn imports_stay_in_same_or_lower_layer() {
    let mut checked = 0;
    for (path, text) in read_sources() {
        if path == "lib.rs" || path == "main.rs" {
            continue;
        }
        for target in imported_modules(&text) {
            assert!(
                layer_index(top_level_module(&path)) <= layer_index(&target),
                "{path} imports {target}, which is in a higher layer"
            );
            checked += 1;
        }
    }
    assert!(checked > 200, "{checked}");
}

#[test]
fn library_is_used_only_in_its_modules() {
    for (library, allowed_modules) in [
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
        for (path, text) in read_sources() {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let is_used = code.into_iter().any(|line| {
                line.match_indices(library).any(|(position, _)| {
                    !line[..position].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                })
            });
            assert!(
                !is_used || allowed_modules.contains(&top_level_module(&path)),
                "{path} must not use {library}"
            );
        }
    }
}

#[test]
fn main_file_has_at_most_50_lines() {
    assert!(read_sources()["main.rs"].lines().count() <= 50);
}

#[test]
fn import_parser_reads_groups() {
    let text = "use crate::{\n    auth::{a, b},\n    store::x,\n    model,\n};\ncrate::env::y();\n// crate::http";
    assert_eq!(imported_modules(text), ["auth", "store", "model", "env"]);
}
