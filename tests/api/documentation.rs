//! The tests, files and modules that documents and comments refer to exist.

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

/// Returns the paths in backquotes in the comments of a source file, such as `auth::sessions`.
fn module_references(text: &str) -> Vec<Vec<String>> {
    let is_segment = |segment: &str| {
        !segment.is_empty()
            && segment.chars().all(|c| c.is_ascii_lowercase() || c.is_numeric() || c == '_')
    };
    let comments = text.lines().map(str::trim_start).filter(|line| line.starts_with("//"));
    let spans = comments.flat_map(|line| line.split('`').skip(1).step_by(2));
    let paths =
        spans.map(|span| span.trim_start_matches("crate::").split("::").collect::<Vec<_>>());
    paths
        .filter(|path| path.len() > 1 && path.iter().all(|segment| is_segment(segment)))
        .map(|path| path.into_iter().map(str::to_owned).collect())
        .collect()
}

/// True if the path names a module of the crate, or a function in one.
fn module_path_exists(path: &[String]) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let module = path.iter().fold(source, |parent, name| parent.join(name));
    let is_module =
        |path: &Path| path.join("mod.rs").exists() || path.with_extension("rs").exists();
    let has_function = || {
        let parent = module.parent().unwrap();
        let files = [parent.join("mod.rs"), parent.with_extension("rs")];
        let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
        let definition = format!("fn {}(", path.last().unwrap());
        texts.into_iter().any(|text| text.contains(&definition))
    };
    is_module(&module) || has_function()
}

#[test]
fn modules_in_comments_exist() {
    let mut checked = 0;
    for file in files_in("src", "rs") {
        for path in module_references(&fs::read_to_string(&file).unwrap()) {
            // Paths of other crates, and relative ones, are not checked here.
            if module_path_exists(&path[..1]) {
                let name = path.join("::");
                assert!(module_path_exists(&path), "{} names {name}", file.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "{checked}");
}
