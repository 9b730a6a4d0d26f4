//! A bash that runs the commands of a document, as a reader does: in one session, in a folder that
//! looks like the repository.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::stand_ins;
use crate::fixture::{TestClock, python, with_timeout};

/// Scripts that stand-ins replace, because they build or run everything.
const REPLACED_SCRIPTS: [&str; 6] = ["bench", "dev", "faults", "prepare", "test", "walkthrough"];

/// The folder of the repository, as documents call it.
const DOCUMENTED_FOLDER: &str = "/home/dana/call2me-auth";

/// A bash session. It ends with the test, and with it the processes that it started.
pub struct Shell {
    folder: TempDir,
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    step_count: usize,
    /// Texts of documents, and the texts that stand for them in the test.
    replacements: Vec<(String, String)>,
    /// Options of curl for each request, in the form of its configuration file.
    pub curl_options: String,
    /// The clock that `sleep` advances. Without one, it sleeps.
    pub clock: Option<Arc<TestClock>>,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Shell {
    /// Starts a session with these variables.
    pub async fn start(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fill_folder(folder.path());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "bash", "--noprofile", "--norc"]);
        remove_foreign_variables(&mut command);
        command.envs(environment(folder.path())).envs(variables.iter().copied());
        command.current_dir(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        let input = process.stdin.take().unwrap();
        let path = fs::canonicalize(folder.path()).unwrap().display().to_string();
        let replacements = vec![(DOCUMENTED_FOLDER.to_owned(), path)];
        let mut shell = Self {
            folder,
            _process: process,
            input,
            output,
            step_count: 0,
            replacements,
            curl_options: String::new(),
            clock: None,
        };
        shell.send(&format!("exec 3>&1 4<&0; . {}", session_functions().display())).await;
        shell
    }

    /// The folder of the session.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Lets `actual` stand for a text of documents, in commands and in their output.
    pub fn replace(&mut self, documented: &str, actual: &str) {
        self.replacements.push((documented.to_owned(), actual.to_owned()));
    }

    /// Returns a text of a document with the values of the test.
    pub fn localize(&self, documented: &str) -> String {
        let replace = |text: String, (from, to): &(String, String)| text.replace(from, to);
        self.replacements.iter().fold(documented.to_owned(), replace)
    }

    /// Runs commands of a document and returns their output with the values of documents, or an
    /// error if a command fails. The session is over then.
    pub async fn try_run(&mut self, commands: &str) -> Result<String, String> {
        self.step_count += 1;
        let [step, output] = ["sh", "out"]
            .map(|ending| self.path().join(format!("step-{}.{ending}", self.step_count)));
        fs::write(&step, self.localize(commands)).unwrap();
        fs::write(self.path().join(".curlrc"), format!("{}\nnoproxy = *\n", self.curl_options))
            .unwrap();
        self.send(&format!("run_step {} {}", step.display(), output.display())).await;
        let has_succeeded = self.answer_until_done().await;
        let text = fs::read_to_string(&output).unwrap_or_default();
        let replace = |text: String, (documented, actual): &(String, String)| {
            text.replace(actual, documented)
        };
        let text = self.replacements.iter().fold(text, replace);
        if has_succeeded { Ok(text) } else { Err(text) }
    }

    /// Runs commands of a test and returns their output.
    #[track_caller]
    pub fn run(&mut self, commands: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let result = self.try_run(commands).await;
            result.unwrap_or_else(|output| panic!("{caller}: {commands} failed:\n{output}"))
        }
    }

    /// Returns the value of a variable of the session.
    pub async fn variable(&mut self, name: &str) -> String {
        self.run(&format!("printf %s \"${name}\"")).await
    }

    async fn send(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// Answers the questions of stand-ins until the commands are done. Returns false if one failed.
    async fn answer_until_done(&mut self) -> bool {
        loop {
            let line = with_timeout("a documented command", self.output.next_line()).await.unwrap();
            let Some(line) = line else { return false };
            let words: Vec<_> = line.split('\u{1f}').collect();
            match words[..] {
                ["ask", "sleep", seconds] => {
                    let commands = self.sleep(seconds.parse().unwrap());
                    self.send(&commands).await;
                }
                ["ask", program, ref arguments @ ..] => {
                    let commands = stand_ins::commands_in_place_of(program, arguments, self.path());
                    self.send(&commands).await;
                }
                _ => return true,
            }
        }
    }

    fn sleep(&self, seconds: u64) -> String {
        let Some(clock) = &self.clock else { return format!("command sleep {seconds}") };
        clock.advance(Duration::from_secs(seconds));
        ":".to_owned()
    }
}

fn session_functions() -> PathBuf {
    repository().join("tests/api/documented_commands/session.sh")
}

/// Hides settings of the machine from a command: those of the service, of libpq and of git.
pub fn remove_foreign_variables(command: &mut Command) {
    let is_foreign = |name: &str| {
        let is_of_libpq = name.starts_with("PG") && !name.starts_with("PG_");
        let is_setting = name.starts_with("CALL2ME_AUTH") || name.starts_with("GIT_");
        is_of_libpq || is_setting || ["DATABASE_URL", "SSL_CERT_FILE"].contains(&name)
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| is_foreign(name)) {
        command.env_remove(name);
    }
}

/// Returns the variables of every session.
fn environment(folder: &Path) -> Vec<(&'static str, String)> {
    let path = std::env::var("PATH").unwrap();
    vec![
        ("PATH", format!("{}/bin:{path}:/usr/sbin", folder.display())),
        ("PROGRAM", env!("CARGO_BIN_EXE_call2me-auth").to_owned()),
        ("SESSION_FUNCTIONS", session_functions().display().to_string()),
        ("REPOSITORY", repository().display().to_string()),
        ("CURL_HOME", folder.display().to_string()),
        ("HOME", folder.display().to_string()),
        ("LC_ALL", "C.UTF-8".to_owned()),
        ("no_proxy", "*".to_owned()),
    ]
}

/// Creates what a reader has in the folder of the repository.
fn fill_folder(folder: &Path) {
    for name in ["bin", "scripts"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    // A symbolic link would not find the packages.
    write_script(
        &folder.join("bin/python3"),
        &format!("exec {} \"$@\"", python("python").display()),
    );
    for name in ["deploy", "docs", "tests"] {
        symlink(repository().join(name), folder.join(name)).unwrap();
    }
    for entry in fs::read_dir(repository().join("scripts")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = folder.join("scripts").join(&name);
        if REPLACED_SCRIPTS.contains(&name.as_str()) {
            write_script(&path, ". \"$SESSION_FUNCTIONS\"\nask \"$0\" \"$@\"");
        } else {
            symlink(entry.path(), path).unwrap();
        }
    }
}

fn write_script(path: &Path, commands: &str) {
    fs::write(path, format!("#!/usr/bin/env bash\n{commands}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
