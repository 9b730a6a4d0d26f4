//! `./scripts/faults`: runs all scenarios of faults, and writes their results to docs/faults.md.
//!
//! The exit code is 1 if a guarantee was broken or a scenario did not run to its end.

#![expect(
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "a failed step must stop its scenario, and most of the fixture is for other tests"
)]

#[path = "faults.rs"]
mod faults;
#[path = "../../api/fixture/mod.rs"]
mod fixture;
mod options;

use std::{
    fs,
    panic::AssertUnwindSafe,
    path::Path,
    process::{Command, ExitCode},
};

use call2me_auth::cli::dev::postgres::Binaries;
use clap::Parser as _;
use futures_util::FutureExt as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use self::{
    faults::{
        fixture::node::OTHER_BINARY,
        scenarios::{Figures, Results, Scale, Scenario, scenarios},
    },
    options::Options,
};

/// The document that a full run writes.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");

fn main() -> ExitCode {
    let options = Options::parse();
    let chosen: Vec<_> =
        scenarios().into_iter().filter(|scenario| options.includes(scenario.name)).collect();
    if options.list {
        for scenario in &chosen {
            println!("{}", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        eprintln!("faults: no scenario has this name; --list prints all");
        return ExitCode::from(2);
    }
    if let Some(binary) = &options.binary {
        OTHER_BINARY.set(binary.canonicalize().unwrap()).unwrap();
    }
    // This thread starts all processes: the kernel stops them when it ends.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let is_clean = runtime.block_on(async {
        tokio::select! {
            is_clean = run(&options, &chosen) => is_clean,
            () = wait_for_stop_signal() => false,
        }
    });
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Describes the machine and the programs.
fn describe_machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let system = first_line(Path::new("uname"), &["-sr"]);
    let postgres = Binaries::find(Path::new("")).unwrap().program("postgres");
    let version =
        first_line(&postgres, &["--version"]).replace("postgres (PostgreSQL)", "PostgreSQL");
    format!("Machine of the last run: {cores} cores, {system}, {version}.")
}

/// Returns the first line that a program prints.
fn first_line(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").to_owned()
}

async fn wait_for_stop_signal() {
    let mut interrupt = signal(SignalKind::interrupt()).unwrap();
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("faults: interrupted before the end");
}

/// Runs the scenarios one after another. True if no guarantee was broken.
///
/// A full run of this build writes its rows into the document, each once it is complete. Others
/// print the tables.
async fn run(options: &Options, chosen: &[Scenario]) -> bool {
    let scale = if options.quick { Scale::Quick } else { Scale::Full };
    let is_written = !options.quick && options.binary.is_none();
    let machine = describe_machine();
    let mut results = if is_written {
        Results::read(machine, &fs::read_to_string(DOCUMENT).unwrap())
    } else {
        Results::new(machine)
    };
    let mut is_clean = true;
    for scenario in chosen {
        match run_scenario(scenario, scale).await {
            Ok(figures) => {
                is_clean &= figures.is_clean() || figures.explanation.is_some();
                results.store(scenario.name, &figures);
            }
            Err(line) => {
                eprintln!("{line}");
                // Without its program, a scenario keeps the row of an earlier run.
                if scenario.missing().is_none() {
                    results.remove(scenario.name);
                    is_clean = false;
                }
            }
        }
        if is_written {
            let document = fs::read_to_string(DOCUMENT).unwrap();
            fs::write(DOCUMENT, results.replace_in(&document, &scenarios())).unwrap();
        }
    }
    if !is_written {
        println!("{}", results.render(chosen));
    }
    is_clean
}

/// Runs a scenario. Its first broken guarantees go to the standard error.
async fn run_scenario(scenario: &Scenario, scale: Scale) -> Result<Figures, String> {
    if let Some(line) = scenario.missing() {
        return Err(line);
    }
    let started = Instant::now();
    let result = AssertUnwindSafe((scenario.start)(scale)).catch_unwind().await;
    let seconds = started.elapsed().as_secs();
    let figures =
        result.map_err(|_| format!("{} FAILED: see the standard error", scenario.name))?;
    eprintln!("[{seconds} s] {figures}{}", figures.details());
    Ok(figures)
}
