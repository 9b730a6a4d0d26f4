//! Processes: started, told what they cost, stopped by the id that they were started with.

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

/// The kernel counts the time of processes in hundredths of a second.
const TICK_MICROS: u64 = 10_000;

/// A process that is stopped when this is dropped, and when we die.
pub(crate) struct Process {
    child: std::process::Child,
    name: &'static str,
}

impl Process {
    /// Starts a program; what it writes goes to a file.
    pub(crate) fn start(
        name: &'static str,
        command: &Command,
        folder: &Path,
        variables: &[(&str, &str)],
    ) -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("cannot start {name}: {error}");
        let log = fs::File::create(folder.join(format!("{name}.log"))).map_err(problem)?;
        let mut own = Command::new("setpriv");
        own.args(["--pdeathsig", "TERM"]).arg(command.get_program()).args(command.get_args());
        own.envs(variables.iter().copied()).current_dir(folder);
        own.stdin(Stdio::null()).stdout(log.try_clone().map_err(problem)?).stderr(log);
        // Of its own group: Ctrl-C at the terminal is for us alone.
        let child = own.process_group(0).spawn().map_err(problem)?;
        Ok(Self { child, name })
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(pid), None) = (pid, self.ended()) {
            kill_process(pid, Signal::TERM).ok();
        }
        for _ in 0..1500 {
            if self.ended().is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("bench: {} does not stop, and is killed", self.name);
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Ready once somebody wants us to stop.
pub(crate) async fn stop_signal() -> Result<(), String> {
    let install =
        |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Err("stopped before the end".to_owned())
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> Result<u16, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("no free port: {error}"))
}

/// Microseconds of processor time that a process and its children have used, those that have ended
/// included.
pub(crate) fn cpu_micros(pid: u32) -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(times)
        .filter(|(own, parent, _)| *own == pid || *parent == pid)
        .map(|t| t.2)
        .sum()
}

/// Id, parent and microseconds of a process.
fn times(pid: u32) -> Option<(u32, u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    // utime, stime, and those of children that have ended: fields 14 to 17 of proc(5).
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((pid, parent, ticks * TICK_MICROS))
}

/// Kilobytes of memory that a process has resident.
pub(crate) fn resident_kilobytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Waits until PostgreSQL has written what the load left behind: 300 ms, and then until it has used no
/// more than one tick in 100 ms. Twenty seconds at most.
pub(crate) async fn settle(postgres: u32) {
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
