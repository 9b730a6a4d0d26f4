//! The binary: parses the command line, runs what it asks for, says how it ended.

use std::process::ExitCode;

use call2me_auth::cli;

/// What one thread allocates for an event of the log, another frees: the C library's allocator makes
/// them wait for each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("call2me-auth: {line}");
            // Bad configuration, a port in use, a database that is away: for whoever started it.
            ExitCode::from(2)
        }
    }
}
