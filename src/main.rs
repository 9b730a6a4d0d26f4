//! The binary: runs the command line and prints its error.

use std::process::ExitCode;

use call2me_auth::cli;

/// Audit events are allocated by one thread and freed by another, which causes lock contention in
/// the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("call2me-auth: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
