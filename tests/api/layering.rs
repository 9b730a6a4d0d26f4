//! Architecture rules: the modules that each module may import, and the modules that may use each
//! library.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::fixture::files_in;

/// Layers of modules from the top down. A module may import from its own layer and lower ones.
const LAYERS: [&[&str]; 11] = [
    &["main", "cli"],
    &["app", "database_check", "maintenance", "service_metrics"],
    &["http"],
    &["oauth"],
    &["auth", "resources", "audit", "idempotency", "limit", "mail"],
    &["cache_invalidation"],
    &["store"],
    &["server"],
    &["config", "telemetry"],
    &["metrics", "tasks"],
    &["model", "env", "keyed_semaphores"],
];

fn layer_index(module: &str) -> usize {
    let index = LAYERS.iter().position(|modules| modules.contains(&module));
    index.unwrap_or_else(|| panic!("the module {module} is in no layer"))
}

/// Returns the text of each file in src, by its path below src.
fn read_sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = files_in("src", "rs").into_iter().map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(&root).unwrap().display().to_string(), text)
    });
    files.collect()
}

fn top_level_module(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Returns the module that a file defines, as the segments of its path.
fn module_path(path: &str) -> Vec<&str> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').collect() }
}

/// Returns the paths that the code of a file uses: with groups expanded, and beginning with
/// `crate`. Paths that begin with another crate are left out.
fn used_paths(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let module = module_path(path);
    let parent = &module[..module.len().saturating_sub(1)];
    let own = [&["crate"], parent, &[""]].concat().join("::");
    let mut paths = Vec::new();
    for (prefix, base) in [("crate::", "crate::"), ("super::", own.as_str())] {
        for (position, _) in code.match_indices(prefix) {
            let is_start = !code[..position].ends_with(|c: char| c.is_alphanumeric() || c == ':');
            if is_start {
                expand(base, &code[position + prefix.len()..], &mut paths);
            }
        }
    }
    paths
}

/// Adds the paths of a use tree after `prefix`: `a::{b, c::d}` gives two. Returns the rest.
fn expand<'a>(prefix: &str, tree: &'a str, paths: &mut Vec<String>) -> &'a str {
    let end = tree.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tree.len());
    let (name, rest) = tree.split_at(end);
    if let Some(rest) = rest.strip_prefix("::") {
        return expand(&format!("{prefix}{name}::"), rest, paths);
    }
    if !name.is_empty() {
        paths.push(format!("{prefix}{name}"));
        return rest;
    }
    let Some(mut group) = rest.strip_prefix('{') else { return rest };
    while let Some(start) = group.find(|c: char| c.is_alphabetic() || c == '{' || c == '}') {
        if group[start..].starts_with('}') {
            return &group[start + 1..];
        }
        let rest = expand(prefix, &group[start..], paths);
        // Skips `as name`.
        group = rest.find([',', '}']).map_or("", |end| &rest[end..]);
    }
    group
}

/// Returns the top-level module of a path that begins with `crate`.
fn target_module(path: &str) -> Option<&str> {
    path.split("::").nth(1).filter(|name| name.starts_with(|c: char| c.is_lowercase()))
}

#[test]
fn imports_stay_in_same_or_lower_layer() {
    let mut checked = 0;
    for (path, text) in read_sources() {
        if path == "lib.rs" || path == "main.rs" {
            continue;
        }
        for target in used_paths(&path, &text) {
            let Some(target) = target_module(&target) else { continue };
            assert!(
                layer_index(top_level_module(&path)) <= layer_index(target),
                "{path} imports {target}, which is in a higher layer"
            );
            checked += 1;
        }
    }
    assert!(checked > 200, "{checked}");
}

/// Layers of modules inside `http`, from the top down.
const HTTP_LAYERS: [&[&str]; 6] = [
    &["mod", "openapi", "docs", "routes", "fallback"],
    &["api", "oauth", "dashboard", "well_known"],
    &["middleware"],
    &["route_types", "endpoint"],
    &["extract"],
    &[
        "bearer",
        "cookies",
        "dto",
        "error",
        "forward_auth",
        "large_body",
        "refusal_pauses",
        "state",
        "static_content",
        "surface",
        "unread_responses",
    ],
];

#[test]
fn imports_inside_http_stay_in_same_or_lower_layer() {
    let layer = |name: &str| HTTP_LAYERS.iter().position(|modules| modules.contains(&name));
    let mut checked = 0;
    for (path, text) in read_sources() {
        let Some(inner) = path.strip_prefix("http/") else { continue };
        let own = top_level_module(inner);
        let own = layer(own).unwrap_or_else(|| panic!("the module http::{own} is in no layer"));
        for target in used_paths(&path, &text) {
            let Some(target) = target.strip_prefix("crate::http::") else { continue };
            // Names that `http` re-exports are in no layer.
            let Some(index) = layer(target.split("::").next().unwrap()) else { continue };
            assert!(own <= index, "{path} imports {target}, which is in a higher layer");
            checked += 1;
        }
    }
    assert!(checked > 200, "{checked}");
}

/// Returns the file that defines what a path names. `None` for a module's `mod.rs`, whose
/// re-exports are not followed.
fn defining_file<'a>(sources: &'a BTreeMap<String, String>, path: &str) -> Option<&'a str> {
    let names: Vec<_> = path.split("::").skip(1).collect();
    (1..=names.len()).rev().find_map(|count| {
        let file = format!("{}.rs", names[..count].join("/"));
        sources.get_key_value(&file).map(|(file, _)| file.as_str())
    })
}

#[test]
fn circles_of_imports_have_at_most_three_files() {
    let sources = read_sources();
    let imports: BTreeMap<_, BTreeSet<_>> = sources
        .iter()
        .map(|(path, text)| {
            let used = used_paths(path, text).into_iter();
            (path.as_str(), used.filter_map(|used| defining_file(&sources, &used)).collect())
        })
        .collect();
    let reachable = |start: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start.to_owned()]);
        while let Some(file) = open.pop() {
            for next in &imports[file.as_str()] {
                if seen.insert(*next) {
                    open.push((*next).to_owned());
                }
            }
        }
        seen
    };
    let reachable: BTreeMap<_, _> = imports.keys().map(|file| (*file, reachable(file))).collect();
    let mut circles = 0;
    for (file, seen) in &reachable {
        let circle = seen.iter().filter(|other| reachable[*other].contains(file));
        let circle: Vec<_> = circle.collect();
        assert!(circle.len() <= 3, "{file} is in a circle: {circle:?}");
        circles += usize::from(circle.len() > 1);
    }
    // The circles that are known: without any, the test would prove nothing about itself.
    assert!(circles > 0 && imports.values().map(BTreeSet::len).sum::<usize>() > 500);
}

/// Returns the name of the type if a line starts an inherent `impl` of it.
fn implemented_type(line: &str) -> Option<&str> {
    let name = line.strip_prefix("impl ")?.strip_suffix(" {")?;
    name.chars().all(char::is_alphanumeric).then_some(name)
}

#[test]
fn service_is_implemented_in_one_file_or_its_folder() {
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in read_sources() {
        if ["auth", "oauth"].contains(&top_level_module(&path)) {
            for name in text.lines().filter_map(implemented_type) {
                files.entry(name.to_owned()).or_default().insert(path.clone());
            }
        }
    }
    let mut in_folders = 0;
    for (name, paths) in files.into_iter().filter(|(_, paths)| paths.len() > 1) {
        let folders: BTreeSet<_> =
            paths.iter().map(|path| path.rsplit_once('/').unwrap().0).collect();
        let is_one = folders.len() == 1 && folders.iter().all(|folder| folder.contains('/'));
        assert!(is_one, "{name} is implemented in {paths:?}");
        in_folders += 1;
    }
    assert!(in_folders >= 5, "{in_folders}");
}

#[test]
fn library_is_used_only_in_its_modules() {
    for (library, allowed_modules) in [
        ("sqlx::", &["store"][..]),
        ("sqlx_core::", &["store"]),
        ("axum::", &["http", "app", "server", "config"]),
        ("hyper::", &["server", "http"]),
        ("clap::", &["cli"]),
        ("argon2::", &["auth"]),
        ("jsonwebtoken::", &["auth"]),
        ("governor::", &["limit", "http"]),
        ("redis::", &["limit"]),
        ("reqwest::", &["oauth"]),
        ("tower_http::", &["http"]),
        ("flate2::", &["http"]),
        ("socket2::", &["server"]),
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
fn used_paths_are_read_with_groups_and_parents() {
    let text = "use crate::{\n    auth::{a as x, b::{self, C}},\n    model,\n};\nuse super::{d, e::F};\n\
                fn f() { crate::env::y(); }\n// crate::http";
    assert_eq!(
        used_paths("http/api/keys.rs", text),
        [
            "crate::auth::a",
            "crate::auth::b::self",
            "crate::auth::b::C",
            "crate::model",
            "crate::env::y",
            "crate::http::api::d",
            "crate::http::api::e::F",
        ]
    );
    assert_eq!(used_paths("http/mod.rs", "use super::g;"), ["crate::g"]);
}

/// The tables of what administrators manage.
const ADMIN_TABLES: [&str; 7] = [
    "api_keys",
    "invitations",
    "memberships",
    "oauth_added_redirect_uris",
    "oauth_client_secrets",
    "oauth_clients",
    "workspaces",
];

/// Functions that change these tables without the rights of an administrator.
const NO_ADMIN_NEEDED: [&str; 2] = [
    // Creates a workspace.
    "store/workspaces.rs insert",
    // Changes the profile of the caller's own user.
    "store/members.rs update_profile",
];

/// An `AdminTx` proves that the rights of a caller were checked again under the lock.
#[test]
fn changes_of_administrators_take_an_admin_transaction() {
    let mut checked = 0;
    for (path, text) in read_sources() {
        if !path.starts_with("store/") {
            continue;
        }
        for function in text.split("\npub async fn ").skip(1) {
            let code = function.split("\n}\n").next().unwrap();
            let words: Vec<_> = code.split_whitespace().collect();
            let is_change = words.windows(3).any(|words| {
                let verb = words[0].trim_start_matches(['"', '#', 'r', '(']);
                let table = match (verb, words[1]) {
                    ("INSERT", "INTO") | ("DELETE", "FROM") => words[2],
                    ("UPDATE", table) => table,
                    _ => return false,
                };
                ADMIN_TABLES.contains(&table.trim_matches('"'))
            });
            let name = function.split('(').next().unwrap();
            if is_change && !NO_ADMIN_NEEDED.contains(&&*format!("{path} {name}")) {
                assert!(code.contains("tx: &mut AdminTx<'_>"), "{path} {name}");
                checked += 1;
            }
        }
    }
    assert!(checked > 15, "{checked}");
}
