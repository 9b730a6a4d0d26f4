//! What the documentation says of tests is so: each that it names is there.

use std::{collections::BTreeMap, fs, path::Path};

/// Names of functions by the names of the modules that they stand in, of the tests and of the crate.
fn functions() -> BTreeMap<String, Vec<String>> {
    fn walk(folder: &Path, found: &mut BTreeMap<String, Vec<String>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let (file, folder) = (path.file_stem().unwrap(), path.parent().unwrap());
                let is_folder = ["mod", "tests"].contains(&file.to_str().unwrap());
                let module = if is_folder { folder.file_name().unwrap() } else { file };
                let module = module.to_str().unwrap().to_owned();
                let text = fs::read_to_string(&path).unwrap();
                let names = text.split("fn ").skip(1).map(|rest| {
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
                });
                found.entry(module).or_default().extend(names.collect::<Vec<String>>());
            }
        }
    }
    let mut found = BTreeMap::new();
    for folder in ["src", "tests"] {
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    }
    found
}

/// What stands in backquotes and looks like a test: `module::name`, or the beginning of a name and `…`.
fn named(text: &str) -> Vec<(String, String)> {
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

#[test]
fn tests_that_are_named_are_there() {
    let functions = functions();
    let mut checked = 0;
    for file in ["README.md", "docs/oauth.md", "docs/architecture.md"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        for (module, name) in named(&text) {
            // Tests of faults are named by their folder.
            let all = || functions.values().flatten().cloned().collect();
            let known =
                if module == "faults" { Some(all()) } else { functions.get(&module).cloned() };
            let known = known.unwrap_or_else(|| panic!("{file}: no {module}"));
            let is_there = match name.strip_suffix('…') {
                Some(beginning) => known.iter().any(|known| known.starts_with(beginning)),
                None => known.contains(&name),
            };
            assert!(is_there, "{file} names {module}::{name}");
            checked += 1;
        }
    }
    assert!(checked > 150, "{checked}");
}
