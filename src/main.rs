//! The binary: parses the command line, runs what it asks for, says how it ended.

use std::process::ExitCode;

use call2me_auth::cli;

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
