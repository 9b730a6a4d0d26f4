//! Child processes: start, resource usage, and stop by the id with which they were started.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// The kernel counts CPU time in hundredths of a second.
const TICK_MICROS: u64 = 10_000;

/// A child process. It is stopped when this is dropped, and when this process dies.
pub(crate) struct Process {
    child: std::process::Child,
    name: &'static str,
}

impl Process {
    /// Starts a program. Its output goes to a file in `folder`.
    pub(crate) fn start(
        name: &'static str,
        command: &Command,
        folder: &Path,
        variables: &[(&str, &str)],
    ) -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("cannot start {name}: {error}");
        let log = fs::File::create(folder.join(format!("{name}.log"))).map_err(problem)?;
        let mut supervised = Command::new("setpriv");
        supervised
            .args(["--pdeathsig", "TERM"])
            .arg(command.get_program())
            .args(command.get_args());
        supervised.envs(variables.iter().copied()).current_dir(folder);
        supervised.stdin(Stdio::null()).stdout(log.try_clone().map_err(problem)?).stderr(log);
        // A process group of its own, so that Ctrl-C at the terminal reaches only this process.
        let child = supervised.process_group(0).spawn().map_err(problem)?;
        Ok(Self { child, name })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status if the process has exited.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), None) = (pid, self.exit_status()) {
            kill_process(pid, Signal::TERM).ok();
        }
        for _ in 0..1500 {
            if self.exit_status().is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("bench: {} does not stop and is killed", self.name);
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits for SIGINT or SIGTERM, and returns it as an error.
pub(crate) async fn wait_for_stop_signal() -> Result<(), String> {
    let install =
        |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Err("interrupted before the end".to_owned())
}

/// Returns a free port.
pub(crate) fn free_port() -> Result<u16, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("no free port: {error}"))
}

/// Returns the CPU time of a process and of its children, including exited ones, in microseconds.
pub(crate) fn cpu_micros(pid: u32) -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(process_times)
        .filter(|(own, parent, _)| *own == pid || *parent == pid)
        .map(|t| t.2)
        .sum()
}

/// Returns the id, the parent and the CPU time in microseconds of a process.
fn process_times(pid: u32) -> Option<(u32, u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    // utime, stime, and those of exited children: fields 14 to 17 of proc(5).
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((pid, parent, ticks * TICK_MICROS))
}

/// Returns the resident memory of a process, in kilobytes.
pub(crate) fn resident_kilobytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Waits until PostgreSQL has written what the load left behind: 300 ms, and then until it uses at
/// most one tick in 100 ms. Gives up after twenty seconds.
pub(crate) async fn wait_until_idle(postgres: u32) {
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut before = cpu_micros(postgres);
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = cpu_micros(postgres);
        if now.saturating_sub(before) <= TICK_MICROS {
            return;
        }
        before = now;
    }
}
