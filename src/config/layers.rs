//! Files and variables, merged; each value with where it comes from.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
};

use toml::{Table, Value};

use super::{Database, Settings, check::Check};

/// The prefix of environment variables.
pub(super) const ENV_PREFIX: &str = "CALL2ME_AUTH__";

/// Variables that begin so, in any case, and not with [`ENV_PREFIX`], are refused: they are misspelt.
const ENV_STEM: &str = "CALL2ME_AUTH";

/// Whether Kubernetes made a variable for a service whose name begins as this one's (service links):
/// `CALL2ME_AUTH_SERVICE_HOST`, `CALL2ME_AUTH_PORT=tcp://…`, `CALL2ME_AUTH_PORT_8080_TCP_ADDR` and the like.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let is_url = value.to_str().is_some_and(|value| value.contains("://"));
    let after_port = name.split_once("_PORT_").map(|(_, rest)| rest);
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && is_url)
        || after_port.is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
}

const DEFAULT: &str = include_str!("../../config/default.toml");
const DEVELOPMENT: &str = include_str!("../../config/development.toml");
const PRODUCTION: &str = include_str!("../../config/production.toml");

/// Settings whose values are never printed.
const SECRETS: [&str; 5] =
    ["database.url", "database.owner_url", "keys.encryption_key", "redis.url", "mail.url"];

/// Which file comes after `default.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// `call2me-auth dev`.
    Development,
    /// Everything else.
    Production,
}

impl Profile {
    const fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Development => ("development.toml", DEVELOPMENT),
            Self::Production => ("production.toml", PRODUCTION),
        }
    }
}

/// The folder of configuration files, read on top of those in the binary.
#[derive(Debug, Clone, Copy)]
pub enum Files<'a> {
    /// No folder.
    Embedded,
    /// Files that may be missing.
    Optional(&'a Path),
    /// A folder that the operator named: at least one file must be there.
    Required(&'a Path),
}

/// The merged layers, before they are checked.
pub struct Raw {
    pub(super) values: BTreeMap<String, (Value, String)>,
    pub(super) problems: Vec<String>,
}

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad configuration: {}", self.0.join("; "))
    }
}

impl Raw {
    /// Reads all layers; variables of the environment come last.
    ///
    /// Variables of other programs are ignored, also where they are not UTF-8.
    #[must_use]
    pub fn read<K: Into<OsString>, V: Into<OsString>>(
        profile: Profile,
        files: Files<'_>,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let mut raw = Self { values: BTreeMap::new(), problems: Vec::new() };
        // The binary's own files are part of the program; a test reads them.
        for (key, value) in flatten(&DEFAULT.parse().unwrap_or_default()) {
            raw.values.insert(key, (value, "the defaults".to_owned()));
        }
        let (file, embedded) = profile.file();
        raw.merge_file(embedded, file);
        match files {
            Files::Embedded => {}
            Files::Optional(folder) => drop(raw.merge_folder(folder, file)),
            Files::Required(folder) => {
                if raw.merge_folder(folder, file) == 0 {
                    let folder = folder.display();
                    raw.problems
                        .push(format!("--config {folder}: no default.toml or {file} is there"));
                }
            }
        }
        for (name, value) in environment {
            // A name of ours is ASCII.
            if let Ok(name) = name.into().into_string() {
                raw.merge_variable(&name, value.into());
            }
        }
        raw
    }

    /// Merges the files of a folder; returns how many are there.
    fn merge_folder(&mut self, folder: &Path, profile: &str) -> usize {
        let mut found = 0;
        for file in ["default.toml", profile].map(|file| folder.join(file)) {
            match std::fs::read_to_string(&file) {
                Ok(text) => self.merge_file(&text, &file.display().to_string()),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    self.problems.push(format!("cannot read {}: {error}", file.display()));
                }
            }
            found += 1;
        }
        found
    }

    fn merge_variable(&mut self, name: &str, value: OsString) {
        let key = if name == "DATABASE_URL" {
            "database.url".to_owned()
        } else if let Some(key) = name.strip_prefix(ENV_PREFIX) {
            key.to_ascii_lowercase().replace("__", ".")
        } else if name.get(..ENV_STEM.len()).is_some_and(|stem| stem.eq_ignore_ascii_case(ENV_STEM))
        {
            if is_service_link(name, &value) {
                return;
            }
            let hint = self.suggestion(&name[ENV_STEM.len()..]);
            self.problems.push(format!("{name} is not a variable of this service{hint}"));
            return;
        } else {
            return;
        };
        match value.into_string() {
            Ok(text) => self.set_text(&key, text, name),
            Err(_) => self.problems.push(format!("{name} is not UTF-8")),
        }
    }

    /// The variable that a misspelt name most likely means, as the end of a message: the setting of the same letters.
    fn suggestion(&self, name: &str) -> String {
        let letters = |text: &str| -> String {
            text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
        };
        let wanted = letters(name);
        self.values.keys().find(|key| letters(key) == wanted).map_or_else(String::new, |key| {
            format!(": did you mean {ENV_PREFIX}{}?", key.to_uppercase().replace('.', "__"))
        })
    }

    /// Overrides a setting, as a command-line flag does.
    pub fn set(&mut self, key: &str, value: Value, origin: &str) {
        match self.values.get_mut(key) {
            Some(slot) if slot.0.same_type(&value) => *slot = (value, origin.to_owned()),
            Some((old, _)) => {
                self.problems.push(format!("{key} must be {} (from {origin})", type_name(old)));
            }
            None => {
                let hint = self.suggestion(key);
                self.problems.push(format!("{key} is no setting (from {origin}){hint}"));
            }
        }
    }

    /// The text of a setting, if it is set.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        let (value, _) = self.values.get(key)?;
        value.as_str().filter(|text| !text.is_empty())
    }

    fn merge_file(&mut self, text: &str, origin: &str) {
        match text.parse::<Table>() {
            Ok(table) => {
                for (key, value) in flatten(&table) {
                    self.set(&key, value, origin);
                }
            }
            Err(error) => self.problems.push(format!("{origin}: {}", error.message())),
        }
    }

    /// A variable is text; the default tells what it must be read as.
    fn set_text(&mut self, key: &str, text: String, origin: &str) {
        let value = match self.values.get(key) {
            Some((Value::Integer(_), _)) => text.trim().parse().map(Value::Integer).ok(),
            Some((Value::Boolean(_), _)) => text.trim().parse().map(Value::Boolean).ok(),
            Some((Value::Array(_), _)) if text.trim_start().starts_with('[') => {
                format!("list = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("list"))
            }
            Some((Value::Array(_), _)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
            }
            _ => None,
        };
        self.set(key, value.unwrap_or(Value::String(text)), origin);
    }

    /// The settings, as `call2me-auth config` prints them: TOML with origins, secrets redacted.
    #[must_use]
    pub fn describe(&self) -> String {
        use fmt::Write as _;
        let mut text = String::new();
        let mut section = "";
        for (key, (value, origin)) in &self.values {
            let (head, name) = key.split_once('.').unwrap_or(("", key));
            if head != section {
                text.push_str(if section.is_empty() { "" } else { "\n" });
                writeln!(text, "[{head}]").ok();
                section = head;
            }
            let shown = match value {
                Value::String(secret) if SECRETS.contains(&key.as_str()) && !secret.is_empty() => {
                    "\"[redacted]\"".to_owned()
                }
                value => value.to_string(),
            };
            writeln!(text, "{name} = {shown}  # from {origin}").ok();
        }
        text
    }

    /// Checks the settings of the database alone: migrations need no others.
    ///
    /// # Errors
    /// With everything that is wrong with them.
    pub fn check_database(&self) -> Result<Database, Problems> {
        let mut check = Check { raw: self, problems: self.problems.clone() };
        match check.database() {
            Some(database) if check.problems.is_empty() => Ok(database),
            _ => Err(Problems(check.problems)),
        }
    }

    /// Refuses names that are no settings, values of the wrong type and files that cannot be read, before the
    /// settings are complete.
    ///
    /// # Errors
    /// With everything that is wrong so far.
    pub fn check_layers(&self) -> Result<(), Problems> {
        if self.problems.is_empty() { Ok(()) } else { Err(Problems(self.problems.clone())) }
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn check(&self) -> Result<Settings, Problems> {
        let mut check = Check { raw: self, problems: self.problems.clone() };
        let settings = check.settings();
        match settings {
            Some(settings) if check.problems.is_empty() => Ok(settings),
            _ => Err(Problems(check.problems)),
        }
    }
}

/// `[section] key = …` as `section.key`.
fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (section, value) in table {
        match value {
            Value::Table(keys) => {
                for (key, value) in keys {
                    flat.push((format!("{section}.{key}"), value.clone()));
                }
            }
            value => flat.push((section.clone(), value.clone())),
        }
    }
    flat
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list of texts",
        _ => "a text",
    }
}
