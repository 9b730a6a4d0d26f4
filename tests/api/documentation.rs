//! Every test that the documentation refers to exists.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::fixture::files_in;

/// Returns the names of the functions in each module of the crate and the tests.
fn functions_by_module() -> BTreeMap<String, Vec<String>> {
    let mut by_module = BTreeMap::<_, Vec<String>>::new();
    for path in files_in("src", "rs").into_iter().chain(files_in("tests", "rs")) {
        let (file, folder) = (path.file_stem().unwrap(), path.parent().unwrap());
        let is_folder = ["mod", "tests"].contains(&file.to_str().unwrap());
        let module = if is_folder { folder.file_name().unwrap() } else { file };
        let module = module.to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let names = text
            .split("fn ")
            .skip(1)
            .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        by_module.entry(module).or_default().extend(names);
    }
    by_module
}

/// Returns the references to tests in backquotes: `module::name`, or a prefix followed by `…`.
fn test_references(text: &str) -> Vec<(String, String)> {
    let spans = text.split('`').skip(1).step_by(2);
    let tests = spans.filter_map(|span| {
        let (module, name) = span.split_once("::")?;
        let is_word = |text: &str| {
            !text.is_empty()
                && text.chars().all(|c| c.is_ascii_lowercase() || c.is_numeric() || c == '_')
        };
        let is_test = is_word(module) && (name == "…" || is_word(name.trim_end_matches('…')));
        is_test.then(|| (module.to_owned(), name.to_owned()))
    });
    tests.collect()
}

/// Returns the documents for users and contributors.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = files_in("docs", "md");
    paths.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root.join(name)));
    paths
}

#[test]
fn documented_tests_exist() {
    let functions = functions_by_module();
    let mut checked = 0;
    for file in ["docs/guarantees.md", "docs/oauth.md", "docs/architecture.md", "docs/security.md"]
    {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        for (module, name) in test_references(&text) {
            // Fault tests are referred to by their folder.
            let all = || functions.values().flatten().cloned().collect();
            let known =
                if module == "faults" { Some(all()) } else { functions.get(&module).cloned() };
            let known =
                known.unwrap_or_else(|| panic!("{file} refers to the missing module {module}"));
            let exists = match name.strip_suffix('…') {
                Some(beginning) => known.iter().any(|known| known.starts_with(beginning)),
                None => known.contains(&name),
            };
            assert!(exists, "{file} refers to the missing test {module}::{name}");
            checked += 1;
        }
    }
    assert!(checked > 150, "{checked}");
}

#[test]
fn documented_files_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let is_source = ["src/", "tests/", "migrations/", "config/", "scripts/", "docs/"]
                .iter()
                .any(|folder| name.starts_with(folder));
            if is_source && !name.contains(['*', '{', '<', ' ', '…']) {
                assert!(root.join(name).exists(), "{} names {name}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "{checked}");
}
