//! The scripts on a machine with missing requirements: they fail before the build, with one clear
//! line.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::{fixture::TestApp, leaked_keys::run_git};

fn project_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn assert_failure(output: &Output, code: i32, reason: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.lines().any(|line| line.contains(reason)), "{text}");
}

/// Creates a folder for `PATH` that contains only the basic tools that the scripts rely on.
fn bare_machine() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for tool in ["bash", "cut", "dirname", "head", "id", "ls", "sed", "sort"] {
        let from = ["/usr/bin", "/bin"].iter().map(|directory| Path::new(directory).join(tool));
        symlink(from.into_iter().find(|path| path.exists()).unwrap(), folder.path().join(tool))
            .unwrap();
    }
    folder
}

/// Runs bash with these arguments, a script or a shell command, on that machine.
fn run_on(machine: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(machine.join("bash"));
    command.args(arguments).env("PATH", machine).env("HOME", machine).env_remove("CARGO_HOME");
    run(command.current_dir(project_path(".")))
}

#[test]
fn missing_rust_is_reported_before_build() {
    let machine = bare_machine();
    for script in
        ["dev", "test", "prepare", "bench", "faults"].map(|name| format!("scripts/{name}"))
    {
        let output = run_on(machine.path(), &[&script]);
        assert_failure(
            &output,
            1,
            concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or later is missing"),
        );
    }
}

#[test]
fn old_rust_is_rejected_with_required_version() {
    let machine = bare_machine();
    for tool in ["rustc", "cargo"] {
        let path = machine.path().join(tool);
        fs::write(&path, "#!/bin/sh\necho rustc 1.65.0\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let needed = concat!("Rust ", env!("CARGO_PKG_RUST_VERSION"), " or later is needed");
    let output = run_on(machine.path(), &["scripts/test"]);
    assert_failure(&output, 1, needed);
    assert_failure(&output, 1, "is 1.65.0: install a newer one with rustup");
    let rustup = machine.path().join("rustup");
    symlink(machine.path().join("cargo"), rustup).unwrap();
    assert_failure(&run_on(machine.path(), &["scripts/dev"]), 1, "rustup update stable");
}

#[test]
fn missing_packages_are_reported_in_one_line() {
    let machine = bare_machine();
    let script = ". scripts/requirements; need nowhere-1 one; need bash bash; need nowhere-2 two three; install_needs";
    let output = run_on(machine.path(), &["-c", script]);
    assert_failure(&output, 1, "as root: apt-get install one two three");
}

#[test]
fn dev_reports_port_in_use_before_build() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for arguments in [vec!["--port", &port], vec![&format!("--port={port}")]] {
        let output = run(Command::new(project_path("scripts/dev")).args(arguments));
        assert_failure(
            &output,
            2,
            "is in use by another process: choose another port, ./scripts/dev --port",
        );
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn walkthrough_without_service_reports_how_to_start_one() {
    for script in ["walkthrough", "walkthrough-oauth", "walkthrough-rotation"] {
        let mut command = Command::new(project_path("scripts").join(script));
        assert_failure(&run(command.arg("http://127.0.0.1:1")), 2, "start one with ./scripts/dev");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_walkthrough_rejects_long_quiet_period() {
    let app = TestApp::start().await;
    let mut command = Command::new(project_path("scripts/walkthrough-rotation"));
    command.arg(&app.url);
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    assert_failure(&output, 2, "CALL2ME_AUTH__ROTATION__QUIET_SECONDS=3 ./scripts/dev");
}

/// The dependencies of the project violate every rule.
#[test]
fn forbidden_or_unused_dependency_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let package = |name: &str, fields: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2024\"\n{fields}\n")
    };
    // The dependencies are beside the project: inside its folder, they would be workspace members.
    let dependencies =
        "[dependencies]\nopenssl = { path = \"../openssl\" }\nfine = { path = \"../fine\" }\n";
    write("app/Cargo.toml", &package("app", dependencies));
    write("app/src/lib.rs", "pub use fine::x; // openssl is not used\n");
    write("openssl/Cargo.toml", &package("openssl", "license = \"GPL-3.0 OR (MIT AND Nothing)\""));
    write("openssl/src/lib.rs", "");
    write("fine/Cargo.toml", &package("fine", "license = \"GPL-3.0 OR (MIT AND Zlib)\""));
    write("fine/src/lib.rs", "pub fn x() {}");
    let app = folder.path().join("app");
    fs::copy(project_path("deny.toml"), app.join("deny.toml")).unwrap();
    let mut lock = Command::new(env!("CARGO"));
    let locked = run(lock.args(["generate-lockfile", "--offline"]).current_dir(&app));
    assert!(locked.status.success(), "{locked:?}");
    let output = run(Command::new(project_path("scripts/dependencies")).arg(&app));
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

#[test]
fn advisories_are_checked_or_reported_as_unchecked() {
    let machine = bare_machine();
    let output = run_on(machine.path(), &["scripts/advisories"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.lines().count() == 1, "{output:?}");
    assert!(text.starts_with("advisories: NOT CHECKED, cargo-deny is missing"), "{text}");
    // A stand-in for cargo-deny: cargo calls it with `deny`, and then the arguments.
    for (fetch, check, code, expected) in [
        ("echo 'error: failed to fetch: no route to host' >&2; exit 1", "exit 0", 0, "NOT CHECKED"),
        ("exit 0", "echo advisories ok; exit 0", 0, "advisories ok"),
        ("exit 0", "echo 'RUSTSEC-2026-0001: a vulnerability'; exit 1", 1, "RUSTSEC-2026-0001"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join("cargo-deny");
        let script = format!("#!/bin/sh\ncase $* in *fetch*) {fetch};; *check*) {check};; esac\n");
        fs::write(&tool, script).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(project_path("scripts/advisories"));
        let output = run(command.env("PATH", path));
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(text.contains(expected) && text.lines().count() == 1, "{output:?}");
    }
}

#[test]
fn bad_commit_message_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("scripts")).unwrap();
    let script = folder.join("scripts/commit-messages");
    fs::copy(project_path("scripts/commit-messages"), &script).unwrap();
    // Without a repository, such as in an archive of the sources, there is nothing to check.
    let outside =
        run(Command::new(&script).env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap()));
    assert!(outside.status.success(), "{outside:?}");
    run_git(folder, &["init", "-q", "-b", "main"]);
    for (subject, body, reason) in [
        ("docs: say why", "A reason.", None),
        ("docs: say why", "", Some("the body is missing")),
        ("Say why", "A reason.", Some("the subject must be: area: imperative")),
        ("docs: Say why", "A reason.", Some("the subject must be: area: imperative")),
        (&format!("docs: {}", "a".repeat(67)), "A reason.", Some("73 characters")),
    ] {
        let message = format!("{subject}\n\n{body}");
        run_git(folder, &["commit", "-q", "--allow-empty", "-m", &message]);
        let output = run(Command::new(&script).current_dir(folder));
        match reason {
            Some(reason) => assert_failure(&output, 1, reason),
            None => assert!(output.status.success(), "{output:?}"),
        }
    }
}
