//! Checks the Dockerfile and the arguments of docker. A test machine has no container engine; the
//! commands of a container run as processes.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use crate::fixture::files_in;

/// The name of the image in documents.
const IMAGE: &str = "call2me-auth";

/// Returns the commands to run in place of docker, or `None` if it would not accept the arguments.
pub fn commands_in_place_of(arguments: &[&str]) -> Option<String> {
    match arguments {
        ["build", "-t", IMAGE, "."] => {
            Dockerfile::read().check();
            Some("true".to_owned())
        }
        ["run", options @ ..] => run(options),
        _ => None,
    }
}

fn run(options: &[&str]) -> Option<String> {
    let image = options.iter().position(|word| *word == IMAGE)?;
    let (mut options, command) = (options[..image].iter(), &options[image + 1..]);
    let mut variables = None;
    while let Some(option) = options.next() {
        match *option {
            "--rm" | "-d" => {}
            "--name" => drop(options.next()?),
            "--env-file" => variables = Some(*options.next()?),
            "--stop-timeout" => assert!(options.next()?.parse::<u32>().ok()? >= 70),
            "-p" => assert!(Dockerfile::read().exposes(options.next()?.rsplit(':').next()?)),
            _ => return None,
        }
    }
    Some(format!("run_container {} {}", variables?, command.join(" ")))
}

struct Dockerfile(String);

impl Dockerfile {
    fn read() -> Self {
        Self(fs::read_to_string(repository().join("Dockerfile")).unwrap())
    }

    /// Returns the arguments of each instruction of this name.
    fn instructions(&self, name: &str) -> Vec<Vec<&str>> {
        let words = self.0.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let of_name = words.filter(|words| words.first() == Some(&name));
        of_name.map(|words| words[1..].to_vec()).collect()
    }

    fn exposes(&self, port: &str) -> bool {
        self.instructions("EXPOSE") == [[port]]
    }

    /// Checks the stages, and that the build has all files that it reads.
    fn check(&self) {
        let stages = self.instructions("FROM");
        let [build, run] = &stages[..] else { panic!("two stages: {stages:?}") };
        let version = build[0].strip_prefix("rust:").unwrap().split('-').next().unwrap();
        let number = |version: &str| -> Vec<u32> {
            version.split('.').take(2).map(|part| part.parse().unwrap()).collect()
        };
        assert!(number(version) >= number(env!("CARGO_PKG_RUST_VERSION")), "{version}");
        assert_eq!((&build[1..], run.len()), (&["AS", "build"][..], 1));
        assert_eq!(self.instructions("ENTRYPOINT"), [["[\"call2me-auth\"]"]]);
        assert_eq!(self.instructions("CMD"), [["[\"serve\"]"]]);
        self.check_copied_files();
    }

    fn check_copied_files(&self) {
        let ignored = fs::read_to_string(repository().join(".dockerignore")).unwrap();
        let mut sources = Vec::new();
        for copy in self.instructions("COPY") {
            let files = &copy[..copy.len() - 1];
            if let Some(stage) = files[0].strip_prefix("--from=") {
                let path = "/build/target/release/call2me-auth";
                assert_eq!((stage, &files[1..]), ("build", &[path][..]));
                continue;
            }
            for file in files {
                assert!(repository().join(file).exists(), "the Dockerfile copies {file}");
                assert!(!ignored.lines().any(|line| line == *file), "{file} is in .dockerignore");
                sources.push(repository().join(file));
            }
        }
        for path in included_files() {
            let is_copied = sources.iter().any(|source| path.starts_with(source));
            assert!(is_copied, "the Dockerfile does not copy {}", path.display());
        }
    }
}

/// Returns the files that the source code includes.
fn included_files() -> Vec<PathBuf> {
    let mut included = vec![repository().join("migrations"), repository().join(".sqlx")];
    for file in files_in("src", "rs") {
        let text = fs::read_to_string(&file).unwrap();
        for part in text.split("include_str!(\"").skip(1) {
            let path = file.parent().unwrap().join(part.split('"').next().unwrap());
            included.push(without_parents(&path));
        }
    }
    included
}

/// Resolves `..` in a path.
fn without_parents(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            result.pop();
        } else {
            result.push(component);
        }
    }
    result
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
