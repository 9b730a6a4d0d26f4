//! Programs that do not run in a test, and the checks of their arguments:
//!
//! - cargo and the scripts that build or run everything, because they take minutes,
//! - docker, because a test machine has no container engine.

use std::{fs, path::Path, process::Command, sync::LazyLock};

use clap::Parser as _;

use super::container;
use crate::fixture::files_in;

#[path = "../../../benches/bench/options.rs"]
#[expect(dead_code, reason = "only the parser is used")]
mod bench_options;
#[path = "../../faults/report/options.rs"]
#[expect(dead_code, reason = "only the parser is used")]
mod fault_options;

/// The integration tests with their modules, as `cargo test` names them.
static TESTS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).arg("--list").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
});

/// Returns true if there is an integration test with this text in its name.
pub fn has_test(filter: &str) -> bool {
    TESTS.iter().any(|name| name.contains(filter))
}

/// Checks the arguments of a program, and returns the commands to run in place of it, as one line.
/// Programs that would only build or test run as `true`.
pub fn commands_in_place_of(program: &str, arguments: &[&str], folder: &Path) -> String {
    let done = "true".to_owned();
    let commands = match (program, arguments) {
        ("docker", arguments) => container::commands_in_place_of(arguments),
        ("cargo", ["test", "--locked", "--test", "api", test]) if has_test(test) => Some(done),
        ("cargo", ["test", "--locked", "--lib", test]) if has_unit_test(test) => Some(done),
        ("./scripts/test", tests) => tests.iter().all(|test| has_test(test)).then_some(done),
        ("./scripts/dev", arguments) => Some(run_dev(arguments, folder)),
        ("./scripts/walkthrough", []) => Some("$REPOSITORY/scripts/walkthrough $URL".to_owned()),
        ("./scripts/prepare", [] | ["--check"]) => Some(done),
        ("./scripts/bench", arguments) => is_bench_option(arguments).then_some(done),
        ("./scripts/faults", arguments) => is_fault_option(arguments).then_some(done),
        _ => None,
    };
    commands.unwrap_or_else(|| panic!("{program} does not accept {arguments:?}"))
}

/// Prints what the running `dev` of the test has printed, if there is one, and otherwise checks the
/// arguments and the configuration.
fn run_dev(arguments: &[&str], folder: &Path) -> String {
    let welcome = folder.join("welcome.txt");
    if arguments.is_empty() && welcome.exists() {
        return format!("cat {}", welcome.display());
    }
    let arguments = arguments.join(" ");
    format!("call2me-auth dev {arguments} --help >/dev/null && call2me-auth config >/dev/null")
}

fn is_bench_option(arguments: &[&str]) -> bool {
    let words = ["bench"].iter().chain(arguments);
    let parsed = bench_options::Options::try_parse_from(words);
    parsed.is_ok() || arguments == ["--help"]
}

fn is_fault_option(arguments: &[&str]) -> bool {
    let words = ["faults"].iter().chain(arguments);
    let parsed = fault_options::Options::try_parse_from(words);
    parsed.is_ok() || arguments == ["--help"]
}

/// Returns true if a file of unit tests has this text in its path.
fn has_unit_test(filter: &str) -> bool {
    files_in("src", "rs").iter().any(|path| {
        path.to_string_lossy().contains(filter)
            && fs::read_to_string(path).unwrap().contains("#[test]")
    })
}
