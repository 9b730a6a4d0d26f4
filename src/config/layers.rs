//! Merges the configuration files and environment variables, with the origin of each value.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
};

use toml::{Table, Value};

use super::{Database, Settings, check::SettingsValidator};

/// Prefix of the environment variables of settings.
pub(super) const ENV_PREFIX: &str = "CALL2ME_AUTH__";

/// Variables with this prefix, in upper or lower case, but without [`ENV_PREFIX`] are misspelled
/// and rejected.
const ENV_STEM: &str = "CALL2ME_AUTH";

/// True for a variable that Kubernetes sets for a service with the same name prefix (service
/// links): `CALL2ME_AUTH_SERVICE_HOST`, `CALL2ME_AUTH_PORT=tcp://…`,
/// `CALL2ME_AUTH_PORT_8080_TCP_ADDR` and the like.
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

/// Settings that are redacted when printed, and that may be in files of their own.
const SECRETS: [&str; 6] = [
    "database.url",
    "database.owner_url",
    "keys.encryption_key",
    "keys.previous_encryption_keys",
    "redis.url",
    "mail.url",
];

/// The file that overrides `default.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// `call2me-auth dev`.
    Development,
    /// All other commands.
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

/// The folder of configuration files that override those embedded in the binary.
#[derive(Debug, Clone, Copy)]
pub enum ConfigFiles<'a> {
    /// No folder: the embedded files only.
    Embedded,
    /// A folder that may be missing.
    Optional(&'a Path),
    /// A folder that the operator named: at least one file must exist.
    Required(&'a Path),
}

/// The merged configuration, before validation.
pub struct RawConfig {
    pub(super) values: BTreeMap<String, (Value, String)>,
    pub(super) errors: Vec<String>,
}

/// All errors of a configuration, one message each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid configuration: {}", self.0.join("; "))
    }
}

impl RawConfig {
    /// Reads and merges the embedded files, the files of the folder and the environment; later
    /// sources override earlier ones.
    ///
    /// Variables of other programs are ignored, even if they are not UTF-8.
    #[must_use]
    pub fn read<K: Into<OsString>, V: Into<OsString>>(
        profile: Profile,
        files: ConfigFiles<'_>,
        environment: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let mut raw = Self { values: BTreeMap::new(), errors: Vec::new() };
        // A unit test checks that the embedded files parse.
        for (key, value) in flatten(&DEFAULT.parse().unwrap_or_default()) {
            raw.values.insert(key, (value, "the defaults".to_owned()));
        }
        let (file, embedded) = profile.file();
        raw.merge_file(embedded, file);
        match files {
            ConfigFiles::Embedded => {}
            ConfigFiles::Optional(folder) => drop(raw.merge_folder(folder, file)),
            ConfigFiles::Required(folder) => {
                if raw.merge_folder(folder, file) == 0 {
                    let folder = folder.display();
                    raw.errors.push(format!("--config {folder}: no default.toml or {file} found"));
                }
            }
        }
        for (name, value) in environment {
            // The names of settings are ASCII.
            if let Ok(name) = name.into().into_string() {
                raw.merge_variable(&name, value.into());
            }
        }
        raw
    }

    /// Merges the files of a folder. Returns the number of files found.
    fn merge_folder(&mut self, folder: &Path, profile: &str) -> usize {
        let mut count = 0;
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
                    self.errors.push(format!("cannot read {}: {error}", file.display()));
                }
            }
            count += 1;
        }
        count
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
            self.errors.push(format!("{name} is not a variable of this service{hint}"));
            return;
        } else {
            return;
        };
        let secret = key.strip_suffix("_file").filter(|secret| SECRETS.contains(secret));
        let target = secret.unwrap_or(&key);
        let origin = self.values.get(target).map_or("", |(_, origin)| origin);
        let is_set_by_variable = origin.starts_with(ENV_PREFIX) || origin == "DATABASE_URL";
        if is_set_by_variable && (secret.is_some() || origin.ends_with("_FILE")) {
            self.errors.push(format!("{origin} and {name} are both set"));
            return;
        }
        match value.into_string() {
            Ok(path) if secret.is_some() => self.merge_secret_file(target, &path, name),
            Ok(text) => self.set_from_text(target, text, name),
            Err(_) => self.errors.push(format!("{name} is not UTF-8")),
        }
    }

    /// Sets a secret setting to the content of a file, without the line break at its end. A list
    /// has one item on each line.
    fn merge_secret_file(&mut self, key: &str, path: &str, name: &str) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.errors.push(format!("cannot read {path} (from {name}): {error}"));
                return;
            }
        };
        let value = match self.values.get(key) {
            Some((Value::Array(_), _)) => {
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                Value::Array(lines.map(|line| Value::String(line.to_owned())).collect())
            }
            _ => Value::String(text.trim_end_matches(['\r', '\n']).to_owned()),
        };
        self.set(key, value, name);
    }

    /// A suggestion for a misspelled name, to append to a message: the setting with the same
    /// letters.
    fn suggestion(&self, name: &str) -> String {
        let letters = |text: &str| -> String {
            text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
        };
        let wanted = letters(name);
        self.values.keys().find(|key| letters(key) == wanted).map_or_else(String::new, |key| {
            format!(": did you mean {ENV_PREFIX}{}?", key.to_uppercase().replace('.', "__"))
        })
    }

    /// Overrides a setting. `origin` is the source that error messages name.
    pub fn set(&mut self, key: &str, value: Value, origin: &str) {
        match self.values.get_mut(key) {
            Some(slot) if slot.0.same_type(&value) => *slot = (value, origin.to_owned()),
            Some((old, _)) => {
                self.errors.push(format!("{key} must be {} (from {origin})", type_name(old)));
            }
            None => {
                let hint = self.suggestion(key);
                self.errors.push(format!("{key} is not a setting (from {origin}){hint}"));
            }
        }
    }

    /// Returns a setting's string; `None` if it is empty or not a string.
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
            Err(error) => self.errors.push(format!("{origin}: {}", error.message())),
        }
    }

    /// Parses the text of a variable as the type of the setting's default.
    fn set_from_text(&mut self, key: &str, text: String, origin: &str) {
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

    /// Formats the settings for `call2me-auth config`: TOML with origins, secrets redacted.
    #[must_use]
    pub fn describe(&self) -> String {
        use fmt::Write as _;
        let mut text = String::new();
        let mut section = "";
        for (key, (value, origin)) in &self.values {
            let (table, name) = key.split_once('.').unwrap_or(("", key));
            if table != section {
                text.push_str(if section.is_empty() { "" } else { "\n" });
                writeln!(text, "[{table}]").ok();
                section = table;
            }
            let printed = match value {
                Value::String(secret) if SECRETS.contains(&key.as_str()) && !secret.is_empty() => {
                    "\"[redacted]\"".to_owned()
                }
                Value::Array(secrets) if SECRETS.contains(&key.as_str()) => {
                    format!("[{}]", vec!["\"[redacted]\""; secrets.len()].join(", "))
                }
                value => value.to_string(),
            };
            writeln!(text, "{name} = {printed}  # from {origin}").ok();
        }
        text
    }

    /// Validates only the database settings, which is enough for migrations.
    ///
    /// # Errors
    /// [`ConfigErrors`] with all errors of these settings and of reading the sources.
    pub fn check_database(&self) -> Result<Database, ConfigErrors> {
        let mut check = SettingsValidator { raw: self, errors: self.errors.clone() };
        match check.database() {
            Some(database) if check.errors.is_empty() => Ok(database),
            _ => Err(ConfigErrors(check.errors)),
        }
    }

    /// Rejects unknown settings, values of the wrong type and unreadable files, before all settings
    /// are known.
    ///
    /// # Errors
    /// [`ConfigErrors`] with all errors of reading the sources.
    pub fn check_sources(&self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(self.errors.clone())) }
    }

    /// Validates all settings.
    ///
    /// # Errors
    /// [`ConfigErrors`] with all errors.
    pub fn check(&self) -> Result<Settings, ConfigErrors> {
        let mut check = SettingsValidator { raw: self, errors: self.errors.clone() };
        let settings = check.settings();
        match settings {
            Some(settings) if check.errors.is_empty() => Ok(settings),
            _ => Err(ConfigErrors(check.errors)),
        }
    }
}

/// Turns `[section] key = …` into `section.key`.
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
        Value::Array(_) => "a list of strings",
        _ => "a string",
    }
}
