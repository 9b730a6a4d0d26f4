//! The data folder of `dev`: the database, the secrets and the demo credentials.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use data_encoding::{BASE64, HEXLOWER};
use secrecy::SecretString;

use super::files::{private_file, write_private};
use crate::env::Env;

/// A data folder, locked while this value exists.
pub(super) struct DataFolder {
    path: PathBuf,
    encryption_key: SecretString,
    database_password: SecretString,
    /// The kernel releases the lock when the process ends, even if it is killed.
    _lock: fs::File,
}

impl DataFolder {
    pub(super) fn open(path: &Path, env: &Env) -> Result<Self, String> {
        let describe = |error: io::Error| format!("cannot use {}: {error}", path.display());
        fs::create_dir_all(path).map_err(describe)?;
        let path = fs::canonicalize(path).map_err(describe)?;
        let describe = |error: io::Error| format!("cannot write to {}: {error}", path.display());
        let lock = private_file(&path.join("lock")).map_err(describe)?;
        if lock.try_lock().is_err() {
            return Err(format!("another call2me-auth dev is running on {}", path.display()));
        }
        let key: [u8; 32] = env.entropy.bytes();
        let password: [u8; 16] = env.entropy.bytes();
        Ok(Self {
            encryption_key: read_or_create(&path, "encryption.key", &BASE64.encode(&key))?,
            database_password: read_or_create(
                &path,
                "postgres.password",
                &HEXLOWER.encode(&password),
            )?,
            path,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn encryption_key(&self) -> &SecretString {
        &self.encryption_key
    }

    pub(super) fn database_password(&self) -> &SecretString {
        &self.database_password
    }

    /// Reads a file of the folder; `None` if it does not exist.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, String> {
        read(&self.path.join(name))
    }

    /// Replaces a file of the folder; only its owner may read it.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), String> {
        write(&self.path.join(name), text)
    }
}

/// Reads a file, or creates it with `fresh` as its content.
fn read_or_create(folder: &Path, name: &str, fresh: &str) -> Result<SecretString, String> {
    let path = folder.join(name);
    if let Some(text) = read(&path)? {
        return Ok(text.trim().to_owned().into());
    }
    write(&path, fresh)?;
    Ok(fresh.to_owned().into())
}

fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Writes to a temporary file and renames it: after a crash either the old or the new file exists.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let fresh = path.with_extension("new");
    write_private(&fresh, text)
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}
