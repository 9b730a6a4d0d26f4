//! Files and variables, merged; each value with where it comes from.

use std::{collections::BTreeMap, fmt, path::Path};

use toml::{Table, Value};

use super::{Database, Settings, check::Check};

/// What the names of environment variables begin with.
pub(super) const ENV_PREFIX: &str = "CALL2ME_AUTH__";

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
    /// Reads all layers. The files in `folder` come after those in the binary; variables of the
    /// environment come last.
    #[must_use]
    pub fn read(
        profile: Profile,
        folder: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut raw = Self { values: BTreeMap::new(), problems: Vec::new() };
        // The binary's own files are part of the program; a test reads them.
        for (key, value) in flatten(&DEFAULT.parse().unwrap_or_default()) {
            raw.values.insert(key, (value, "the defaults".to_owned()));
        }
        let (file, embedded) = profile.file();
        raw.merge_file(embedded, file);
        for file in folder
            .into_iter()
            .flat_map(|folder| ["default.toml", file].map(|file| folder.join(file)))
        {
            match std::fs::read_to_string(&file) {
                Ok(text) => raw.merge_file(&text, &file.display().to_string()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => raw.problems.push(format!("cannot read {}: {error}", file.display())),
            }
        }
        for (name, text) in environment {
            if name == "DATABASE_URL" {
                raw.set("database.url", Value::String(text), &name);
            } else if let Some(key) = name.strip_prefix(ENV_PREFIX) {
                let key = key.to_ascii_lowercase().replace("__", ".");
                raw.set_text(&key, text, &name);
            }
        }
        raw
    }

    /// Overrides a setting, as a command-line flag does.
    pub fn set(&mut self, key: &str, value: Value, origin: &str) {
        match self.values.get_mut(key) {
            Some(slot) if slot.0.same_type(&value) => *slot = (value, origin.to_owned()),
            Some((old, _)) => {
                self.problems.push(format!("{key} must be {} (from {origin})", type_name(old)));
            }
            None => self.problems.push(format!("{key} is no setting (from {origin})")),
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
        let mut check = Check { raw: self, problems: Vec::new() };
        check.database().ok_or(Problems(check.problems))
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
