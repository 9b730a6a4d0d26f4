//! A PostgreSQL of one's own: found, set up in a folder, started, stopped.
//!
//! PostgreSQL refuses to run as root, so there it runs as the user `postgres` or `nobody`. It dies
//! with its parent, also when that is killed: the kernel sends it the signal for a fast shutdown.

mod binaries;
mod identity;

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

use self::{binaries::Binaries, identity::Identity};
use super::files::private_file;

/// The superuser of the cluster.
const SUPERUSER: &str = "postgres";

/// How long a start may take, recovery after a crash included.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);

/// A running PostgreSQL. It is stopped when dropped.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    port: u16,
    password: SecretString,
    /// The thread that started it lives as long as this: the kernel's parent-death signal is tied to
    /// the thread, not to the process.
    _parent: mpsc::Sender<()>,
}

impl Postgres {
    /// Starts the cluster in a folder, making it first if it is not there. With `durable` off it may
    /// lose everything in a crash of the machine, reads passwords in clear from this machine's clients, and is faster:
    /// for tests.
    ///
    /// # Errors
    /// With one line for whoever started it.
    pub fn start(folder: &Path, password: &SecretString, durable: bool) -> Result<Self, String> {
        Self::start_where(folder, password, durable, free_port)
    }

    /// The same on a port of the caller's choice, such as the one that a cluster had before it was
    /// killed: whoever was connected finds it again.
    ///
    /// # Errors
    /// With one line for whoever started it.
    pub fn start_on(
        folder: &Path,
        password: &SecretString,
        durable: bool,
        port: u16,
    ) -> Result<Self, String> {
        Self::start_where(folder, password, durable, || Ok(port))
    }

    fn start_where(
        folder: &Path,
        password: &SecretString,
        durable: bool,
        choose_port: impl Fn() -> Result<u16, String>,
    ) -> Result<Self, String> {
        let data = folder.join("postgres");
        let binaries = Binaries::find(&data)?;
        let identity = Identity::for_folder(folder)?;
        if !data.join("PG_VERSION").exists() {
            binaries.initialize(folder, &data, &identity, password, durable)?;
        }
        identity.check_owner(&data)?;
        let log = folder.join("postgres.log");
        // The port is free when chosen and may be gone when used; a predecessor that was killed may
        // hold the folder for a moment longer.
        let mut problem = String::new();
        for _ in 0..40 {
            let port = choose_port()?;
            let command = binaries.server(&data, port, &identity, durable);
            match Self::launch(command, port, password, &log) {
                Ok(postgres) => return Ok(postgres),
                Err(line) if is_passing(&line) => problem = line,
                Err(line) => return Err(line),
            }
            thread::sleep(Duration::from_millis(250));
        }
        Err(problem)
    }

    fn launch(
        mut command: Command,
        port: u16,
        password: &SecretString,
        log: &Path,
    ) -> Result<Self, String> {
        // A file of its own: children of a postmaster that was killed live on for a while and write to
        // the old one, where their last words would be taken for the reason of a failed start.
        fs::remove_file(log).ok();
        // It holds statements.
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
        let mut postgres = Self { child, port, password: password.clone(), _parent: parent };
        postgres.wait_until_ready(log)?;
        Ok(postgres)
    }

    /// The server says so in its log, which unlike a connection costs nothing to ask.
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

    /// The URL of one of its databases, as superuser. It holds the password.
    #[must_use]
    pub fn url(&self, database: &str) -> SecretString {
        self.url_for(SUPERUSER, database)
    }

    /// The URL of one of its databases, for a role that has the same password.
    #[must_use]
    pub fn url_for(&self, role: &str, database: &str) -> SecretString {
        let (password, port) = (self.password.expose_secret(), self.port);
        format!("postgres://{role}:{password}@127.0.0.1:{port}/{database}").into()
    }

    /// Its process.
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
    /// A fast shutdown, then an immediate one: either way nothing that was committed is lost.
    fn drop(&mut self) {
        self.signal(Signal::INT);
        if !self.wait(Duration::from_secs(15)) {
            self.signal(Signal::QUIT);
            self.wait(Duration::from_secs(5));
        }
    }
}

/// Failures to start that are gone at a later try.
fn is_passing(line: &str) -> bool {
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
