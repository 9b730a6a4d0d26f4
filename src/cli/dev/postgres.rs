//! A PostgreSQL of one's own: found, set up in a folder, started, stopped.
//!
//! PostgreSQL refuses to run as root, so there it runs as the user `postgres` or `nobody`. It dies
//! with its parent, also when that is killed: the kernel sends it the signal for a fast shutdown.

use std::{
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use secrecy::{ExposeSecret, SecretString};

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
    /// lose everything in a crash of the machine, and is faster: for tests.
    ///
    /// # Errors
    /// With one line for whoever started it.
    pub fn start(folder: &Path, password: &SecretString, durable: bool) -> Result<Self, String> {
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
            let port = free_port()?;
            let command = binaries.server(&data, port, &identity, durable);
            match Self::launch(command, port, password, &log)? {
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
    ) -> Result<Result<Self, String>, String> {
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
        postgres.wait_until_ready(log).map(|()| Ok(postgres)).or_else(|line| Ok(Err(line)))
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

/// Where `postgres` and `initdb` are.
struct Binaries(PathBuf);

impl Binaries {
    /// The first folder that has them, of the version that the data was made with.
    fn find(data: &Path) -> Result<Self, String> {
        let version = fs::read_to_string(data.join("PG_VERSION")).ok();
        let version = version.as_deref().map(str::trim);
        let found: Vec<_> = candidates()
            .into_iter()
            .filter(|folder| folder.join("postgres").is_file() && folder.join("initdb").is_file())
            .collect();
        let fits =
            |folder: &PathBuf| version.is_none_or(|v| major_version(folder).as_deref() == Some(v));
        match (found.iter().find(|folder| fits(folder)), found.is_empty(), version) {
            (Some(folder), ..) => Ok(Self(folder.clone())),
            (None, false, Some(version)) => Err(format!(
                "{} was made by PostgreSQL {version}, which is not installed",
                data.display()
            )),
            _ => Err("PostgreSQL's server is not installed, or not found: \
                      apt-get install postgresql, or set PG_BIN_DIR"
                .to_owned()),
        }
    }

    fn initialize(
        &self,
        folder: &Path,
        data: &Path,
        identity: &Identity,
        password: &SecretString,
        durable: bool,
    ) -> Result<(), String> {
        // Made aside and moved, so that a start that is cut off leaves nothing half-made.
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
            identity.give(path).map_err(io)?;
        }
        let mut command = identity.command(&self.0.join("initdb"), folder)?;
        command
            .arg("-D")
            .arg(&fresh)
            .args(["-U", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8"])
            .args(["--locale=C.UTF-8", "--no-instructions"])
            .arg(format!("--pwfile={}", password_file.display()));
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
            return Err(format!("cannot set PostgreSQL up: {}", line.trim()));
        }
        fs::rename(&fresh, data).map_err(io)
    }

    fn server(&self, data: &Path, port: u16, identity: &Identity, durable: bool) -> Command {
        let mut command = identity.dying_with_parent(&self.0.join("postgres"));
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
        }
        // Of its own group: Ctrl-C at the terminal is for us alone.
        command.process_group(0);
        command
    }
}

/// Where the binaries may be. `PG_BIN_DIR`, where it is set, is the only place.
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

/// What a folder's `postgres` says of itself.
fn major_version(folder: &Path) -> Option<String> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(2)?;
    version.split('.').next().map(str::to_owned)
}

/// Whom PostgreSQL runs as.
struct Identity {
    /// Uid and gid to become; none: it runs as whoever we are.
    user: Option<(u32, u32, &'static str)>,
    /// Whether that user needs the capability to get to the folder past directories of root's own.
    through_closed_folders: bool,
}

impl Identity {
    fn for_folder(folder: &Path) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Ok(Self { user: None, through_closed_folders: false });
        }
        let user = ["postgres", "nobody"].into_iter().find_map(|name| {
            let (uid, gid) = account(name)?;
            Some((uid, gid, name))
        });
        let user = user.ok_or(
            "PostgreSQL does not run as root, and there is neither a user postgres nor nobody",
        )?;
        let mut identity = Self { user: Some(user), through_closed_folders: false };
        // Our own folder may be passed through; what is in it stays closed.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).ok();
        for through_closed_folders in [false, true] {
            identity.through_closed_folders = through_closed_folders;
            let mut command = identity.command(Path::new("test"), folder)?;
            let reached = command.arg("-d").arg(folder.join(".")).stderr(Stdio::null()).status();
            if reached.is_ok_and(|status| status.success()) {
                return Ok(identity);
            }
        }
        Err(format!(
            "PostgreSQL runs as {} and cannot enter {}: choose another --data-dir",
            user.2,
            folder.display()
        ))
    }

    fn check_owner(&self, data: &Path) -> Result<(), String> {
        let owner = fs::metadata(data)
            .map_err(|error| format!("cannot read {}: {error}", data.display()))?
            .uid();
        let (uid, name) = match self.user {
            Some((uid, _, name)) => (uid, name),
            None => (geteuid().as_raw(), "you"),
        };
        if owner == uid {
            return Ok(());
        }
        Err(format!(
            "{} belongs to uid {owner}, but PostgreSQL would run as {name} (uid {uid}): \
             start as its owner, or choose another --data-dir",
            data.display()
        ))
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some((uid, gid, _)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// A program, run as this identity.
    fn command(&self, program: &Path, folder: &Path) -> Result<Command, String> {
        // A folder that the user may not enter must not be where it starts.
        let mut command = self.set_privileges(program);
        command.current_dir("/");
        if folder.is_relative() {
            return Err("the data folder must be absolute".to_owned());
        }
        Ok(command)
    }

    /// A program, run as this identity, that gets the signal of a fast shutdown when we die.
    fn dying_with_parent(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]);
        self.add_flags(&mut command);
        command.arg(program).current_dir("/");
        command
    }

    fn set_privileges(&self, program: &Path) -> Command {
        if self.user.is_none() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        self.add_flags(&mut command);
        command.arg(program);
        command
    }

    fn add_flags(&self, command: &mut Command) {
        if let Some((uid, gid, _)) = self.user {
            command
                .args([format!("--reuid={uid}"), format!("--regid={gid}")])
                .arg("--clear-groups");
        }
        if self.through_closed_folders {
            // Enough to pass through folders that only root may enter, such as /root or a
            // temporary one: the data itself belongs to the user.
            command.args(["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]);
        }
    }
}

/// Uid and gid of a user.
fn account(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// A fresh file that only its owner may read.
pub(super) fn private_file(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes a file that only its owner may read.
pub(super) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = private_file(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
