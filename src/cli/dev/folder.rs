//! The folder that holds everything of a `dev` run: the database, the keys, who the demo user is.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use data_encoding::{BASE64, HEXLOWER};
use secrecy::SecretString;

use super::files::{private_file, write_private};
use crate::env::Env;

/// A data folder, locked for as long as this lives.
pub(super) struct DataFolder {
    path: PathBuf,
    encryption_key: SecretString,
    database_password: SecretString,
    /// The kernel lets go of it when the process ends, however that comes about.
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
            encryption_key: keep(&path, "encryption.key", &BASE64.encode(&key))?,
            database_password: keep(&path, "postgres.password", &HEXLOWER.encode(&password))?,
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

    /// A file of the folder; none if it is not there.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, String> {
        read(&self.path.join(name))
    }

    /// Replaces a file of the folder, readable for its owner alone.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), String> {
        write(&self.path.join(name), text)
    }
}

/// What a file says; on a fresh folder it is made to say this.
fn keep(folder: &Path, name: &str, fresh: &str) -> Result<SecretString, String> {
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

/// Aside, then moved: a crash leaves the old file or the new one.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let fresh = path.with_extension("new");
    write_private(&fresh, text)
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}
