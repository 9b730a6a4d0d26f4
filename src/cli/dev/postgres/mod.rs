//! A private PostgreSQL cluster: finds the programs, initializes a folder, starts and stops the
//! server.
//!
//! PostgreSQL refuses to run as root. As root, it therefore runs as the user `postgres` or
//! `nobody`. The server stops with its parent process, even if that is killed: the kernel then
//! sends it the signal of a fast shutdown.

mod binaries;
mod process_user;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use secrecy::{ExposeSecret, SecretString};

pub use self::{binaries::Binaries, process_user::ProcessUser};
use super::files::private_file;

/// The superuser of the cluster.
const SUPERUSER: &str = "postgres";

/// Timeout of starting the server, including crash recovery.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// A running PostgreSQL server. It is stopped when dropped.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    port: u16,
    password: SecretString,
    /// Keeps the thread that started the server alive: the kernel's parent-death signal is tied to
    /// the thread, not to the process.
    _parent_thread: mpsc::Sender<()>,
}

impl Postgres {
    /// Starts the cluster in a folder, and initializes it first if necessary.
    ///
    /// Without `durable` the server is faster, for tests: it may lose all data if the machine
    /// crashes, and from this machine it accepts passwords in plain text, and the superuser without
    /// one.
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub fn start(folder: &Path, password: &SecretString, durable: bool) -> Result<Self, String> {
        Self::start_with(folder, password, durable, free_port)
    }

    /// Starts the cluster as [`Self::start`], on this port. Clients of a server that was killed can
    /// reconnect if it restarts on the same port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on_port(
        folder: &Path,
        password: &SecretString,
        durable: bool,
        port: u16,
    ) -> Result<Self, String> {
        Self::start_with(folder, password, durable, || Ok(port))
    }

    fn start_with(
        folder: &Path,
        password: &SecretString,
        durable: bool,
        choose_port: impl Fn() -> Result<u16, String>,
    ) -> Result<Self, String> {
        let data = folder.join("postgres");
        let binaries = Binaries::find(&data)?;
        let identity = ProcessUser::for_folder(folder)?;
        if !data.join("PG_VERSION").exists() {
            binaries.init_cluster(folder, &data, &identity, password, durable)?;
        }
        identity.check_owner(&data)?;
        let log = folder.join("postgres.log");
        // Another process may take the port between choice and use; a killed server may hold the
        // folder for a moment longer. Retry for ten seconds.
        let mut last_error = String::new();
        for _ in 0..40 {
            let port = choose_port()?;
            let command = binaries.server_command(&data, port, &identity, durable);
            match Self::launch(command, port, password, &log) {
                Ok(postgres) => return Ok(postgres),
                Err(line) if is_transient(&line) => last_error = line,
                Err(line) => return Err(line),
            }
            thread::sleep(Duration::from_millis(250));
        }
        Err(last_error)
    }

    fn launch(
        mut command: Command,
        port: u16,
        password: &SecretString,
        log: &Path,
    ) -> Result<Self, String> {
        // A new file: children of a killed postmaster live on for a while and write to the old one,
        // where their last lines would be mistaken for the reason of a failed start.
        fs::remove_file(log).ok();
        // The log may contain SQL statements, so only the owner may read it.
        let output = private_file(log)
            .map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let (parent, orphaned) = mpsc::channel::<()>();
        let (started, child) = mpsc::channel();
        thread::Builder::new()
            .name("postgres-parent".to_owned())
            .spawn(move || {
                started.send(command.spawn()).ok();
                orphaned.recv().ok();
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        let child = child
            .recv()
            .map_err(|_| "cannot start PostgreSQL".to_owned())?
            .map_err(|error| format!("cannot start PostgreSQL: {error}"))?;
        let mut postgres = Self { child, port, password: password.clone(), _parent_thread: parent };
        postgres.wait_until_ready(log)?;
        Ok(postgres)
    }

    /// Waits until the server's log says that it is ready; reading the log is cheaper than
    /// connecting.
    fn wait_until_ready(&mut self, log: &Path) -> Result<(), String> {
        let mut waited = Duration::ZERO;
        loop {
            let text = fs::read(log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            if let Ok(Some(_)) = self.child.try_wait() {
                let fatal = text.lines().rev().find(|line| line.contains("FATAL"));
                let line = fatal.or(text.lines().last()).unwrap_or("no reason given");
                return Err(format!("PostgreSQL does not start: {}", line.trim()));
            }
            if text.contains("database system is ready to accept connections") {
                return Ok(());
            }
            if waited >= START_TIMEOUT {
                return Err(format!("PostgreSQL is not ready in time; see {}", log.display()));
            }
            thread::sleep(POLL);
            waited += POLL;
        }
    }

    /// Returns the URL of a database, for the superuser. It contains the password.
    #[must_use]
    pub fn url(&self, database: &str) -> SecretString {
        self.url_for(SUPERUSER, database)
    }

    /// Returns the URL of a database, for a role that has the same password.
    #[must_use]
    pub fn url_for(&self, role: &str, database: &str) -> SecretString {
        let (password, port) = (self.password.expose_secret(), self.port);
        format!("postgres://{role}:{password}@127.0.0.1:{port}/{database}").into()
    }

    /// Returns the id of the server process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, signal).ok();
        }
    }

    fn wait(&mut self, within: Duration) -> bool {
        let mut waited = Duration::ZERO;
        while waited < within {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(POLL);
            waited += POLL;
        }
        false
    }
}

impl Drop for Postgres {
    /// Requests a fast shutdown, then an immediate one. Neither loses committed data.
    fn drop(&mut self) {
        self.signal(Signal::INT);
        if !self.wait(Duration::from_secs(15)) {
            self.signal(Signal::QUIT);
            self.wait(Duration::from_secs(5));
        }
    }
}

/// True for errors that a later attempt to start may not have.
fn is_transient(line: &str) -> bool {
    ["postmaster.pid", "could not create any TCP/IP sockets", "pre-existing shared memory block"]
        .iter()
        .any(|part| line.contains(part))
}

fn free_port() -> Result<u16, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("no free port for PostgreSQL: {error}"))
}
