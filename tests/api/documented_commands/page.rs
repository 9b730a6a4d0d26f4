//! Runs the blocks of a document in their order.

use std::{collections::VecDeque, fs, path::Path, time::Duration};

use super::{
    markdown::{Block, HIDDEN, blocks},
    output::is_as_documented,
    shell::Shell,
};

/// Blocks that are neither run nor the output of a command: a document, the beginning of the block,
/// and the reason.
const ILLUSTRATIONS: [(&str, &str, &str); 3] = [
    ("docs/architecture.md", "curl · SDKs", "a picture of the layers"),
    ("docs/audit-log.md", "hash(0) = ", "a formula, which verify_audit_log.py implements"),
    ("docs/gateways.md", "client ── request", "a picture of the requests"),
];

/// The most attempts of commands whose output changes after a moment, and the pause between them.
const MAX_ATTEMPTS: u32 = 300;
const PAUSE: Duration = Duration::from_millis(100);

/// The blocks of a document that have not been run yet.
pub struct Page {
    path: &'static str,
    blocks: VecDeque<Block>,
}

impl Page {
    /// Reads a document of the repository.
    pub fn read(path: &'static str) -> Self {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        Self { path, blocks: blocks(&text).into() }
    }

    /// Removes the next block of a language from the page, for the caller to run, and returns it.
    pub fn take(&mut self, language: &str) -> String {
        let position = self.blocks.iter().position(|block| block.language == language);
        let position = position.unwrap_or_else(|| panic!("no {language} in {}", self.path));
        self.blocks.remove(position).unwrap().text
    }

    /// Runs all other blocks.
    pub async fn run(&mut self, shell: &mut Shell) {
        while !self.blocks.is_empty() {
            self.run_next(shell).await;
        }
    }

    /// Runs the blocks up to the first one that contains a text, and that one.
    pub async fn run_through(&mut self, text: &str, shell: &mut Shell) {
        loop {
            let block = self.run_next(shell).await;
            let block = block.unwrap_or_else(|| panic!("no {text:?} in {}", self.path));
            if block.text.contains(text) {
                return;
            }
        }
    }

    /// Runs a block and compares its output with the next one, if that is its output.
    async fn run_next(&mut self, shell: &mut Shell) -> Option<Block> {
        let block = self.blocks.pop_front()?;
        let (path, line) = (self.path, block.line);
        let Some(commands) = commands_of(&block, shell) else {
            let is_illustration = ILLUSTRATIONS.iter().any(|(document, beginning, _)| {
                *document == path && block.text.trim_start().starts_with(beginning)
            });
            let language = &block.language;
            assert!(
                is_illustration,
                "{path}:{line}: no test runs a block of language {language:?}"
            );
            return Some(block);
        };
        let output = self.take_output();
        let curl = shell.curl_options.clone();
        if expects_success(&block, output.as_ref()) {
            shell.curl_options += "\nfail-with-body";
        }
        Step { place: format!("{path}:{line}"), commands, output }.run(shell).await;
        shell.curl_options = curl;
        Some(block)
    }

    /// Removes the next block if it is the output of the previous one.
    fn take_output(&mut self) -> Option<Block> {
        let is_output = |block: &Block| block.is_adjacent && block.language == "text";
        self.blocks.pop_front_if(|block| is_output(block))
    }
}

/// True if a request of these commands fails the test unless its response is a success. Without an
/// option, curl reports success for any response.
fn expects_success(commands: &Block, output: Option<&Block>) -> bool {
    let documents_error = output.is_some_and(|output| output.text.contains("\"error\""));
    commands.text.contains("curl ") && !commands.text.contains("curl -f") && !documents_error
}

/// Returns the commands that run a block, or `None` if blocks of its language are not run.
fn commands_of(block: &Block, shell: &Shell) -> Option<String> {
    let save = |name: &str| {
        fs::write(shell.path().join(name), shell.localize(&block.text)).unwrap();
    };
    match block.language.as_str() {
        HIDDEN => Some(block.text.clone()),
        "sh" if block.text.contains("export CALL2ME_AUTH__") => {
            Some(format!("{}call2me-auth config >/dev/null\n", block.text))
        }
        "sh" => Some(block.text.clone()),
        "sql" => {
            save("query.sql");
            Some("psql --no-psqlrc -v ON_ERROR_STOP=1 -f query.sql \"$OWNER_URL\"".to_owned())
        }
        "python" => {
            // With a name in its first line, it is a file for a later command.
            let first = block.text.lines().next()?;
            let name =
                first.strip_prefix("# ").filter(|name| Path::new(name).extension().is_some());
            save(name.unwrap_or("example.py"));
            Some(if name.is_some() { String::new() } else { "python3 example.py".to_owned() })
        }
        _ => None,
    }
}

/// Commands and their documented output.
struct Step {
    place: String,
    commands: String,
    output: Option<Block>,
}

impl Step {
    async fn run(self, shell: &mut Shell) {
        for attempt in 1.. {
            let result = shell.try_run(&self.commands).await;
            let (place, commands) = (&self.place, &self.commands);
            let actual = result
                .unwrap_or_else(|output| panic!("{place}: failed:\n{commands}\nwith:\n{output}"));
            let Some(Block { text: documented, line, .. }) = &self.output else { return };
            if is_as_documented(documented, &actual) {
                return;
            }
            // Events and counts appear after a moment.
            assert!(
                attempt < MAX_ATTEMPTS && self.only_reads(),
                "{place}: the output is not that of line {line}, but:\n{actual}"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// True if the commands can be repeated: they are requests that change nothing.
    fn only_reads(&self) -> bool {
        let changes = [" -d ", " -X ", "<<", "serve", "admin"];
        self.commands.contains("curl ") && !changes.iter().any(|word| self.commands.contains(word))
    }
}
