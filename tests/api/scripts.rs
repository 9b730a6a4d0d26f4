//! The scripts on a machine that lacks something: one clear line, before anything is built.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::fixture::TestApp;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32, reason: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.lines().any(|line| line.contains(reason)), "{text}");
}

/// A folder for `PATH` with what the scripts take for granted, and nothing else.
fn bare_machine() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for tool in ["bash", "cut", "dirname", "head", "id", "ls", "sed", "sort"] {
        let from = ["/usr/bin", "/bin"].iter().map(|place| Path::new(place).join(tool));
        symlink(from.into_iter().find(|path| path.exists()).unwrap(), folder.path().join(tool))
            .unwrap();
    }
    folder
}

/// A script, or a line of shell, on that machine.
fn on(machine: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(machine.join("bash"));
    command.args(arguments).env("PATH", machine).env("HOME", machine).env_remove("CARGO_HOME");
    run(command.current_dir(project(".")))
}

#[test]
fn missing_rust_is_named_before_anything_is_built() {
    let machine = bare_machine();
    for script in ["scripts/dev", "scripts/test", "scripts/prepare", "scripts/bench"] {
        let output = on(machine.path(), &[script]);
        refused(
            &output,
            1,
            concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or later is missing"),
        );
    }
}

#[test]
fn old_rust_is_refused_with_the_version_that_is_needed() {
    let machine = bare_machine();
    for tool in ["rustc", "cargo"] {
        let path = machine.path().join(tool);
        fs::write(&path, "#!/bin/sh\necho rustc 1.65.0\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let needed = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or later is needed");
    let output = on(machine.path(), &["scripts/test"]);
    refused(&output, 1, needed);
    refused(&output, 1, "is 1.65.0: install a newer one with rustup");
    let rustup = machine.path().join("rustup");
    symlink(machine.path().join("cargo"), rustup).unwrap();
    refused(&on(machine.path(), &["scripts/dev"]), 1, "rustup update stable");
}

#[test]
fn missing_packages_are_named_in_one_line() {
    let machine = bare_machine();
    let needs = ". scripts/needs; need nowhere-1 one; need bash bash; need nowhere-2 two three; install_needs";
    let output = on(machine.path(), &["-c", needs]);
    refused(&output, 1, "as root: apt-get install one two three");
}

#[test]
fn dev_names_a_port_in_use_before_the_build() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for arguments in [vec!["--port", &port], vec![&format!("--port={port}")]] {
        let output = run(Command::new(project("scripts/dev")).args(arguments));
        refused(
            &output,
            2,
            "is in use by another process: choose another port, ./scripts/dev --port",
        );
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn walkthroughs_without_a_service_say_so() {
    for script in ["walkthrough", "walkthrough-oauth", "walkthrough-rotation"] {
        let mut command = Command::new(project("scripts").join(script));
        refused(&run(command.arg("http://127.0.0.1:1")), 2, "start one with ./scripts/dev");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn walkthrough_of_a_rotation_does_not_wait_for_a_quarter_of_an_hour() {
    let app = TestApp::start().await;
    let mut command = Command::new(project("scripts/walkthrough-rotation"));
    command.arg(&app.url);
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    refused(&output, 2, "CALL2ME_AUTH__ROTATION__QUIET_SECONDS=3 ./scripts/dev");
}

/// A project whose dependencies have everything wrong that can be.
#[test]
fn bad_dependencies_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let package = |name: &str, more: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2024\"\n{more}\n")
    };
    // Beside it: in a folder of the project they would be parts of it.
    let dependencies =
        "[dependencies]\nopenssl = { path = \"../openssl\" }\nfine = { path = \"../fine\" }\n";
    write("app/Cargo.toml", &package("app", dependencies));
    write("app/src/lib.rs", "pub use fine::x; // openssl is not used\n");
    write("openssl/Cargo.toml", &package("openssl", "license = \"GPL-3.0 OR (MIT AND Nothing)\""));
    write("openssl/src/lib.rs", "");
    write("fine/Cargo.toml", &package("fine", "license = \"GPL-3.0 OR (MIT AND Zlib)\""));
    write("fine/src/lib.rs", "pub fn x() {}");
    let app = folder.path().join("app");
    fs::copy(project("deny.toml"), app.join("deny.toml")).unwrap();
    let mut lock = Command::new(env!("CARGO"));
    let locked = run(lock.args(["generate-lockfile", "--offline"]).current_dir(&app));
    assert!(locked.status.success(), "{locked:?}");
    let output = run(Command::new(project("scripts/dependencies")).arg(&app));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "openssl 1.0.0 has the license GPL-3.0 OR (MIT AND Nothing), which deny.toml does not allow",
            "openssl 1.0.0 is banned by deny.toml",
            "openssl is in Cargo.toml and not used",
        ]
    );
    assert_eq!(output.status.code(), Some(1));
}
