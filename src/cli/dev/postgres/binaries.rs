//! The programs of PostgreSQL: finds them and builds their command lines.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use secrecy::{ExposeSecret, SecretString};

use super::{SUPERUSER, process_user::ProcessUser};
use crate::cli::dev::files::write_private;

/// `pg_hba.conf` of a cluster for tests. They make thousands of connections, of which the rounds of
/// SCRAM would be half of the CPU time: the client computes them with the method `scram-sha-256`,
/// and the server with `password`.
const TEST_AUTHENTICATION: &str = "host all,replication postgres 127.0.0.1/32 trust\n\
                                   host all all 127.0.0.1/32 password\n";

/// The folder of `postgres` and `initdb`.
pub struct Binaries(PathBuf);

impl Binaries {
    /// Finds the first folder that has both programs, in the version that created the data.
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub fn find(data: &Path) -> Result<Self, String> {
        let version = fs::read_to_string(data.join("PG_VERSION")).ok();
        let version = version.as_deref().map(str::trim);
        let installed: Vec<_> = candidates()
            .into_iter()
            .filter(|folder| folder.join("postgres").is_file() && folder.join("initdb").is_file())
            .collect();
        let fits =
            |folder: &PathBuf| version.is_none_or(|v| major_version(folder).as_deref() == Some(v));
        match (installed.iter().find(|folder| fits(folder)), installed.is_empty(), version) {
            (Some(folder), ..) => Ok(Self(folder.clone())),
            (None, false, Some(version)) => Err(format!(
                "{} was created by PostgreSQL {version}, which is not installed",
                data.display()
            )),
            _ => Err("the PostgreSQL server is not installed or was not found: \
                      run apt-get install postgresql, or set PG_BIN_DIR"
                .to_owned()),
        }
    }

    /// Returns the path of a program of PostgreSQL, such as `pg_basebackup`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Initializes `data`, a folder in `folder`. The superuser gets this password.
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub fn init_cluster(
        &self,
        folder: &Path,
        data: &Path,
        identity: &ProcessUser,
        password: &SecretString,
        durable: bool,
    ) -> Result<(), String> {
        // Initialize another folder and rename it, so that an interrupted start leaves no
        // incomplete cluster.
        let fresh = folder.join("postgres.new");
        let password_file = folder.join("postgres.initial-password");
        let io = |error: io::Error| format!("cannot write to {}: {error}", folder.display());
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(io)?;
        }
        fs::create_dir(&fresh).map_err(io)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o700)).map_err(io)?;
        write_private(&password_file, password.expose_secret()).map_err(io)?;
        for path in [&fresh, &password_file] {
            identity.chown_to_user(path).map_err(io)?;
        }
        let mut command = identity.command(&self.program("initdb"));
        command
            .arg("-D")
            .arg(&fresh)
            .args(["-U", SUPERUSER, "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"])
            .arg(format!("--pwfile={}", password_file.display()));
        command.arg("--auth=scram-sha-256");
        if !durable {
            command.arg("--no-sync");
        }
        let output = command.stdin(Stdio::null()).output();
        fs::remove_file(&password_file).ok();
        let output = output.map_err(|error| format!("cannot run initdb: {error}"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().rev().find(|line| line.contains("error"));
            let line = line.or(text.lines().last()).unwrap_or("no reason given");
            return Err(format!("cannot initialize PostgreSQL: {}", line.trim()));
        }
        if !durable {
            fs::write(fresh.join("pg_hba.conf"), TEST_AUTHENTICATION).map_err(io)?;
        }
        fs::rename(&fresh, data).map_err(io)
    }

    pub(super) fn server_command(
        &self,
        data: &Path,
        port: u16,
        identity: &ProcessUser,
        durable: bool,
    ) -> Command {
        let mut command = identity.command_with_parent_death_signal(&self.program("postgres"));
        command
            .arg("-D")
            .arg(data)
            .arg("-p")
            .arg(port.to_string())
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "logging_collector=off", "-c", "log_destination=stderr"])
            .args(["-c", "max_connections=200", "-c", "password_encryption=scram-sha-256"]);
        if !durable {
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
            command.args(["-c", "wal_level=minimal", "-c", "max_wal_senders=0"]);
            command.args(["-c", "max_wal_size=128MB", "-c", "min_wal_size=32MB"]);
        }
        // A separate process group, so that Ctrl-C at the terminal signals only this process.
        command.process_group(0);
        command
    }
}

/// The folders to search. If `PG_BIN_DIR` is set, it is the only one.
fn candidates() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os("PG_BIN_DIR") {
        return vec![folder.into()];
    }
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = installed.map(|entry| entry.path().join("bin")).collect();
    versions.sort_by_key(|folder| std::cmp::Reverse(major_version(folder)));
    folders.extend(versions);
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders
}

/// The major version of the `postgres` in a folder.
fn major_version(folder: &Path) -> Option<String> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(2)?;
    version.split('.').next().map(str::to_owned)
}
