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
        Err(failure) => {
            eprintln!("call2me-auth: {}", failure.line);
            ExitCode::from(failure.code)
        }
    }
}
