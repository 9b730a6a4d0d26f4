//! `./scripts/bench`: measures the service next to a bare axum and nginx in one run.
//!
//! Everything runs on this machine: a PostgreSQL with fsync on, the service as `serve` starts it,
//! the two servers to compare with, and the load. Rounds are short and interleaved, so that other
//! activity of the machine affects all rows alike. The tables show medians. Nothing is asserted.

mod attacks;
mod audit_log;
mod audit_sealing;
mod bare_axum;
mod client;
mod environment;
mod generator;
mod growth;
mod keys;
mod machine;
mod mixed;
mod options;
mod process;
mod revoke;
mod rows;
mod seed;
mod sessions;
mod stats;
mod table;
mod wrk;

use std::process::ExitCode;

use clap::Parser;

use self::{
    environment::BenchEnvironment,
    options::{BenchmarkPart, Options},
};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(bare_axum::SERVER_ARGUMENT) {
        return exit_code(bare_axum::serve());
    }
    let options = Options::parse();
    // One thread, because the kernel stops the child processes when the thread that started them
    // dies.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    exit_code(runtime.map_err(|error| format!("cannot start the runtime: {error}")).and_then(
        |runtime| {
            runtime.block_on(async {
                tokio::select! {
                    result = run(&options) => result,
                    stopped = process::wait_for_stop_signal() => stopped,
                }
            })
        },
    ))
}

fn exit_code(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("bench: {line}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), String> {
    let world = BenchEnvironment::start(options).await?;
    machine::describe(options, &world).await?;
    if options.includes(BenchmarkPart::Rows) {
        rows::measure(options, &world).await?;
    }
    if options.includes(BenchmarkPart::Mixed) {
        mixed::measure(options, &world).await?;
    }
    if options.includes(BenchmarkPart::Revoke) {
        revoke::measure(options, &world).await?;
    }
    if options.includes(BenchmarkPart::Sessions) {
        sessions::measure(options, &world).await?;
    }
    if options.includes(BenchmarkPart::Growth) {
        growth::measure(options, &world).await?;
    }
    if options.includes(BenchmarkPart::Log) {
        audit_log::measure(options, &world).await?;
    }
    if options.includes(BenchmarkPart::Sealing) {
        Box::pin(audit_sealing::measure(options, &world)).await?;
    }
    if options.includes(BenchmarkPart::Attacks) {
        attacks::measure(options, &world).await?;
    }
    Ok(())
}
